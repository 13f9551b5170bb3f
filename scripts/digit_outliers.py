"""Why is this digit an outlier? A one-class SVM on MNIST's threes, and what makes test digits outliers to it.

    python scripts/digit_outliers.py ../shared/data docs/images/outlier_digits.png

Red is what the SVM finds out of place: strokes that threes do not have (ink) and strokes that they do (no ink).
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import OneClassSVM

import whence

CLASS, TRAINED_ON, NU, GAMMA = 3, 2000, 0.1, 0.05


def main(data: Path, picture: Path) -> None:
    train, test = (np.load(data / f"mnist_{part}.npz") for part in ("train", "test"))
    threes = train["images"][train["labels"] == CLASS][:TRAINED_ON].reshape(-1, 784) / 255.0
    images, labels = torch.as_tensor(test["images"][:, None] / 255.0), test["labels"]
    net = whence.neuralize(OneClassSVM(nu=NU, gamma=GAMMA).fit(threes))
    with torch.no_grad():
        outlierness = net(images)[:, 0].numpy()
    caught = {int(c): float((outlierness[labels == c] > net.threshold.item()).mean()) for c in np.unique(labels)}
    print("outliers of each class:", ", ".join(f"{c}: {share:.0%}" for c, share in caught.items()))
    oddest = np.flatnonzero(labels == CLASS)[outlierness[labels == CLASS].argmax()]
    chosen = [oddest, *(np.flatnonzero(labels == c)[0] for c in (5, 8, 1))]
    e = replace(whence.explain(net, images[chosen]), classes=net.classes)
    print(e.conservation)
    e.save(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
