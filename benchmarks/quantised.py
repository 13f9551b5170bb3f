"""Quantised models beside their dequantised twins: cosine of the relevance of tokens.

python benchmarks/quantised.py ../shared/data   # prints the table and writes benchmarks/results/quantised.md

Schemes whose packages (hqq, torchao, optimum-quanto) are not installed have a row that says so.

The language model of stories, all of whose linear layers but the head are quantised by every scheme that can be imported. The
twin has the layers' outputs for the unit vectors as its weights, in float32.
"""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.pop(0)  # a file beside this one is called as the library transformers

import torch
from torch import nn

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]
import peers

peers.declare_torchvision_operators()

import whence  # noqa: E402
from support.story_model import story_model, story_tokenizer  # noqa: E402

TEXT = "Tom had a red kite. Lily had a blue ball. Tom went to the park with the"
RULES = {"LRP-0": None, "γ": whence.LRP({nn.functional.linear: whence.Gamma(0.25)})}
Quantise = Callable[[nn.Module, list[str]], nn.Module]


def by_layer(make: Callable[[nn.Linear], nn.Module]) -> Quantise:
    """Return a function that replaces each layer."""

    def quantise(model: nn.Module, names: list[str]) -> nn.Module:
        for name in names:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, make(model.get_submodule(name)))  # type: ignore[arg-type]
        return model

    return quantise


def bitsandbytes(kind: str, **settings: Any) -> Quantise:
    import bitsandbytes as library

    def make(layer: nn.Linear) -> nn.Module:
        made = getattr(library.nn, kind)(layer.in_features, layer.out_features, bias=False, **settings)
        made.load_state_dict(layer.state_dict())
        return made.to("cpu")

    return by_layer(make)


def hqq(bits: int) -> Quantise:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    settings = BaseQuantizeConfig(nbits=bits, group_size=64)
    return by_layer(lambda layer: HQQLinear(layer, settings, compute_dtype=torch.float32, device="cpu"))


def torchao(config: str) -> Quantise:
    import torchao.quantization as library

    def quantise(model: nn.Module, names: list[str]) -> nn.Module:
        library.quantize_(model, getattr(library, config)(), filter_fn=lambda _, name: name in names)
        return model

    return quantise


def quanto(dtype: str) -> Quantise:
    from optimum import quanto as library

    def quantise(model: nn.Module, names: list[str]) -> nn.Module:
        others = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in names]
        library.quantize(model, weights=getattr(library, dtype), exclude=others)
        library.freeze(model)
        return model

    return quantise


def bitnet() -> Quantise:
    from transformers.integrations.bitnet import AutoBitLinear

    def make(layer: nn.Linear) -> nn.Module:
        made = AutoBitLinear(layer.in_features, layer.out_features, bias=False, online_quant=True)
        made.load_state_dict(layer.state_dict())
        return made

    return by_layer(make)


SCHEMES: dict[str, Callable[[], Quantise]] = {
    "bitsandbytes, 8 bit": lambda: bitsandbytes("Linear8bitLt", has_fp16_weights=False),
    "bitsandbytes, NF4": lambda: bitsandbytes("Linear4bit", compute_dtype=torch.float32, quant_type="nf4"),
    "bitsandbytes, FP4": lambda: bitsandbytes("Linear4bit", compute_dtype=torch.float32, quant_type="fp4"),
    **{f"HQQ, {bits} bit": lambda bits=bits: hqq(bits) for bits in (8, 4, 2)},
    "torchao, int8 weights": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao, intx weights": lambda: torchao("IntxWeightOnlyConfig"),
    "torchao, float8 weights": lambda: torchao("Float8WeightOnlyConfig"),
    "torchao, dynamic int8": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
    **{f"optimum-quanto, {dtype}": lambda dtype=dtype: quanto(dtype) for dtype in ("qint8", "qint4", "qfloat8")},
    "BitNet": bitnet,
}


def dequantised(model: nn.Module, data: Path, names: list[str]) -> nn.Module:
    """Return the model with the weights that its quantised layers apply."""
    twin = story_model(data)
    for name in names:
        layer = twin.get_submodule(name)
        with torch.no_grad():
            layer.weight.copy_(model.get_submodule(name)(torch.eye(layer.in_features)).T)  # type: ignore[union-attr]
    return twin


def row(scheme: str, data: Path) -> str:
    try:
        quantise, model = SCHEMES[scheme](), story_model(data)
        names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
        if scheme.startswith(("bitsandbytes, NF4", "bitsandbytes, FP4", "HQQ")):  # groups of 64 weights, of 64 and 172
            names = [name for name in names if "self_attn" in name]
        model = quantise(model, names).eval()
        ids = story_tokenizer(data)(TEXT, return_tensors="pt")["input_ids"]
        twin, cells = dequantised(model, data, names), []
        for method in RULES.values():
            e = whence.explain(model, {"input_ids": ids}, method=method)
            expected = whence.explain(twin, {"input_ids": ids}, e.target, method=method)
            both = [one.relevance["input_ids"].flatten().double() for one in (e, expected)]
            cells.append(f"{torch.cosine_similarity(*both, 0):.6f}")
        cells.append(f"{float((e.output - expected.output).abs() / expected.output.abs()):.0e}")
    except Exception as error:
        cells = [f"{type(error).__name__}: {str(error).splitlines()[0][:80]}", "", ""]
    return f"| {scheme} | {' | '.join(cells)} |"


def main(data: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    head = ["| scheme | cosine, LRP-0 | cosine, γ | difference of the output |", "|---|---|---|---|"]
    with contextlib.redirect_stderr(io.StringIO()):
        rows = [row(scheme, data) for scheme in SCHEMES]
    packages = ("transformers", "bitsandbytes", "hqq", "torchao", "optimum-quanto")
    peers.write("quantised", f"# Quantised models\n\n{peers.versions(*packages)}.\n", [*head, *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
