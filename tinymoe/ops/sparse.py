"""Products with a sparse matrix, of fixed pattern and learnt values; and routing written as such products.

With y = A x the gradient of A is dy xᵀ, needed only where A stores a value: a sampled dense–dense product. The gradient
of x is Aᵀ dy: the transpose has the same values in another order.
"""

import numpy as np

from ..sparse import CSR, csr_matmul, dense_csr_matmul, sampled_matmul, transpose_plan
from ..types import Array, Backward
from .routing import Assignment


def sparse_matmul(values: Array, x: Array, pattern) -> tuple[Array, Backward]:
    """Sparse times dense.

        y = A x,   A = the pattern with these values
        dvalues_e = dy_i · x_j  for entry e at (i, j)        dx = Aᵀ dy

    values   (Z,)    of the stored entries, row after row
    x        (C, F)
    pattern  a `CSR` of shape (R, C) whose own values are not looked at
    y        (R, F)

    Raises ValueError when values or x don't fit the pattern.
    Source: 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6.3.
    """
    check_values(values, pattern)
    y = csr_matmul(pattern.indptr, pattern.indices, values, x, pattern.shape[1])

    def backward(dy):
        flipped = transpose_plan(pattern.indptr, pattern.indices, pattern.shape[1])
        dx = csr_matmul(flipped.indptr, flipped.indices, values[flipped.order], dy, pattern.shape[0])
        return sampled_matmul(pattern.indptr, pattern.indices, dy, x.T), dx

    return y, backward


def sparse_linear(x: Array, values: Array, pattern, bias=None) -> tuple[Array, Backward]:
    """A linear map of rows whose weight is sparse.

        y = x W + b,   W = the pattern with these values
        dx = dy Wᵀ        dvalues_e = Σ_n x_ni dy_nj  for entry e at (i, j)        db = Σ_n dy_n

    x        (N, D)
    values   (Z,)    of the stored entries, row after row
    pattern  a `CSR` of shape (D, F) whose own values are not looked at
    bias     (F,)    or None
    y        (N, F)

    Raises ValueError when values or x don't fit the pattern.
    Source: 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §4 and §6.4.
    """
    check_values(values, pattern)
    product = dense_csr_matmul(x, pattern.indptr, pattern.indices, values, pattern.shape[1])
    y = product if bias is None else product + bias

    def backward(dy):
        dx = np.ascontiguousarray(csr_matmul(pattern.indptr, pattern.indices, values, dy.T, pattern.shape[1]).T)
        dvalues = sampled_matmul(pattern.indptr, pattern.indices, x.T, dy)
        if bias is None:
            return dx, dvalues
        return dx, dvalues, dy.sum(0)

    return y, backward


def grouped_sparse_linear(x: Array, values: Array, pattern, counts: Array) -> tuple[Array, Backward]:
    """A different sparse linear map for each group of consecutive rows: experts stored as one CSR matrix.

        y_r = x_r W_e  for the rows r of expert e,   W = the pattern with these values, W_e its rows eD to (e+1)D
        dx_r = dy_r W_eᵀ        dvalues: for each entry of W_e, Σ_{r of e} x_ri dy_rj

    x        (M, D)  rows grouped by expert
    values   (Z,)    of the stored entries, row after row
    pattern  a `CSR` of shape (E·D, F) whose own values are not looked at
    counts   (E,)    int, rows per expert; they add up to M
    y        (M, F)

    Raises ValueError when values, pattern or counts don't fit.
    Source: 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6.4.
    """
    check_values(values, pattern)
    width = x.shape[1]
    if pattern.shape[0] != len(counts) * width or counts.sum() != len(x):
        raise ValueError(
            f"a pattern of shape {pattern.shape} and counts that add up to {counts.sum()} don't fit {len(counts)} "
            f"experts on rows of shape {x.shape}"
        )
    ends = np.cumsum(counts).tolist()
    parts = []  # (rows of x, entries, pattern of the expert)
    for e, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        entries = slice(*pattern.indptr[[e * width, (e + 1) * width]].tolist())
        parts.append((slice(first, last), entries, pattern[e * width : (e + 1) * width]))
    y = np.empty((len(x), pattern.shape[1]), np.result_type(x, values))
    for rows, entries, w in parts:
        y[rows] = dense_csr_matmul(x[rows], w.indptr, w.indices, values[entries], w.shape[1])

    def backward(dy):
        dx = np.empty(x.shape, dy.dtype)
        dvalues = np.empty(values.shape, dy.dtype)
        for rows, entries, w in parts:
            dx[rows] = csr_matmul(w.indptr, w.indices, values[entries], dy[rows].T, w.shape[1]).T
            dvalues[entries] = sampled_matmul(w.indptr, w.indices, x[rows].T, dy[rows])
        return dx, dvalues

    return y, backward


def check_values(values, pattern):
    if values.shape != (pattern.nnz,):
        raise ValueError(
            f"values have shape {values.shape}; the pattern stores {pattern.nnz} entries, one value for each"
        )


def one_hot(ids, vocabulary, dtype=np.float64):
    """ids (N,) as a `CSR` of shape (N, V) with a 1 in each row: embedding is its product with the table.

    Source: 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §4.1.
    """
    return CSR(np.arange(len(ids) + 1), ids, np.ones(len(ids), dtype), (len(ids), vocabulary))


def dispatch_matrix(assignment: Assignment, n_tokens, dtype=np.float64):
    """The assignments as a `CSR` of shape (M, N): row m has a 1 at the token that the m-th sorted row is a copy of.

    `dispatch(x)` is this matrix times x, its backward the transpose times drows.
    """
    m = len(assignment.tokens)
    return CSR(np.arange(m + 1), assignment.tokens, np.ones(m, dtype), (m, n_tokens))


def combine_matrix(assignment: Assignment, weights):
    """The gate as a `CSR` of shape (N, M): w_nj in row n at the place where its j-th choice stands after sorting.

    `combine(rows, weights)` is this matrix times rows, its backward the transpose times dy.
    """
    (n, k), m = weights.shape, len(assignment.tokens)
    kept = assignment.inverse < m
    indptr = np.concatenate([[0], np.cumsum(kept.reshape(n, k).sum(1))])
    return CSR(indptr, assignment.inverse[kept], weights.reshape(-1)[kept], (n, m), keep_zeros=True)


def routing_matrix(assignment: Assignment, weights):
    """The whole routing decision as a `CSR` of shape (E, N): indptr says where each expert's tokens begin, indices are
    the tokens, data their gate weights. The assignment holds all but the last, indptr as counts."""
    indptr = np.concatenate([[0], np.cumsum(assignment.counts)])
    data = weights.reshape(-1)[assignment.order]
    return CSR(indptr, assignment.tokens, data, (len(assignment.counts), len(weights)), keep_zeros=True)
