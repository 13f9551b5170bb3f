"""The models that the server was started with, loaded in each worker process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from whence.errors import InputError, suggest
from whence.frontends.common.data import read_data
from whence.models.bundled import DIGIT_MODELS
from whence.models.loaded_model import LoadedModel
from whence.models.registry import load_model

DEFAULT_MODELS = ("digits", "surfaces", "reviews", "wine", "heartbeats")
MAX_SAMPLES = 50  # samples of the data


@dataclass(frozen=True)
class ServerConfig:
    """Configuration of the server: models with their weights, data for models without bundled samples, stores."""

    models: Sequence[tuple[str, str | None]] = tuple((name, None) for name in DEFAULT_MODELS)
    data: str | None = None
    stores: Sequence[str] = ()


@dataclass
class ServedModels:
    """The served models by name, each loaded once."""

    served: ServerConfig
    _loaded: dict[str, LoadedModel] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LoadedModel:
        weights = dict(self.served.models)
        if name not in weights:
            raise InputError(f"the server has no model {name!r}{suggest(name, weights)}")
        if name not in self._loaded:
            self._loaded[name] = load_model(name, weights[name])
        return self._loaded[name]

    def data_of(self, name: str, limit: int = MAX_SAMPLES) -> Any:
        """Return the first samples of the data, or of the bundled digits, with labels if they are known."""
        loaded = self[name]
        if not self.has_data(name):
            raise InputError(f"no data for {name}; start the server with data: whence serve --model {name} --data FOLDER")
        return read_data(None if loaded.name in DIGIT_MODELS else self.served.data, loaded, "serve", limit)

    def has_data(self, name: str) -> bool:
        """Return whether there are samples for a model."""
        return self[name].name in DIGIT_MODELS or self.served.data is not None


models = ServedModels(ServerConfig())


def input_shape(loaded: LoadedModel) -> tuple[int, ...]:
    """Return the shape of one input image."""
    size = loaded.preprocessing.size or (28, 28)
    return (loaded.preprocessing.channels, *size)
