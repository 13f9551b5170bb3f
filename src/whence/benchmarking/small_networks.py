"""Training of the benchmark's networks, cached by content."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whence.core.files import atomic_write
from whence.core.fingerprints import fingerprint

BATCH_SIZE = 128


def train(
    make: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    folder: Path | None,
    *,
    seed: int = 0,
    epochs: int = 10,
    rate: float = 3e-3,
    weight_decay: float = 1e-3,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> nn.Module:
    """Train a network with AdamW and one learning-rate cycle, or read it from the folder if it was trained before.

    The logits of classifiers are centered: the last layer subtracts the mean of all classes from each. The softmax does not
    change, and evidence for all classes alike, which no truth counts, is not part of the explained output.

    The name of the file is the fingerprint of all that the training depends on. The global random state is restored.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        file = None
        if folder is not None:
            file = folder / f"{fingerprint(model, x, y, seed, epochs, rate, weight_decay, loss, torch.__version__)}.pt"
        if file is None or not _loaded(model, file):
            _fit(model, x, y, epochs, rate, weight_decay, loss)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file) as temporary:
                    torch.save(model.state_dict(), temporary)
        if loss is F.cross_entropy:
            _center_logits(model)
    return model.eval().requires_grad_(False)


def _center_logits(model: nn.Module) -> None:
    """Subtract the mean of all classes from weights and biases of the last linear layer."""
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.sub_(parameter.mean(0, keepdim=True))


def _loaded(model: nn.Module, file: Path) -> bool:
    """Load the weights, and return whether that was possible; a damaged file counts as none."""
    try:
        model.load_state_dict(torch.load(file, weights_only=True))
    except Exception:
        return False
    return True


def _fit(model: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float, weight_decay: float, loss: Callable) -> None:
    with torch.enable_grad():
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=weight_decay)
        steps = epochs * math.ceil(len(x) / BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH_SIZE):
                optimizer.zero_grad()
                loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
