"""Explains every kind of model that can be built here, and writes down what came of it.

    python scripts/sweep.py                        # all; writes docs/reference/models.md
    python scripts/sweep.py timm:resnet18 hf:llama # some; prints what came of them

Small random versions: one architecture of every module file of timm, every task and family of torchvision at their own size,
every model type of transformers that can be built from a shrunken configuration, the layers of PyTorch Geometric, detectors of
ultralytics, networks of diffusers that are conditioned on times, classes and texts, segmentation models, and language models
with the quantised layers of bitsandbytes, torchao, HQQ and torch. Libraries that are not installed are left out.
"""

import contextlib
import importlib.util
import inspect
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")

import torch
from torch import Tensor, nn

import whence

PAGE = Path(__file__).parents[1] / "docs/reference/models.md"
SECONDS = 150  # for one model
MOST_WEIGHTS = 150_000_000
SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xxt",
    "050",
    "_s0",
    "tiny",
    "mini",
    "xs",
    "_b0",
    "small",
    "_t",
    "18",
    "_s",
    "26",
)


@dataclass
class Outcome:
    """What came of explaining one model."""

    name: str
    kind: str  # "conserved", "refused", "off", "failed" or "not built"
    detail: str = ""
    error: float | None = None
    cost: float | None = None  # by forward and backward

    @property
    def figure(self) -> str:
        return f"{self.error:.0e}" if self.kind in ("conserved", "off") and self.error is not None else self.detail


class TooLongError(BaseException):
    """The time for one model is over."""


# what there is


def names() -> list[str]:
    others = [
        *_installed("ultralytics", "ultralytics", YOLOS), *_installed("diffusers", "diffusers", DIFFUSION),
        *_installed("smp", "segmentation_models_pytorch", SEGMENTERS),
        *(name for name in _installed("quantised", "transformers", QUANTISED) if _has_library_of(name)),
    ]  # fmt: skip
    return [*graph_layers(), *others, *torchvisions(), *transformers_types(), *timms()]


def _has_library_of(quantised: str) -> bool:
    return bool(importlib.util.find_spec(quantised.partition(":")[2].partition("-")[0]))


def timms() -> list[str]:
    import timm

    found = []
    for module in timm.list_modules():
        known = timm.list_models(module=module)
        if known:
            ranks = {name: next((i for i, part in enumerate(SMALL) if part in name), len(SMALL)) for name in known}
            found.append(f"timm:{min(known, key=lambda name: (ranks[name], len(name), name))}")
    return sorted(set(found))


def torchvisions() -> list[str]:
    from torchvision import models

    first: dict[tuple[str, str], str] = {}
    for name in models.list_models():
        builder = models.get_model_builder(name)
        first.setdefault((builder.__module__, ""), name)
    return [f"torchvision:{name}" for name in first.values()]


def transformers_types() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [f"hf:{name}" for name in CONFIG_MAPPING_NAMES]


def graph_layers() -> list[str]:
    with contextlib.suppress(ImportError):
        from torch_geometric.nn import conv

        return [f"pyg:{name}" for name in conv.__all__ if name not in ("MessagePassing", "SimpleConv", "HypergraphConv")]
    return []


# one model


