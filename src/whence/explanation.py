"""What comes back from an explanation."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.inputs import Nest
from whence.lrp.conservation import Conservation
from whence.show.drawable import PICTURES, Drawable, writable
from whence.targets import Logit, Span, of_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (*PICTURES, ".html", ".npz", ".safetensors")


@dataclass(frozen=True, repr=False, eq=False)
class Explanation(Drawable):
    """Relevance of every input feature of a batch, with the account of where it came from.

    >>> e = whence.explain(model, x, target=3)
    >>> e.relevance.shape == x.shape, e.output, e.conservation
    >>> e.save("heat.png")              # or .html, .npz, .safetensors
    >>> e[0]                            # the first sample alone

    `relevance` has the structure, shapes and dtype of the input; `layers` holds the relevance at the outputs of the layers
    asked for (a tuple where a layer ran more than once). `standard_errors`, like the relevance, say how far off a sampled
    estimate may be, one standard deviation; `interactions` `[N, features, features]` are those of `Shapley`.
    """

    relevance: Nest
    output: Tensor  # [N]
    target: Any  # class indices [N], a Logit or Span with its indices filled in, or the target function
    conservation: Conservation
    layers: dict[str, Any] = field(default_factory=dict)
    inputs: Nest = None
    method: Any = None
    classes: Sequence[str] | Mapping[int, str] = ()  # names of the classes or tokens, for pictures and pages
    tokens: dict[str, list[list[str]]] = field(default_factory=dict)  # of inputs of token ids, by their names
    standard_errors: Nest = None
    interactions: Tensor | None = None
    root: Nest = None  # of a Taylor decomposition, like the inputs

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
        return replace(
            self,
            relevance=_each(lambda t: t[index], self.relevance),
            output=self.output[index],
            target=of_samples(self.target, index),
            conservation=self.conservation[index],
            layers=_each(lambda t: t[index], self.layers),
            inputs=_each(lambda t: t[index], self.inputs),
            tokens={name: rows[index] for name, rows in self.tokens.items()},
            standard_errors=_each(lambda t: t[index], self.standard_errors),
            interactions=_each(lambda t: t[index], self.interactions),
            root=_each(lambda t: t[index], self.root),
        )

    def __repr__(self) -> str:
        shapes = ", ".join(str(list(t.shape)) for t in tensors(self.relevance).values())
        return f"Explanation of {shapes} by {described(self.method)}\n  target {self.target_names()}\n  {self.conservation!r}"

    def target_names(self) -> list[str]:
        """A word for the target of each sample."""
        if isinstance(self.target, Tensor):
            return [self._name(i) for i in self.target.tolist()]
        if isinstance(self.target, Logit | Span):
            return [self.target.words(self._name, i) for i in range(len(self))]
        return [getattr(self.target, "__name__", "function")] * len(self)

    def with_tokens(self, tokenizer: Any) -> "Explanation":
        """The same with token ids as words, for pictures, pages and the terminal; `tokenizer` is Hugging Face's."""
        from whence.models.texts import tokens

        named = tensors(self.inputs)
        texts = {name: t for name, t in named.items() if not t.is_floating_point() and ("input_ids" in name or len(named) == 1)}
        words = {name: [tokens(tokenizer, row) for row in t.reshape(len(t), -1).tolist()] for name, t in texts.items()}
        if self.classes or not isinstance(self.target, Tensor | Logit):
            return replace(self, tokens=words)
        target = self.target if isinstance(self.target, Logit) else Logit(self.target)
        ids = sorted({i for t in (target.index, target.rather_than) if isinstance(t, Tensor) for i in t.tolist()})
        names = [word.strip() or word for word in tokens(tokenizer, ids)]
        return replace(self, tokens=words, classes=dict(zip(ids, names, strict=True)))

    def tokens_of(self, sample: int) -> list[str]:
        """The words of one sample's first text; none before `with_tokens`."""
        return next((rows[sample] for rows in self.tokens.values()), [])

    def _name(self, index: int) -> str:
        known = index in self.classes if isinstance(self.classes, Mapping) else index < len(self.classes)
        return self.classes[index] if known else str(index)

    def save(self, path: str | Path) -> Path:
        """Write a picture (.png, .jpg, .pdf, .svg), a page (.html) or the numbers (.npz, .safetensors); returns the path."""
        path = writable(path, SUFFIXES)
        {".html": self._save_page, ".npz": self._save_npz, ".safetensors": self._save_safetensors}.get(
            path.suffix, super().save
        )(path)
        return path

    def figure(self) -> "Figure":
        """A row for each of the first samples: the input, its heatmap, and one over the other."""
        from whence.show import heatmaps

        return heatmaps.figure(self)

    def numbers(self) -> dict[str, Tensor]:
        """Everything as named tensors: what `.npz` and `.safetensors` hold."""
        named = tensors(self.relevance, "relevance") | tensors(self.layers, "layers") | {"output": self.output}
        logit = Logit(self.target) if isinstance(self.target, Tensor) else self.target
        if isinstance(logit, Logit):
            named |= {
                key: t for key, t in (("target", logit.index), ("rather_than", logit.rather_than)) if isinstance(t, Tensor)
            }
        account = {"absorbed": self.conservation.absorbed, "baseline": self.conservation.baseline}
        named |= {name: t for name, t in (account | {"interactions": self.interactions}).items() if t is not None}
        named |= tensors(self.standard_errors, "standard_errors") | tensors(self.root, "root")
        return {name: t.detach().cpu().contiguous() for name, t in named.items()}

    def _save_npz(self, path: Path) -> None:
        import numpy as np

        arrays: dict[str, Any] = {
            name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in self.numbers().items()
        }
        np.savez_compressed(path, **arrays)

    def _save_safetensors(self, path: Path) -> None:
        from safetensors.torch import save_file

        save_file(self.numbers(), path, {"method": described(self.method)})

    def _save_page(self, path: Path) -> None:
        from whence.show import report

        path.write_text(report.page(self), encoding="utf-8")


def described(value: Any) -> str:
    """A method or rule in one line, its tensors by their shapes and its nests by what is in them.

    >>> described(whence.ExpectedGradients(torch.rand(100, 784)))
    'ExpectedGradients(background=tensor[100, 784])'
    """
    if isinstance(value, Tensor) and value.dim():
        return f"tensor{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {described(v)}' for key, v in value.items())}}}"
    if type(value) in (list, tuple):
        return f"({', '.join(map(described, value))})"
    if not is_dataclass(value) or isinstance(value, type) or not vars(type(value))["__dataclass_params__"].repr:
        return repr(value)
    given = ((f, getattr(value, f.name)) for f in fields(value))
    return f"{type(value).__name__}({', '.join(f'{f.name}={described(v)}' for f, v in given if not _is_default(f, v))})"


def _is_default(f: Field, value: Any) -> bool:
    return value is f.default or (isinstance(value, int | float | str) and value == f.default)


def tensors(nest: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a nest by name: "relevance", "relevance.1", "layers.features.28"."""
    if isinstance(nest, Tensor):
        return {name: nest}
    items = nest.items() if isinstance(nest, dict) else enumerate(nest or ())
    found: dict[str, Tensor] = {}
    for key, value in items:
        found |= tensors(value, f"{name}.{key}" if name else str(key))
    return found


def _each(change: Any, nest: Any) -> Any:
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, dict):
        return {key: _each(change, value) for key, value in nest.items()}
    return nest if nest is None else tuple(_each(change, value) for value in nest)
