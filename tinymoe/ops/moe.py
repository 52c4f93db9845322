"""The sparse mixture-of-experts layer: route, dispatch, compute, combine."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..types import Array, Backward
from .balance import load_balance
from .experts import experts
from .linear import linear
from .pointwise import relu
from .routing import combine, dispatch, group_by_expert
from .top_k_gate import top_k_gate


class Routing(NamedTuple):
    """What a router decided; nothing here takes part in the gradient."""

    logits: Array  # (N, E)
    indices: Array  # (N, K) int
    weights: Array  # (N, K)
    counts: Array  # (E,) int, assignments per expert
    kept: Array  # (N, K) bool, False for an assignment that is not carried out


def moe(
    x: Array, router: Array, up: Array, down: Array, gate=None, *, k, renormalize=True, activation=relu
) -> tuple[tuple[Array, float, Routing], Backward]:
    """Send each token to its k best experts and add up what they return: `moe_layer` with `top_k_route`.

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
    route = partial(top_k_route, k=k, renormalize=renormalize)
    return moe_layer(x, router, up, down, gate, route=route, activation=activation)


def moe_layer(
    x: Array, router, up, down, gate=None, *, route, activation=relu
) -> tuple[tuple[Array, float, Any], Backward]:
    """The layer with a router of the caller's.

        w, loss, choice = route(x, router)        y_n = Σ_{j kept} w_nj expert_{i_nj}(x_n),   i, kept from the choice
        dw and dexperts as in `routed_experts`        dx = (through the experts) + (through the router, from dw and dloss)

    x       (N, D)
    router  what `route` learns: an array, or a record of arrays, which its gradient then is too
    up      (E, D, F)  or a `CSR`, see `experts`
    down    (E, F, D)  likewise
    gate    (E, D, F)  likewise, or None
    route   an operation: `(weights, loss, choice), backward = route(x, router)`, `dx, drouter = backward(dweights, dloss)`;
            the choice is a `Routing` or has its fields `indices`, `counts` and `kept`
    y       (N, D)
    loss    ()         what `route` adds to the loss of the model
    choice             what `route` decided, without gradient

    Source: Shazeer et al. 2017, eq. 1.
    """
    (weights, loss, choice), route_back = route(x, router)  # 1
    assignment = group_by_expert(choice.indices, len(choice.counts), choice.kept)
    y, experts_back = routed_experts(x, weights, up, down, gate, assignment=assignment, activation=activation)  # 2

    def backward(dy, dloss):  # read upwards
        dx_experts, dweights, *dexperts = experts_back(dy)  # 2
        dx_router, drouter = route_back(dweights, dloss)  # 1
        return dx_experts + dx_router, drouter, *dexperts

    return (y, loss, choice), backward


def top_k_route(x: Array, router: Array, k, renormalize=True) -> tuple[tuple[Array, float, Routing], Backward]:
    """The plain router: a dot product with each expert's column, the top-k gate, the load-balance loss.

        z = x R        w, S = top_k_gate(z)        balance = load_balance(z, S)
        dz = gate backward of dw + balance backward of dbalance        dR = xᵀ dz        dx = dz Rᵀ

    x        (N, D)
    router   (D, E)
    weights  (N, K)
    balance  ()
    routing          a `Routing`, without gradient

    Raises ValueError unless 1 ≤ k ≤ E.
    Source: Shazeer et al. 2017, eq. 3–5.
    """
    logits, linear_back = linear(x, router)  # 1
    (weights, indices), gate_back = top_k_gate(logits, k, renormalize)  # 2
    balance, balance_back = load_balance(logits, indices)  # 3
    counts = np.bincount(indices.reshape(-1), minlength=router.shape[1])
    routing = Routing(logits, indices, weights, counts, kept=np.ones(indices.shape, bool))

    def backward(dweights, dbalance):  # read upwards
        (dlogits_balance,) = balance_back(dbalance)  # 3
        (dlogits_gate,) = gate_back(dweights)  # 2
        return linear_back(dlogits_gate + dlogits_balance)  # 1

    return (weights, balance, routing), backward


def routed_experts(
    x: Array, weights: Array, up, down, gate=None, *, assignment, activation=relu
) -> tuple[Array, Backward]:
    """The part of the layer behind the router.

        y_n = Σ_{j kept} w_nj o_nj,   o_nj = expert_{i_nj}(x_n)
        dw_nj = dy_n · o_nj        do_nj = w_nj dy_n        dx_n = Σ_{j kept} (do_nj through expert i_nj)

    The experts' gradients are those of `experts` on the rows (n, j) that they got.

    x           (N, D)
    weights     (N, K)
    up          (E, D, F)  or a `CSR`, see `experts`
    down        (E, F, D)  likewise
    gate        (E, D, F)  likewise, or None
    assignment  tokens grouped by expert, see `group_by_expert`
    y           (N, D)

    Source: Shazeer et al. 2017, eq. 1.
    """
    rows, dispatch_back = dispatch(x, assignment)  # 1
    outputs, experts_back = experts(rows, up, down, gate, counts=assignment.counts, activation=activation)  # 2
    y, combine_back = combine(outputs, weights, assignment)  # 3

    def backward(dy):  # read upwards
        doutputs, dweights = combine_back(dy)  # 3
        drows, *dexperts = experts_back(doutputs)  # 2
        (dx,) = dispatch_back(drows)  # 1
        return dx, dweights, *dexperts

    return y, backward
