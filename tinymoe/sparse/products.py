"""Products of a CSR matrix with dense arrays, as functions of arrays: a fixed pattern, changing values.

    csr_matvec        y = A x           y_i  = Σ_{k in row i} a_ik x_k
    csr_matmul        Y = A X           Y_i: = Σ_{k in row i} a_ik X_k:
    dense_csr_matmul  Y = X A           the same product, transposed:  Yᵀ = Aᵀ Xᵀ
    sampled_matmul    values of X Y at the pattern of A:   v_ij = Σ_d x_id y_dj   for each stored (i, j)

They are one another's derivatives: with Y = A X, dX = Aᵀ dY and dA's values are dY Xᵀ sampled at A's pattern.
The arrays must satisfy the invariants that `CSR` checks: an index out of range is not noticed here.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .sorting import rows_by_length, sort_by
from .structure import BLOCK, Array, entries_of, row_blocks, row_numbers

GATHERED = 1 << 17  # numbers gathered at a time: with float32, half a megabyte
DENSE_FROM = 1 / 10  # density from which filling in the zeros and calling BLAS is the faster way (measured)


class Transpose(NamedTuple):
    """The pattern of Aᵀ, and the order that turns A's values into Aᵀ's: `data[order]`."""

    indptr: Array  # (n_cols+1,)
    indices: Array  # (nnz,)
    order: Array  # (nnz,)


def transpose_plan(indptr: Array, indices: Array, n_cols: int) -> Transpose:
    """The transpose of a pattern, made once and used with many values (by a backward pass, say)."""
    entries = np.arange(len(indices), dtype=indptr.dtype)
    starts, rows, order = sort_by(indices, n_cols, row_numbers(indptr), entries)
    return Transpose(starts.astype(indptr.dtype), rows, order)


def csr_matvec(indptr: Array, indices: Array, data: Array, x: Array, n_cols: int | None = None) -> Array:
    """Matrix–vector product: y_i = Σ_{k in row i} a_ik x_k.

    indptr (n_rows+1,)   indices, data (nnz,)   x (n_cols,)   returns (n_rows,)
    """
    check_product("A", (len(indptr) - 1, len(x) if n_cols is None else n_cols), "x", x.shape, 1)
    dtype = np.result_type(data, x)
    x, data = np.ascontiguousarray(x, dtype), data.astype(dtype, copy=False)
    y = np.zeros(len(indptr) - 1, dtype)
    for first, last in row_blocks(indptr, BLOCK):
        begin, end = int(indptr[first]), int(indptr[last])
        terms = x.take(indices[begin:end])
        terms *= data[begin:end]
        starts = indptr[first:last]
        filled = indptr[first + 1 : last + 1] > starts
        if filled.all():
            np.add.reduceat(terms, starts - begin, dtype=dtype, out=y[first:last])
        elif end > begin:  # reduceat would give an empty row its neighbour's first term
            y[first:last][filled] = np.add.reduceat(terms, starts[filled] - begin, dtype=dtype)
    return y


def csr_matmul(indptr: Array, indices: Array, data: Array, x: Array, n_cols: int | None = None) -> Array:
    """Sparse times dense: row i of Y is the weighted sum of the rows of X that row i of A names.

        Y_i: = Σ_{k in row i} a_ik X_k:

    indptr (n_rows+1,)   indices, data (nnz,)   x (n_cols, width)   returns (n_rows, width)
    A vector x (n_cols,) gives a vector (n_rows,).

    A zero that A does not store is never multiplied: an infinite X_k spoils only the rows that name k.
    """
    if x.ndim == 1:
        return csr_matvec(indptr, indices, data, x, n_cols)
    n_rows, n_cols = len(indptr) - 1, len(x) if n_cols is None else n_cols
    check_product("A", (n_rows, n_cols), "X", x.shape, 2)
    dtype = np.result_type(data, x)
    x, data = np.ascontiguousarray(x, dtype), data.astype(dtype, copy=False)
    if x.shape[1] == 1:
        return csr_matvec(indptr, indices, data, x[:, 0], n_cols)[:, None]
    y = np.empty((n_rows, x.shape[1]), dtype)
    if not dense_pays(density(indptr, n_cols), x):
        _by_gathering(indptr, indices, data, x, y)
        return y
    for first, last, block in densified(indptr, indices, data, n_cols):
        np.matmul(block, x, out=y[first:last])
    return y


def _by_gathering(indptr: Array, indices: Array, data: Array, x: Array, y: Array) -> None:
    """All R rows of one length at a time: (R, 1, length) @ gathered rows of X (R, length, width), into y."""
    if len(indices) == len(y) and (indptr[1:] - indptr[:-1] == 1).all():
        x.take(indices, axis=0, out=y, mode="clip")  # one entry in every row, as in dispatch: nothing to add up
        if not (data == 1).all():
            y *= data[:, None]
        return
    order, groups = rows_by_length(indptr)
    if len(groups) > 1:
        entries = entries_of(indptr, order)
        indices, data = indices.take(entries), data.take(entries)
        del entries
    for first, last, block, terms in gathered(groups, indices, x):
        products = np.matmul(data[block].reshape(len(terms), 1, -1), terms)
        y[order[first:last]] = products[:, 0]
    empty = sum(last - first for length, first, last in groups if length == 0)  # they come first
    y[order[:empty]] = 0


def dense_csr_matmul(x: Array, indptr: Array, indices: Array, data: Array, n_cols: int) -> Array:
    """Dense times sparse, Y = X A, as Yᵀ = Aᵀ Xᵀ.

    x (m, n_rows) or (n_rows,)   returns (m, n_cols) or (n_cols,)
    """
    check_product("x", x.shape, "A", (len(indptr) - 1, n_cols), x.ndim)
    if x.ndim == 2 and dense_pays(density(indptr, n_cols), x, data):
        y = np.zeros((len(x), n_cols), np.result_type(x, data))
        for first, last, block in densified(indptr, indices, data, n_cols):
            y += x[:, first:last] @ block
        return y
    starts, rows, values = sort_by(indices, n_cols, row_numbers(indptr), data)
    return np.ascontiguousarray(csr_matmul(starts, rows, values, x.T, len(indptr) - 1).T)


def sampled_matmul(indptr: Array, indices: Array, x: Array, y: Array) -> Array:
    """Sampled dense–dense product: the values of X Y at the places that the pattern stores, and nowhere else.

        v_ij = Σ_d x_id y_dj        for each stored (i, j)

    x (n_rows, D)   y (D, n_cols)   returns (nnz,)

    Source: the name SDDMM, and its place beside sparse-times-dense, are from Nisa et al. 2018.
    """
    n_rows, n_cols = len(indptr) - 1, y.shape[-1]
    check_product("X", x.shape, "Y", y.shape, 2)
    if len(x) != n_rows:
        raise ValueError(f"X Y has {len(x)} rows but the pattern has {n_rows}: the two must be equal.")
    dtype = np.result_type(x, y)
    x, y = x.astype(dtype, copy=False), y.astype(dtype, copy=False)
    values = np.empty(len(indices), dtype)
    if dense_pays(density(indptr, n_cols)):
        for first, last in row_blocks(indptr, BLOCK // 4):
            begin, end = int(indptr[first]), int(indptr[last])
            places = _places(indptr[first : last + 1], indices[begin:end], n_cols)
            values[begin:end] = (x[first:last] @ y).take(places)
        return values
    y_rows = np.ascontiguousarray(y.T)
    order, groups = rows_by_length(indptr)
    entries = entries_of(indptr, order)
    for first, last, block, terms in gathered(groups, indices.take(entries), y_rows):
        products = terms @ x.take(order[first:last], axis=0)[:, :, None]  # (R, length, D) @ (R, D, 1)
        values[entries[block]] = products.reshape(-1)
    return values


def gathered(groups: list[tuple[int, int, int]], indices: Array, x: Array) -> Iterator[tuple[int, int, slice, Array]]:
    """What rows of A name in X: (first, last, their entries, X[indices[entries]] (R, length, width)).

    Every gather goes to one buffer, reused at once: fresh memory can cost ten times the copy itself.
    """
    width = x.shape[1]
    steps = [max(1, GATHERED // max(length * width, 1)) for length, _, _ in groups]
    sizes = [length * width * min(step, j - i) for (length, i, j), step in zip(groups, steps, strict=True)]
    buffer = aligned(max(sizes, default=0), x.dtype)
    begin = 0
    for (length, start, stop), step in zip(groups, steps, strict=True):
        for first in range(start, stop, step) if length else ():
            last = min(first + step, stop)
            block = slice(begin, begin := begin + (last - first) * length)
            terms = buffer[: (last - first) * length * width].reshape((last - first) * length, width)
            x.take(indices[block], axis=0, out=terms, mode="clip")
            yield first, last, block, terms.reshape(last - first, length, width)


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


def densified(
    indptr: Array, indices: Array, data: Array, n_cols: int, cells: int = 1 << 18
) -> Iterator[tuple[int, int, Array]]:
    """(first, last, those rows filled in) for consecutive rows; the block is reused, so use it at once."""
    n_rows = len(indptr) - 1
    step = max(1, cells // max(n_cols, 1))
    buffer = np.empty((min(step, n_rows), n_cols), data.dtype)
    for first in range(0, n_rows, step):
        last = min(first + step, n_rows)
        block = buffer[: last - first]
        block.fill(0)
        begin, end = int(indptr[first]), int(indptr[last])
        block.reshape(-1)[_places(indptr[first : last + 1], indices[begin:end], n_cols)] = data[begin:end]
        yield first, last, block


def _places(indptr: Array, indices: Array, n_cols: int) -> Array:
    """Entries of some consecutive rows → their places in the flattened dense block of those rows."""
    places = np.repeat(np.arange(len(indptr) - 1) * n_cols, np.diff(indptr))
    places += indices
    return places


def check_product(left: str, a: tuple[int, ...], right: str, b: tuple[int, ...], ndim: int) -> None:
    """Refuse shapes a and b whose inner axes differ, and a dense operand without the `ndim` axes wanted."""
    if not {len(a), len(b)} <= {1, 2} or ndim not in (len(a), len(b)) or a[-1] != b[0]:
        raise ValueError(
            f"{left} {a} @ {right} {b}: the last axis of {left} must be as long as the first of {right}, "
            "and a dense operand must have 1 or 2 axes."
        )
