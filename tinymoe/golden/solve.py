"""The answers: outputs, gradients, and by how much each choice was decided."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..ops.gates import limit_groups
from ..types import Array, Backward
from .agreements import Convention
from .cases import MATRICES, Named

ACTIVATIONS = {"silu": ops.silu, "relu": ops.relu, "gelu_tanh": ops.gelu}


def solve(given: Named, c: Convention) -> Named:
    """All results and gradients of a case, by name."""
    real = ops.as_mask(given["x"].shape[:1], given.get("mask"))
    (x, _), (dy, _) = (ops.without_padding(given[name], real) for name in ("x", "dy"))
    matrices = {m: given[m] for m in MATRICES if m in given}
    options = {"activation": ACTIVATIONS[c.activation]}
    router = partial(route_noisy if c.routing == "noisy" else route, c=c)
    (y, loss, decision), layer_back = ops.moe_layer(x, given, *matrices.values(), route=router, **options)
    dx, gradients, *dmatrices = layer_back(dy, 1.0)
    gradients |= {f"d{m}": dm for m, dm in zip(matrices, dmatrices, strict=True)}

    if c.shared_expert:  # one more expert, to which all tokens go
        shared = {f"shared_{m}": given[f"shared_{m}"][None] for m in matrices}
        more, shared_back = ops.experts(x, *shared.values(), counts=[len(x)], **options)
        dx_shared, *dshared = shared_back(dy)
        y, dx = y + more, dx + dx_shared
        gradients |= {f"d{m}": dm[0] for m, dm in zip(shared, dshared, strict=True)}

    # what stands in between, for those whose y differs
    assignment = ops.group_by_expert(decision.indices, c.experts, decision.kept)
    rows, _ = ops.dispatch(x, assignment)
    outputs, _ = ops.experts(rows, *matrices.values(), counts=assignment.counts, **options)
    between = {"order": assignment.order, "inverse": assignment.inverse, "outputs": outputs}
    between |= {"offsets": np.concatenate([[0], np.cumsum(assignment.counts)])}
    between |= {"indices": np.where(real[:, None], decision.indices, -1)}
    return decision.results | between | gradients | {"dx": dx, "y": y, "objective": (dy * y).sum() + loss}


class Decision(NamedTuple):
    """What a router decides, as `ops.moe_layer` asks for it, and all that it found, by name."""

    indices: Array  # (N, K) int
    counts: Array  # (E,) int, assignments per expert
    kept: Array  # (N, K) bool
    results: Named


def route(x: Array, given: Named, c: Convention) -> tuple[tuple[Array, float, Decision], Backward]:
    """Router, gate, capacity and losses, for `ops.moe_layer`: (weights of the kept, the losses' part of the objective,
    `Decision`), and a backward that returns dx and the other gradients by name."""
    mask = given.get("mask")
    logits, router_back = ops.linear(x, given["router"])
    (raw, indices, chosen), gate_back = choose(logits, given, c)
    if c.priority is None:
        kept = ops.as_mask(indices.shape, chosen, mask)
    else:
        kept = ops.keep_within_capacity(indices, c.experts, c.capacity, priority=c.priority, mask=mask)
    weights, keep_back = ops.renormalize_kept(raw, kept) if c.normalize == "kept" else only_kept(raw, kept)
    makers: dict[str, Callable[[], Any]] = {
        "balance": lambda: ops.load_balance(logits, indices, mask=mask),
        "z_loss": lambda: ops.z_loss(logits, mask=mask),
        "sequence_balance": lambda: ops.sequence_balance(logits, c.k, c.sequences, mask=mask),
    }
    losses = {name: makers[name]() for name in c.losses}
    results = {"logits": logits, "weights": weights, "kept": kept} | {name: loss for name, (loss, _) in losses.items()}
    objective = sum(given[f"d{name}"] * loss for name, (loss, _) in losses.items())

    def backward(dweights: Array, dobjective: float) -> tuple[Array, Named]:  # read upwards
        of_losses = (loss_back(dobjective * given[f"d{name}"])[0] for name, (_, loss_back) in losses.items())
        (from_gate,) = gate_back(*keep_back(dweights))
        dlogits = from_gate + sum(of_losses)
        dx, drouter = router_back(dlogits)
        return dx, {"drouter": drouter, "dlogits": dlogits, "dweights": dweights}

    counts = np.bincount(indices[kept], minlength=c.experts)
    return (weights, objective, Decision(indices, counts, kept, results)), backward


def choose(logits: Array, given: Named, c: Convention) -> Any:
    """(weights, indices, chosen), backward: whichever gate the convention names; nothing is dropped yet."""
    if c.routing == "expert choice":
        return ops.expert_choice_gate(logits, c.capacity)
    if c.routing == "sigmoid":
        limit = {"groups": c.groups, "kept_groups": c.kept_groups}
        (weights, indices), backward = ops.sigmoid_gate(logits, c.k, bias=given["bias"], scale=c.scale, **limit)
    else:
        renormalize = c.normalize == "chosen"
        (weights, indices), backward = ops.top_k_gate(logits, c.k, renormalize, scale=c.scale)
    return (weights, indices, np.ones(indices.shape, bool)), backward


def only_kept(weights: Array, kept: Array) -> tuple[Array, Callable[[Array], tuple[Array]]]:
    """The weights, with 0 for what is not kept."""
    y = np.where(kept, weights, 0)

    def backward(dy: Array) -> tuple[Array]:
        return (np.where(kept, dy, 0),)

    return y, backward


def route_noisy(x: Array, given: Named, c: Convention) -> tuple[tuple[Array, float, Decision], Backward]:
    """`route` for the noisy gate, whose losses come from the weights and from the load."""
    logits, router_back = ops.linear(x, given["router"])
    spread, spread_back = ops.linear(x, given["noise_router"])
    (weights, indices, load), gate_back = ops.noisy_top_k_gate(logits, spread, c.k, noise=given["noise"])
    of_expert, importance_back = ops.importance(weights, indices, c.experts)
    importance_loss, of_importance_back = ops.squared_variation(of_expert)
    load_loss, of_load_back = ops.squared_variation(load)
    objective = given["dimportance_loss"] * importance_loss + given["dload_loss"] * load_loss

    def backward(dweights_of_y: Array, dobjective: float) -> tuple[Array, Named]:  # read upwards
        (dload,) = of_load_back(dobjective * given["dload_loss"])
        (dimportance,) = of_importance_back(dobjective * given["dimportance_loss"])
        dweights = dweights_of_y + importance_back(dimportance)[0]
        dlogits, dspread = gate_back(dweights, dload)
        dx_noise, dnoise_router = spread_back(dspread)
        dx, drouter = router_back(dlogits)
        gradients = {"drouter": drouter, "dnoise_router": dnoise_router, "dlogits": dlogits, "dspread": dspread}
        return dx + dx_noise, gradients | {"dweights": dweights}

    kept = np.ones(indices.shape, bool)
    results: Named = {"logits": logits, "spread": spread, "load": load, "weights": weights, "kept": kept}
    results |= {"importance_loss": importance_loss, "load_loss": load_loss}
    counts = np.bincount(indices.reshape(-1), minlength=c.experts)
    return (weights, objective, Decision(indices, counts, kept, results)), backward


def margin(given: Named, results: Named, c: Convention) -> float | None:
    """The smallest gap between scores that a choice, or its order, depends on; None without any.

    A kernel whose scores are off by more than half of it may choose otherwise, and is then not comparable.
    """
    scores = results["logits"][ops.as_mask(given["x"].shape[:1], given.get("mask"))]
    if c.routing == "noisy":
        scores = scores + given["noise"] * (ops.softplus(results["spread"])[0] + 0.01)
    gaps = [np.diff(np.sort(scores, 1)[:, -c.k - 1 :])]
    if c.routing == "expert choice":  # who is in and who is out; an order there is not
        gaps = [_edge(ops.softmax(scores)[0].T, c.capacity or 0)]
    if c.routing == "sigmoid":
        free = ops.sigmoid(scores)[0] + given["bias"]
        of_group = np.sort(free.reshape(len(free), c.groups, -1), 2)[:, :, -2:].sum(2)
        within = np.sort(limit_groups(free, c.k, c.groups, c.kept_groups), 1)
        gaps = [np.diff(within[:, -c.k - 1 :]), _edge(of_group, c.kept_groups)]
    return min((float(gap.min()) for gap in gaps if gap.size), default=None)


def _edge(scores: Array, k: int) -> Array:
    """How far the k-th largest of each row is above the next."""
    return np.diff(np.sort(scores, 1)[:, -k - 1 :][:, :2])
