"""Models by name: bundled ones such as `digits`, `torchvision:NAME`, `timm:NAME`, `hf:NAME_OR_FOLDER`, `FILE.py:FACTORY`."""

import importlib
import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from whence.core.argument_checks import check_arguments
from whence.core.estimators import EstimatorFunction
from whence.errors import (
    LoadError,
    MissingPackageError,
    first_line,
    missing_path,
    suggest,
    value_repr,
)
from whence.models import hugging_face
from whence.models.bundled import BUNDLED
from whence.models.loaded_model import LoadedModel
from whence.models.preprocessing import Preprocessing
from whence.models.python_files import script_imports
from whence.models.weight_files import READERS, load_weights, reject_nan


@check_arguments
def load_model(
    name: str,
    weights: str | Path | None = None,
    *,
    size: int | None = None,
    device: str | None = None,
    offload: bool = False,
) -> LoadedModel:
    """Load a model by name, in eval mode.

    >>> load_model("digits").model
    >>> load_model("torchvision:squeezenet1_0", "squeezenet.npz")
    >>> load_model("torchvision:resnet50", "DEFAULT")            # torchvision downloads its own weights
    >>> load_model("hf:distilbert-base-uncased-finetuned-sst-2-english").text
    >>> load_model("my_networks.py:make_net", "net.safetensors")

    A function in a Python file gives the model, whose `classes` name its outputs if it has such a list, or a `LoadedModel` with
    its preprocessing and class names:

    >>> def outliers():
    ...     return LoadedModel("outliers", whence.neuralize(svm), Preprocessing((28, 28), channels=1), ["outlierness"])

    `size` is the side of the images that the model takes, if it does not specify one; `device`, such as "cuda", is where it
    runs. Without `weights`, torchvision and timm models have random ones, and `trained` says so.

    Args:
        name: A bundled model ("digits", "digits-robust", "surfaces", "reviews", "wine", "heartbeats"), "torchvision:NAME",
            "timm:NAME", "hf:NAME_OR_FOLDER" or "FILE.py:FACTORY".
        weights: Weights file (.safetensors, .npz, .pt, .pth, .ckpt), folder of several, or name of published weights such as
            "DEFAULT".
        size: Side of the images that the model takes, if it does not specify one.
        device: Device to move the model to, such as "cuda".
        offload: Whether the weights of a model of Hugging Face stay on disk and are read a layer at a time, forward and again
            backward: for models larger than memory. Needs accelerate.

    Returns:
        A `LoadedModel`.

    Raises:
        LoadError: If the model or its weights cannot be loaded.
    """
    source, _, rest = name.partition(":")
    if offload and source != "hf":
        raise LoadError(f"offload=True is available for models of Hugging Face, hf:NAME_OR_FOLDER, not for {name}")
    if name in BUNDLED:
        loaded = BUNDLED[name]()
    elif source in ("torchvision", "timm") and rest:
        loaded = {"torchvision": _torchvision, "timm": _timm}[source](rest, weights)
    elif ".py:" in name:
        loaded = _factory(*name.rsplit(":", 1))
    elif source == "hf" and rest:
        loaded = _hugging_face(rest, (device or "cpu") if offload else None)
    elif name.endswith(".py"):
        raise LoadError(f"{name} is a file; name the function in it that returns the model: {name}:FUNCTION")
    elif name.endswith(tuple(READERS)):
        raise LoadError(f"{name} holds weights, not the network; give both: FILE.py:FUNCTION, with --weights {name}")
    else:
        raise LoadError(
            f"unknown model {name!r}; choose from {', '.join(BUNDLED)}, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER or "
            "FILE.py:FACTORY (see `whence models`)"
        )
    if _names_published_weights(weights) and source not in ("torchvision", "timm"):
        raise LoadError(f"{name} has no published weights {weights} to download; pass a file, or omit --weights")
    if weights is not None and not _names_published_weights(weights):
        if not isinstance(loaded.model, nn.Module):
            raise LoadError(f"{name} is not a torch.nn.Module; weights cannot be loaded into it")
        load_weights(loaded.model, weights)
        loaded = replace(loaded, trained=True)
    elif isinstance(loaded.model, nn.Module):
        reject_nan(loaded.model, name)
    if isinstance(loaded.model, nn.Module):
        loaded.model.eval()
    if size is not None:
        if name in BUNDLED or loaded.kind != "picture" or loaded.vision_language is not None:
            raise LoadError(f"{name} has a fixed input size, or takes no images; omit size={size}")
        loaded = replace(loaded, preprocessing=loaded.preprocessing.of_size(size))
    if device is not None and not offload:
        _move_to_device(loaded, device)
    return loaded


def available_models() -> dict[str, list[str] | str]:
    """Return all model names by source; for a source that cannot be used, the reason."""
    found: dict[str, list[str] | str] = {"bundled": list(BUNDLED)}
    for source, module in (("torchvision", "torchvision.models"), ("timm", "timm")):
        try:
            found[source] = sorted(_import(module, source).list_models())
        except MissingPackageError as error:
            found[source] = str(error)
    return found


