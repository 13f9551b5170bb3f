"""Imports run one way, those inside functions and under TYPE_CHECKING included: no circle, no lower room on a higher one."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import whence

SOURCES = Path(whence.__file__).parent


ORDER = """
errors core.passages core.files core.argument_checks core.method_aliases core.optional_packages
core.public_names core.fingerprints lrp.engine.model_outputs
lrp.ops.function_names lrp.ops.function_facts lrp.engine.function_calls lrp.torch_compat.deferred_checks
lrp.torch_compat.traced_constants lrp.torch_compat.interrupts
lrp.torch_compat.saved_tensors lrp.torch_compat.tensor_identity lrp.engine.conservation
lrp.engine.linear_maps lrp.engine.weight_cache
lrp.rules.protocol lrp.rules.rules lrp.engine.propagation
lrp.engine.embedding_bags
lrp.engine.tensor_facts lrp.engine.embeddings lrp.engine.arguments lrp.torch_compat
lrp.rules.composites lrp.engine.prepared_model
lrp.engine.op_context lrp.ops.custom_ops
lrp.ops
lrp.ops.registry
lrp.engine.function_mode lrp.rules.presets
lrp.training
core data.sharding data.partial_failures data.dataset_rows plotting
core.explanation_data core.result
core.aggregation
core.feature_table core.explanation_account core.input_layouts
core.feature_plots core.series_rows
core.series_plots
core.explanation_io core.explanation_figures
core.explanation
methods core.activation_checkpointing
graphs
core.estimators
core.texts core.explainer core.explain core.generation core.explain_detections
contexts
data
prototypes robustness neuralization
evaluation
stores mechanistic exporting benchmarking
auditing
monitoring
integrations
models
frontends.common
frontends.cli frontends.web
adapters attacks callbacks conditions experiments images imputers layers metrics objectives plots presets priors results roots
"""


LEVELS = {f"whence.{name}": level for level, names in enumerate(ORDER.split("\n")) for name in names.split()}


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


def level(name: str) -> int | None:
    """The place in the order of a module, by the longest name that holds it; none of the front door."""
    parts = name.split(".")
    return next((LEVELS[outer] for k in range(len(parts), 1, -1) if (outer := ".".join(parts[:k])) in LEVELS), None)


def test_no_circle():
    assert not circle(IMPORTS)


def test_a_circle_would_be_found():
    sources = {"a": "def f():\n    from b import g", "b": "if TYPE_CHECKING:\n    import c", "c": "from a import f"}
    assert circle({name: imported(source, set(sources)) for name, source in sources.items()})


def test_no_module_imports_a_higher_one():
    upwards = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if (low := level(name)) is not None and (high := level(other)) is not None and high > low
    ]
    assert not upwards, "\n".join(sorted(upwards))


def test_every_module_has_a_level():
    assert not [name for name, path in FILES.items() if level(name) is None and path.name not in ("__init__.py", "__main__.py")]
