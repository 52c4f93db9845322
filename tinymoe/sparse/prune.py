"""Magnitude pruning: the smallest weights become zero, the rest stay as they are.

    keep w  if |w| is among the n − round(sparsity · n) largest of n

The pseudocode in 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §3.3 never uses its
`sparsity_level`, and drops the columns of what it keeps, so that the matrix can't be rebuilt. Here the level
is exact, and CSR keeps the columns.

Source: Han et al. 2015; in groups, Mishra et al. 2021 (N:M).
"""

import operator
from collections.abc import Sequence

import numpy as np

from ..types import Array
from .formats import CSR


def prune(weight: Array, sparsity: float) -> CSR:
    """The CSR matrix of the entries that `magnitude_mask` keeps (a kept weight that is zero stays stored)."""
    return CSR.from_dense(weight, where=magnitude_mask(weight, sparsity))


def magnitude_mask(weight: Array, sparsity: float) -> Array:
    """True at the largest magnitudes, with exactly round(sparsity · size) places false.

    weight of any shape; sparsity in [0, 1). Of equal magnitudes the earlier place (in C order) is kept first.
    NaN counts as ∞: it is kept, where it can be seen.
    """
    check_sparsity(sparsity)
    weight = np.asarray(weight)
    kept = weight.size - round(sparsity * weight.size)
    return largest(magnitude(weight).reshape(-1), kept).reshape(weight.shape)


def prune_global(weights: Sequence[Array], sparsity: float) -> list[Array]:
    """Masks for several arrays pruned against one another: one threshold for all, exact over their total.

    Of equal magnitudes the earlier array's, and within it the earlier place's, is kept first. Layers of small
    weights lose more than others.
    """
    check_sparsity(sparsity)
    weights = [np.asarray(weight) for weight in weights]
    size = sum(weight.size for weight in weights)
    joined = np.concatenate([magnitude(weight).reshape(-1) for weight in weights] or [np.zeros(0)])
    ends = np.cumsum([weight.size for weight in weights])
    masks = np.split(largest(joined, size - round(sparsity * size)), ends[:-1])
    return [mask.reshape(weight.shape) for mask, weight in zip(masks, weights, strict=False)]


def prune_n_m(weight: Array, n: int, m: int, axis: int = -1) -> Array:
    """N:M mask: of every M consecutive weights along an axis the N largest are kept, so 2:4 keeps half.

    A shorter group at the end, of r < M weights, keeps its min(N, r) largest, as if padded with zeros.
    Of equal magnitudes the earlier is kept. Requires 1 ≤ N ≤ M.
    """
    n, m = operator.index(n), operator.index(m)
    if not 1 <= n <= m:
        raise ValueError(f"{n}:{m} was asked for: N:M needs 1 ≤ N ≤ M, N weights kept of every M.")
    size = np.moveaxis(magnitude(np.asarray(weight)), axis, -1)
    length = size.shape[-1]
    groups = -(-length // m)
    padded = np.full((*size.shape[:-1], groups * m), -1.0)  # padding is below every magnitude: kept last
    padded[..., :length] = size
    order = np.argsort(-padded.reshape(*size.shape[:-1], groups, m), axis=-1, kind="stable")
    mask = np.zeros(order.shape, bool)
    np.put_along_axis(mask, order[..., :n], True, axis=-1)
    return np.ascontiguousarray(np.moveaxis(mask.reshape(padded.shape)[..., :length], -1, axis))


def largest(size: Array, count: int) -> Array:
    """True at the `count` largest of size (n,), the earlier among equals; linear time by partition."""
    if count == 0:
        return np.zeros(len(size), bool)
    threshold = np.partition(size, len(size) - count)[len(size) - count]
    mask = size > threshold
    ties = np.flatnonzero(size == threshold)
    mask[ties[: count - np.count_nonzero(mask)]] = True
    return mask


def magnitude(weight: Array) -> Array:
    """|w|, with NaN as ∞; unsigned, so that the smallest integer has a magnitude too."""
    size = np.abs(weight if weight.dtype.kind != "i" else weight.astype(np.float64))
    return np.where(np.isnan(size), np.inf, size)


def check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}: the share of zero weights must be at least 0 and below 1.")
