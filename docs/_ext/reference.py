"""The reference, written from the code at each build: every public name with its signature and docstring, the table of rules
with what they cost, and the table of torch functions with what is done with them. It cannot go stale."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from sphinx.application import Sphinx
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import whence
from whence.lrp.ops.registry import TREATMENTS
from whence.lrp.rules.rules import Rule

# a page for each subject, by the modules that its names are defined in
PAGES = {
    "explaining": ("Explaining", ("core.", "contexts.", "errors.", "lrp.engine.conservation.")),
    "lrp": ("Layer-wise relevance propagation", ("lrp.", "methods.lrp.", "core.conditions.")),
    "methods": ("Other methods", ("methods.",)),
    "inside": ("Inside the network", ("mechanistic.",)),
    "prototypes": ("Prototypes", ("prototypes.",)),
    "neuralize": ("Kernel machines, densities, clusterings", ("neuralization.",)),
    "robustness": ("Robustness", ("robustness.", "core.pixel_bounds.")),
    "evaluation": ("Evaluation", ("evaluation.", "benchmarking.")),
    "datasets": ("Data sets and audits", ("stores.", "auditing.", "monitoring.")),
    "models": ("Models by name", ("models.",)),
    "adapters": ("Other libraries", ("integrations.",)),
    "production": ("In production", ("exporting.", "plotting.", "core.activation_checkpointing.")),
}
MAIN_CALLS = {  # which stand first on their page
    "explaining": (
        "explain",
        "Explanation",
        "Explainer",
        "explain_targets",
        "explain_generation",
        "explain_detections",
        "sources",
    ),
    "lrp": ("LRP",),
    "methods": ("IntegratedGradients", "Shapley", "GradCAM", "Occlusion"),
    "inside": ("concepts", "channel_relevance", "attribution_graph", "patching"),
    "prototypes": ("prototype",),
    "neuralize": ("neuralize",),
    "robustness": ("attack", "explain_attack", "attack_explanation"),
    "evaluation": ("evaluate", "reliability", "compare", "tune", "bench"),
    "datasets": ("explain_dataset", "audit", "prove", "cure"),
    "models": ("load_model", "LoadedModel", "Preprocessing", "TableReader", "SeriesReader"),
    "production": ("export",),
}
NAMESPACES = [
    space
    for space in (getattr(whence, name) for name in whence.__all__)
    if isinstance(space, ModuleType) and space.__name__.startswith("whence.") and hasattr(space, "__all__")
]
RULES = """# Rules

For linear maps. The cost is counted: convolutions that one layer takes, its prediction among them, where a plain gradient takes
2, by a prepared `Explainer`.

| rule | what | convolutions |
|---|---|---|
{rules}

For functions that are not linear:

| rule | what |
|---|---|
{others}

Sets of rules:

| set | what |
|---|---|
{presets}
"""
FUNCTIONS = """# Torch functions

What is done with each of {count} torch functions, by the one name that its spellings share (methods, operators, in-place
variants). A function that is neither here nor linear is refused by name, and a rule for its module or itself (`Identity`,
`Constant`, `Gradient`) takes it.

| treatment | functions |
|---|---|
{rows}
"""
COUNTED = {torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "reference"))
    return {"parallel_read_safe": True}


def write(folder: Path) -> None:
    """The pages, into a folder."""
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for page, names in _sorted_out().items():
        entries = [_entry(name, value) for name, value in names.items()]
        _save(folder / "api" / f"{page}.md", f"# {PAGES[page][0]}\n\n" + "\n".join(entries))
    _save(folder / "rules.md", _rules())
    _save(folder / "functions.md", _functions())


def _save(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:  # what did not change is not built anew
        path.write_text(text)


def _sorted_out() -> dict[str, dict[str, Any]]:
    """Return the public names and what they are, by page: those of the front door first, then those of the namespaces."""
    found: dict[str, dict[str, Any]] = {page: {} for page in PAGES}
    known: set[int] = set()
    for space in (whence, *NAMESPACES):
        for name in space.__all__:
            value = getattr(space, name)
            if not isinstance(value, ModuleType) and id(value) not in known:
                known.add(id(value))
                found[_page(value, space)][f"{space.__name__}.{name}"] = value
    found["explaining"] |= {f"whence.errors.{name}": value for name, value in vars(whence.errors).items() if _is_error(value)}
    return {page: _main_first(page, names) for page, names in found.items()}


def _main_first(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Return the names of a page, the main calls first, then the functions and classes of the front door, then namespaces."""
    main = [f"whence.{name}" for name in MAIN_CALLS.get(page, ())]
    missing = [name for name in main if name not in names]
    if missing:
        raise KeyError(f"{missing[0]} is not on the page {page!r} of the reference; mend MAIN_CALLS")
    return {name: names[name] for name in dict.fromkeys([*main, *names])}


def _is_error(value: Any) -> bool:
    return inspect.isclass(value) and value.__module__ == "whence.errors"


