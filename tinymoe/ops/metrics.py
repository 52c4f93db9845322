"""How a router behaves, in numbers: is the load even, is anything dropped, do experts specialise?

    load         expert_counts, max_violation, load_entropy, cv_squared, realised_capacity_factor, per_group_balance
    dropping     dropped_fraction, dropped_tokens, expert_usage
    choices      router_entropy, saturation, co_activation
    meaning      joint_counts, specialisation, mutual_information

Plain functions of arrays, without gradient. Those of counts (E,) look at the last axis, so counts (L, E) of a stack of
layers give (L,) values. Those of tokens take `mask` (N,) bool, False for padding, whose rows are never looked at and
may hold NaN; None means that all tokens are real. Masks of numbers are refused: as an index they would pick rows.

Where there is nothing to measure: no tokens are an even load (max_violation 0, load_entropy 1, cv_squared 0) with
nothing dropped, and one expert is always even. Shares of nothing are 0.
"""

from typing import NamedTuple

import numpy as np

from ..types import Array
from .ids import check_ids
from .masks import as_mask


def expert_counts(indices: Array, n_experts: int, *, kept: Array | None = None, mask: Array | None = None) -> Array:
    """(E,) int: assignments per expert, of indices (N, K); dropped ones (kept (N, K) False) and padding left out.

    Raises IndexError for an index, among those counted, that is no expert's.
    """
    counted = indices[as_mask(indices.shape, kept, mask)]
    check_ids("indices", counted, n_experts, "experts are")
    return np.bincount(counted, minlength=n_experts)


def max_violation(counts: Array) -> Array:
    """MaxVio = (max_i c_i − c̄) / c̄: 0 when even, E − 1 when one expert gets all. max_i c_i / c̄ is 1 more.

    "Global" with the counts of a validation set, "batch" with those of a training batch, averaged over layers.

    Source: Wang et al. 2024 (Auxiliary-loss-free load balancing).
    """
    total, n_experts = counts.sum(-1), counts.shape[-1]
    return _ratio(n_experts * counts.max(-1) - total, total)  # so that E − 1 is not passed by rounding


def load_entropy(counts: Array) -> Array:
    """−Σ f_i ln f_i / ln E with f the shares of the load and 0 ln 0 = 0: 1 when even, 0 when one expert gets all."""
    total, n_experts = counts.sum(-1), counts.shape[-1]
    if n_experts == 1:
        return np.ones(total.shape)[()]
    entropy = _entropy(_ratio(counts, total[..., None])) / np.log(n_experts)
    return np.where(total > 0, entropy, 1.0)[()]


def cv_squared(counts: Array) -> Array:
    """Squared coefficient of variation, Var(c) / (c̄² + 1e-10), with the population variance.

    Source: Shazeer et al. 2017, §4 and eq. 7; the 1e-10 is Tensor2Tensor's.
    """
    return counts.var(-1) / (counts.mean(-1) ** 2 + 1e-10)


def realised_capacity_factor(counts: Array, tokens: int, k: int) -> Array:
    """max_i c_i · E / (N K): the capacity factor at which the busiest expert is just full. 0 without tokens.

    `tokens` are the real ones. It is MaxVio + 1 when the counts are those of all assignments.
    """
    return counts.max(-1) * counts.shape[-1] / max(tokens * k, 1)


class GroupBalance(NamedTuple):
    """Balance within each of G groups, and of all together: which may look fine while a small group has collapsed."""

    share: Array  # (G,) of all assignments
    max_violation: Array  # (G,)
    load_entropy: Array  # (G,)
    pooled_max_violation: Array  # ()
    pooled_load_entropy: Array  # ()


def per_group_balance(counts: Array) -> GroupBalance:
    """Balance of counts (G, E), for instance per modality: a row for the image tokens, one for the text tokens.

    With 576 image tokens spread evenly and 30 text tokens at one of 4 experts, MaxVio is 0.15 over all, 3 for the text.
    `joint_counts` with the group as label gives such counts.
    """
    per_group, pooled = counts.sum(1), counts.sum(0)
    share = _ratio(per_group, per_group.sum())
    return GroupBalance(share, max_violation(counts), load_entropy(counts), max_violation(pooled), load_entropy(pooled))


def dropped_fraction(kept: Array, *, mask: Array | None = None) -> float:
    """Share of the real tokens' N·K assignments that are not kept; kept (N, K) bool."""
    real = as_mask(kept.shape, kept)[as_mask(kept.shape[:1], mask)]
    return float(1 - real.mean()) if real.size else 0.0


def dropped_tokens(kept: Array, *, mask: Array | None = None) -> float:
    """Share of the real tokens that no expert has processed: those without a single kept choice."""
    real = as_mask(kept.shape, kept)[as_mask(kept.shape[:1], mask)]
    return float(1 - real.any(1).mean()) if len(real) else 0.0


def expert_usage(counts: Array, capacity: int) -> Array:
    """Σ_i c_i / (E C): the filled share of the experts' buffers; `counts` are those of kept assignments.

    0 when the capacity is 0. Raises ValueError when a count exceeds the capacity.
    """
    if counts.max(initial=0) > capacity:
        raise ValueError(f"the largest count is {counts.max()}; it must not exceed the capacity, {capacity}")
    return counts.mean(-1) / max(capacity, 1)


