"""Digits written by hand, 8×8."""

import importlib

import numpy as np

from ...errors import UserError
from .captions import of_digit
from .pictures import Pictures, PictureSplit

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits(seed: int = 0, val: int = 200, held_out: int = 200) -> PictureSplit:
    """The 1,797 handwritten digits that come with scikit-learn, shuffled; `held_out` is a second validation set.

    labels  digit

    Raises UserError where scikit-learn is not installed, ValueError when nothing is left to train on.
    """
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError:
        raise UserError(
            "the handwritten digits come with scikit-learn, which is not installed: pip install scikit-learn, "
            "or choose the glyphs, which need nothing more"
        ) from None
    n = len(bunch.target)
    if min(val, held_out) < 0 or val + held_out >= n:
        raise ValueError(f"val and held_out are {val} and {held_out}; neither may be negative, together fewer than {n}")
    images = (bunch.images[..., None] / 16).astype(np.float32)
    labels = {"digit": bunch.target.astype(np.int64)}
    everything = Pictures(images, [of_digit(DIGITS[i]) for i in bunch.target], labels, {"digit": DIGITS})
    order = np.random.default_rng(seed).permutation(n)
    last = val + held_out
    return PictureSplit(everything.take(order[last:]), everything.take(order[:val]), everything.take(order[val:last]))