def _page(value: Any, space: ModuleType) -> str:
    module = getattr(value, "__module__", "") or type(value).__module__
    own = module.removeprefix("whence.")
    fitting = [(len(part), page) for page, (_, parts) in PAGES.items() for part in parts if f"{own}.".startswith(part)]
    if not fitting and space is not whence:  # a constant of a namespace
        return _page(next(v for n in space.__all__ if callable(v := getattr(space, n))), whence)
    if not fitting:
        raise KeyError(f"no page of the reference for {module}; add it to PAGES")
    return max(fitting)[1]


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the callables of a namespace that have docstrings."""
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) and inspect.getdoc(value) and not inspect.isclass(value):
            yield name, value


def _entry(name: str, value: Any) -> str:
    """A directive of the Python domain."""
    if not callable(value):
        return _directive("data", name, type(value).__doc__ or "")
    if not inspect.isclass(value):
        return _directive("function", name + _signature(value), inspect.getdoc(value) or "")
    members = "".join(_members(value))
    return _directive("class", name + _signature(value), inspect.getdoc(value) or "", members)


def _members(kind: type) -> Iterator[str]:
    own = [vars(base) for base in reversed(kind.__mro__) if base.__module__.startswith("whence.")]
    for name, member in {name: member for base in own for name, member in base.items()}.items():
        if name.startswith("_"):
            continue
        if isinstance(member, property) and inspect.getdoc(member):
            yield _directive("property", name, inspect.getdoc(member) or "")
        elif isinstance(member, classmethod | staticmethod) and inspect.getdoc(member.__func__):
            yield _directive("method", name + _signature(getattr(kind, name)), inspect.getdoc(member.__func__) or "")
        elif inspect.isfunction(member) and inspect.getdoc(member):
            yield _directive("method", name + _signature(member, 1), inspect.getdoc(member) or "")


def _directive(kind: str, head: str, text: str, inside: str = "") -> str:
    fence = ":" * (5 if inside else 4)
    return f"{fence}{{py:{kind}}} {head}\n\n{_markdown(text)}\n{inside}{fence}\n\n"


SECTIONS = {"Args:": "Parameters", "Returns:": "Returns", "Yields:": "Yields", "Raises:": "Raises"}


def _markdown(text: str) -> str:
    """Return a docstring as Markdown: its examples as blocks of code, its sections as lists."""
    lines: list[str] = []
    for paragraph in re.sub(r"\n(?=(?:Args|Returns|Yields|Raises):\n)", "\n\n", text).split("\n\n"):
        body = inspect.cleandoc(paragraph)
        head, _, rest = body.partition("\n")
        if head in SECTIONS:
            lines += [f"**{SECTIONS[head]}**\n", _list(inspect.cleandoc(rest)), ""]
        else:
            lines += [f"```pycon\n{body}\n```\n" if body.startswith(">>>") else f"{body}\n"]
    return "\n".join(lines)


def _list(text: str) -> str:
    """Return the entries of a section, `name: what it is` with indented lines below, as a list."""
    entries: list[str] = []
    for line in text.split("\n"):
        if line.startswith(" ") and entries:
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line)
    return "\n".join("* " + re.sub(r"^([*\w., ]+):", _code, entry) for entry in entries)


def _code(match: re.Match[str]) -> str:
    return ", ".join(f"`{name.strip()}`" for name in match.group(1).split(",")) + ":"


def _signature(function: Callable[..., Any], skip: int = 0) -> str:
    try:
        given = inspect.signature(function)
    except (TypeError, ValueError):
        return "()"
    parameters = [p.replace(annotation=p.empty, default=_default(p.default)) for p in list(given.parameters.values())[skip:]]
    return str(given.replace(parameters=parameters, return_annotation=given.empty))


class _Shown:
    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _default(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return value
    text = repr(value)
    try:
        ast.parse(text)
    except SyntaxError:
        text = "..."
    return _Shown(text if len(text) < 60 else "...")


# tables


class _Convolutions(TorchDispatchMode):
    """Counts them, and their ways back."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in COUNTED
        return function(*args, **(kwargs or {}))


def _cost(rule: Rule, first: bool) -> int:
    """The convolutions that a layer takes, those of its prediction and gradient included, in the second explanation."""
    layers = [
        nn.Conv2d(3, 4, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(2),
    ]
    model, x = nn.Sequential(*layers).eval(), torch.rand(1, 3, 8, 8)
    model(x)
    place, other = ("0", "2") if first else ("2", "0")
    explainer = whence.Explainer(model, whence.LRP({place: rule, other: whence.Epsilon(0)}))
    explainer(x, 0)
    with _Convolutions() as counted:
        explainer(x, 0)
    return counted.count - 2  # those of the other layer


def _rules() -> str:
    kinds = {
        "Epsilon": (whence.Epsilon(), False), "Gamma": (whence.Gamma(), False), "RisingGamma": (whence.RisingGamma(), False),
        "AlphaBeta": (whence.AlphaBeta(), False), "ZPlus": (whence.ZPlus(), False), "ZBox": (whence.ZBox(0.0, 1.0), True),
        "WSquare": (whence.WSquare(), True), "Flat": (whence.Flat(), True),
    }  # fmt: skip
    rows = [f"| `{name}` | {_first_sentence(type(rule))} | {_cost(rule, first)} |" for name, (rule, first) in kinds.items()]
    others = [
        f"| `{kind.__name__}` | {_first_sentence(kind)} |" for kind in (whence.Identity, whence.Constant, whence.Gradient)
    ]
    presets = [f"| `presets.{name}()` | {_first_sentence(preset)} |" for name, preset in _public(whence.presets)]
    return RULES.format(rules="\n".join(rows), others="\n".join(others), presets="\n".join(presets))


def _functions() -> str:
    """Treatments, and the functions that have each."""
    by_treatment: dict[Any, list[str]] = {}
    for name, treatment in TREATMENTS.items():
        by_treatment.setdefault(treatment, []).append(name)
    rows = [
        f"| {_first_sentence(treatment)} | {' '.join(f'`{n}`' for n in sorted(names))} |"
        for treatment, names in by_treatment.items()
    ]
    return FUNCTIONS.format(count=len(TREATMENTS), rows="\n".join(rows))


def _first_sentence(thing: Any) -> str:
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    if not text:
        raise KeyError(f"{thing} has no docstring, which the reference shows")
    return re.sub(r"([|<])", r"\\\1", text)
