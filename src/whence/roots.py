"""Root-finding strategies of the simple Taylor decomposition."""

from whence.core.public_names import namespace
from whence.methods.taylor_roots import NearestRoot, RootOnManifold, RootTowards

__all__ = [
    "NearestRoot",
    "RootOnManifold",
    "RootTowards",
]
__getattr__ = namespace(__name__, globals())