def outcome(name: str) -> Outcome:
    """What comes of explaining the model of that name by default."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model, inputs, target = BUILDERS[name.split(":")[0]](name.split(":")[1])
                with torch.no_grad():
                    _run(model, inputs)
            except TooLongError:
                raise
            except BaseException as error:
                return Outcome(name, "not built", f"{type(error).__name__}: {_first_line(error)}")
            return _explained(name, model, inputs, target)
    except TooLongError:
        return Outcome(name, "not built", f"more than {SECONDS} s")
    finally:
        signal.alarm(0)


def _explained(name: str, model: Any, inputs: Any, target: Any) -> Outcome:
    try:
        e = whence.explain(model, inputs, target, progress=False)
    except whence.errors.WhenceError as error:
        return Outcome(name, "refused", _first_line(error))
    except TooLongError:
        raise
    except BaseException as error:
        return Outcome(name, "failed", f"{type(error).__name__}: {_first_line(error)}")
    account = e.conservation
    kind = "conserved" if account.rounded else "off"
    large = name.startswith(("timm:", "torchvision:"))  # at their own size; what is tiny costs what its functions cost
    cost = _cost(model, inputs, target) if large and isinstance(inputs, Tensor) else None
    return Outcome(name, kind, error=float(account.error.max()), cost=cost)


def _cost(model: Any, inputs: Tensor, target: Any) -> float:
    """Of an explanation, by a forward pass and a backward pass to the input; the best of three each."""

    def plain() -> None:
        leaf = inputs.clone().requires_grad_()
        next(t for t in _tensors(_run(model, leaf)) if t.is_floating_point() and t.requires_grad).sum().backward()

    for parameter in model.parameters() if isinstance(model, nn.Module) else ():
        parameter.requires_grad_(False)
    ways = (lambda: whence.explain(model, inputs, target, progress=False), plain)
    best = [min(_seconds(way) for _ in range(3)) for way in ways]
    return best[0] / best[1]


def _seconds(way: Callable[[], object]) -> float:
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin


def _run(model: Any, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, dict):
        for value in out.values():
            yield from _tensors(value)
    elif isinstance(out, list | tuple):
        for value in out:
            yield from _tensors(value)


def of_output(out: Any) -> Tensor:
    """One value a sample: the largest logit, or the first number of the first output."""
    logits = getattr(out, "logits", None)
    numbers = [t for t in _tensors(out) if t.is_floating_point()]
    first = logits if isinstance(logits, Tensor) else next((t for t in numbers if t.requires_grad), numbers[0])
    rows = first.reshape(len(first), -1) if first.dim() > 1 else first.reshape(1, -1) if first.dim() == 0 else first[:, None]
    return rows[:, rows.shape[1] // 2]


def _too_long(*_: Any) -> None:
    raise TooLongError


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def randomised(model: nn.Module) -> nn.Module:
    """With statistics and shifts that a trained network has, and one of fresh weights has not."""
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("running_mean", "bias")) and t.is_floating_point():
                t.normal_(0, 0.1)
            elif name.endswith("running_var"):
                t.uniform_(0.5, 1.5)
    return model.eval()


# builders


def _timm(name: str) -> tuple[nn.Module, Tensor, Any]:
    import timm

    with torch.device("meta"), contextlib.suppress(RuntimeError, NotImplementedError):  # some compute while they are built
        if sum(p.numel() for p in timm.create_model(name).parameters()) > MOST_WEIGHTS:
            raise ValueError("of more than 150 million weights")
    model = randomised(timm.create_model(name, num_classes=10))
    return model, torch.randn(1, *model.default_cfg["input_size"]), None


def _torchvision(name: str) -> tuple[nn.Module, Any, Any]:
    from torchvision import models

    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = models.get_model_builder(name).__module__
    backbone = {"weights_backbone": None} if "detection" in module or "segmentation" in module else {}
    model = randomised(models.get_model(name, weights=None, **extra, **backbone))
    if "detection" in module:
        return (lambda x: model(list(x))), torch.rand(1, 3, 224, 224), lambda out: out[0]["scores"].sum()[None]
    if "segmentation" in module:
        return model, torch.randn(1, 3, 128, 128), lambda out: out["out"][:, 1].mean((1, 2))
    if "optical_flow" in module:
        pictures = (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
        return model, pictures, lambda out: out[-1].flatten(1).sum(1)
    if "video" in module:
        side = 224 if name.startswith(("mvit", "s3d")) else 112
        return model, torch.randn(1, 3, 16, side, side), None
    size = models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    return model, torch.randn(1, 3, size, size), lambda out: of_output(out)


SIZES = {
    32: """hidden_size d_model n_embd dim embed_dim hidden_dim encoder_hidden_size decoder_hidden_size embedding_size
        word_embed_proj_dim projection_dim text_embed_dim d_embed emb_dim model_dim decoder_dim image_size""",
    48: """intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner d_inner mlp_dim dim_feedforward
        moe_intermediate_size shared_expert_intermediate_size encoder_intermediate_size shared_intermediate_size""",
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth num_decoder_layers
        num_encoder_layers encoder_depth n_blocks num_blocks num_key_value_heads num_experts_per_tok type_vocab_size""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
        num_encoder_attention_heads num_decoder_attention_heads num_experts num_local_experts n_routed_experts""",
    8: "head_dim d_kv patch_size qk_rope_head_dim qk_nope_head_dim v_head_dim state_size mamba_d_state",
    16: "num_mel_bins kv_lora_rank q_lora_rank",
    64: "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions",
    120: "vocab_size",
    5: "num_queries",
}
SHRUNK = {name: size for size, named in SIZES.items() for name in named.split()}


