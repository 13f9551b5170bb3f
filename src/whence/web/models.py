"""The models that the server was started with, loaded in each process that computes answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from whence.cli.data import read_data
from whence.errors import InputError, suggestion
from whence.models.registry import BUNDLED, LoadedModel, load_model
from whence.nests import Nest
from whence.rows import Rows

MOST_READ = 50  # samples of the data


@dataclass(frozen=True)
class Served:
    """What `whence serve` was told to show: models with their weights, data for those that have none bundled, stores."""

    models: Sequence[tuple[str, str | None]] = (("digits", None),)
    data: str | None = None
    stores: Sequence[str] = ()


@dataclass
class Models:
    """Those, by name, each loaded once."""

    served: Served
    _loaded: dict[str, LoadedModel] = field(default_factory=dict)
    _samples: dict[str, tuple[Nest, Tensor | None]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LoadedModel:
        weights = dict(self.served.models)
        if name not in weights:
            raise InputError(f"no model {name!r} was started here{suggestion(name, weights)}")
        if name not in self._loaded:
            self._loaded[name] = load_model(name, weights[name])
        return self._loaded[name]

    def samples(self, name: str) -> tuple[Nest, Tensor | None]:
        """The first of the data, or the bundled digits, with their labels where these are known."""
        if name not in self._samples:
            loaded = self[name]
            if loaded.name not in BUNDLED and self.served.data is None:
                raise InputError(f"no data for {name}; start the server with it: whence serve --model {name} --data FOLDER")
            given = read_data(None if loaded.name in BUNDLED else self.served.data, loaded, "serve", MOST_READ)
            if isinstance(given, tuple):
                self._samples[name] = given
            else:
                rows = Rows.of(given)
                found, _ = rows.read(range(rows.count), rows.shape)
                if found is None:
                    raise InputError(f"nothing of {self.served.data} can be read")
                self._samples[name] = found.inputs.nest, found.labels
        return self._samples[name]


models = Models(Served())


def shape(loaded: LoadedModel) -> tuple[int, ...]:
    """Of one picture."""
    size = loaded.preprocessing.size or (28, 28)
    return (loaded.preprocessing.channels, *size)


def name_of(index: int, loaded: LoadedModel) -> str:
    """Of a class, or of a token."""
    if index < len(loaded.classes):
        return str(loaded.classes[index])
    return loaded.text.tokenizer.decode([index]) if loaded.text is not None else str(index)
