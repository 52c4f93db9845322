"""The sparse mixture-of-experts layer: route, dispatch, compute, combine."""

from typing import NamedTuple

import numpy as np

from .balance import load_balance
from .experts import experts
from .linear import linear
from .pointwise import relu
from .routing import combine, dispatch, group_by_expert
from .top_k_gate import top_k_gate


class Routing(NamedTuple):
    """What the router decided, for reports; nothing here takes part in the gradient."""

    logits: np.ndarray  # (N, E)
    indices: np.ndarray  # (N, K) int
    weights: np.ndarray  # (N, K)
    counts: np.ndarray  # (E,) int, assignments per expert


def routed_experts(x, weights, up, down, gate=None, *, assignment, activation=relu):
    """The part of the layer behind the router: y_n = Σ_{j kept} w_nj expert_{i_nj}(x_n).

    x           (N, D)
    weights     (N, K)
    up          (E, D, F)  or a `CSR`, see `experts`
    down        (E, F, D)  likewise
    gate        (E, D, F)  likewise, or None
    assignment  tokens grouped by expert, see `group_by_expert`
    y           (N, D)

    Source: Shazeer et al. 2017, eq. 1.
    """
    rows, dispatch_back = dispatch(x, assignment)
    outputs, experts_back = experts(rows, up, down, gate, counts=assignment.counts, activation=activation)
    y, combine_back = combine(outputs, weights, assignment)

    def backward(dy):
        doutputs, dweights = combine_back(dy)
        drows, *dexperts = experts_back(doutputs)
        (dx,) = dispatch_back(drows)
        return dx, dweights, *dexperts

    return y, backward


def moe(x, router, up, down, gate=None, *, k, renormalize=True, activation=relu):
    """Send each token to its k best experts and add up what they return.

        z = x R        w, S = top_k_gate(z)        balance = load_balance(z, S)
        y_n = Σ_{i∈S_n} w_ni expert_i(x_n)

    Backward, with G_ni = dy_n · expert_i(x_n) the gradient of a gate weight:
        dexperts: each expert gets w_ni dy_n on its rows, and nothing when it has none
        dz = gate backward of G + balance backward        dR = xᵀ dz
        dx_n = Σ_{i∈S_n} (through expert i) + R dz_n        both terms; leaving out the second is a common error

    x        (N, D)
    router   (D, E)
    up       (E, D, F)
    down     (E, F, D)
    gate     (E, D, F)  or None
    y        (N, D)
    balance  ()         the load-balance loss, to be weighed by the caller
    routing             a `Routing`, without gradient

    Source: Shazeer et al. 2017, eq. 1–5; 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §4.4; the untitled
    document on the 稀疏门控 (sparse gate), §3–4.
    """
    logits, router_back = linear(x, router)
    (weights, indices), gate_back = top_k_gate(logits, k, renormalize)
    balance, balance_back = load_balance(logits, indices)
    assignment = group_by_expert(indices, router.shape[1])
    mlp = up, down, gate
    y, experts_back = routed_experts(x, weights, *mlp, assignment=assignment, activation=activation)

    def backward(dy, dbalance):  # read upwards
        dx_experts, dweights, *dexperts = experts_back(dy)
        (dlogits_balance,) = balance_back(dbalance)
        (dlogits_gate,) = gate_back(dweights)
        dx_router, drouter = router_back(dlogits_gate + dlogits_balance)
        return dx_experts + dx_router, drouter, *dexperts

    return (y, balance, Routing(logits, indices, weights, assignment.counts)), backward
