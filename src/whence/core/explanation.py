"""What comes back from an explanation."""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.forward_record import InternalTarget
from whence.core.image_patches import PatchLayout
from whence.core.targets import Logit, Span, select_target_samples
from whence.core.tokens import token_strings
from whence.core.trees import Tree, map_leaves, named_leaves, short_repr, with_leaves
from whence.errors import InputError
from whence.lrp.engine.conservation import Conservation
from whence.plotting.drawable import PICTURE_SUFFIXES, Result, text_writer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from whence.plotting.panels import Panel

MOST_DRAWN = 16  # samples
TREE_FIELDS = ("relevance", "inputs", "layers", "standard_errors", "root")
FEW_ROWS = 4
SUFFIXES = (*PICTURE_SUFFIXES, ".html", ".npz", ".safetensors")


@dataclass(frozen=True, repr=False, eq=False)
class Explanation(Result):
    """Relevance of every input feature of a batch, with the account of where it came from.

    >>> e = whence.explain(model, x, target=3)
    >>> e.relevance.shape == x.shape, e.output, e.conservation
    >>> e.save("heat.png")              # or .html, .npz, .safetensors
    >>> e[0]                            # the first sample alone

    `relevance` has the structure, shapes and dtype of the input; `layers` holds the relevance at the outputs of the layers
    asked for (a tuple where a layer ran more than once). `standard_errors`, like the relevance, say how far off a sampled
    estimate may be, one standard deviation; `interactions` `[N, features, features]` are those of `Shapley`.
    """

    relevance: Tree
    output: Tensor  # [N]
    target: Any  # class indices [N], a Logit or Span with its indices filled in, or the target function
    conservation: Conservation
    layers: dict[str, Any] = field(default_factory=dict)
    inputs: Tree = None
    method: Any = None
    classes: Sequence[str] | Mapping[int, str] = ()  # names of the classes or tokens, for pictures and pages
    features: Mapping[str, Sequence[str]] = field(default_factory=dict)  # names of features or channels, by input
    tokens: dict[str, list[list[str]]] = field(default_factory=dict)  # of inputs of token ids, by their names
    standard_errors: Tree = None
    interactions: Tensor | None = None
    root: Tree = None  # of a Taylor decomposition, like the inputs
    patches: Mapping[str, PatchLayout] = field(
        default_factory=dict
    )  # of inputs that are pictures cut into rows, by their names
    note: str = ""  # what is explained, where it is not quite what was asked for

    def __len__(self) -> int:
        return len(self.output)

    def __getitem__(self, index: int | slice) -> "Explanation":
        """One sample or a slice of them, still as a batch."""
        if not isinstance(index, slice):
            index = operator.index(index)
            if not -len(self) <= index < len(self):  # iteration ends here
                raise IndexError(f"sample {index} of an explanation of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        if index.step is not None and index.step < 1:
            raise IndexError(f"samples cannot be sliced by steps of {index.step}")

        def chosen(rows: Any) -> Any:
            return rows[index] if len(rows) == len(self) else rows  # else they belong to all samples

        return replace(
            self,
            relevance=map_leaves(chosen, self.relevance),
            output=self.output[index],
            target=select_target_samples(self.target, index),
            conservation=self.conservation[index],
            layers=map_leaves(chosen, self.layers),
            inputs=map_leaves(chosen, self.inputs),
            tokens={name: chosen(rows) for name, rows in self.tokens.items()},
            standard_errors=map_leaves(chosen, self.standard_errors),
            interactions=map_leaves(chosen, self.interactions),
            root=map_leaves(chosen, self.root),
        )

    def __repr__(self) -> str:
        shapes = ", ".join(str(list(t.shape)) for t in named_leaves(self.relevance).values())
        target = f"{self.target_names()}{self.note and f', {self.note}'}"
        fixed = f"; held fixed: {', '.join(self.held_fixed)}" if self.held_fixed else ""
        return f"Explanation of {shapes} by {short_repr(self.method)}{fixed}\n  target {target}\n  {self.conservation!r}"

    @property
    def held_fixed(self) -> list[str]:
        """The inputs that are not explained, by name or place: masks, numbers, integers that are no ids."""
        return [name for name in self._parts if name not in named_leaves(self.relevance)]

    @property
    def _parts(self) -> list[str]:
        """All inputs, by name or place."""
        if isinstance(self.relevance, Tensor):
            return [""]
        return list(map(str, self.relevance if isinstance(self.relevance, dict) else range(len(self.relevance or ()))))

    def target_names(self) -> list[str]:
        """A word for the target of each sample."""
        if isinstance(self.target, Tensor):
            return [self._name(i) for i in self.target.tolist()]
        if isinstance(self.target, Logit | Span):
            return [self.target.words(self._name, i) for i in range(len(self))]
        name = str(self.target) if isinstance(self.target, InternalTarget) else getattr(self.target, "__name__", "function")
        return [name] * len(self)

    def heading(self, sample: int = 0) -> str:
        """What is explained of a sample; a class that has no name as "class 3"."""
        name = self.target_names()[sample]
        return f"class {name}" if not self.classes and name.isdecimal() else name

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
        if self.classes or not isinstance(self.target, Tensor | Logit):
            return replace(self, tokens=words)
        target = self.target if isinstance(self.target, Logit) else Logit(self.target)
        ids = sorted({i for t in (target.index, target.rather_than) if isinstance(t, Tensor) for i in t.tolist()})
        names = [word.strip() or word for word in token_strings(tokenizer, ids)]
        return replace(self, tokens=words, classes=dict(zip(ids, names, strict=True)))

    def tokens_of(self, sample: int) -> list[str]:
        """The words of one sample's first text; none before `with_tokens`."""
        return next((rows[sample] for rows in self.tokens.values()), [])

    def _name(self, index: int) -> str:
        known = index in self.classes if isinstance(self.classes, Mapping) else index < len(self.classes)
        return self.classes[index] if known else str(index)

    def save(self, path: str | Path) -> Path:
        """Write a picture (.png, .jpg, .pdf, .svg), a page (.html) or the numbers (.npz, .safetensors); returns the path."""
        others = {".html": text_writer(self._page), ".npz": self._save_npz, ".safetensors": self._save_safetensors}
        return self._saved(path, others)

    def figure(self) -> "Figure":
        """A row for each of the first samples and inputs: the input, its heatmap, and one over the other; a text with coloured
        tokens; bars for plain vectors."""
        from whence.plotting.panels import stack_panels

        return stack_panels([panel for sample in range(min(len(self), MOST_DRAWN)) for panel in self.panels(sample)])

    def panels(self, sample: int) -> "list[Panel]":
        """What of one sample is drawn."""
        from whence.plotting.interactions import InteractionMatrix
        from whence.plotting.token_text import TokenText, merge_runs

        account, relevance, given = self.conservation, named_leaves(self.relevance), named_leaves(self.inputs)
        what = f"{self.heading(sample)} {self.note}".rstrip()
        total = f",  ΣR = {account.relevance[sample]:.4g}" if account.adds_up else ""
        about = f"{what}:  f = {account.output[sample]:.4g}{total}"
        panels: list[Panel] = []
        for name, x in given.items():
            r, title = relevance[name], f"{name}   {about}" if len(given) > 1 else about
            if x.is_floating_point():
                panels += self._of_numbers(name, x, r, title, sample)
            elif name in self.tokens:
                rows = self._rows(x, sample)
                panels += [TokenText(*merge_runs(self.tokens[name][row], r[row]), title) for row in rows]
            elif not self.tokens:  # else they are ids of other kinds, such as segments: no text
                rows = self._rows(x, sample)
                panels += [TokenText([f" {i}" for i in x[row].flatten().tolist()], r[row], title) for row in rows]
        if self.interactions is not None:
            names = next(iter(self.features.values()), ())
            panels.append(InteractionMatrix(self.interactions[sample], "interactions of the features", names))
        return panels

    def _rows(self, rows: Any, sample: int) -> Sequence[int]:
        """Those of one sample: its own, or all where they belong to all samples."""
        return [sample] if len(rows) == len(self) else range(len(rows))

    def _of_numbers(self, name: str, x: Tensor, relevance: Tensor, title: str, sample: int) -> "list[Panel]":
        """One input: the pictures that its rows are patches of, one picture of many rows that belong to all samples (the nodes
        of a graph), else each row by itself."""
        from whence.plotting.heatmaps import Heatmap

        if name in self.patches:
            patches = self.patches[name]
            both = zip(patches.pictures(x, torch.mean), patches.pictures(relevance, torch.sum), strict=True)
            return [Heatmap(picture, heat, title) for picture, heat in both]
        if x.dim() == 2 and len(x) != len(self) and len(x) > FEW_ROWS:
            return [Heatmap(x, relevance, title)]
        return [self._of_row(name, x[row], relevance[row], title) for row in self._rows(x, sample)]

    def _of_row(self, name: str, x: Tensor, relevance: Tensor, title: str) -> "Panel":
        """Bars of a vector, lines of a series, else a picture."""
        from whence.plotting.bars import Bars
        from whence.plotting.heatmaps import Heatmap
        from whence.plotting.time_series import TimeSeries, is_series

        names = self.features.get(name, ())
        if relevance.dim() == 1:
            return Bars(relevance, title, names)
        return TimeSeries(x, relevance, title, names) if is_series(x) else Heatmap(x, relevance, title)

    def numbers(self) -> dict[str, Tensor]:
        """Everything as named tensors: what `.npz` and `.safetensors` hold, and `whence.load` reads."""
        return {name: t.detach().cpu().contiguous() for name, t in self.named_tensors().items()}

    def named_tensors(self) -> dict[str, Tensor]:
        """The same where they are."""
        named = (
            named_leaves(self.relevance, "relevance")
            | named_leaves(self.inputs, "inputs")
            | named_leaves(self.layers, "layers")
        )
        named |= {"output": self.output, "relevance_sum": self.conservation.relevance} | named_leaves(
            self.conservation.by_layer, "absorbed_by"
        )
        logit = Logit(self.target) if isinstance(self.target, Tensor) else self.target
        if isinstance(logit, Logit):
            named |= {
                key: t for key, t in (("target", logit.index), ("rather_than", logit.rather_than)) if isinstance(t, Tensor)
            }
        account = {"absorbed": self.conservation.absorbed, "baseline": self.conservation.baseline}
        named |= {name: t for name, t in (account | {"interactions": self.interactions}).items() if t is not None}
        return named | named_leaves(self.standard_errors, "standard_errors") | named_leaves(self.root, "root")

    def with_tensors(self, named: Mapping[str, Tensor]) -> "Explanation":
        """The same of other numbers, named as `named_tensors` names them."""
        logit = Logit(self.target) if isinstance(self.target, Tensor) else self.target
        if isinstance(logit, Logit):
            logit = replace(logit, index=named.get("target"), rather_than=named.get("rather_than"))
        account = replace(
            self.conservation,
            output=named["output"], relevance=named["relevance_sum"], absorbed=named.get("absorbed"),
            baseline=named.get("baseline"), by_layer=with_leaves(self.conservation.by_layer, named, "absorbed_by"),
        )  # fmt: skip
        nests = {name: with_leaves(getattr(self, name), named, name) for name in TREE_FIELDS}
        return replace(
            self, output=named["output"], target=logit.index if isinstance(self.target, Tensor) else logit,
            conservation=account, interactions=named.get("interactions"), **nests,
        )  # fmt: skip

    def _save_npz(self, path: Path) -> None:
        import numpy as np

        numbers = self.numbers()
        arrays: dict[str, Any] = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in numbers.items()}
        np.savez_compressed(path, about=self._about(numbers), **arrays)

    def _save_safetensors(self, path: Path) -> None:
        from safetensors.torch import save_file

        numbers = self.numbers()
        apart = {name: t.clone() for name, t in numbers.items()}  # an input may have been given twice
        save_file(apart, path, {"method": short_repr(self.method), "about": self._about(numbers)})

    def _about(self, numbers: Mapping[str, Tensor]) -> str:
        """What is no number, as JSON."""
        classes = self.classes if isinstance(self.classes, Mapping) else dict(enumerate(self.classes))
        return json.dumps({
            "method": short_repr(self.method),
            "targets": self.target_names(),
            "structure": "tensor" if isinstance(self.relevance, Tensor) else type(self.relevance).__name__,
            "parts": self._parts,
            "adds_up": self.conservation.adds_up,
            "classes": {str(i): name for i, name in classes.items()},
            "features": {name: list(names) for name, names in self.features.items()},
            "tokens": self.tokens,
            "layers": {name: len(calls) for name, calls in self.layers.items() if isinstance(calls, tuple)},
            "patches": {name: asdict(patches) for name, patches in self.patches.items()},
            "bfloat16": [name for name, t in numbers.items() if t.dtype == torch.bfloat16],
            "note": self.note,
        })  # fmt: skip

    def _page(self) -> str:
        from whence.plotting.html_pages import embed_in_each_palette, render_page

        account = self.conservation
        amounts = {"output": account.output} | account.parts | ({"relative error": account.error} if account.adds_up else {})
        columns = [column.tolist() for column in amounts.values()]
        layers = sorted(account.by_layer.items(), key=lambda item: -float(item[1].abs().sum()))
        pictures = not self.tokens or any(t.is_floating_point() for t in named_leaves(self.inputs).values())
        return render_page(
            "explanation.html",
            method=short_repr(self.method),
            parts=list(account.parts) if account.adds_up else [],
            headings=list(amounts),
            caution=account.caution,
            samples=list(zip(self.target_names(), zip(*columns, strict=True), strict=True)),
            layers=[(name, amount.tolist()) for name, amount in layers],
            texts=self._styled_texts(),
            picture=embed_in_each_palette(self.figure) if pictures else None,
        )

    def _styled_texts(self) -> list[tuple[str, list]]:
        """The texts of each sample as coloured tokens, under what is explained."""
        from whence.plotting.token_text import merge_runs, styled_tokens

        relevance, names = named_leaves(self.relevance), self.target_names()
        return [
            (names[i], styled_tokens(*merge_runs(rows[row], relevance[name][row].float().cpu())))
            for i in range(len(self))
            for name, rows in self.tokens.items()
            for row in self._rows(rows, i)
        ]


def _check_token_strings(words: Sequence[Any], ids: list[list[int]]) -> list[list[str]]:
    """A word for each id."""
    rows = [list(words)] if words and isinstance(words[0], str) else [list(row) for row in words]
    if [len(row) for row in rows] != [len(row) for row in ids]:
        given, wanted = ([len(row) for row in table] for table in (rows, ids))
        raise InputError(f"texts of {given} words for texts of {wanted} tokens; give a word for each token")
    return rows
