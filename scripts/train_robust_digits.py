"""Train the bundled robust digit network: adversarially, by PGD (Madry et al. 2018), else as the standard one.

    python scripts/train_robust_digits.py ../shared/data        # as for train_digits.py

Seed 0, 5 epochs of PGD with 7 steps, ε rising to 0.25 over the first; about twenty minutes on two cores.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import whence
from train_digits import BATCH, SEED, WEIGHTS, accuracy, read_mnist, shifted
from whence.models.digits import digit_network, digits

EPOCHS, EPSILON, STEPS = 5, 0.25, 7
TESTED_AT = 0.2


def train(images: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(SEED)
    model = digit_network().eval()
    batches = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=EPOCHS * batches)
    for epoch in range(EPOCHS):
        for step, batch in enumerate(torch.randperm(len(images))[: batches * BATCH].split(BATCH)):
            epsilon = EPSILON * min(1.0, (epoch * batches + step + 1) / batches)
            attack = whence.attacks.PGD(epsilon, STEPS, seed=epoch * batches + step)
            x, y = shifted(images[batch].float() / 255), labels[batch]
            loss = F.cross_entropy(model(attack(model, x, y)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 0:
                print(f"epoch {epoch + 1}, batch {step}: ε {epsilon:.3f}, loss {loss.item():.3f}", flush=True)
    return model


def withstood(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy under PGD-20 at ε = 0.2, an upper bound of the robust one."""
    x_adv = whence.attacks.PGD(TESTED_AT, 20, stop_early=True)(model, images.float() / 255, labels)
    return accuracy(model, x_adv * 255, labels)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model = train(*read_mnist(folder, "train"))
    images, labels = read_mnist(folder, "test")
    measured = {
        "test_accuracy": accuracy(model, images, labels),
        "pgd20_at_0.2": withstood(model, images, labels),
        "standard_pgd20_at_0.2": withstood(digits(), images, labels),
    }
    print(measured)
    notes = {name: f"{value:.4f}" for name, value in measured.items()} | {"seed": str(SEED)}
    save_file(model.state_dict(), WEIGHTS / "digits_robust.safetensors", notes)
