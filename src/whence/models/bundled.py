"""The bundled models, each with its preprocessing, class names and example inputs."""

from collections.abc import Callable

from whence.models import example_networks as networks
from whence.models.csv_inputs import SeriesReader, TableReader
from whence.models.digits import digit_samples, digits, robust_digits
from whence.models.loaded_model import LoadedModel
from whence.models.preprocessing import Preprocessing
from whence.models.text_tokenizer import TextTokenizer
from whence.models.word_tokenizer import WordTokenizer

DIGIT_MODELS = {"digits": digits, "digits-robust": robust_digits}


def _digits(name: str) -> LoadedModel:
    names = [str(digit) for digit in range(10)]
    shown = Preprocessing((28, 28), channels=1)
    return LoadedModel(name, DIGIT_MODELS[name](), shown, names, True, examples=lambda: digit_samples()[0].split(1))


def _surfaces() -> LoadedModel:
    shown = Preprocessing((128, 128), channels=1, mean=(0.5,), std=(0.25,))

    def examples():
        return shown.normalise(networks.surface_photos()).split(1)

    return LoadedModel("surfaces", networks.surfaces(), shown, networks.SURFACES, True, examples=examples)


def _reviews() -> LoadedModel:
    reader = TextTokenizer(WordTokenizer(networks.review_vocabulary()))

    def examples():
        return [reader.read(text) for text in networks.review_texts()]

    return LoadedModel(
        "reviews", networks.reviews(), class_names=networks.OPINIONS, trained=True, text=reader, examples=examples
    )


def _wine() -> LoadedModel:
    reader = TableReader(networks.wine_rows(), networks.wine_columns())

    def examples():
        return networks.wine_rows().split(1)

    return LoadedModel("wine", networks.wine(), class_names=networks.GROWERS, trained=True, table=reader, examples=examples)


def _heartbeats() -> LoadedModel:
    reader = SeriesReader(networks.LEADS, networks.SERIES_LENGTH, networks.STEPS_PER_SECOND)

    def examples():
        return networks.heartbeat_series().split(1)

    return LoadedModel(
        "heartbeats", networks.heartbeats(), class_names=networks.HEARTBEATS, trained=True, series=reader, examples=examples
    )


BUNDLED: dict[str, Callable[[], LoadedModel]] = {
    "digits": lambda: _digits("digits"),
    "digits-robust": lambda: _digits("digits-robust"),
    "surfaces": _surfaces,
    "reviews": _reviews,
    "wine": _wine,
    "heartbeats": _heartbeats,
}
