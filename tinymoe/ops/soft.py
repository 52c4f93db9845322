"""Soft mixtures: no token is chosen and none is dropped; each expert works on averages of all tokens.

The routing is smooth, so every token teaches every expert. But every average sees later tokens too: it is not causal,
and no layer for a language model. All functions take the N tokens of one sequence, or of one group that may mix.
"""

import numpy as np

from ..types import Array, Backward
from .experts import experts
from .pointwise import relu
from .read_only import read_only
from .scores import cosine_scores
from .softmax import softmax


def soft_routing(x: Array, slots: Array, scale: Array) -> tuple[tuple[Array, Array], Backward]:
    """How much of each token goes into each slot, and how much of each slot's result comes back to each token.

        a_ns = scale x̂_n · ŝ_s        (`cosine_scores` with 1e-6 under the root)
        dispatch = softmax of a over tokens: a slot's input is an average of tokens
        combine = softmax of a over slots: a token's output is an average of slots
        da = dispatch ⊙ (ddispatch − Σ_n ddispatch ⊙ dispatch) + combine ⊙ (dcombine − Σ_s dcombine ⊙ combine)

    x         (N, D)
    slots     (D, E·S)  S columns for each expert in turn
    scale     ()
    dispatch  (N, E·S)  columns add up to 1
    combine   (N, E·S)  rows add up to 1

    Source: Puigcerver et al. 2023 (Soft MoE), eq. 1–2; the normalisation and its 1e-6 as in its code.
    """
    a, scores_back = cosine_scores(x, slots, scale, eps=1e-6)
    e = np.exp(a - a.real.max(0, keepdims=True, initial=-np.inf))  # not `softmax` of aᵀ, which needs a token
    dispatch = e / e.sum(0)
    combine, combine_back = softmax(a)

    def backward(ddispatch, dcombine):
        da = dispatch * (ddispatch - (ddispatch * dispatch).sum(0))
        return scores_back(da + combine_back(dcombine)[0])

    return (read_only(dispatch), combine), backward


def soft_moe(
    x: Array, slots: Array, scale: Array, up: Array, down: Array, gate=None, *, activation=relu
) -> tuple[Array, Backward]:
    """Average tokens into slots, let each expert work on its S slots, average the results for each token.

        dispatch, combine = soft_routing(x)        inputs = dispatchᵀ x        outputs = experts(inputs)
        y = combine outputs
        doutputs = combineᵀ dy,   dcombine = dy outputsᵀ,   ddispatch = x dinputsᵀ
        dx = (through the routing) + dispatch dinputs

    The routing sees x at length 1, the slots average x as it is.

    x      (N, D)
    slots  (D, E·S)
    scale  ()
    up     (E, D, F)
    down   (E, F, D)
    gate   (E, D, F)  or None
    y      (N, D)

    Raises ValueError unless every expert has the same number of slots.
    Source: Puigcerver et al. 2023 (Soft MoE), eq. 1–2.
    """
    n_experts, n_slots = len(up), slots.shape[1]
    if n_slots % n_experts:
        raise ValueError(f"there are {n_slots} slots for {n_experts} experts; each must have the same number")
    counts = np.full(n_experts, n_slots // n_experts)
    (dispatch, combine), routing_back = soft_routing(x, slots, scale)
    inputs = dispatch.T @ x  # (E·S, D)
    outputs, experts_back = experts(inputs, up, down, gate, counts=counts, activation=activation)
    y = combine @ outputs

    def backward(dy):  # read upwards
        doutputs, dcombine = combine.T @ dy, dy @ outputs.T
        dinputs, *dexperts = experts_back(doutputs)
        ddispatch, dx_averaged = x @ dinputs.T, dispatch @ dinputs
        dx_routing, dslots, dscale = routing_back(ddispatch, dcombine)
        return dx_averaged + dx_routing, dslots, dscale, *dexperts

    return y, backward
