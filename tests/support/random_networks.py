"""Random networks of every shape the engine promises to explain, as hypothesis strategies."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

ACTIVATIONS = {
    "relu": F.relu, "relu_": lambda x: F.relu(x, inplace=True), "torch.relu_": torch.relu_, "leaky": F.leaky_relu,
    "leaky_": lambda x: F.leaky_relu(x, 0.1, inplace=True), "relu6": F.relu6, "silu": F.silu, "gelu": F.gelu,
    "silu_": lambda x: F.silu(x, inplace=True), "hardswish": F.hardswish, "tanh": torch.tanh, "tanh_": torch.tanh_,
    "elu": F.elu, "mish": F.mish, "clamp": lambda x: x.clamp(min=0), "clamp_": lambda x: x.clamp_(0, 6), "abs": torch.abs,
    "statement": lambda x: (x.relu_(), x)[1],  # the returned value is not the one that is used
}  # fmt: skip


class Gate(nn.Module):
    def __init__(self, channels: int, kind: str):
        super().__init__()
        self.squeeze, self.gate = nn.Linear(channels, channels), {"sigmoid": torch.sigmoid, "hard": F.hardsigmoid}[kind]

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(self.squeeze(x.flatten(2).mean(2)))
        return x * g.view(*g.shape, *[1] * (x.dim() - 2))


class ChannelShuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, *rest = x.shape
        return x.view(n, 2, c // 2, *rest).transpose(1, 2).reshape(n, c, *rest)


class Made(nn.Module):
    """Runs a list of steps; what a step does is written in `step`."""

    def __init__(self, plan: "Plan"):
        super().__init__()
        self.plan = plan
        self.parts = nn.ModuleDict()
        c, d = plan.channels, plan.dimensions
        self.parts["stem"] = CONVOLUTIONS[d](2, c, 3, padding=1, bias=plan.stem_bias)
        for i, (kind, detail) in enumerate(plan.steps):
            for name, module in self.made(kind, detail, c, d).items():
                self.parts[f"{i}_{name}"] = module
        self.head = nn.Linear(c, 3)

    def made(self, kind: str, detail: Any, c: int, d: int) -> dict[str, nn.Module]:
        convolution = CONVOLUTIONS[d]
        if kind == "conv":
            groups, bias, norm = detail
            return {
                "conv": convolution(c, c, 3, padding=1, groups=groups, bias=bias),
                **({"norm": NORMS[d](c)} if norm else {}),
            }
        if kind == "transposed":
            return {"conv": TRANSPOSED[d](c, c, 3, padding=1)}
        if kind in ("residual", "residual_", "shared", "twice_read", "overwritten"):
            return {"conv": convolution(c, c, 1), "norm": NORMS[d](c)} if detail else {"conv": convolution(c, c, 1)}
        if kind == "concat":
            return {"one": convolution(c, c // 2, 1), "two": convolution(c, c // 2, 3, padding=1)}
        if kind == "norm":
            return {"norm": {"batch": NORMS[d](c), "group": nn.GroupNorm(2, c), "instance": nn.GroupNorm(c, c)}[detail]}
        if kind == "gate":
            return {"gate": Gate(c, detail)}
        if kind == "shuffle":
            return {"shuffle": ChannelShuffle()}
        return {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["stem"](x)
        for i, (kind, detail) in enumerate(self.plan.steps):
            x = self.step(
                x, kind, detail, lambda name, v, i=i: self.parts[f"{i}_{name}"](v) if f"{i}_{name}" in self.parts else v
            )
        return self.head(x.flatten(2).mean(2))

    def step(self, x: Tensor, kind: str, detail: Any, run: Any) -> Tensor:
        d = self.plan.dimensions
        if kind == "conv" or kind == "transposed":
            return run("norm", run("conv", x))
        if kind == "activation":
            return ACTIVATIONS[detail](x)
        if kind == "residual":
            return x + F.relu(run("norm", run("conv", x)))
        if kind == "residual_":
            y = run("norm", run("conv", x))
            y += x
            return F.relu(y, inplace=True)
        if kind == "shared":  # one module, three calls
            return run("conv", F.relu(run("conv", x))) - 0.5 * run("conv", x)
        if kind == "twice_read":  # two consumers of one linear output
            y = run("norm", run("conv", x))
            return F.relu(y) + 0.3 * y
        if kind == "overwritten":  # read by the map, then overwritten
            y = run("norm", run("conv", x))
            x = x.mul_(0.5)
            return x.add_(y)
        if kind == "concat":
            return torch.cat([run("one", x), F.relu(run("two", x))], 1)
        if kind == "functional":
            weight = self.parts["stem"].weight.transpose(0, 1)[:, : x.shape[1]].mean(0)
            return x + {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[d](x, weight[:, None], padding=1, groups=x.shape[1])
        if kind == "pool":
            return x if min(x.shape[2:]) < 2 else (MAX_POOLS if detail == "max" else AVERAGE_POOLS)[d](x, 2)
        if kind == "index":
            y = x.clone()
            y[:, 0] = x[:, 1] * 2
            return y
        if kind == "shift":
            return x - 0.1 if detail else 1.5 * x + x.new_full((1, x.shape[1], *[1] * d), 0.2)
        if kind == "norm" and detail != "batch" and x[0, 0].numel() == 1:
            return x  # a norm over a single value leaves only rounding noise to explain
        if kind == "normalise":
            return F.normalize(x, dim=1)
        if kind == "pad":
            return F.pad(x, (1, 0), value=0.3)
        return run(kind, x)


@dataclass(frozen=True)
class Plan:
    dimensions: int
    channels: int
    stem_bias: bool
    steps: tuple[tuple[str, Any], ...]


def _steps() -> st.SearchStrategy:
    yes = st.booleans()
    return st.one_of(
        st.tuples(st.just("conv"), st.tuples(st.sampled_from([1, 2]), yes, yes)),
        st.tuples(st.just("activation"), st.sampled_from(sorted(ACTIVATIONS))),
        st.tuples(st.just("transposed"), st.none()),
        st.tuples(st.sampled_from(["residual", "residual_", "shared", "twice_read", "overwritten"]), yes),
        st.tuples(st.sampled_from(["concat", "functional", "index", "shuffle", "normalise", "pad"]), st.none()),
        st.tuples(st.just("norm"), st.sampled_from(["batch", "group", "instance"])),
        st.tuples(st.just("gate"), st.sampled_from(["sigmoid", "hard"])),
        st.tuples(st.just("pool"), st.sampled_from(["max", "mean"])),
        st.tuples(st.just("shift"), yes),
    )


def plans() -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan, st.integers(1, 3), st.sampled_from([2, 4]), st.booleans(), st.lists(_steps(), min_size=1, max_size=7).map(tuple)
    )


def build(plan: Plan, seed: int, biases: bool) -> nn.Module:
    torch.manual_seed(seed)
    model = Made(plan).eval()
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                t.normal_(0, 0.3) if biases else t.zero_()
            elif name.endswith("running_var") or (t.dim() == 1 and t.is_floating_point()):
                t.uniform_(0.5, 1.5)
    return model