COUNTS = frozenset(name for size in (2, 120, 5) for name in SIZES[size].split()) | {"num_experts", "num_local_experts"}
HEADS = """CausalLM Seq2SeqLM MaskedLM SequenceClassification ImageClassification ImageTextToText AudioClassification
    ObjectDetection SemanticSegmentation CTC SpeechSeq2Seq MultimodalLM PreTraining MaskGeneration ZeroShotObjectDetection
    ZeroShotImageClassification DepthEstimation ImageSegmentation UniversalSegmentation InstanceSegmentation
    VideoClassification QuestionAnswering TokenClassification AudioFrameClassification TextToWaveform KeypointDetection
    """


def shrunken(config: Any, names: Collection[str], depth: int = 0) -> Any:
    """The configuration with small numbers for those of its sizes, inner configurations too."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and depth < 3:
            shrunken(value, names, depth + 1)
        elif name in names and isinstance(value, int) and not isinstance(value, bool):
            with contextlib.suppress(Exception):
                setattr(config, name, min(SHRUNK[name], value) if value > 0 else value)
        elif name.endswith("token_id") and isinstance(value, int) and value >= 100:
            with contextlib.suppress(Exception):
                setattr(config, name, 100 + value % 19)
        elif name in ("layer_types", "layers_block_type", "mlp_layer_types") and isinstance(value, list) and value:
            kinds = list(dict.fromkeys(value))[-2:]
            with contextlib.suppress(Exception):
                setattr(config, name, (kinds * 2)[:2])
    return config


def _hugging_face(name: str) -> tuple[nn.Module, Any, Any]:
    import transformers as t
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    problem: Exception = LookupError("no head")
    for sizes in (SHRUNK, COUNTS):  # all that is known, or numbers of layers and words alone
        for head in [*(f"AutoModelFor{head}" for head in HEADS.split()), "AutoModel"]:
            try:
                with torch.device("meta"):
                    weights = sum(p.numel() for p in _made(t, head, CONFIG_MAPPING[name](), sizes).parameters())
                if weights > MOST_WEIGHTS:
                    raise ValueError("still of more than 150 million weights when shrunk")
                model = randomised(_made(t, head, CONFIG_MAPPING[name](), sizes))
                inputs = _inputs(model)
                with torch.no_grad():
                    _run(model, inputs)
            except Exception as error:
                problem = error
                continue
            return model, inputs, lambda out: of_output(out)
    raise problem


def _made(transformers: Any, head: str, config: Any, sizes: Collection[str]) -> nn.Module:
    return getattr(transformers, head).from_config(shrunken(config, sizes))


def _inputs(model: nn.Module) -> dict[str, Tensor]:
    """What the model's forward asks for by its usual names."""
    config, takes = model.config, inspect.signature(model.forward).parameters
    ids = torch.randint(5, min(99, getattr(config.get_text_config(), "vocab_size", 99) or 99), (1, 9))
    main = getattr(model, "main_input_name", "input_ids")
    size = _image_size(config)
    channels = getattr(getattr(config, "vision_config", config), "num_channels", 3) or 3
    known: dict[str, Callable[[], Tensor]] = {
        "input_ids": lambda: ids,
        "pixel_values": lambda: torch.randn(1, channels, size, size),
        "input_features": lambda: torch.randn(1, getattr(config, "num_mel_bins", 16), 64),
        "input_values": lambda: torch.randn(1, 4000),
        "decoder_input_ids": lambda: ids[:, :4],
    }
    given = {main: known[main]()} if main in known else {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        given["decoder_input_ids"] = known["decoder_input_ids"]()
    if (
        main == "input_ids"
        and "pixel_values" in takes
        and any(part in type(model).__name__ for part in ("CLIP", "Siglip", "Align"))
    ):
        given["pixel_values"] = known["pixel_values"]()
    return given


def _image_size(config: Any) -> int:
    size = getattr(getattr(config, "vision_config", config), "image_size", 32)
    return size if isinstance(size, int) else size[0] if isinstance(size, list | tuple) else 32


def _graph(name: str) -> tuple[nn.Module, Any, Any]:
    from torch_geometric.nn import conv

    layer = getattr(conv, name)
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2, 4], [1, 2, 3, 4, 5, 0, 3, 5, 1]])
    settings = _settings(layer)
    made = layer(**settings).eval()
    takes = inspect.signature(made.forward).parameters
    more: dict[str, Any] = {}
    if settings.get("edge_dim"):
        more["edge_attr"] = torch.randn(edges.shape[1], settings["edge_dim"])
    if "edge_type" in takes:
        more["edge_type"] = torch.zeros(edges.shape[1], dtype=torch.long)
    if "pos" in takes:
        more["pos"] = torch.randn(6, 3)
    call = lambda x: made(x, edge_index=edges, **more)  # noqa: E731
    return call, torch.randn(6, 8), lambda out: (out[0] if isinstance(out, tuple) else out).flatten(1)[:, 0]