def router_entropy(probabilities: Array, *, mask: Array | None = None) -> float:
    """Mean over real tokens of −Σ_i p_i ln p_i, in nats, 0 ln 0 = 0: ln E if undecided, 0 if certain (or no tokens).

    probabilities (N, E) have rows that add up to 1: `ops.softmax(logits)`, not the logits.

    Raises ValueError for rows that don't.
    """
    p = probabilities[as_mask(probabilities.shape[:1], mask)]
    if not np.allclose(p.sum(1), 1, rtol=0, atol=1e-3) or p.min(initial=0) < 0:
        raise ValueError(
            "the rows are not probabilities; they must be at least 0 and add up to 1: take softmax(logits)"
        )
    return float(_entropy(p).mean()) if len(p) else 0.0


def saturation(indices_then: Array, indices_now: Array, *, mask: Array | None = None) -> float:
    """Share of a token's experts now, (N, K), that were its experts then, (N, K): mean over tokens of overlap / K.

    1 when routing has settled (or there are no tokens); K/E by chance.

    Raises ValueError when the shapes differ.
    Source: Muennighoff et al. 2024 (OLMoE), §5.
    """
    if indices_then.shape != indices_now.shape:
        raise ValueError(f"indices have shapes {indices_then.shape} then and {indices_now.shape} now; they must agree")
    real = as_mask(indices_now.shape[:1], mask)
    then, now = indices_then[real], indices_now[real]
    stayed = (now[:, :, None] == then[:, None, :]).any(2)  # (N, K)
    return float(stayed.mean()) if stayed.size else 1.0


def co_activation(indices: Array, n_experts: int, *, mask: Array | None = None) -> Array:
    """(E, E): P(j | i) = N_ij / N_i, the share of the tokens of expert i that also go to j. Row i is 0 when i is idle.

    The row of a used expert has 1 on the diagonal and adds up to K; off the diagonal (K−1)/(E−1) is chance.

    Raises IndexError for an index of a real token that is no expert's.
    Source: Muennighoff et al. 2024 (OLMoE), §5.
    """
    real = indices[as_mask(indices.shape[:1], mask)]
    check_ids("indices", real, n_experts, "experts are")
    chosen = (real[:, :, None] == np.arange(n_experts)).any(1).astype(float)  # (N, E)
    together = chosen.T @ chosen
    return _ratio(together, together.diagonal()[:, None])


def joint_counts(
    indices: Array,
    labels: Array,
    n_experts: int,
    n_labels: int,
    *,
    kept: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """(L, E) int: how many assignments of tokens with label l go to expert i; labels (N,) in [0, L), indices (N, K).

    A label is a token's id, domain, language, modality or position: whatever an expert might specialise in.

    Raises ValueError for a label of a real token outside the range, IndexError for an index, among those counted, that
    is no expert's.
    """
    counted = as_mask(indices.shape, kept, mask)
    own = np.broadcast_to(labels[:, None], indices.shape)[counted]
    if own.size and not 0 <= own.min() <= own.max() < n_labels:
        raise ValueError(f"labels span {own.min()} to {own.max()}; allowed are 0 to {n_labels - 1}")
    check_ids("indices", indices[counted], n_experts, "experts are")
    pairs = own * n_experts + indices[counted]
    return np.bincount(pairs, minlength=n_labels * n_experts).reshape(n_labels, n_experts)


def specialisation(indices: Array, labels: Array, n_experts: int, n_labels: int, *, mask: Array | None = None) -> Array:
    """(L, E): share of the tokens with label l that have expert i among their K choices; K/E is chance.

    A row adds up to K, or to 0 when no real token has the label.

    Source: Muennighoff et al. 2024 (OLMoE), §5.
    """
    counts = joint_counts(indices, labels, n_experts, n_labels, mask=mask)
    return _ratio(counts * indices.shape[1], counts.sum(1, keepdims=True))


def mutual_information(counts: Array, *, normalised: bool = False) -> float:
    """What the expert tells about the label, of joint counts (L, E), in nats: I = Σ p_li ln (p_li / (p_l p_i)).

    0 when independent (or nothing is counted), H(label) when the expert gives the label away: ln L for L equally
    frequent labels. `normalised` divides by H(label), so that 1 is perfect; it is 0 when there is one label only.
    Small samples overstate it, by about (L−1)(E−1) / 2n for n independent assignments.
    """
    total, per_label, per_expert = counts.sum(), counts.sum(1), counts.sum(0)
    lift = _ratio(counts * float(total), np.outer(per_label, per_expert))  # exactly 1 where independent
    information = float((_ratio(counts, total) * np.log(np.where(lift > 0, lift, 1))).sum())
    if not normalised:
        return information
    return float(_ratio(information, _entropy(_ratio(per_label, total))))


def _entropy(p: Array) -> Array:
    """−Σ p ln p over the last axis, 0 ln 0 = 0."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def _ratio(above, below):
    """above / below, and 0 where below is 0."""
    some = np.asarray(below) != 0
    return np.where(some, above / np.where(some, below, 1), 0.0)[()]
