"""Sparse decomposition: a weight matrix as a sparse part and a low-rank part, W ≈ S + U V.

    L ← the rank-r matrix nearest to W − S          by the singular value decomposition (Eckart & Young 1936)
    S ← the largest entries of W − L, rest zero     by magnitude

Each step is the best answer to the other, so the error ‖W − S − L‖ can't rise.

Source: Zhou & Tao 2011, "GoDec"; the same split of network weights: Yu et al. 2017.
"""

import operator
from typing import NamedTuple

import numpy as np

from ..types import Array
from .formats import CSR
from .prune import magnitude_mask


class SparsePlusLowRank(NamedTuple):
    """W ≈ sparse + left @ right."""

    sparse: CSR  # (m, n)
    left: Array  # U (m, r)
    right: Array  # V (r, n)
    errors: list[float]  # ‖W − S − UV‖ / ‖W‖ after each iteration, falling

    def to_dense(self) -> Array:
        """S + U V."""
        return self.sparse.to_dense() + self.left @ self.right

    @property
    def nbytes(self) -> int:
        """Bytes of the three parts."""
        return self.sparse.nbytes + self.left.nbytes + self.right.nbytes


def sparse_plus_low_rank(weight: Array, rank: int, sparsity: float, iterations: int = 20) -> SparsePlusLowRank:
    """Split W (m, n) into S with a given share of zeros and U V of a given rank.

    rank in 0 … min(m, n); sparsity in [0, 1); at least one iteration. It stops early when an iteration no
    longer lowers the error, so `errors` always falls and may be shorter than `iterations`.
    """
    weight = np.asarray(weight)
    rank, iterations = operator.index(rank), operator.index(iterations)
    if weight.ndim != 2 or weight.dtype.kind not in "fc" or not np.isfinite(weight).all():
        raise ValueError(f"weight is {weight.dtype} {weight.shape}: it must be a matrix of finite floats.")
    if not 0 <= rank <= min(weight.shape):
        raise ValueError(f"rank is {rank}: for a matrix {weight.shape} it must be in 0 … {min(weight.shape)}.")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}: at least 1 is needed.")
    norm = float(np.linalg.norm(weight)) or 1.0
    sparse, errors = np.zeros_like(weight), []
    best = None
    for _ in range(iterations):
        left, right = truncated_svd(weight - sparse, rank)
        rest = weight - left @ right
        mask = magnitude_mask(rest, sparsity)
        sparse = np.where(mask, rest, 0)
        error = float(np.linalg.norm(rest - sparse)) / norm
        if best is not None and error >= errors[-1]:
            break
        errors.append(error)
        best = CSR.from_dense(rest, where=mask), left, right
    assert best is not None
    return SparsePlusLowRank(*best, errors)


def truncated_svd(matrix: Array, rank: int) -> tuple[Array, Array]:
    """U (m, r), V (r, n) whose product is the nearest matrix of rank r; each takes √σ of every σ."""
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(sigma[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]