def _settings(layer: type) -> dict[str, Any]:
    usual = {
        "in_channels": 8, "out_channels": 8, "channels": 8, "hidden_channels": 8, "num_layers": 2, "K": 2, "num_relations": 2,
        "kernel_size": 2, "dim": 1 if layer.__name__ == "SplineConv" else 3, "alpha": 0.1, "num_nodes": 6, "heads": 1,
        "nn": nn.Linear(16 if layer.__name__ == "EdgeConv" else 8, 8), "phi": nn.Linear(8, 8), "lin": nn.Linear(8, 8),
        "aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.tensor([0, 3, 3]),
    }  # fmt: skip
    needed = [p.name for p in inspect.signature(layer.__init__).parameters.values() if p.default is p.empty]
    return {key: usual[key] for key in needed if key in usual}


# models of libraries that are not installed by default
YOLOS = ("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov8n-cls", "yolov9t", "yolov10n",
         "yolo11n", "yolo11n-seg", "yolo12n", "rtdetr-l")  # fmt: skip
DIFFUSION = ("UNet2DModel", "UNet2DConditionModel", "UNet1DModel", "DiTTransformer2DModel", "PixArtTransformer2DModel",
             "AutoencoderKL", "VQModel", "UNet3DConditionModel", "PriorTransformer", "SD3Transformer2DModel")  # fmt: skip
SEGMENTERS = (
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "DeepLabV3",
    "DeepLabV3Plus",
    "PAN",
    "UPerNet",
    "Segformer",
)
QUANTISED = ("bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8", "torchao-int4", "hqq-4bit", "torch-dynamic")


