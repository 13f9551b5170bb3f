"""Imports run one way, those inside functions and under TYPE_CHECKING included: no circle, no lower room on a higher one."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import whence

SOURCES = Path(whence.__file__).parent
# from the bottom up; a file outside of the packages stands where it is named
ROOMS = [
    "errors",
    "lrp",
    "activations advice cluster conditions fingerprints nests words weights inputs patches progress rows salvage targets show",
    "explanation",
    "methods checkpoint",
    "sizes",
    "written",
    "recorded",
    "captures",
    "explainer explain generation load",
    "evaluation prototypes robustness neuralize",
    "datasets inside export",
    "audit",
    "models",
    "cli web",
]
LRP = [
    "vocabulary functions calls unseen decisions",
    "linear saved conservation kept",
    "rules propagation",
    "bags",
    "inheritance lookups reading scope surroundings states",
    "composites prepared",
    "workbench own_rules",
    "treatments",
    "operations",
    "mode presets",
    "traced",
    "loops",
]


def name_of(path: Path) -> str:
    return ".".join(("whence", *path.relative_to(SOURCES).with_suffix("").parts)).removesuffix(".__init__")


FILES = {name_of(path): path for path in SOURCES.rglob("*.py")}


def imported(source: str, modules: set[str]) -> set[str]:
    """The modules of the library that a source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    whole = {name for name in found if name in modules}
    return {name for name in whole if not any(other.startswith(f"{name}.") for other in whole)} - {"whence"}


IMPORTS = {name: imported(path.read_text(), set(FILES)) for name, path in FILES.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def level(name: str, rooms: list[str], inside: str) -> int | None:
    """The place in `rooms` of a module of the package `inside`, none of the front door."""
    room = name.removeprefix(f"{inside}.").split(".")[0]
    return next((i for i, names in enumerate(rooms) if room in names.split()), None)


def test_no_circle():
    assert not circle(IMPORTS)


def test_a_circle_would_be_found():
    sources = {"a": "def f():\n    from b import g", "b": "if TYPE_CHECKING:\n    import c", "c": "from a import f"}
    assert circle({name: imported(source, set(sources)) for name, source in sources.items()})


@pytest.mark.parametrize(("rooms", "inside"), [(ROOMS, "whence"), (LRP, "whence.lrp")])
def test_no_room_imports_a_higher_one(rooms, inside):
    upwards = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if name.startswith(f"{inside}.") and other.startswith(f"{inside}.")
        and level(name, rooms, inside) is not None and level(other, rooms, inside) > level(name, rooms, inside)
    ]  # fmt: skip
    assert not upwards, "\n".join(sorted(upwards))


@pytest.mark.parametrize(("rooms", "inside"), [(ROOMS, "whence"), (LRP, "whence.lrp")])
def test_every_file_has_a_room(rooms, inside):
    inner = [name for name in FILES if name.startswith(f"{inside}.") and name != "whence.__main__"]
    assert not [name for name in inner if level(name, rooms, inside) is None]
