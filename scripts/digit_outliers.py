"""Why is this digit an outlier, and why an inlier? A one-class SVM on MNIST's threes.

    python scripts/digit_outliers.py ../shared/data docs/images        # writes outlier_digits.png and inlier_digits.png

Red on the first is what the SVM finds out of place: strokes that threes do not have (ink) and strokes that they do (no ink).
Red on the second is what is more like threes than like other digits, blue what is less.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import OneClassSVM
from torch import Tensor

import whence

CLASS, TRAINED_ON, NU, GAMMA, OTHERS = 3, 2000, 0.1, 0.05, 3000


def draw(net: whence.layers.Neuralized, images: Tensor, picture: Path) -> None:
    e = replace(whence.explain(net, images), class_names=net.class_names)
    print(e.conservation)
    e.save(picture)


def main(data: Path, pictures: Path) -> None:
    train, test = (np.load(data / f"mnist_{part}.npz") for part in ("train", "test"))
    rows, classes = train["images"].reshape(-1, 784) / 255.0, train["labels"]
    images, labels = torch.as_tensor(test["images"][:, None] / 255.0), test["labels"]
    svm = OneClassSVM(nu=NU, gamma=GAMMA).fit(rows[classes == CLASS][:TRAINED_ON])
    net = whence.neuralize(svm)
    with torch.no_grad():
        outlierness = net(images)[:, 0].numpy()
    caught = {int(c): float((outlierness[labels == c] > net.threshold.item()).mean()) for c in np.unique(labels)}
    print("outliers of each class:", ", ".join(f"{c}: {share:.0%}" for c, share in caught.items()))
    first = {c: int(np.flatnonzero(labels == c)[0]) for c in range(10)}
    oddest = np.flatnonzero(labels == CLASS)[outlierness[labels == CLASS].argmax()]
    draw(net, images[[oddest, first[5], first[8], first[1]]], pictures / "outlier_digits.png")
    against = whence.neuralize(svm, view="inlierness", background=rows[classes != CLASS][:OTHERS])
    draw(against, images[[first[CLASS], first[8]]], pictures / "inlier_digits.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
