"""The way to the experts and back: the sort that groups tokens by expert, dispatch and combine.

A routing decision is a sparse matrix of experts × tokens. Sorted by expert it is in CSR form: `counts` gives the
row lengths, `tokens` the column indices, the gate weights are the data. With a row for each entry, its product with x
is dispatch, and combine is the product with the transpose (`ops/sparse.py`); with both orders at hand (`order` and its
`inverse`) each is a gather, forward and backward, and no scatter-add is needed.
"""

from typing import NamedTuple

import numpy as np

from ..types import Array, Backward
from .ids import check_ids
from .masks import as_mask


class Assignment(NamedTuple):
    """Tokens grouped by expert. Assignment m = n·K + j is the j-th choice of token n; M of the N·K are kept."""

    order: np.ndarray  # (M,) assignments, sorted by expert, tokens in order within an expert
    inverse: np.ndarray  # (N·K,) where each assignment stands in that order; M for one that is dropped
    tokens: np.ndarray  # (M,) the token of each sorted row: order // K
    counts: np.ndarray  # (E,) rows per expert


def group_by_expert(indices, n_experts, kept=None):
    """Sort the assignments by expert; `indices` (N, K) as the gate gives them. Returns an `Assignment`.

    kept  (N, K) bool: the assignments that are carried out, such as those within an expert's capacity; None for all

    Raises IndexError for an index of a kept assignment that is no expert's.
    """
    carried = as_mask(indices.shape, kept)
    check_ids("indices", indices[carried], n_experts, "experts are")
    flat = np.where(carried, indices, n_experts).reshape(-1)
    order = np.argsort(flat, kind="stable")  # dropped assignments stand last, behind all experts
    counts = np.bincount(flat, minlength=n_experts + 1)[:n_experts]
    m = counts.sum()
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return Assignment(order[:m], np.minimum(inverse, m), order[:m] // indices.shape[1], counts)


def home(rows, inverse):
    """Rows (M, D) back in the order of their assignments (N·K, D); zeros for a dropped one."""
    if len(inverse) > len(rows):
        rows = np.concatenate([rows, np.zeros((1, rows.shape[1]), rows.dtype)])
    return rows[inverse]


def dispatch(x: Array, assignment) -> tuple[Array, Backward]:
    """Copy every token once for each of its experts, grouped by expert.

        rows_m = x[tokens_m]        dx_n = Σ_j drows[inverse[nK + j]]

    A dropped assignment is not copied, and sends back nothing.

    x           (N, D)
    assignment  tokens grouped by expert, see `group_by_expert`
    rows        (M, D)
    """
    k = len(assignment.inverse) // max(len(x), 1)
    rows = x[assignment.tokens]

    def backward(drows):
        by_token = home(drows, assignment.inverse).reshape(len(x), k, x.shape[1])
        return (np.ones(k, drows.dtype) @ by_token,)  # the sum over k, faster than .sum(1)

    return rows, backward


def combine(rows: Array, weights: Array, assignment) -> tuple[Array, Backward]:
    """Add up what a token's experts returned, each times its gate weight.

        y_n = Σ_j w_nj rows[inverse[nK + j]]
        drows_m = w_m dy[tokens_m]        dw_nj = dy_n · rows[inverse[nK + j]]

    A dropped assignment adds nothing, whatever its weight, and its weight gets gradient 0, whatever its row of dy.

    rows        (M, D)  grouped by expert
    weights     (N, K)
    assignment  tokens grouped by expert, see `group_by_expert`
    y           (N, D)

    Source: Shazeer et al. 2017, eq. 1; 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §4.4, whose
    0.6·10 + 0.4·20 is 14 (it prints 16).
    """
    kept = assignment.inverse.reshape(weights.shape) < len(rows)
    gates = np.where(kept, weights, 0)  # since 0 · NaN would be NaN
    by_token = home(rows, assignment.inverse).reshape(*weights.shape, rows.shape[1])  # (N, K, D)
    y = (gates[:, None] @ by_token)[:, 0]

    def backward(dy):
        drows = dy[assignment.tokens] * gates.reshape(-1)[assignment.order][:, None]
        dweights = np.vecdot(by_token, dy[:, None])
        if len(rows) < kept.size:
            dweights[~kept] = 0  # since 0 · NaN would be NaN
        return drows, dweights

    return y, backward
