"""A model with all that is needed to give it inputs: preprocessing, class names, readers of texts, tables and series."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from whence.core.estimators import EstimatorFunction
from whence.errors import InputError, TargetError, suggest, suggest_or_list
from whence.models.csv_inputs import SeriesReader, TableReader
from whence.models.preprocessing import Preprocessing
from whence.models.text_tokenizer import TextTokenizer
from whence.models.vision_language import VisionLanguageProcessor

MAX_NAMES = 20  # classes listed in a message
NO_PREPROCESSING = Preprocessing(None, bounds_known=False)  # of images in any size and scale


@dataclass(frozen=True)
class LoadedModel:
    """A model with its preprocessing and class names, ready to be explained; a function in a Python file may return one for
    the command line and the browser page.

    >>> whence.LoadedModel("mine", net, whence.Preprocessing((64, 64)), ["ape", "bee"])

    >>> whence.LoadedModel("forest", pipeline, table=whence.TableReader(frame))   # frame: rows of the training data

    Args:
        name: Name in reports.
        model: The network in eval mode, a function, or an estimator of scikit-learn.
        preprocessing: How image files become inputs.
        class_names: Names of the outputs in order; of an estimator its own.
        trained: Whether its weights are trained; None if that is unknown.
        text: Tokenizer, for a model that reads texts.
        vision_language: Processor, for a model that reads images and texts together.
        table: Reader of CSV rows, for a model of tables.
        series: Reader of CSV series, for a model of time series.
        examples: A function that returns inputs to try, each a batch of one.
    """

    name: str
    model: Callable[..., Any]
    preprocessing: Preprocessing = NO_PREPROCESSING
    class_names: Sequence[str] = ()
    trained: bool | None = None
    text: TextTokenizer | None = None
    vision_language: VisionLanguageProcessor | None = None
    table: TableReader | None = None
    series: SeriesReader | None = None
    examples: Callable[[], Sequence[Any]] | None = None

    @property
    def kind(self) -> Literal["text", "table", "series", "picture"]:
        """The kind of input that the model reads."""
        readers = {"text": self.text, "table": self.table, "series": self.series}
        return next((kind for kind, reader in readers.items() if reader is not None), "picture")  # type: ignore[return-value]

    @property
    def feature_names(self) -> Sequence[str] | None:
        """Names of the columns of a table or the channels of a series; None if the inputs have their own, as data frames do."""
        if self.table is not None:
            return self.table.columns if isinstance(self.table.background, Tensor) else None
        return None if self.series is None else list(self.series.channels)

    def __post_init__(self):
        estimator = EstimatorFunction.of(self.model)
        if estimator is not None and not len(self.class_names):
            object.__setattr__(self, "class_names", tuple(estimator.class_names))

    def class_index(self, name: int | str | None) -> int | None:
        """Return the index of a class, or the id of a token, by its name (in any case) or number; None for None."""
        if name is None or isinstance(name, int):
            return name
        exact = list(map(str, self.class_names))
        if name in exact:
            return exact.index(name)
        known = [one.lower() for one in exact]
        if name.lower() in known:
            return known.index(name.lower())
        if name.removeprefix("-").isdecimal():
            return int(name)
        if self.text is not None and not known:
            return self.text.token_id(name)
        if not known:
            raise TargetError(f"{self.name} has no class names; give a class index, or wrap it in a LoadedModel")
        told = suggest_or_list if len(known) <= MAX_NAMES else suggest
        raise TargetError(f"{self.name} has no class {name!r}{told(name, list(map(str, self.class_names)))}")

    def target_class(self, name: int | str | None) -> Any:
        """Return a class for `Logit`: its index, or its name for an estimator, whose labels may be numbers themselves."""
        index = self.class_index(name)
        if index is None or EstimatorFunction.of(self.model) is None or not 0 <= index < len(self.class_names):
            return index
        return str(self.class_names[index])

    def check_reads_images(self, reason: str) -> None:
        """Raise `InputError` with the reason if the model takes no images."""
        if self.kind != "picture" or self.vision_language is not None:
            takes = {"table": "tables", "series": "time series"}.get(self.kind, "texts")
            raise InputError(f"{self.name} takes {takes}; {reason}")

    def class_name(self, index: int) -> str:
        """Return the name of a class, or of a token; its number if it has none."""
        if 0 <= index < len(self.class_names):
            return str(self.class_names[index])
        return self.text.tokenizer.decode([index]) if self.text is not None else str(index)
