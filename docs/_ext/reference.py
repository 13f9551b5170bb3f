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

# a page for each part of the house, by the modules that its names come from
PAGES = {
    "explaining": (
        "Explaining",
        ("explain", "explainer", "explanation", "generation", "load", "checkpoint", "targets", "lrp.conservation"),
    ),
    "lrp": ("Layer-wise relevance propagation", ("lrp", "methods.lrp", "conditions")),
    "methods": ("Other methods", ("methods",)),
    "inside": ("Inside the network", ("inside",)),
    "prototypes": ("Prototypes", ("prototypes",)),
    "neuralize": ("Kernel machines, densities, clusterings", ("neuralize",)),
    "robustness": ("Robustness", ("robustness",)),
    "evaluation": ("Evaluation", ("evaluation",)),
    "datasets": ("Data sets and audits", ("datasets", "audit")),
    "models": ("Models by name", ("models",)),
    "production": ("In production", ("export", "show")),
}  # fmt: skip
MODULES = {"lrp": (whence.presets,), "evaluation": (whence.metrics, whence.imputers), "explaining": (whence.errors,)}
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
        entries = [_entry(f"whence.{name}", getattr(whence, name)) for name in names]
        for module in MODULES.get(page, ()):
            entries += [f"## whence.{module.__name__.split('.')[-1]}\n", _markdown(inspect.getdoc(module) or "")]
            entries += [_entry(f"whence.{module.__name__.split('.')[-1]}.{name}", found) for name, found in _public(module)]
        _save(folder / "api" / f"{page}.md", f"# {PAGES[page][0]}\n\n" + "\n".join(entries))
    _save(folder / "rules.md", _rules())
    _save(folder / "functions.md", _functions())


def _save(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:  # what did not change is not built anew
        path.write_text(text)


def _sorted_out() -> dict[str, list[str]]:
    """The public names by page."""
    found: dict[str, list[str]] = {page: [] for page in PAGES}
    for name, value in vars(whence).items():
        if not name.startswith("_") and not isinstance(value, ModuleType):
            found[_page(value)].append(name)
    return found


def _page(value: Any) -> str:
    module = getattr(value, "__module__", "") or type(value).__module__
    own = module.removeprefix("whence.")
    fitting = [(len(part), page) for page, (_, parts) in PAGES.items() for part in parts if f"{own}.".startswith(f"{part}.")]
    if not fitting:
        raise KeyError(f"no page of the reference for {module}; add it to PAGES")
    return max(fitting)[1]


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module offers, without the helpers that it imports."""
    for name, value in vars(module).items():
        made = getattr(value, "__module__", "")
        if name.startswith("_") or not made.startswith("whence") or not callable(value) or not inspect.getdoc(value):
            continue
        if module is whence.errors:
            offered = inspect.isclass(value)
        else:
            offered = made == module.__name__ if module is whence.presets else made != whence.errors.__name__
        if offered:
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
    for name, member in vars(kind).items():
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


def _markdown(text: str) -> str:
    """A docstring, its examples as blocks of code."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        body = inspect.cleandoc(paragraph)
        lines += [f"```pycon\n{body}\n```\n" if body.startswith(">>>") else f"{body}\n"]
    return "\n".join(lines)


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
