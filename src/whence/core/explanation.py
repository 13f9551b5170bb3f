"""Explanation: what explain() returns."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.explanation_data import ExplanationData
from whence.core.explanation_io import cpu_tensors, read_fields, write_explanation
from whence.core.files import PICTURE_SUFFIXES, Rows, text_writer
from whence.core.result import Result
from whence.core.targets import Logit
from whence.core.tokens import token_strings
from whence.core.trees import named_leaves, short_repr
from whence.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from whence.plotting.panels import Panel

SUFFIXES = (*PICTURE_SUFFIXES, ".html", ".npz", ".safetensors", ".csv", ".json")


@dataclass(frozen=True, repr=False, eq=False)
class Explanation(ExplanationData, Result):
    """Relevance of every input feature of a batch, with the account of where it came from.

    >>> e = whence.explain(model, x, target=3)
    >>> e.relevance.shape == x.shape, e.output, e.conservation
    >>> e.save("heat.png")              # or .html, .csv, .npz, .safetensors
    >>> e[0]                            # the first sample alone

    `relevance` has the structure, shapes and dtype of the input; `layers` holds the relevance at the outputs of the layers
    asked for (a tuple where a layer ran more than once). `standard_errors`, like the relevance, say how far off a sampled
    estimate may be, one standard deviation; `interactions` `[N, features, features]` are those of `Shapley`.
    """

    def __repr__(self) -> str:
        shapes = ", ".join(str(list(t.shape)) for t in named_leaves(self.relevance).values())
        target = f"{self.target_names()}{self.note and f', {self.note}'}"
        fixed = f"; held fixed: {', '.join(self.held_fixed)}" if self.held_fixed else ""
        return f"Explanation of {shapes} by {short_repr(self.method)}{fixed}\n  target {target}\n  {self.conservation!r}"

    def with_tokens(self, tokenizer: Any) -> "Explanation":
        """The same with token ids as words, for pictures, pages and the terminal.

        >>> e.with_tokens(tokenizer)                               # Hugging Face's
        >>> e.with_tokens(lambda ids: [vocabulary[i] for i in ids])
        >>> e.with_tokens(["not", " bad"])                         # of one text; a list of lists of several
        """
        named = named_leaves(self.inputs)
        texts = {name: t for name, t in named.items() if not t.is_floating_point() and ("input_ids" in name or len(named) == 1)}
        rows = {name: t.reshape(len(t), -1).tolist() for name, t in texts.items()}
        if isinstance(tokenizer, list | tuple):
            return replace(self, tokens={name: _check_token_strings(tokenizer, ids) for name, ids in rows.items()})
        words = {name: [token_strings(tokenizer, row) for row in ids] for name, ids in rows.items()}
        if self.class_names or not isinstance(self.target, Tensor | Logit):
            return replace(self, tokens=words)
        target = self.target if isinstance(self.target, Logit) else Logit(self.target)
        ids = sorted({i for t in (target.index, target.rather_than) if isinstance(t, Tensor) for i in t.tolist()})
        names = [word.strip() or word for word in token_strings(tokenizer, ids)]
        return replace(self, tokens=words, class_names=dict(zip(ids, names, strict=True)))

    def save(self, path: str | Path) -> Path:
        """Write a picture (.png, .jpg, .pdf, .svg), a page (.html), the table (.csv, .json) or all numbers (.npz,
        .safetensors), which `whence.load` reads, and return the path."""
        file = {suffix: lambda target: write_explanation(self, target) for suffix in (".npz", ".safetensors")}
        return self._save(path, {".html": text_writer(self._page), **file})

    def figure(self) -> "Figure":
        """Return a figure with a row for each of the first samples and inputs: the input, its heatmap, and one over the
        other; a text with coloured tokens; bars for plain vectors."""
        from whence.core.explanation_figures import figure

        return figure(self)

    def panels(self, sample: int) -> "list[Panel]":
        """Return the panels of one sample's figure."""
        from whence.core.explanation_figures import panels

        return panels(self, sample)

    @property
    def table(self) -> Rows:
        """A row for each sample and input feature: its index or name, its value and its relevance."""
        names, rows = self.target_names(), []
        values = named_leaves(self.inputs)
        for name, relevance in named_leaves(self.relevance).items():
            for sample in range(len(self)):
                for row in self.rows_of_sample(relevance, sample):
                    rows += self._rows(name, values.get(name), relevance[row], row, {"sample": sample, "target": names[sample]})
        return rows

    def numbers(self) -> dict[str, Tensor]:
        """Return everything as named tensors: what `.npz` and `.safetensors` hold."""
        return cpu_tensors(self)

    def _rows(self, name: str, values: Any, relevance: Tensor, row: int, about: dict[str, Any]) -> list[dict[str, Any]]:
        found = relevance.detach().float().cpu()
        x = values[row].detach().cpu() if isinstance(values, Tensor) and values[row].shape == found.shape else None
        known = self.tokens[name][row] if name in self.tokens else self.feature_names.get(name, ())
        about = about | ({"input": name} if name else {})
        flat = None if x is None else x.flatten().tolist()
        return [
            about
            | {"feature": known[i] if len(known) == prod(found.shape) else _index(i, found.shape)}
            | ({} if flat is None else {"value": flat[i]})
            | {"relevance": r}
            for i, r in enumerate(found.flatten().tolist())
        ]

    def _page(self) -> str:
        from whence.core.explanation_figures import render

        return render(self)


@check_arguments
def load(path: str | Path) -> Explanation:
    """Load an explanation from the `.npz` or `.safetensors` that its `save` wrote: to draw it again, to compare, to go on.

    >>> whence.explain(model, x).save("e.npz")
    >>> whence.load("e.npz").relevance

    Its method is told in words, and so is a target that was a function. Raises `LoadError` for other files.
    """
    return Explanation(**read_fields(path))


def _index(i: int, shape: "Sequence[int]") -> int | str:
    """The index of an entry, row by row; several dimensions as "0,3,5"."""
    if len(shape) <= 1:
        return i
    places = []
    for size in reversed(shape):
        i, place = divmod(i, size)
        places.append(place)
    return ",".join(map(str, reversed(places)))


def _check_token_strings(words: "Sequence[Any]", ids: list[list[int]]) -> list[list[str]]:
    """A word for each id."""
    rows = [list(words)] if words and isinstance(words[0], str) else [list(row) for row in words]
    if [len(row) for row in rows] != [len(row) for row in ids]:
        given, wanted = ([len(row) for row in table] for table in (rows, ids))
        raise InputError(f"texts of {given} words for texts of {wanted} tokens; give a word for each token")
    return rows
