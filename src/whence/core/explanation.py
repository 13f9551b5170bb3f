"""The class `Explanation`, which `explain` returns, and `load`, which reads a saved one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from whence.core.aggregation import AggregatedRelevance, aggregate
from whence.core.argument_checks import check_arguments
from whence.core.explanation_account import layer_rows, sample_rows
from whence.core.explanation_data import ExplanationData
from whence.core.explanation_io import cpu_tensors, read_fields, write_explanation
from whence.core.feature_table import FeatureTable, has_common_features, has_features
from whence.core.files import PICTURE_SUFFIXES, Rows, text_writer
from whence.core.nifti_files import write_nifti
from whence.core.result import Result, rows_to_frame
from whence.core.series_rows import series_of_input, series_rows
from whence.core.targets import Logit
from whence.core.time_axis import TimeAxis
from whence.core.tokens import text_strings, token_strings
from whence.core.trees import named_leaves, short_repr
from whence.errors import InputError, value_repr

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from whence.plotting.stacked_panels import Panel

SUFFIXES = (*PICTURE_SUFFIXES, ".html", ".npz", ".safetensors", ".csv", ".json")


@dataclass(frozen=True, repr=False, eq=False)
class Explanation(ExplanationData, Result):
    """Relevance of every input feature of a batch, with the account of its conservation.

    >>> e = whence.explain(model, x, target=3)
    >>> e.relevance.shape == x.shape, e.output, e.conservation
    >>> e.save("heat.png")              # or .html, .csv, .npz, .safetensors
    >>> e[0]                            # the first sample alone

    Args:
        relevance: Relevance, with the structure, shapes and dtype of the inputs; None for inputs that are not explained.
        output: The explained value of each sample, `[N]`.
        target: Class indices `[N]`, a `Logit` or `Span` with its indices filled in, or the target function.
        conservation: The account of relevance and absorbed share, which add up to the output.
        layers: Relevance at the outputs of the requested layers, by name; a tuple where a layer ran more than once.
        inputs: The inputs.
        method: The method.
        class_names: Names of the classes or tokens, for figures and pages.
        feature_names: Names of features or channels by input, for figures and pages.
        columns: Columns of tables that have categories or one-hot columns, by input.
        feature_mask: Feature number of every entry, with the structure of the inputs, where the method was given one. Each
            entry then has the score of its feature, which counts once in sums, tables and figures.
        tokens: Token strings of inputs of token ids, by input (see `with_tokens`).
        standard_errors: Standard errors (one standard deviation) of a sampled estimate, with the structure of the relevance.
        interactions: Interactions of `whence.Shapley`, `[N, features, features]`.
        root: Root of a Taylor decomposition, with the structure of the inputs.
        channel_dims: Dimension of the channels of series and pictures, where the model's first layer tells it, by input.
        time_axis: Time axis of series (see `with_time`).
        patches: Layout of image inputs that are cut into rows of patches, by input.
        note: What is explained, where that differs from the requested target.
    """

    def __repr__(self) -> str:
        shapes = ", ".join(str(list(t.shape)) for t in named_leaves(self.relevance).values())
        target = f"{self.target_names()}{self.note and f', {self.note}'}"
        fixed = f"; held fixed: {', '.join(self.held_fixed)}" if self.held_fixed else ""
        return f"Explanation of {shapes} by {short_repr(self.method)}{fixed}\n  target {target}\n  {self.conservation!r}"

    def with_tokens(self, tokenizer: Any) -> "Explanation":
        """Return the explanation with token strings for figures, pages and the terminal.

        >>> e.with_tokens(tokenizer)                               # Hugging Face's
        >>> e.with_tokens(lambda ids: [vocabulary[i] for i in ids])
        >>> e.with_tokens(["not", " bad"])                         # one text; a list of lists for several

        Args:
            tokenizer: A Hugging Face tokenizer, a function from a list of ids to strings, or the strings themselves.

        Returns:
            An `Explanation` with `tokens`, and with `class_names` where the target is token ids.

        Raises:
            InputError: `tokenizer` is none of these, or the number of strings differs from the number of tokens.
        """
        named = named_leaves(self.inputs)
        texts = {name: t for name, t in named.items() if not t.is_floating_point() and ("input_ids" in name or len(named) == 1)}
        rows = {name: t.reshape(len(t), -1).tolist() for name, t in texts.items()}
        if isinstance(tokenizer, list | tuple):
            return replace(self, tokens={name: _check_token_strings(tokenizer, ids) for name, ids in rows.items()})
        words = {name: [text_strings(tokenizer, row) for row in ids] for name, ids in rows.items()}
        if self.class_names or not isinstance(self.target, Tensor | Logit):
            return replace(self, tokens=words)
        target = self.target if isinstance(self.target, Logit) else Logit(self.target)
        ids = sorted({i for t in (target.index, target.rather_than) if isinstance(t, Tensor) for i in t.tolist()})
        names = [word.strip() or word for word in token_strings(tokenizer, ids)]
        return replace(self, tokens=words, class_names=dict(zip(ids, names, strict=True)))

    def with_time(self, index: Any = None, *, sampling_rate: float | None = None) -> "Explanation":
        """Return the explanation of series with a time axis, for figures and tables.

        >>> e.with_time(frame.index)                               # dates, or any labels of the steps
        >>> e.with_time(sampling_rate=16000)                       # seconds

        Args:
            index: Label of each step, such as the index of the data frame that the series was read from.
            sampling_rate: Steps per second.

        Returns:
            An `Explanation` with a `time_axis`.

        Raises:
            InputError: Both or none of the two are given, or no series has as many steps as the index.
        """
        axis = TimeAxis.of(index, sampling_rate)
        lengths = {size for t in named_leaves(self.relevance).values() if t.dim() in (2, 3) for size in t.shape[1:]}
        if axis.labels and len(axis.labels) not in lengths:
            given = ", ".join(str(list(t.shape)) for t in named_leaves(self.relevance).values())
            raise InputError(f"an index of {len(axis.labels)} steps for series of shape {given}")
        return replace(self, time_axis=axis)

    def aggregate(self, by: str | Mapping[str, tuple[int, int]] | Sequence[str] = "word") -> AggregatedRelevance:
        """Return the relevance of words, sentences or other passages of texts: the sums over their tokens.

        >>> e.with_tokens(tokenizer).aggregate("sentence").to_frame()
        >>> e.aggregate({"question": (0, 12), "context": (12, 80)}).scores

        Args:
            by: "word", "sentence" or "paragraph"; a list of texts that stand in the text one after the other (documents,
                messages); or a dict from names to positions (start, stop) of tokens. All but the last need token strings, as
                `with_tokens` or `tokenizer=` gives them.

        Returns:
            An `AggregatedRelevance`, which adds up to the relevance of all tokens: those outside of all passages are one more.

        Raises:
            InputError: The explained inputs are no texts, or the passages overlap or do not stand in the text.
        """
        return aggregate(self, by)

    def save(self, path: str | Path) -> Path:
        """Save the explanation in the format that the file's suffix names, and return the path.

        >>> e.save("heat.png")

        Args:
            path: File to write: a figure (.png, .jpg, .pdf, .svg), a page (.html), the table (.csv, .json), or all tensors
                (.npz, .safetensors), which `whence.load` reads.

        Returns:
            The path.

        Raises:
            WhenceError: The suffix is not one of these, or the folder does not exist.
        """
        file = {suffix: lambda target: write_explanation(self, target) for suffix in (".npz", ".safetensors")}
        return self._save(path, {".html": text_writer(self._page), **file})

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from whence.core.explanation_figures import render_in_notebook

        return {"text/html": render_in_notebook(self), "text/plain": repr(self)}

    def save_nifti(self, path: str | Path, like: Any = None, sample: int = 0) -> Path:
        """Save the relevance of a volume `[N, C, D, H, W]`, summed over channels, for viewers of medical images.

        >>> e.save_nifti("relevance.nii.gz", like="scan.nii.gz")

        Args:
            path: File to write, of suffix `.nii` or `.nii.gz`.
            like: File or nibabel image of the same shape, whose orientation and voxel size are taken; by default voxels are
                of 1 mm.
            sample: Number of the sample.

        Returns:
            The path.

        Raises:
            MissingPackageError: nibabel is not installed: `pip install 'whence[nifti]'`.
            InputError: The explanation is not of one volume, or the image `like` has another shape.
        """
        volumes = [t for t in named_leaves(self.relevance).values() if t.dim() == 5]
        channels_last = any(t.shape[-1] <= 4 < t.shape[1] for t in volumes)
        if len(volumes) != 1 or channels_last or not isinstance(sample, int) or not -len(self) <= sample < len(self):
            given = {name: list(t.shape) for name, t in named_leaves(self.relevance).items()}
            raise InputError(f"expected the relevance of one volume [N, C, D, H, W] and one of its samples, got {given}")
        return write_nifti(path, volumes[0][sample].sum(0), like)

    def figure(self) -> "Figure":
        """Return a figure of the first samples, with a row for each sample and input.

        Images are drawn beside their heatmap and overlaid with it, texts with coloured tokens, time series as lines, and
        vectors as bars.
        """
        from whence.core.explanation_figures import figure

        return figure(self)

    def panels(self, sample: int) -> "list[Panel]":
        """Return the panels of one sample's figure."""
        from whence.core.explanation_figures import panels

        return panels(self, sample)

    @property
    def table(self) -> Rows:
        """Rows, one for each sample and input feature: its index or name, its value and its relevance.

        Series whose channels have names or whose steps have times have rows of channel, step and time. The columns of a table
        that encode one feature, or have one number in a `feature_mask`, are one row. Entries of other
        inputs with such a mask have the number of their feature as `group`, and an equal part of its relevance.
        """
        if has_features(self) and (self.columns or self.feature_mask is not None):
            return self._rows_of_table()
        names, rows = self.target_names(), []
        values = named_leaves(self.inputs)
        for name in named_leaves(self.relevance):
            relevance = self.entry_relevance(name)
            for sample in range(len(self)):
                if self._is_labelled(name) and (series := series_of_input(self, name, sample)) is not None:
                    rows += series_rows(self, name, *series, {"sample": sample, "target": names[sample]})
                    continue
                for row in self.rows_of_sample(relevance, sample):
                    rows += self._rows(name, values.get(name), relevance[row], row, {"sample": sample, "target": names[sample]})
        return rows

    def _is_labelled(self, name: str) -> bool:
        """Return whether the samples of an input have times, or channels with names, where they are series."""
        relevance = named_leaves(self.relevance)[name]
        labelled = self.time_axis is not None or (relevance.dim() == 3 and bool(self.feature_names.get(name)))
        return labelled and len(relevance) == len(self)

    def _rows_of_table(self) -> Rows:
        parts = [self] if has_common_features(self) else [self[i] for i in range(len(self))]
        names, rows, sample = self.target_names(), [], 0
        for table in map(FeatureTable.of, parts):
            for row, relevance in enumerate(table.relevance.tolist()):
                about = {"sample": sample, "target": names[sample]}
                sample += 1
                rows += [
                    about | {"feature": name, "value": table.value(row, i), "relevance": relevance[i]}
                    for i, name in enumerate(table.names)
                ]
        return rows

    def to_frame(self, of: Literal["features", "samples", "layers"] = "features") -> "DataFrame":
        """Return the explanation as a `pandas.DataFrame`.

        >>> e.to_frame()                                 # sample, target, feature, value, relevance
        >>> e.to_frame("samples")                        # output, relevance, absorbed, baseline and error of each sample
        >>> e.to_frame("layers")                         # the relevance that each layer absorbed, and that at requested layers

        Args:
            of: What the rows are: "features" (also tokens, pixels, groups of a feature mask), "samples" or "layers".

        Returns:
            The frame.

        Raises:
            InputError: `of` is none of these.
            MissingPackageError: pandas is not installed.
        """
        rows = {"features": lambda: self.table, "samples": lambda: sample_rows(self), "layers": lambda: layer_rows(self)}
        if of not in rows:
            raise InputError(f"of={value_repr(of)}; choose one of {', '.join(rows)}")
        return rows_to_frame(rows[of]())

    def numbers(self) -> dict[str, Tensor]:
        """Return all tensors by name, in CPU memory, as they are saved to `.npz` and `.safetensors`."""
        return cpu_tensors(self)

    def _rows(self, name: str, values: Any, relevance: Tensor, row: int, about: dict[str, Any]) -> list[dict[str, Any]]:
        found = relevance.detach().float().cpu()
        x = values[row].detach().cpu() if isinstance(values, Tensor) and values[row].shape == found.shape else None
        known = self.tokens[name][row] if name in self.tokens else self.feature_names.get(name, ())
        about = about | ({"input": name} if name else {})
        flat = None if x is None else x.flatten().tolist()
        mask = named_leaves(self.feature_mask).get(name)
        groups = None if mask is None else mask[row if len(mask) > 1 else 0].flatten().tolist()
        return [
            about
            | {"feature": known[i] if len(known) == prod(found.shape) else _index(i, found.shape)}
            | ({} if groups is None else {"group": groups[i]})
            | ({} if flat is None else {"value": flat[i]})
            | {"relevance": r}
            for i, r in enumerate(found.flatten().tolist())
        ]

    def _page(self) -> str:
        from whence.core.explanation_figures import render

        return render(self)


