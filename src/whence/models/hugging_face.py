"""Models of Hugging Face transformers, from a folder or by name, with their preprocessing."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from whence.errors import LoadError, first_line
from whence.models.offloaded_weights import offloaded_model
from whence.models.preprocessing import Preprocessing
from whence.models.text_tokenizer import TextTokenizer
from whence.models.vision_language import VisionLanguageProcessor

GENERATIVE = ("ForConditionalGeneration", "ForVision2Seq")  # about a picture, on from a text
CONTRASTIVE = ("CLIPModel", "SiglipModel", "Siglip2Model", "AltCLIPModel", "ChineseCLIPModel", "AlignModel", "MetaClip2Model")
OF_WHOLE_PHOTOS = ("ForObjectDetection", "ForSemanticSegmentation", "ForUniversalSegmentation", "ForDepthEstimation")
HEADS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForImageClassification": "AutoModelForImageClassification",
} | {ending: f"AutoModel{ending}" for ending in OF_WHOLE_PHOTOS}


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model with its image preprocessing, tokenizer or processor, and the names of its classes."""

    model: nn.Module
    pictures: Preprocessing | None = None
    text: TextTokenizer | None = None
    both: VisionLanguageProcessor | None = None
    classes: list[str] = field(default_factory=list)


def load(transformers: Any, name: str, offload_to: str | None = None) -> HuggingFaceModel:
    """Load the model in a folder, or with a name on the hub.

    With a device in `offload_to`, its weights stay on disk, and each layer's are read when it runs on that device.
    """
    try:
        with _silence(transformers.utils.logging):
            return _load(transformers, name, offload_to)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        where = "" if os.path.isdir(name) else "; check the name and connection, or pass a folder written by save_pretrained"
        raise LoadError(f"transformers cannot load {name!r}: {first_line(_root_cause(error))}{where}") from error


def _load(transformers: Any, name: str, offload_to: str | None) -> HuggingFaceModel:
    where = {} if os.path.isdir(name) or _hub_reachable() else {"local_files_only": True}  # else it tries for half a minute
    config = transformers.AutoConfig.from_pretrained(name, **where)
    architecture = (config.architectures or ["?"])[0]
    if architecture in CONTRASTIVE or (hasattr(config, "vision_config") and architecture.endswith(GENERATIVE)):
        if offload_to is not None:
            raise LoadError(f"hf:{name} takes images and texts; offload=True is for models of texts or of images alone")
        return _load_both(transformers, name, architecture, where)
    loader = next((loader for ending, loader in HEADS.items() if architecture.endswith(ending)), None)
    if loader is None:
        raise LoadError(f"hf:{name} is a {architecture}; supported are {', '.join(HEADS)}; load others in Python")
    kind = getattr(transformers, loader)
    if offload_to is None:
        model = kind.from_pretrained(name, **where)
    else:
        folder = _folder(name, where)
        model = offloaded_model(kind, config, folder, offload_to)
        if (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    if loader == "AutoModelForImageClassification":
        return HuggingFaceModel(model, pictures=_image_preprocessing(transformers, name), classes=_classes(config))
    if architecture.endswith(OF_WHOLE_PHOTOS):
        classes = [] if architecture.endswith("ForDepthEstimation") else _classes(config)
        return HuggingFaceModel(model, pictures=_photo_preprocessing(transformers, name), classes=classes)
    text = TextTokenizer(transformers.AutoTokenizer.from_pretrained(name, **where))
    return HuggingFaceModel(model, text=text, classes=_classes(config) if "Classification" in loader else [])


def _load_both(transformers: Any, name: str, architecture: str, where: dict[str, bool]) -> HuggingFaceModel:
    compares = architecture in CONTRASTIVE
    model = getattr(transformers, architecture if compares else "AutoModelForImageTextToText").from_pretrained(name, **where)
    processor = transformers.AutoProcessor.from_pretrained(name, **where)
    return HuggingFaceModel(model, text=TextTokenizer(processor.tokenizer), both=VisionLanguageProcessor(processor, compares))


def _folder(name: str, where: dict[str, bool]) -> Path:
    """Return the folder of a model, downloaded if it is not on disk."""
    if os.path.isdir(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    local = where.get("local_files_only", False)
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], local_files_only=local))


def _hub_reachable() -> bool:
    """Return whether the hub can be reached; with a proxy, assume that it can."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def _silence(logging: Any) -> Iterator[None]:
    """Suppress progress bars and log messages, and restore the user's settings afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _root_cause(error: BaseException) -> BaseException:
    """Return the root cause of an import error: transformers imports its modules lazily."""
    return error if error.__cause__ is None else _root_cause(error.__cause__)


def _classes(config: Any) -> list[str]:
    return [config.id2label[i] for i in range(len(config.id2label))]


def _image_preprocessing(transformers: Any, name: str) -> Preprocessing:
    settings = _processor_settings(transformers, name)
    size = settings["crop_size" if settings.get("do_center_crop") else "size"]
    side = size.get("shortest_edge") or size["height"]
    mean, std = _normalisation(settings)
    return Preprocessing((side, size.get("width", side)), 3, mean, std, settings["size"].get("shortest_edge", side))


def _photo_preprocessing(transformers: Any, name: str) -> Preprocessing:
    """Return the preprocessing of whole photos: resized to a size, or their shorter side."""
    settings = _processor_settings(transformers, name)
    size, (mean, std) = settings.get("size") or {}, _normalisation(settings)
    if not settings.get("do_resize", True) or not size:
        return Preprocessing(None, 3, mean, std)
    if "height" in size:
        return Preprocessing((size["height"], size["width"]), 3, mean, std, crop=False)
    return Preprocessing(None, 3, mean, std, size["shortest_edge"])


def _processor_settings(transformers: Any, name: str) -> dict[str, Any]:
    return transformers.image_processing_utils.BaseImageProcessor.get_image_processor_dict(name)[0]


def _normalisation(settings: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (tuple(settings[key]) if settings.get("do_normalize", True) else () for key in ("image_mean", "image_std"))
    return mean, std
