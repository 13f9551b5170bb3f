"""A Python file run as a script would be, by another program that goes on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def script_imports(path: Path, module: ModuleType) -> Iterator[None]:
    """Let the file import the modules in its folder, whatever of the same name was imported from elsewhere, and data classes
    find the module they are written in. Afterwards the names are free again: what is imported later on is not found."""
    folder, found = path.resolve().parent, sys.modules
    beside = {p.stem for p in folder.glob("*.py")} | {p.name for p in folder.iterdir() if p.is_dir()}

    def of_this_folder(name: str) -> bool:
        top = name.partition(".")[0]
        if top not in beside:
            return False
        file, ways = getattr(found.get(top), "__file__", None), getattr(found.get(top), "__path__", ())
        return file in {str(folder / f"{top}.py"), str(folder / top / "__init__.py")} or str(folder / top) in list(ways)

    def in_its_way(name: str) -> bool:  # installed packages go before folders that are none
        top = name.partition(".")[0]
        is_module = (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file()
        return top in beside and not of_this_folder(name) and (is_module or getattr(found.get(top), "__file__", None) is None)

    hidden = {name: found[name] for name in list(found) if in_its_way(name)}
    for name in hidden:
        del found[name]
    before = set(found)
    found.setdefault(module.__name__, module)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in found if name not in before and of_this_folder(name)]:
            del found[name]
        found.update(hidden)
