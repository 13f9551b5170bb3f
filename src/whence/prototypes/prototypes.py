"""The result of a search for prototypes."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from whence.core.files import write_npz, write_safetensors
from whence.core.result import Result
from whence.errors import InputError, count_noun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from whence.plotting.image_grid import ImageTile


@dataclass(frozen=True, repr=False, eq=False)
class Prototypes(Result):
    """Prototypes of K concepts, with the values and the history of the search.

    >>> p = whence.prototype(model, range(10), prior=expert)
    >>> p.images, p.names                           # [10, …]
    >>> p.activation, p.log_prob                    # both terms of the maximised function, [10]
    >>> p.history["activation"]                     # [steps, 10]
    >>> p.save("grid.png")                          # or .pdf, .svg, .npz, .safetensors

    Args:
        images: Inputs `[K, …]`.
        names: Names of the concepts.
        activation: The objectives `[K]`, without transforms.
        log_prob: log p(x) `[K]`, without the strength; None without a prior.
        codes: Codes `[K, k]` if the prior is a `CodeSpace`.
        history: "activation" and "log_prob" at each step, `[steps, K]`.
        bounds: Values of black and white pixels, to draw images.
        samples: Samples of the data `[K, n, …]`, from `beside`.
        columns: Columns of the grid in figures, from `arranged`.
        note: Description of problems of the search, empty if there were none.
    """

    images: Tensor
    names: Sequence[str]
    activation: Tensor
    log_prob: Tensor | None = None
    codes: Tensor | None = None
    history: dict[str, Tensor] = field(default_factory=dict)
    bounds: Any = None
    samples: Tensor | None = None
    columns: int | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice) -> "Prototypes":
        """Return one prototype or a slice of them, still as a batch."""
        if not isinstance(index, slice):
            index = operator.index(index)
            if not -len(self) <= index < len(self):  # iteration ends here
                raise IndexError(f"index {index} is out of range for {len(self)} prototypes")
            index = slice(index % len(self), index % len(self) + 1)
        some = {
            name: None if t is None else t[index]
            for name, t in (("log_prob", self.log_prob), ("codes", self.codes), ("samples", self.samples))
        }
        history = {name: t[:, index] for name, t in self.history.items()}
        return replace(
            self,
            images=self.images[index],
            names=list(self.names)[index],
            activation=self.activation[index],
            history=history,
            **some,
        )

    def beside(self, samples: Tensor) -> "Prototypes":
        """Return prototypes with samples of the data, which figures show next to each prototype.

        Args:
            samples: Tensor `[K, n, …]`, such as `data[whence.top_samples(…).indices]`.

        Raises:
            InputError: The samples are of another shape.
        """
        if samples.shape[0] != len(self) or samples.shape[2:] != self.images.shape[1:]:
            expected = f"[{len(self)}, n, {', '.join(map(str, self.images.shape[1:]))}]"
            raise InputError(f"samples of shape {tuple(samples.shape)}, expected {expected}")
        return replace(self, samples=samples)

    def arranged(self, columns: int) -> "Prototypes":
        """Return prototypes that figures show without names, in a grid of `columns` columns."""
        return replace(self, columns=columns)

    def __repr__(self) -> str:
        lines = [f"{count_noun(len(self), 'prototype')} {list(self.images.shape[1:])}"]
        for k, name in enumerate(self.names):
            prior = "" if self.log_prob is None else f", log p(x) {self.log_prob[k]:.4g}"
            lines.append(f"  {name}: {self.activation[k]:.4g}{prior}")
        return "\n".join([*lines, *([self.note] if self.note else [])])

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row for each prototype: its concept, its activation, and its log-probability under the prior."""
        log_prob = [None] * len(self) if self.log_prob is None else self.log_prob.tolist()
        columns = zip(self.names, self.activation.tolist(), log_prob, strict=True)
        return [dict(zip(("concept", "activation", "log_prob"), row, strict=True)) for row in columns]

    def save(self, path: str | Path) -> Path:
        """Save a figure (.png, .jpg, .pdf, .svg), the table (.csv, .json) or the tensors (.npz, .safetensors); return the path.

        Raises:
            WhenceError: The suffix is not supported, or the folder does not exist.
        """
        names = list(self.names)
        npz, safetensors = (lambda file: write_npz(file, self.numbers(), names=names)), self._write_safetensors
        return self._save(path, {".npz": npz, ".safetensors": safetensors})

    def _write_safetensors(self, path: Path) -> None:
        write_safetensors(path, self.numbers(), {"names": "\n".join(self.names)})

    def numbers(self) -> dict[str, Tensor]:
        """Return all tensors by name, as saved in `.npz` and `.safetensors`."""
        named = {name: getattr(self, name) for name in ("images", "activation", "log_prob", "codes", "samples")}
        named |= {f"history.{name}": t for name, t in self.history.items()}
        return {name: t.detach().cpu().contiguous() for name, t in named.items() if t is not None}

    def figure(self) -> "Figure":
        """Return a figure of all prototypes with their names; with samples of the data, one row for each prototype."""
        from whence.plotting import image_grid

        titles = [f"{name}  ({activation:.3g})" for name, activation in zip(self.names, self.activation, strict=True)]
        if self.samples is not None:
            samples = [[self._tile(sample) for sample in row] for row in self.samples]
            return image_grid.image_rows(
                [[self._tile(x, t), *row] for x, t, row in zip(self.images, titles, samples, strict=True)]
            )
        if self.columns is not None:
            return image_grid.mosaic([self._tile(x) for x in self.images], self.columns)
        if not len(self):
            raise InputError("no prototypes to draw")
        return image_grid.image_grid([self._tile(x, title) for x, title in zip(self.images, titles, strict=True)])

    def tiles(self) -> "list[ImageTile]":
        """Return the prototypes as images with their names as titles."""
        return [self._tile(x, name) for x, name in zip(self.images, self.names, strict=True)]

    def _tile(self, x: Tensor, title: str = "") -> "ImageTile":
        from whence.plotting.image_grid import ImageTile

        return ImageTile(x, title, self.bounds)


def compare_priors(rows: Mapping[str, Prototypes]) -> "Figure":
    """Return a figure with a row of prototypes for each name, such as the same concepts under several priors.

    >>> compare_priors({"ℓ2": whence.prototype(model, range(10)), "expert": whence.prototype(model, range(10), prior=expert)})
    """
    from whence.plotting.image_grid import image_table

    return image_table({name: prototypes.tiles() for name, prototypes in rows.items()})
