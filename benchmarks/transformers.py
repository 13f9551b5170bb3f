"""AttnLRP on ViT-B/16 and on an 8-layer Llama (d = 512, 256 tokens) beside the plain gradient × input and LXT, in one process.

    python benchmarks/transformers.py        # prints the tables and writes benchmarks/results/transformers.md

Ratios to the plain gradient × input (parameters frozen, its cheapest form). LXT patches classes for the whole process and
cannot undo it, so it runs last; its ratio is to the plain gradient timed just before the patches. Agreement is measured in
float64 where the family is one of LXT's.
"""

import os
import sys
from collections.abc import Callable

sys.path.pop(0)  # this file is called as the library it measures
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
import torch
from torch import Tensor, nn

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
import peers

peers.declare_torchvision_operators()

import transformers  # noqa: E402

import whence  # noqa: E402
from whence import LRP, presets  # noqa: E402

ROUNDS = 7
TOKENS, BATCH, SIDE = 256, 4, 224
RULES = {
    "whence attn_lrp": presets.attn_lrp(conv_gamma=0),
    "whence cp_lrp": presets.cp_lrp(conv_gamma=0),
    "whence attn_lrp, γ on dense layers 0.05, on the patches 0.25": presets.attn_lrp(0.05, 0.25),
}


def llama(layers: int = 8, width: int = 512) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=1376, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def vision_transformer() -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.vit_b_16(weights=None).eval().requires_grad_(False)
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model


def embedded(model: nn.Module, ids: Tensor) -> Tensor:
    return model.get_input_embeddings()(ids).detach().requires_grad_()


def plain_text(model: nn.Module, ids: Tensor) -> Tensor:
    e = embedded(model, ids)
    logits = model(inputs_embeds=e, use_cache=False).logits
    (g,) = torch.autograd.grad(logits[:, -1].max(-1).values.sum(), e)
    return (e.detach() * g).sum(-1)


def plain_picture(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x).max(-1).values.sum(), x)
    return x.detach() * g


def by_checkpoints(model: nn.Module, ids: Tensor) -> object:
    with whence.checkpointed(model, "model.layers.*"):
        return whence.explain(model, {"input_ids": ids}, method=LRP(RULES["whence attn_lrp"]))


def ours_and_plain() -> list[str]:
    model, ids = llama(), torch.randint(0, 1000, (1, TOKENS))
    of_text = {"gradient × input": lambda: plain_text(model, ids)} | {
        label: lambda rules=rules: whence.explain(model, {"input_ids": ids}, method=LRP(rules))
        for label, rules in RULES.items()
    }
    of_text["whence attn_lrp, checkpointed"] = lambda: by_checkpoints(model, ids)
    network, x = vision_transformer(), torch.randn(BATCH, 3, SIDE, SIDE)
    of_pictures = {"gradient × input": lambda: plain_picture(network, x)} | {
        label: lambda rules=rules: whence.explain(network, x, method=LRP(rules)) for label, rules in RULES.items()
    }
    return peers.compared("Llama", of_text, ROUNDS) + peers.compared("ViT-B/16", of_pictures, ROUNDS)


FAMILIES = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    "gemma3": ("Gemma3", {"num_key_value_heads": 2, "head_dim": 16}),
    "gpt2": ("GPT2", {}),
}


def small(family: str) -> nn.Module:
    name, extra = FAMILIES[family]
    shape = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=100, n_embd=64, n_layer=3, n_head=4)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = getattr(transformers, f"{name}TextConfig" if family == "gemma3" else f"{name}Config")(**shape, **extra)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    torch.manual_seed(1)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return model.double().eval().requires_grad_(False)


class Interfaces(dict):
    """LXT 2.1 puts a plain dict where transformers 5.23 asks for an interface."""

    def get_interface(self, name: str, default: Callable) -> Callable:
        return self.get(name, default)


def by_lxt_in_the_same_process() -> tuple[list[str], list[str]]:
    """Ours first, then LXT's patches, which stay."""
    from importlib import import_module

    for gone in ("find_pruneable_heads_and_indices", "prune_linear_layer"):  # LXT 2.1 imports them; transformers 5 has none
        if not hasattr(transformers.pytorch_utils, gone):
            setattr(transformers.pytorch_utils, gone, None)
    from lxt.efficient import monkey_patch

    ids, agreement = torch.randint(0, 100, (1, 24)), []
    models = {family: small(family) for family in FAMILIES}
    ours = {
        family: whence.explain(model, {"input_ids": ids}, method=LRP(presets.attn_lrp())) for family, model in models.items()
    }
    big, long = llama(), torch.randint(0, 1000, (1, TOKENS))
    before = peers.seconds({"gradient × input": lambda: plain_text(big, long)}, ROUNDS)["gradient × input"]
    for family, model in models.items():
        library = import_module(f"transformers.models.{family}.modeling_{family}")
        try:
            monkey_patch(library)
            library.ALL_ATTENTION_FUNCTIONS = Interfaces(library.ALL_ATTENTION_FUNCTIONS)
            theirs = plain_text(model, ids)
        except Exception as error:
            agreement.append(f"| {family} | LXT fails: {type(error).__name__}: {str(error).splitlines()[0][:90]} |")
            continue
        mine = ours[family].relevance["input_ids"]
        agreement.append(f"| {family} | {((mine - theirs).abs().max() / mine.abs().max()).item():.0e} |")
    after = peers.seconds({"lxt": lambda: plain_text(big, long)}, ROUNDS)["lxt"]
    return [f"| Llama | LXT | {after / before:.2f} | | {after:.3f} | |"], agreement


def main() -> None:
    rows = [] if "--agreement" in sys.argv else ours_and_plain()
    lxt_rows, agreement = by_lxt_in_the_same_process()
    second = ["| family (3 layers, float64) | largest difference to LXT / largest relevance |", "|---|---|"]
    text = "\n".join(
        [
            "# Transformers\n",
            f"{peers.versions('transformers', 'torchvision', 'lxt')}; Llama: 8 layers, d = 512, {TOKENS} tokens; "
            f"ViT: batch {BATCH} at {SIDE}².\n",
            *peers.HEAD, *rows, *lxt_rows, "", "## Agreement with LXT's efficient form\n", *second, *agreement, "",
        ]
    )  # fmt: skip
    print(text)
    if rows:
        (peers.RESULTS / "transformers.md").write_text(text)


if __name__ == "__main__":
    main()
