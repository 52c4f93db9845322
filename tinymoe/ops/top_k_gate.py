"""The top-k gate: each token chooses its k best experts, and weighs them by the softmax of its scores."""

import numpy as np

from ..types import Array, Backward
from .ids import check_ids
from .read_only import read_only


def choose(scores, k):
    """The indices (N, K) of the k largest of each row of scores (N, E), best first; ties go to the lowest index.

    −∞ comes last, NaN after it: they are chosen where fewer than k others are left.

    Raises ValueError unless 1 ≤ k ≤ E.
    """
    n_experts = scores.shape[1]
    if not 1 <= k <= n_experts:
        raise ValueError(f"top-k is {k}; it must lie between 1 and the number of experts, {n_experts}")
    return read_only(np.argsort(-scores.real, axis=1, kind="stable")[:, :k])


def pick(scores: Array, indices: Array) -> tuple[Array, Backward]:
    """The scores of those that were chosen.

        chosen_nj = scores[n, indices_nj]        dscores[n, indices_nj] = dchosen_nj, 0 elsewhere

    scores   (N, E)
    indices  (N, K)  int, no expert twice in a row
    chosen   (N, K)

    Raises IndexError for an index outside the row.
    """
    check_ids("indices", indices, scores.shape[1], "experts are")
    chosen = np.take_along_axis(scores, indices, 1)

    def backward(dchosen):
        dscores = np.zeros(scores.shape, dchosen.dtype)
        np.put_along_axis(dscores, indices, dchosen, 1)
        return (dscores,)

    return chosen, backward


def top_k_gate(logits: Array, k, renormalize=True, *, eps=0.0, scale=1.0) -> tuple[tuple[Array, Array], Backward]:
    """Choose each token's k best experts and weigh them.

        p = softmax(logits)        S = the k largest (ties go to the lowest index)
        renormalize:  w_i = scale p_i / D,  D = Σ_{j∈S} p_j + eps        otherwise:  w_i = scale p_i,  D = 1

    Backward is short in logarithms: ln w_i = logit_i − ln D + a constant, and the gradient of ln w_i is g_i = w_i dw_i.
        renormalize:  dlogits_i = 1[i∈S] g_i − (1[i∈S] + eps) p_i/D Σ_{j∈S} g_j
        otherwise:    dlogits_i = 1[i∈S] g_i − p_i Σ_{j∈S} g_j
    Both are one formula: D = Σ_i a_i p_i, where a_i says how an expert counts in D, and is 1[i∈S] + eps or always 1.
    With eps = 0 and scale = 1 the first is w_i (dw_i − Σ_{j∈S} w_j dw_j) for i∈S, and exactly 0 for all others.

    The choice itself has no gradient: it is constant almost everywhere and jumps at ties. With k = 1 and eps = 0
    renormalised weights are all `scale`, and the router learns nothing from them.

    A logit of −∞ is chosen where no other is left, with weight 0 and gradient 0. A row of nothing but −∞ has weights NaN.

    logits   (N, E)
    weights  (N, K)
    indices  (N, K)  int, best first

    Raises ValueError unless 1 ≤ k ≤ E.
    Source: Shazeer et al. 2017, eq. 3–5; Jiang et al. 2024 (Mixtral) §2.1; Fedus et al. 2021 eq. 1–2 (k = 1, not
    renormalised); the untitled document on the 稀疏门控 (sparse gate), §3.1 and §4: A = TopK(W, K). The scale is from
    DeepSeek-AI 2024 (DeepSeek-V2), eps = 1e-9 from GShard's gate (Lepikhin et al. 2020) in Mesh TensorFlow.
    """
    indices = choose(logits, k)
    a = np.full(logits.shape, eps if renormalize else 1, logits.real.dtype)
    if renormalize:
        np.put_along_axis(a, indices, 1 + eps, 1)
    e = np.exp(logits - logits.real.max(1, keepdims=True))  # 1  p times a number of each row, which cancels
    chosen, pick_back = pick(e, indices)  # 2
    counted = a * e  # 3
    total = counted.sum(1, keepdims=True)  # 4  (N, 1)
    weights = scale * chosen / total  # 5

    def backward(dweights):  # read upwards; a name in dln_ is the gradient of a logarithm
        dln_weights = dweights * weights  # 5
        dln_total = -dln_weights.sum(1, keepdims=True)  # 5
        dln_e = counted / total * dln_total  # 4 and 3
        dln_e += pick_back(dln_weights)[0]  # 2
        return (dln_e,)  # 1, since ln e is the logits less a constant

    return (read_only(weights), indices), backward
