"""The invariants of sparse storage, and shapes that fit: each is named in one sentence when an array breaks it."""

import operator
from typing import Any

import numpy as np

from ..types import Array
from .structure import index_dtype

Checked = tuple[Array, Array, Array, tuple[int, int]]  # both index arrays in the narrowest dtype, values, shape


def check_shape(shape: Any) -> tuple[int, int]:
    """Two axes, neither negative."""
    try:
        n_rows, n_cols = (operator.index(axis) for axis in shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape is {shape!r}: it must be two integers (rows, columns).") from None
    if n_rows < 0 or n_cols < 0:
        raise ValueError(f"shape is {shape!r}: neither axis may be negative.")
    return n_rows, n_cols


def check_values(values: Any) -> Array:
    """One axis of integers, floats or complex numbers; NaN and ∞ are values like any other."""
    values = np.asarray(values)
    if values.dtype.kind not in "iufc":
        raise ValueError(
            f"values have dtype {values.dtype}: allowed are integers, floats and complex numbers; "
            "convert them first, for example with values.astype(np.float32)."
        )
    if values.ndim != 1:
        raise ValueError(f"values have shape {values.shape}: one axis is needed, a value for each entry.")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def check_indices(name: str, indices: Any, limit: int, axis: str) -> Array:
    """Integers in 0 … limit−1 along one axis."""
    indices = np.asarray(indices)
    if indices.size == 0 and indices.dtype.kind == "f":
        indices = indices.astype(np.int64)  # an empty list has no dtype of its own
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"{name} have dtype {indices.dtype} and shape {indices.shape}: integers along one axis needed."
        )
    if indices.size and (indices.min() < 0 or indices.max() >= limit):
        bad = indices[(indices < 0) | (indices >= limit)][0]
        raise ValueError(f"{name} contain {bad}: each must be at least 0 and below {limit}, the {axis}.")
    return indices


def check_coordinates(rows: Any, cols: Any, values: Any, shape: Any) -> Checked:
    """COO: three arrays of one length, every place inside the matrix."""
    shape, values = check_shape(shape), check_values(values)
    rows = check_indices("rows", rows, shape[0], "rows")
    cols = check_indices("cols", cols, shape[1], "columns")
    if not len(rows) == len(cols) == len(values):
        raise ValueError(
            f"there are {len(rows)} rows, {len(cols)} cols and {len(values)} values: equally many are needed."
        )
    index = index_dtype(shape, len(values))
    return rows.astype(index, copy=False), cols.astype(index, copy=False), values, shape


def check_compressed(indptr: Any, indices: Any, values: Any, shape: Any) -> Checked:
    """CSR: indptr (n_rows+1,) rises from 0 to nnz, never falling; indices are columns."""
    shape, values = check_shape(shape), check_values(values)
    indices = check_indices("indices", indices, shape[1], "columns")
    indptr = np.asarray(indptr)
    if len(indices) != len(values):
        raise ValueError(f"there are {len(indices)} indices and {len(values)} values: equally many are needed.")
    if indptr.shape != (shape[0] + 1,) or indptr.dtype.kind not in "iu":
        raise ValueError(
            f"indptr has dtype {indptr.dtype} and shape {indptr.shape}: it must be {shape[0] + 1} integers, "
            "one more than there are rows."
        )
    if indptr[0] != 0 or indptr[-1] != len(indices):
        raise ValueError(
            f"indptr runs from {indptr[0]} to {indptr[-1]}: it must begin at 0 and end at {len(indices)}, "
            "the number of entries."
        )
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(falls):
        raise ValueError(f"indptr falls from row {falls[0]} to the next: it must never decrease.")
    index = index_dtype(shape, len(values))
    return indptr.astype(index, copy=False), indices.astype(index, copy=False), values, shape


def check_product(left: str, a: tuple[int, ...], right: str, b: tuple[int, ...], ndim: int) -> None:
    """Refuse shapes a and b whose inner axes differ, and a dense operand without the `ndim` axes wanted."""
    if not {len(a), len(b)} <= {1, 2} or ndim not in (len(a), len(b)) or a[-1] != b[0]:
        raise ValueError(
            f"{left} {a} @ {right} {b}: the last axis of {left} must be as long as the first of {right}, "
            "and a dense operand must have 1 or 2 axes."
        )


def frozen(array: Array) -> Array:
    """A read-only array: itself if it and what it is a view of are so already, else a copy."""
    owner: Any = array  # the base of a view can be anything that has a buffer
    while isinstance(owner, np.ndarray) and not owner.flags.writeable and owner.base is not None:
        owner = owner.base
    if not (isinstance(owner, np.ndarray) and not owner.flags.writeable):
        array = array.copy()
        array.flags.writeable = False
    return array
