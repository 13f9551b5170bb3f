"""The data of an explanation: relevance, the account of its conservation, and names."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from whence.core.columns import Column
from whence.core.detection import Detection
from whence.core.forward_record import InternalTarget
from whence.core.image_patches import PatchLayout
from whence.core.region import Region
from whence.core.targets import Logit, Span, select_target_samples
from whence.core.time_axis import TimeAxis
from whence.core.trees import Tree, map_leaves, named_leaves
from whence.lrp.engine.conservation import Conservation


@dataclass(frozen=True, repr=False, eq=False)
class ExplanationData:
    """The fields of `Explanation`, without figures and files."""

    relevance: Tree
    output: Tensor  # [N]
    target: Any  # class indices [N], a Logit or Span with its indices filled in, or the target function
    conservation: Conservation
    layers: dict[str, Any] = field(default_factory=dict)
    inputs: Tree = None
    method: Any = None
    class_names: Sequence[str] | Mapping[int, str] = ()  # names of the classes or tokens, for figures and pages
    feature_names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # names of features or channels, by input
    columns: Mapping[str, Sequence[Column]] = field(default_factory=dict)  # of tables with categories or one-hot columns
    feature_mask: Tree = None  # the feature number of every entry, where a method was given one; each has its feature's score
    tokens: dict[str, list[list[str]]] = field(default_factory=dict)  # token strings of inputs of token ids, by input
    standard_errors: Tree = None
    interactions: Tensor | None = None
    root: Tree = None  # of a Taylor decomposition, like the inputs
    patches: Mapping[str, PatchLayout] = field(
        default_factory=dict
    )  # of image inputs that are cut into rows of patches, by input
    channel_dims: Mapping[str, int] = field(default_factory=dict)  # of series and pictures, where the model tells, by input
    time_axis: TimeAxis | None = None  # of series
    note: str = ""  # what is explained, where that differs from the requested target

    def __len__(self) -> int:
        return len(self.output)

    def __getitem__(self, index: int | slice) -> Self:
        """Return the explanation of one sample or of a slice of samples, as a batch."""
        if not isinstance(index, slice):
            index = operator.index(index)
            if not -len(self) <= index < len(self):  # iteration ends here
                raise IndexError(f"sample {index} is out of range: the explanation has {len(self)} samples")
            index = slice(index % len(self), index % len(self) + 1)
        if index.step is not None and index.step < 1:
            raise IndexError(f"samples cannot be sliced with step {index.step}; the step must be at least 1")

        def chosen(rows: Any) -> Any:
            return rows[index] if len(rows) == len(self) else rows  # otherwise shared by all samples

        return replace(
            self,
            relevance=map_leaves(chosen, self.relevance),
            output=self.output[index],
            target=select_target_samples(self.target, index),
            conservation=self.conservation[index],
            layers=map_leaves(chosen, self.layers),
            inputs=map_leaves(chosen, self.inputs),
            feature_mask=map_leaves(chosen, self.feature_mask),
            tokens={name: chosen(rows) for name, rows in self.tokens.items()},
            standard_errors=map_leaves(chosen, self.standard_errors),
            interactions=map_leaves(chosen, self.interactions),
            root=map_leaves(chosen, self.root),
        )

    @property
    def held_fixed(self) -> list[str]:
        """The inputs that are not explained, by name or position: masks, plain numbers, integers that are not token ids."""
        return [name for name in self.input_names if name not in named_leaves(self.relevance)]

    @property
    def input_names(self) -> list[str]:
        """The names of all inputs, or their positions if they have no names."""
        if isinstance(self.relevance, Tensor):
            return [""]
        return list(map(str, self.relevance if isinstance(self.relevance, dict) else range(len(self.relevance or ()))))

    def entry_relevance(self, name: str) -> Tensor:
        """Return the relevance of an input with that of a feature of several entries divided among them, so that it adds up."""
        relevance, masks = named_leaves(self.relevance)[name], named_leaves(self.feature_mask)
        if name not in masks:
            return relevance
        rows = max(map(len, masks.values()))
        numbers = torch.cat([mask.reshape(len(mask), -1).expand(rows, -1) for mask in masks.values()], 1)
        sizes = torch.zeros(rows, int(numbers.max()) + 1, device=numbers.device, dtype=relevance.dtype)
        sizes.scatter_add_(1, numbers, torch.ones_like(numbers, dtype=relevance.dtype))
        own = masks[name].reshape(len(masks[name]), -1).expand(rows, -1)
        return relevance / sizes.gather(1, own).reshape(rows, *relevance.shape[1:])

    def target_names(self) -> list[str]:
        """Return the name of each sample's target."""
        if isinstance(self.target, Tensor):
            return [self.class_name(i) for i in self.target.tolist()]
        if isinstance(self.target, Logit | Span | Region | Detection):
            return [self.target.words(self.class_name, i) for i in range(len(self))]
        name = str(self.target) if isinstance(self.target, InternalTarget) else getattr(self.target, "__name__", "function")
        return ["target function" if name == "<lambda>" else name] * len(self)

    def heading(self, sample: int = 0) -> str:
        """Return the heading of a sample's figure: the name of its target, or "output 3" if it has none."""
        name = self.target_names()[sample]
        return f"output {name}" if not self.class_names and name.isdecimal() else name

    def tokens_of(self, sample: int) -> list[str]:
        """Return the token strings of a sample's first text; an empty list before `with_tokens`."""
        return next((rows[sample] for rows in self.tokens.values()), [])

    def class_name(self, index: int) -> str:
        """Return the name of a class or token, or its index as a string."""
        known = index in self.class_names if isinstance(self.class_names, Mapping) else index < len(self.class_names)
        return self.class_names[index] if known else str(index)

    def rows_of_sample(self, rows: Any, sample: int) -> Sequence[int]:
        """Return the indices of the rows that belong to a sample: its own, or all rows where they are shared by all samples."""
        return [sample] if len(rows) == len(self) else range(len(rows))