@check_arguments
def load(path: str | Path) -> Explanation:
    """Load an explanation from a file that `Explanation.save` wrote.

    >>> whence.explain(model, x).save("e.npz")
    >>> whence.load("e.npz").relevance

    The method is loaded as its repr only, and so is a target that was a function.

    Args:
        path: File of suffix `.npz` or `.safetensors`.

    Returns:
        The `Explanation`, with its tensors in CPU memory.

    Raises:
        LoadError: The file does not exist, or is not of an explanation.
    """
    return Explanation(**read_fields(path))


def _index(i: int, shape: Sequence[int]) -> int | str:
    """Return the index of an entry in row-major order; as "0,3,5" for several dimensions."""
    if len(shape) <= 1:
        return i
    places = []
    for size in reversed(shape):
        i, place = divmod(i, size)
        places.append(place)
    return ",".join(map(str, reversed(places)))


def _check_token_strings(words: Sequence[Any], ids: list[list[int]]) -> list[list[str]]:
    """Return the token strings by text; raise `InputError` if there is not one for each id."""
    rows = [list(words)] if words and isinstance(words[0], str) else [list(row) for row in words]
    if [len(row) for row in rows] != [len(row) for row in ids]:
        given, wanted = ([len(row) for row in table] for table in (rows, ids))
        raise InputError(f"got {given} strings for texts of {wanted} tokens; expected one string per token")
    return rows
