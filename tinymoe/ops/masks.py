"""Masks say what counts: which rows are tokens and not padding, which assignments are carried out."""

import numpy as np

from ..types import Array, Backward


def as_mask(shape, *masks):
    """All masks as one array of bools of this shape, (N,) or (N, K), so that no operation needs a case for None.

    masks  None    nothing is left out
           (N,)    False for padding: rows that are no tokens
           (N, K)  False for an assignment that is not carried out

    Raises ValueError for another shape, and for numbers instead of bools: as an index they would pick rows.
    """
    whole = np.ones(shape, bool)
    for mask in masks:
        if mask is None:
            continue
        if mask.dtype != bool or mask.shape not in (shape, shape[:1]):
            each = f"{shape[0]} rows" if mask.ndim < 2 else f"{shape} assignments"
            raise ValueError(
                f"the mask has shape {mask.shape} and type {mask.dtype}; it must be bool, one for each of {each}"
            )
        whole &= mask if mask.shape == shape else mask[:, None]
    return whole


def count(mask):
    """How many are True, or 1 if none is, so that a mean over none is 0. A Python int: it leaves float32 what it divides."""
    return max(int(mask.sum()), 1)


def without_padding(x: Array, real: Array) -> tuple[Array, Backward]:
    """Zeros in the rows of padding, whatever stood there: it may be NaN.

        y_n = x_n  where real_n, else 0        dx_n = dy_n  where real_n, else 0

    x     (N, D)
    real  (N,)    bool, False for padding
    y     (N, D)
    """
    y = np.where(real[:, None], x, 0)

    def backward(dy):
        return (np.where(real[:, None], dy, 0),)

    return y, backward
