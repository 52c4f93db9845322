"""Products of a CSR matrix with dense arrays, as functions of arrays: a fixed pattern, changing values.

    csr_matvec        y = A x           y_i  = Σ_{k in row i} a_ik x_k
    csr_matmul        Y = A X           Y_i: = Σ_{k in row i} a_ik X_k:
    dense_csr_matmul  Y = X A           the same product, transposed:  Yᵀ = Aᵀ Xᵀ
    sampled_matmul    values of X Y at the pattern of A:   v_ij = Σ_d x_id y_dj   for each stored (i, j)

They are one another's derivatives: with Y = A X, dX = Aᵀ dY and dA's values are dY Xᵀ sampled at A's pattern.

First the products as the formulas say them: slow, a step for each entry, none for a zero. Then their fast twins, which
leave the loops to NumPy and take many entries at a time; how many, and where they are kept, is in `blocks`.

The arrays must satisfy the invariants that `CSR` checks: an index out of range may go unnoticed here.
"""

from typing import NamedTuple

import numpy as np

from ..types import Array
from .blocks import BLOCK, consecutive_rows, dense_pays, density, equal_rows, filled_in, flat_places
from .checks import check_product
from .sorting import sort_by
from .structure import row_numbers
from .sums import sum_runs


def csr_matmul_loop(indptr: Array, indices: Array, data: Array, x: Array) -> Array:
    """Sparse times dense, entry by entry: each a_ik adds a multiple of row k of X to row i of Y.

        Y_i: = Σ_{k in row i} a_ik X_k:

    x (n_cols, width) or a vector (n_cols,), whose rows are numbers   returns (n_rows, width) or (n_rows,)
    """
    y = np.zeros((len(indptr) - 1, *x.shape[1:]), np.result_type(data, x))
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            y[i] += data[e] * x[indices[e]]
    return y


def dense_csr_matmul_loop(x: Array, indptr: Array, indices: Array, data: Array, n_cols: int) -> Array:
    """Dense times sparse, entry by entry: each a_ij adds a multiple of column i of X to column j of Y.

        Y_:j = Σ_{i in column j} X_:i a_ij

    x (m, n_rows) or (n_rows,)   returns (m, n_cols) or (n_cols,)
    """
    y = np.zeros((*x.shape[:-1], n_cols), np.result_type(x, data))
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            y[..., indices[e]] += x[..., i] * data[e]
    return y


def sampled_matmul_loop(indptr: Array, indices: Array, x: Array, y: Array) -> Array:
    """The sampled product, entry by entry: row i of X times column j of Y.

        v_ij = X_i: · Y_:j        for each stored (i, j)

    x (n_rows, D)   y (D, n_cols)   returns (nnz,)
    """
    values = np.zeros(len(indices), np.result_type(x, y))
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            values[e] = x[i] @ y[:, indices[e]]
    return values


def csr_matvec(indptr: Array, indices: Array, data: Array, x: Array, n_cols: int | None = None) -> Array:
    """Matrix–vector product: first every a_ik x_k, row after row, then the sum of each row's run.

        y_i = Σ_{k in row i} a_ik x_k

    indptr (n_rows+1,)   indices, data (nnz,)   x (n_cols,)   returns (n_rows,)
    """
    check_product("A", (len(indptr) - 1, len(x) if n_cols is None else n_cols), "x", x.shape, 1)
    dtype = np.result_type(data, x)
    x, data = np.ascontiguousarray(x, dtype), data.astype(dtype, copy=False)
    y = np.zeros(len(indptr) - 1, dtype)
    for rows, entries, pointers in consecutive_rows(indptr, BLOCK):
        terms = x.take(indices[entries])
        terms *= data[entries]
        sum_runs(terms, pointers, y[rows])
    return y


def csr_matmul(indptr: Array, indices: Array, data: Array, x: Array, n_cols: int | None = None) -> Array:
    """Sparse times dense: row i of Y is the weighted sum of the rows of X that row i of A names.

        Y_i: = Σ_{k in row i} a_ik X_k:

    indptr (n_rows+1,)   indices, data (nnz,)   x (n_cols, width)   returns (n_rows, width)
    A vector x (n_cols,) gives a vector (n_rows,).

    Each row is a small dense product, (1, L) @ (L, width); those of equal length are made together. If many places are
    stored, blocks of rows are filled in and multiplied whole. But a zero that A does not store never meets an infinite
    X_k: that spoils only the rows that name k.
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
    if dense_pays(density(indptr, n_cols), x):
        for rows, block in filled_in(indptr, indices, data, n_cols):
            np.matmul(block, x, out=y[rows])
    elif len(indices) == n_rows and (indptr[1:] - indptr[:-1] == 1).all():
        x.take(indices, axis=0, out=y, mode="clip")  # one entry in every row, as in dispatch: nothing to add up
        if not (data == 1).all():
            y *= data[:, None]
    else:
        for group, a, named in equal_rows(indptr, indices, x, data):
            y[group] = np.matmul(a[:, None], named)[:, 0]  # (R, 1, L) @ (R, L, width)
        y[np.flatnonzero(indptr[1:] == indptr[:-1])] = 0  # rows without entries
    return y


def dense_csr_matmul(x: Array, indptr: Array, indices: Array, data: Array, n_cols: int) -> Array:
    """Dense times sparse, Y = X A, as Yᵀ = Aᵀ Xᵀ.

    x (m, n_rows) or (n_rows,)   returns (m, n_cols) or (n_cols,)
    """
    check_product("x", x.shape, "A", (len(indptr) - 1, n_cols), x.ndim)
    if x.ndim == 2 and dense_pays(density(indptr, n_cols), x, data):
        y = np.zeros((len(x), n_cols), np.result_type(x, data))
        for rows, block in filled_in(indptr, indices, data, n_cols):
            y += x[:, rows] @ block
        return y
    indptr, indices, data = sort_by(indices, n_cols, row_numbers(indptr), data)  # from here on those of Aᵀ
    return np.ascontiguousarray(csr_matmul(indptr, indices, data, x.T).T)


def sampled_matmul(indptr: Array, indices: Array, x: Array, y: Array) -> Array:
    """Sampled dense–dense product: the values of X Y at the places that the pattern stores.

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
        for rows, entries, pointers in consecutive_rows(indptr, BLOCK // 4):
            values[entries] = (x[rows] @ y).take(flat_places(pointers, indices[entries], n_cols))
        return values
    for group, places, named in equal_rows(indptr, indices, np.ascontiguousarray(y.T)):
        values[places] = np.matmul(named, x.take(group, axis=0)[:, :, None])[:, :, 0]  # (R, L, D) @ (R, D, 1)
    return values


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
