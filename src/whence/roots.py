"""Where a simple Taylor decomposition finds the root of the output."""

from whence.methods.taylor_roots import NearestRoot, RootOnManifold, RootTowards

__all__ = [
    "NearestRoot",
    "RootOnManifold",
    "RootTowards",
]
