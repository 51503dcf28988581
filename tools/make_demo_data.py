"""Makes fastce/data: logits and labels of a classifier of handwritten digits, trained with fastce's own gradient.

The classifier is softmax regression on scikit-learn's digits (1,797 images of 8 × 8). The logits are out of fold: of
each fifth of the images, by a classifier that was trained on the other four, so that the loss is an honest one.
Everything is computed in float64 and the problem is convex, so the float32 logits are the same on every machine.

    pip install scikit-learn && python tools/make_demo_data.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

import fastce

FOLDS = 5
STEPS = 600
RATE = 0.5
MOMENTUM = 0.9
DECAY = 1e-4

Array = npt.NDArray[np.float64]


def train(x: Array, y: npt.NDArray[np.int64]) -> Array:
    """Minimise mean cross entropy + DECAY/2·|w|² by gradient descent with momentum."""
    weights = np.zeros((x.shape[1], 10))
    speed = np.zeros_like(weights)
    for _ in range(STEPS):
        _, grad = fastce.cross_entropy_with_grad(x @ weights, y)
        speed = MOMENTUM * speed - RATE * (x.T @ grad + DECAY * weights)
        weights += speed
    return weights


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    x = np.hstack([images / 16, np.ones((len(images), 1))])
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    logits = np.empty((len(x), 10), np.float32)
    for k in range(FOLDS):
        logits[fold == k] = x[fold == k] @ train(x[fold != k], labels[fold != k])

    folder = Path(__file__).parents[1] / "fastce" / "data"
    np.save(folder / "digits_logits.npy", logits)
    np.save(folder / "digits_labels.npy", labels.astype(np.int64))
    accuracy = (logits.argmax(axis=1) == labels).mean()
    print(f"loss {fastce.cross_entropy(logits, labels):.4f} nats, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
