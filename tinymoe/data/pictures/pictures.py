"""A set of pictures and what it shows, and what drawing them has in common."""

from dataclasses import dataclass

import numpy as np

from ...types import Array

FINE = 4  # pictures are drawn with 4×4 points to a pixel and averaged, so edges are smooth
SMALLEST = 16  # pixels on a side, below which shapes and letters can't be told apart


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures, what they show in words, and the same in numbers: `names[label][number]` is the word."""

    images: Array  # (N, H, W, C) float32 in [0, 1]; C = 1 is grey, 3 is red, green, blue
    captions: list[str]
    labels: dict[str, Array]  # each (N,) int64
    names: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Array) -> "Pictures":
        """The pictures with these numbers (n,), in this order."""
        labels = {name: values[rows] for name, values in self.labels.items()}
        return Pictures(self.images[rows], [self.captions[i] for i in rows], labels, self.names)


@dataclass(frozen=True, eq=False)
class PictureSplit:
    train: Pictures
    val: Pictures  # other pictures of the same kind
    held_out: Pictures  # combinations that train and val never show, though train has their words; of digits, more


def check_size(size: int) -> None:
    if size < SMALLEST:
        raise ValueError(f"the pictures are to have {size} pixels on a side; at least {SMALLEST} can be told apart")


def shrink(fine: Array) -> Array:
    """Means over squares of FINE × FINE points: (n, side·FINE, side·FINE) -> (n, side, side) float32."""
    n, side = fine.shape[0], fine.shape[1] // FINE
    return fine.reshape(n, side, FINE, side, FINE).mean((2, 4), dtype=np.float32)


def finish(images: Array, noise: float, rng: np.random.Generator) -> Array:
    """Add noise to every pixel and channel, and cut to [0, 1]."""
    noisy = images.astype(np.float32) + np.float32(noise) * rng.standard_normal(images.shape, np.float32)
    return np.clip(noisy, 0, 1)
