"""Imports of a Python file that is executed like a script within another program."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def script_imports(path: Path, module: ModuleType) -> Iterator[None]:
    """Let the file import modules from its own folder, even if others of the same name are loaded, and let dataclasses find
    their module. Afterwards these modules are removed from `sys.modules`, so imports at call time do not find them."""
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
