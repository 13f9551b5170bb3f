"""Root-finding strategies of the simple Taylor decomposition."""

from whence.methods.taylor_roots import NearestRoot, RootOnManifold, RootTowards

__all__ = [
    "NearestRoot",
    "RootOnManifold",
    "RootTowards",
]
