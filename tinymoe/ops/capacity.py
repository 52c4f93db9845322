"""Capacity: how many tokens an expert takes at most, and who is served first when more would come.

Buffers of fixed length need a limit; a layer that sorts its tokens, as here, does not. What becomes of an assignment
that is not kept is the caller's choice: it adds nothing (`group_by_expert` with `kept`), so that a token without any
passes by on the residual path; and the weights of the others stay as they are, or add up to 1 again
(`renormalize_kept`, as in DeepSpeed). Public systems' formulas for the limit are in `tinymoe.systems.conventions`.
"""

import math

import numpy as np

from ..types import Array, Backward
from .masks import as_mask
from .read_only import read_only
from .routing import group_by_expert

PRIORITIES = {
    "choice": "all first choices before all second choices, tokens in order (GShard)",
    "token": "tokens in order, each with all its choices",
    "probability": "the highest weight first",
    "batch": "as choice, but tokens in order of their highest weight (batch-prioritised, V-MoE)",
    "random": "any order",
}


def capacity(tokens, n_experts, k, factor):
    """Places per expert: ceil(factor·K·N / E), so that factor 1 is just enough when the load is even.

    Raises ValueError unless 1 ≤ k ≤ E, there are no fewer than 0 tokens, and the factor is positive and finite.
    Source: Lepikhin et al. 2020 (GShard), §2.2; with a factor, Fedus et al. 2021, eq. 3.
    """
    if not (1 <= k <= n_experts and tokens >= 0 and 0 < factor < math.inf):
        raise ValueError(
            f"no capacity for {tokens} tokens, {n_experts} experts, top-k {k} and factor {factor}; tokens can't be "
            "negative, top-k lies between 1 and the experts, and the factor is positive and finite"
        )
    return math.ceil(factor * k * tokens / n_experts - 1e-9)  # since 1.1 · 2 · 50 / 10 is 11.000000000000002


def keep_within_capacity(
    indices, n_experts, capacity, *, priority="choice", weights=None, rng=None, mask=None, kept=None
):
    """Which assignments find a place: queue them by priority; the first `capacity` of each expert are kept.

    It makes no difference whether an expert's second choices queue up behind all its first choices (DeepSpeed, tutel) or
    behind the kept ones (mesh): where these differ the expert is full, and either way none of the later gets in.

    indices   (N, K)  int, the experts chosen, best first
    capacity          places per expert
    priority          one of PRIORITIES; ties go to the lower token, then to the earlier choice
    weights   (N, K)  for priority probability and batch
    rng               for priority random
    mask      (N,)    bool, False for padding, which is never kept and takes no place; None if there is none
    kept      (N, K)  bool, False for assignments dropped before, likewise; None if there are none
    returns   (N, K)  bool

    Raises ValueError for an unknown priority, one that lacks its weights or rng, or a negative capacity; IndexError for
    an index that is no expert's, where neither mask nor kept leave it out.
    Source: Lepikhin et al. 2020 (GShard), algorithm 1; Riquelme et al. 2021 (V-MoE), §4, for batch.
    """
    if capacity < 0:
        raise ValueError(f"the capacity is {capacity}; it can't be negative")
    asked = as_mask(indices.shape, kept, mask)
    queue = waiting_line(asked, priority, weights, rng)
    standing = [a.reshape(-1)[queue][:, None] for a in (indices, asked)]
    grouped = group_by_expert(standing[0], n_experts, standing[1])  # by expert, in the order of the queue
    first = np.cumsum(grouped.counts) - grouped.counts
    rank = np.arange(len(grouped.order)) - np.repeat(first, grouped.counts)  # place in the line of one's expert
    served = np.zeros(indices.size, bool)
    served[queue[grouped.order[rank < capacity]]] = True
    return served.reshape(indices.shape)


def waiting_line(asked, priority, weights=None, rng=None):
    """(N·K,) the assignments n·K + j in the order in which they are served; `asked` (N, K) bool: who wants to be."""
    numbers = np.arange(asked.size).reshape(asked.shape)
    if priority == "token":
        return numbers.reshape(-1)
    if priority == "choice":
        return numbers.T.reshape(-1)
    if priority == "random" and rng is not None:
        return rng.permutation(asked.size)
    if priority in ("probability", "batch") and weights is not None:
        wanted = np.where(asked, weights.real, -np.inf)  # padding may hold NaN
        if priority == "probability":
            return np.argsort(-wanted.reshape(-1), kind="stable")
        return numbers[np.argsort(-wanted.max(1), kind="stable")].T.reshape(-1)
    if priority in PRIORITIES:
        lacking = "an rng" if priority == "random" else "weights"
        raise ValueError(f"priority {priority} needs {lacking}, and none was given")
    raise ValueError(f"priority is {priority!r}; choose one of {', '.join(PRIORITIES)}")


def renormalize_kept(weights: Array, kept: Array) -> tuple[Array, Backward]:
    """Make the weights of a token's kept choices add up to 1; the others are 0.

        y_j = w_j / D  for kept j,   D = Σ_{j kept} w_j        dw_j = (dy_j − Σ_i dy_i y_i) / D  for kept j, else 0

    Before dropping, a token that loses a choice keeps the smaller rest of its weight; after it, the rest counts fully.
    A token with nothing kept gets zeros. What stands in the place of a dropped choice is never used.

    weights  (N, K)  not negative
    kept     (N, K)  bool
    y        (N, K)

    Source: DeepSpeed's top-2 and top-k gates, which renormalise after dropping.
    """
    chosen = np.where(kept, weights, 0)
    total = chosen.sum(1, keepdims=True)
    below = np.where(total.real > 0, total, 1)
    y = chosen / below

    def backward(dy):
        dkept = np.where(kept, dy, 0)
        inner = (dkept * y).sum(1, keepdims=True)
        return (np.where(kept, (dkept - inner) / below, 0),)

    return read_only(y), backward