def _torchvision(name: str, weights: str | Path | None) -> LoadedModel:
    models = _import("torchvision.models", "torchvision")
    if name not in models.list_models():
        raise LoadError(f"torchvision has no model {name!r}{suggest(name, models.list_models())}")
    published = models.get_model_weights(name)
    preset = published.DEFAULT if len(published) else None
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    kind = next((k for k in ("detection", "segmentation") if name in models.list_models(module=getattr(models, k))), None)
    backbone = {"weights_backbone": None} if kind else {}  # else they are downloaded
    try:
        model = (
            models.get_model(name, weights=str(weights))
            if _names_published_weights(weights)
            else models.get_model(name, weights=None, **extra, **backbone)
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise LoadError(f"torchvision cannot load {name} with weights {weights}: {first_line(error)}") from error
    if extra and not _names_published_weights(weights):
        model.aux_logits = False
        for auxiliary in ("aux1", "aux2", "AuxLogits"):
            if hasattr(model, auxiliary):
                setattr(model, auxiliary, None)
    transforms = preset.transforms() if preset is not None else None
    size, resize = (getattr(transforms, name, [224])[0] for name in ("crop_size", "resize_size"))
    preprocessing = Preprocessing.imagenet(size, resize)
    if kind == "detection":  # they normalise and resize photos themselves
        preprocessing = Preprocessing(None)
    elif kind == "segmentation":  # of the whole photo
        preprocessing = replace(preprocessing, size=None)
    if extra:  # published for inputs in [−1, 1], which they make themselves of ImageNet's normalisation
        model.transform_input = False
        preprocessing = replace(preprocessing, mean=(0.5,) * 3, std=(0.5,) * 3)
    classes = preset.meta.get("categories", ()) if preset is not None else ()
    return LoadedModel(f"torchvision:{name}", model, preprocessing, classes, trained=_names_published_weights(weights))


def _timm(name: str, weights: str | Path | None) -> LoadedModel:
    timm = _import("timm", "timm")
    try:
        model = timm.create_model(name, pretrained=_names_published_weights(weights))
    except (RuntimeError, ValueError, OSError) as error:
        raise LoadError(f"timm cannot create {name!r}: {first_line(error)}{suggest(name, timm.list_models())}") from error
    config = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    resize = round(height / config["crop_pct"])
    preprocessing = Preprocessing((height, width), channels, tuple(config["mean"]), tuple(config["std"]), resize)
    return LoadedModel(f"timm:{name}", model, preprocessing, trained=_names_published_weights(weights))


def _hugging_face(name: str, offload_to: str | None) -> LoadedModel:
    transformers = _import("transformers", "transformers")
    if offload_to is not None:
        _import("accelerate", "accelerate")
    found = hugging_face.load(transformers, name, offload_to)
    pictures = found.pictures or Preprocessing(None, bounds_known=False)
    return LoadedModel(
        f"hf:{name}", found.model, pictures, found.classes, trained=True, text=found.text, vision_language=found.both
    )


def _factory(file: str, function: str) -> LoadedModel:
    path = Path(file)
    if not path.is_file():
        raise LoadError(f"cannot load the model {function}: {missing_path(path)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with script_imports(path, module):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise LoadError(f"{file} cannot be run: {type(error).__name__}: {first_line(error)}") from error
        factory = getattr(module, function, None)
        if not callable(factory):
            known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise LoadError(f"{file} has no function {value_repr(function)}{suggest(function, known)}")
        try:
            model = factory if isinstance(factory, nn.Module) else factory()
        except (Exception, SystemExit) as error:
            raise LoadError(f"{file}:{function}() failed: {type(error).__name__}: {first_line(error)}") from error
    if isinstance(model, LoadedModel):  # with its own preprocessing and class names
        return model
    if not callable(model):
        kind = type(model).__name__
        wrapped = f"an estimator; return whence.LoadedModel({function!r}, {kind}(…), table=whence.TableReader(frame))"
        advice = wrapped if EstimatorFunction.of(model) is not None else "expected a model"
        raise LoadError(f"{file}:{function} returned {kind}, {advice}")
    own = getattr(model, "class_names", getattr(model, "classes", None))
    classes = [str(name) for name in own] if isinstance(own, list | tuple | range) else ()
    return LoadedModel(f"{file}:{function}", model, Preprocessing(None, bounds_known=False), classes)


def _move_to_device(loaded: LoadedModel, device: str) -> None:
    if not isinstance(loaded.model, nn.Module):
        raise LoadError(f"{loaded.name} is not a torch.nn.Module; it cannot be moved to {device}")
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # of torchrun, which leaves it to each process to take its own
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        loaded.model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise LoadError(f"{loaded.name} cannot run on {device}: {first_line(error)}") from error


def _names_published_weights(weights: str | Path | None) -> bool:
    """Whether `weights` is the name of published weights rather than a file: DEFAULT, IMAGENET1K_V1."""
    return isinstance(weights, str) and weights.isupper() and not Path(weights).suffix and weights.replace("_", "").isalnum()


def _import(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            hint = {"torchvision": "whence[vision]", "transformers": "whence[text]"}.get(package, package)
            raise MissingPackageError(f"{package} is not installed; pip install '{hint}'") from error
        raise MissingPackageError(f"{package} cannot be imported: {first_line(error)}") from error
    except RuntimeError as error:
        fits = f"install a version of {package} that is compatible with torch {torch.__version__}"
        raise MissingPackageError(f"{package} cannot be imported: {first_line(error)}; {fits}") from error