def _installed(source: str, library: str, some: Collection[str]) -> list[str]:
    return [f"{source}:{name}" for name in some] if importlib.util.find_spec(library) else []


def _yolo(name: str) -> tuple[nn.Module, Any, Any]:
    """A detector as it is after training, and the largest class score of its output `[N, 4 + classes, anchors]`."""
    from ultralytics import RTDETR, YOLO

    model = (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml").model.float().eval()

    def best(out: Any) -> Tensor:
        first = next(t for t in _tensors(out) if t.is_floating_point())
        if first.dim() < 3:
            return first.amax(1)
        scores = first[:, 4:].flatten(1) if first.shape[1] < first.shape[2] else first[:, :, 4:].flatten(1)
        return scores.gather(1, scores.argmax(1, keepdim=True))[:, 0]

    return randomised(model), torch.rand(1, 3, 96, 96), best


def _diffusion(name: str) -> tuple[nn.Module, Any, Any]:
    import diffusers

    kind = getattr(diffusers, name)
    sizes = {
        "sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 64), "norm_num_groups": 8,
        "layers_per_block": 1, "cross_attention_dim": 24, "attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 2,
        "caption_channels": 24, "num_embeds_ada_norm": 10, "patch_size": 4, "latent_channels": 4, "joint_attention_dim": 24,
        "caption_projection_dim": 16, "pooled_projection_dim": 24, "embedding_dim": 24, "num_embeddings": 5,
    }  # fmt: skip
    blocks = {
        "UNet2DModel": (("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")),
        "UNet2DConditionModel": (("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")),
        "UNet3DConditionModel": (("CrossAttnDownBlock3D", "DownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")),
        "UNet1DModel": (("DownBlock1D", "AttnDownBlock1D"), ("AttnUpBlock1D", "UpBlock1D")),
        "AutoencoderKL": (("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2),
        "VQModel": (("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2),
    }  # fmt: skip
    if name in blocks:
        sizes["down_block_types"], sizes["up_block_types"] = blocks[name]
        sizes.pop("num_attention_heads")
    if name.startswith("PixArt"):
        sizes["cross_attention_dim"] = 16
    takes = inspect.signature(kind.__init__).parameters
    model = randomised(kind(**{key: value for key, value in sizes.items() if key in takes}).eval())
    shapes = {"UNet1DModel": (2, 3, 64), "UNet3DConditionModel": (2, 3, 4, 16, 16), "PriorTransformer": (2, 24)}
    first, channels = ("hidden_states", 3) if "hidden_states" in inspect.signature(model.forward).parameters else ("sample", 3)
    given = {
        first: torch.randn(shapes.get(name, (2, channels, 16, 16))), "timestep": torch.tensor([3, 7]),
        "encoder_hidden_states": torch.randn(2, 5, 24), "class_labels": torch.tensor([1, 4]),
        "proj_embedding": torch.randn(2, 24), "pooled_projections": torch.randn(2, 24),
    }  # fmt: skip
    called = inspect.signature(model.forward).parameters
    needed = {"timestep", "encoder_hidden_states", "proj_embedding", "pooled_projections", first}
    needed |= {"class_labels"} if name.startswith("DiT") else set()
    return model, {key: value for key, value in given.items() if key in called and key in needed}, of_output


def _segmenter(name: str) -> tuple[nn.Module, Any, Any]:
    import segmentation_models_pytorch as smp

    model = getattr(smp, name)("mit_b0" if name == "Segformer" else "resnet18", encoder_weights=None, classes=3)
    return randomised(model.eval()), torch.rand(1, 3, 128, 128), lambda out: out[:, 1, 20, 30]


def _quantised(name: str) -> tuple[nn.Module, Any, Any]:
    """A small language model with its linear layers quantised."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, **sizes)).eval()
    if name == "torch-dynamic":
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    elif name.startswith("torchao"):
        from torchao import quantization

        how = quantization.Int8WeightOnlyConfig() if name.endswith("int8") else quantization.IntxWeightOnlyConfig(torch.int4)
        quantization.quantize_(model, how)
    else:
        for path, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and path != "lm_head":
                outer, _, last = path.rpartition(".")
                setattr(model.get_submodule(outer), last, _quantised_layer(name, layer))
    return model, {"input_ids": torch.randint(0, 50, (1, 8))}, 7


def _quantised_layer(name: str, layer: nn.Linear) -> nn.Module:
    if name.startswith("hqq"):
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        settings = BaseQuantizeConfig(nbits=4, group_size=64)
        return HQQLinear(layer, settings, compute_dtype=torch.float32, device="cpu", del_orig=False).eval()
    from bitsandbytes import nn as quantised

    if name.endswith("8bit"):
        made = quantised.Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    else:
        made = quantised.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.float32)
    made.load_state_dict(layer.state_dict())
    return made.to("cpu").eval()


BUILDERS: dict[str, Callable[[str], tuple[Any, Any, Any]]] = {
    "timm": _timm, "torchvision": _torchvision, "hf": _hugging_face, "pyg": _graph,
    "ultralytics": _yolo, "diffusers": _diffusion, "smp": _segmenter, "quantised": _quantised,
}  # fmt: skip


# the page


def page(outcomes: list[Outcome]) -> str:
    built = [o for o in outcomes if o.kind != "not built"]
    about = (
        f"Results of explaining {len(built)} models with default settings (`scripts/sweep.py`; torch {torch.__version__}), "
        "small and with random weights: the relative error of output = relevance + absorbed, or the reason for which a model "
        "was refused."
    )
    table = ["| | built | conserved | refused | off | failed |", "|---|---|---|---|---|---|"]
    lines = ["# Models", "", about, "", *table]
    for source, label in (
        ("timm", "timm"),
        ("torchvision", "torchvision"),
        ("hf", "transformers"),
        ("pyg", "PyTorch Geometric"),
        ("ultralytics", "ultralytics (detection)"),
        ("diffusers", "diffusers (conditional)"),
        ("smp", "segmentation-models-pytorch"),
        ("quantised", "quantised language models"),
    ):
        own = [o for o in built if o.name.startswith(f"{source}:")]
        counts = [str(sum(o.kind == kind for o in own)) for kind in ("conserved", "refused", "off", "failed")]
        lines.append(f"| {label} | {len(own)} | {' | '.join(counts)} |")
    for title, kinds in (("Refused", ("refused",)), ("Off or failed", ("off", "failed")), ("Conserved", ("conserved",))):
        rows = [o for o in built if o.kind in kinds]
        if rows:
            lines += ["", f"## {title}", "", "| model | error, or the reason | cost by forward and backward |", "|---|---|---|"]
            lines += [
                f"| {o.name} | {o.figure.replace('|', '∣')} | {'' if o.cost is None else f'{o.cost:.1f}'} |" for o in rows
            ]
    left = [o for o in outcomes if o.kind == "not built"]
    lines += ["", "## Not built", "", f"{len(left)} could not be built or run this small: "
              + ", ".join(o.name for o in left) + "."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    asked = sys.argv[1:]
    chosen = [
        name
        for part in asked
        for name in (names() if ":" not in part or part.endswith(":") else [part])
        if name.startswith(part)
    ]
    with Pool(2, maxtasksperchild=10) as pool:
        outcomes = []
        for found in pool.imap(outcome, chosen or names()):
            outcomes.append(found)
            cost = "" if found.cost is None else f"  {found.cost:.1f}x"
            print(f"{found.name:<40} {found.kind:<10} {found.figure}{cost}", flush=True)
    if not asked:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(outcomes), encoding="utf-8")
        print(f"wrote {PAGE}")


# a CUDA build of torchvision beside a CPU build of torch imports only once its operators are declared
_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    main()
