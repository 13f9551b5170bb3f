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

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()
x = torch.rand(2, 1, 6, 6)
cells = whence.patches(x, 3)
METHODS = {
    "lrp": whence.LRP(), "integrated_gradients": whence.IntegratedGradients(n_steps=3),
    "smooth_grad": whence.SmoothGrad(n_samples=3), "feature_ablation": whence.FeatureAblation(feature_mask=cells),
    "shapley": whence.Shapley(feature_mask=cells), "grad_cam": whence.GradCAM("0"),
    "simple_taylor": whence.SimpleTaylor("origin"),
}

def state():
    return (
        len(torch.overrides._get_current_function_mode_stack()), len(module._global_forward_hooks),
        len(module._global_forward_pre_hooks), len(module._global_forward_hooks_with_kwargs),
        len(module._global_forward_hooks_always_called), apis.vmap_impl.__module__,
        checkpoint._checkpoint_without_reentrant_generator.__module__, torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    )

lines, interrupted_at = 0, 0

def tracer(frame, event, arg):
    global lines
    if event == "line":
        lines += 1
        if lines == interrupted_at:
            signal.raise_signal(signal.SIGINT)
    return tracer

def explained(method, interrupt):
    global lines, interrupted_at
    lines, interrupted_at = 0, interrupt
    sys.settrace(tracer)
    try:
        return whence.explain(net, x, 1, method=method, progress=False).relevance
    finally:
        sys.settrace(None)

method, step = METHODS[sys.argv[1]], int(sys.argv[2])
explained(method, 0)
expected, before = explained(method, 0), state()
total = lines
for place in range(1, total, step):
    try:
        explained(method, place)
        lost = lines >= place
    except KeyboardInterrupt:
        lost = False
    sys.settrace(None)
    if lost or state() != before:
        raise SystemExit(f"line {place} of {total}: {'the interrupt was lost' if lost else state()}")
    if not torch.equal(explained(method, 0), expected):
        raise SystemExit(f"line {place} of {total}: the next explanation differs")
(net(x.requires_grad_()).sum()).backward()
print(total)
"""


@pytest.mark.parametrize(
    "method",
    ["lrp", "integrated_gradients", "smooth_grad", "feature_ablation", "shapley", "grad_cam", "simple_taylor"],
)
def test_an_interrupt_leaves_nothing_behind(method):
    step = "11" if ALL else "211"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SWEEP, method, step], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr[-800:]
    assert int(done.stdout) > 2000
