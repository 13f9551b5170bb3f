"""Explanations of trained PyTorch networks: why a network gives an output, and which inputs best represent its concepts.

The public names and the modules that define them are listed in `__init__.pyi`. Each is imported when it is first used, so that
the command line answers `--help` without torch.
"""

from typing import Any

from lazy_loader import attach_stub

_import, _names, __all__ = attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from whence.core.public_names import missing_name, prepare

    if name not in __all__:
        raise missing_name(__name__, name, __all__)
    globals()[name] = found = prepare(_import(name))
    return found


def __dir__() -> list[str]:
    return sorted([*_names(), "__version__"])
