"""Ctrl-C at many lines of an explanation, in a process of its own: nothing of it stays behind, and no interrupt is lost."""

import subprocess
import sys

import pytest

from support.selection import ALL

SWEEP = """
import signal, sys
import torch
from torch import nn
from torch._functorch import apis
from torch.nn.modules import module
from torch.utils import checkpoint
import whence
from whence.lrp.engine.tensor_facts import TensorFacts

torch.set_num_threads(1)
torch.manual_seed(0)  # with unlucky weights, no unit behind the ReLU is active
signal.signal(signal.SIGINT, signal.default_int_handler)
net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()
x = torch.rand(2, 1, 6, 6)
cured = whence.cure(net, "2", x + 1, x)

class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(self.first(x).relu().mean(1))

mixing = Mixing().eval()
cells, y = whence.patches(x, 3), torch.tensor([0, 1])
METHODS = {
    "lrp": whence.LRP(), "integrated_gradients": whence.IntegratedGradients(n_steps=3),
    "smooth_grad": whence.SmoothGrad(n_samples=3), "feature_ablation": whence.FeatureAblation(feature_mask=cells),
    "shapley": whence.Shapley(feature_mask=cells), "grad_cam": whence.GradCAM("0"),
    "simple_taylor": whence.SimpleTaylor("origin"),
}
CALLS = {name: lambda m=m: whence.explain(net, x, 1, method=m, progress=False).relevance for name, m in METHODS.items()} | {
    "layers": lambda: whence.explain(net, x, 1, layers=["1", "2"], progress=False).layers["1"],
    "prototype": lambda: whence.prototype(net, [1], shape=(1, 6, 6), n_steps=2, progress=False).images,
    "attack": lambda: whence.attack(net, x, [0, 1], whence.attacks.PGD(0.1, n_steps=2)).inputs,
    "evaluate": lambda: torch.tensor([
        row["mean"] for row in whence.evaluate(net, (x, y), ["gradient_times_input"], ["mif"], progress=False).table
    ]),
    "cured": lambda: cured(x).detach(),
    "patching": lambda: whence.patching(
        mixing, x[:1, 0], x[1:, 0], 0, {"first": "places"}, estimator="exact", progress=False
    ).effects["exact"]["first"],
    "replay": lambda: whence.Explainer(net, capture=True)(x, 1).relevance,
}

def state():
    return (
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for whole in (net, mixing) for m in whole.modules()],
        len(torch.overrides._get_current_function_mode_stack()), len(module._global_forward_hooks),
        len(module._global_forward_pre_hooks), len(module._global_forward_hooks_with_kwargs),
        len(module._global_forward_hooks_always_called), apis.vmap_impl.__module__,
        checkpoint._checkpoint_without_reentrant_generator.__module__, torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    )

lines, interrupted_at = 0, 0

FORGET = TensorFacts()._forget.__code__  # called as tensors are freed, where Python itself loses exceptions

def tracer(frame, event, arg):
    global lines
    if event == "line" and frame.f_code is not FORGET:
        lines += 1
        if lines == interrupted_at:
            signal.raise_signal(signal.SIGINT)
    return tracer

def traced(call, interrupt):
    global lines, interrupted_at
    lines, interrupted_at = 0, interrupt
    sys.settrace(tracer)
    try:
        return call()
    finally:
        sys.settrace(None)

call, step, places = CALLS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
traced(call, 0)
expected, before = traced(call, 0), state()
total = lines
step = max(step, total // places)
for place in range(1, total, step):
    try:
        traced(call, place)
        lost = lines >= place
    except KeyboardInterrupt:
        lost = False
    sys.settrace(None)
    if lost or state() != before:
        raise SystemExit(f"line {place} of {total}: {'the interrupt was lost' if lost else state()}")
    if not torch.equal(traced(call, 0), expected):
        raise SystemExit(f"line {place} of {total}: the next result differs")
(net(x.requires_grad_()).sum()).backward()
print(total)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "lrp", "integrated_gradients", "smooth_grad", "feature_ablation", "shapley", "grad_cam", "simple_taylor", "layers",
        "prototype", "attack", "evaluate", "cured", "patching", "replay",
    ],
)  # fmt: skip
def test_an_interrupt_leaves_nothing_behind(call):
    step, places = ("11", "1000") if ALL else ("11", "10" if call == "replay" else "400")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SWEEP, call, step, places], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr[-800:]
    assert int(done.stdout) > 100
