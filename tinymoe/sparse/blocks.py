"""How the products use memory: some rows at a time, so that what is worked on stays in the cache, in one buffer.

Fresh memory can cost ten times the copy itself. So `equal_rows` and `filled_in` yield a buffer that the next step
overwrites: use it at once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..types import Array
from .sorting import rows_by_length
from .structure import entries_of, row_blocks

BLOCK = 1 << 18  # entries handled at a time: index, value and product of so many stay in the cache
GATHERED = 1 << 17  # numbers gathered at a time: with float32, half a megabyte
FILLED = 1 << 18  # places of a matrix filled in at a time
DENSE_FROM = 1 / 10  # density from which filling in the zeros and calling BLAS is the faster way (measured)


def consecutive_rows(indptr: Array, limit: int) -> Iterator[tuple[slice, slice, Array]]:
    """Rows that together own about `limit` entries: (rows, their entries, where each row begins among these)."""
    for first, last in row_blocks(indptr, limit):
        pointers = indptr[first : last + 1]
        yield slice(first, last), slice(int(pointers[0]), int(pointers[-1])), pointers - pointers[0]


def equal_rows(
    indptr: Array, indices: Array, x: Array, values: Array | None = None
) -> Iterator[tuple[Array, Array, Array]]:
    """Rows of one length L, R at a time, with their values and the rows of X that they name.

    x       (n_cols, width)   values (nnz,), or None for the number of each entry
    yields  rows (R,)   values (R, L)   X_k: for the column k of each entry (R, L, width)

    Every row that has entries comes once.
    """
    order, groups = rows_by_length(indptr)
    if values is None:
        values = entries_of(indptr, order)
        indices = indices.take(values)
    elif len(groups) > 1:
        indices, values = _reordered(indptr, order, indices, values)
    begin, width = 0, x.shape[1]
    longest = max((length for length, _, _ in groups), default=0)
    buffer = aligned(min(max(GATHERED, longest * width), len(indices) * width), x.dtype)
    for length, start, stop in groups:
        step = max(1, GATHERED // max(length * width, 1))
        for first in range(start, stop, step) if length else ():
            n = min(step, stop - first)
            block = slice(begin, begin := begin + n * length)
            named = buffer[: n * length * width].reshape(n, length, width)
            x.take(indices[block].reshape(n, length), axis=0, out=named, mode="clip")  # mode "raise" buffers
            yield order[first : first + n], values[block].reshape(n, length), named


def _reordered(indptr: Array, order: Array, indices: Array, values: Array) -> tuple[Array, Array]:
    """Indices and values with the rows in another order."""
    entries = entries_of(indptr, order)
    return indices.take(entries), values.take(entries)


def aligned(size: int, dtype: Any) -> Array:
    """An empty array that begins on a cache line: copies into it run about a tenth faster."""
    raw = np.empty(size * np.dtype(dtype).itemsize + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size * np.dtype(dtype).itemsize].view(dtype)


def density(indptr: Array, n_cols: int) -> float:
    """The share of places that are stored; 0 for a matrix without places."""
    return int(indptr[-1]) / max((len(indptr) - 1) * n_cols, 1)


def dense_pays(density: float, *operands: Array) -> bool:
    """Whether to fill in the zeros: dense enough, known to BLAS, and no ∞ or NaN that 0 · ∞ would spread."""
    blas = all(operand.dtype.char in "fdFD" for operand in operands)
    return density >= DENSE_FROM and blas and all(bool(np.isfinite(operand).all()) for operand in operands)


def filled_in(
    indptr: Array, indices: Array, data: Array, n_cols: int, cells: int = FILLED
) -> Iterator[tuple[slice, Array]]:
    """Rows of at most `cells` places together, and at least one: (rows, A's block (R, n_cols) with all its zeros)."""
    n_rows = len(indptr) - 1
    step = max(1, cells // max(n_cols, 1))
    buffer = np.empty((min(step, n_rows), n_cols), data.dtype)
    for first in range(0, n_rows, step):
        pointers = indptr[first : first + step + 1]
        entries = slice(int(pointers[0]), int(pointers[-1]))
        block = buffer[: len(pointers) - 1]
        block.fill(0)
        block.reshape(-1)[flat_places(pointers, indices[entries], n_cols)] = data[entries]
        yield slice(first, first + len(block)), block


def flat_places(indptr: Array, indices: Array, n_cols: int) -> Array:
    """Entries of some consecutive rows → their places in the dense block of those rows, flattened."""
    places = np.repeat(np.arange(len(indptr) - 1) * n_cols, np.diff(indptr))
    places += indices
    return places
