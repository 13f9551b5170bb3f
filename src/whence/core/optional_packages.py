"""Packages that are imported where they are needed, and may be missing."""

from importlib import import_module
from types import ModuleType

from whence.errors import MissingPackageError


def import_package(module: str, package: str = "") -> ModuleType:
    """Return a module of an optional package; raise `MissingPackageError` if the package is not installed.

    `package` is its name for pip, by default that of the module.

    >>> import_package("lightning.pytorch").Callback
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0]
        raise MissingPackageError(f"{package} is not installed; run pip install {package}") from error
