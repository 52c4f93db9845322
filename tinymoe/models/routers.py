"""Which experts a token visits, and what it costs to send too many to one: router, capacity and balancing losses.

logits = scores(x)                     dot product, cosine, or a small network
weights, indices = gate(logits)        one of the gates of `ops`
kept = within each expert's capacity   in training, if there is one
loss = Σ of the balancing losses       functions of logits, weights and load
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..types import Array, Backward
from .balancing import UNBALANCED, Balancing
from .config import LanguageConfig
from .parameters import Router


class Situation(NamedTuple):
    """What a layer has to know of the batch besides its rows: B sequences of T tokens, N = B·T."""

    batch: int  # B
    ids: Array  # (N,)
    rng: np.random.Generator | None = None  # draws noise and dropout in training; None in evaluation
    mask: Array | None = None  # (N,) bool, False for padding; None if there is none
    balancing: Balancing = UNBALANCED
    shares: Array | None = None  # (E,) of the tokens of the whole batch, for the global loss
    state: Any = None  # of a recurrent layer, from the text before

    @property
    def training(self) -> bool:
        return self.rng is not None


class Choice(NamedTuple):
    """What a router decides. The first three carry gradients."""

    weights: Array  # (N, K)
    logits: Any  # (N, E); None for a table
    load: Any  # (E,) smooth load, router noisy only
    indices: Array  # (N, K) int
    kept: Array  # (N, K) bool, False for an assignment that is not carried out
    counts: Array  # (E,) int, assignments that were asked for, before any was dropped for lack of room
    real: Array | None = None  # (N,) bool, False for padding; None if there is none
    balance: float = 0.0  # sum of the balancing losses, for reports


def route(x, p: Router, config: LanguageConfig, at: Situation):
    """The model's router, as `ops.moe_layer` asks for one: choose experts for each row of x (N, D), and balance them.

    Returns (weights (N, K), loss, `Choice`), the loss weighed; backward(dweights, dloss) → (dx, Router).
    """
    choice, decide_back = decide(x, p, config, at)
    (loss, report), balance_back = balance(choice, config, at)

    def backward(dweights, dloss):  # read upwards
        dweights_balance, dlogits, dload = balance_back(dloss)
        return decide_back(dweights + dweights_balance, dlogits, dload)

    return (choice.weights, loss, choice._replace(balance=report)), backward


def decide(x, p: Router, config: LanguageConfig, at: Situation):
    """Scores, gate and capacity. Returns a `Choice`; backward(dweights, dlogits, dload) → (dx, Router)."""
    if config.router in ("hash", "partition"):
        return from_table(x, p, config, at)
    logits, scores_back = scores(x, p, config, at)
    spread, spread_back = (None, None) if p.noise is None else ops.linear(x, p.noise)
    (wide, indices, kept, load), gate_back = gate_without_padding(logits, spread, p, config, at)
    weights, cast_back = ops.cast(wide, dtype=x.dtype)
    counts, kept = within_capacity(weights, indices, kept, config, at)

    def backward(dweights, dlogits, dload):
        dgate, *dspread = gate_back(*cast_back(dweights), dload)
        dx, drouter = scores_back(dgate + dlogits)
        if spread_back is not None:
            dx_spread, drouter.noise = spread_back(*dspread)
            dx = dx + dx_spread
        drouter.bias = None if p.bias is None else np.zeros_like(p.bias)
        return dx, drouter

    return Choice(weights, logits, load, indices, kept, counts, at.mask), backward


def scores(x, p: Any, config: LanguageConfig, at: Situation):
    """The router's logits (N, E) of x (N, D), in the router's own float type; only the router's input is shaken."""
    shaken, jitter_back = shake(x, config, at)
    wide, cast_back = ops.cast(shaken, dtype=x.dtype if config.router_float == "model" else config.router_float)
    if config.scores == "cosine":
        logits, score_back = ops.cosine_scores(wide, p.weight, p.scale[0])
    elif config.scores == "mlp":
        logits, score_back = ops.mlp_scores(wide, p.hidden, p.weight)
    else:
        logits, score_back = ops.linear(wide, p.weight)

    def backward(dlogits):
        dwide, *wide_weights = score_back(dlogits)
        dweights = [d.astype(p.weight.real.dtype, copy=False) for d in wide_weights]
        (dx,) = jitter_back(*cast_back(dwide))
        if config.scores == "mlp":
            return dx, Router(hidden=dweights[0], weight=dweights[1])
        dscale = np.reshape(dweights[1], 1) if config.scores == "cosine" else None
        return dx, Router(weight=dweights[0], scale=dscale)

    return logits, backward


def shake(x, config: LanguageConfig, at: Situation):
    """Jitter in training; x (N, D)."""
    if at.rng is None or config.jitter == 0:
        return unchanged(x)
    factors = at.rng.uniform(1 - config.jitter, 1 + config.jitter, x.shape)
    return ops.jitter(x, factors=factors)


def unchanged(x):
    """The identity, for a step that a model leaves out."""

    def backward(dy):
        return (dy,)

    return x, backward


def gate_without_padding(logits, spread, p: Router, config: LanguageConfig, at: Situation):
    """`gate` for the real rows alone: padding gets weights 0 and takes part in nothing, whatever a gate looks at."""
    if at.mask is None:
        return gate(logits, spread, p, config, at)
    real, n = np.flatnonzero(at.mask), len(logits)
    some = None if spread is None else spread[real]
    (weights, indices, kept, load), gate_back = gate(logits[real], some, p, config, at)

    def spread_out(part, fill):
        whole = np.full((n, *part.shape[1:]), fill, part.dtype)
        whole[real] = part
        return whole

    def backward(dweights, dload):
        return tuple(spread_out(gradient, 0) for gradient in gate_back(dweights[real], dload))

    everywhere = None if kept is None else spread_out(kept, False)
    return (spread_out(weights, 0), spread_out(indices, 0), everywhere, load), backward


def gate(logits, spread, p: Router, config: LanguageConfig, at: Situation):
    """(weights (N, K), indices, kept or None, smooth load or None); backward(dweights, dload) → (dlogits[, dspread])."""
    k, kind, scale = config.top_k, config.router, config.routed_scale
    kept = load = None
    if kind == "noisy":
        noise = None if at.rng is None else at.rng.standard_normal(logits.shape).astype(logits.real.dtype)
        (weights, indices, load), gate_back = ops.noisy_top_k_gate(logits, spread, k, noise=noise)
    elif kind == "gshard":
        uniforms = None if at.rng is None else at.rng.random(len(logits))
        (weights, indices, kept), gate_back = ops.gshard_gate(logits, uniforms=uniforms)
    elif kind == "expert-choice":
        capacity = ops.capacity(len(logits), config.experts, k, config.capacity_factor or 1.0)
        (weights, indices, kept), gate_back = ops.expert_choice_gate(logits, capacity)
    elif kind == "sigmoid":
        groups = {"groups": config.groups, "kept_groups": config.kept_groups}
        options = {"bias": p.bias, "scale": scale, "normalize": config.renormalize and k > 1, **groups}
        (weights, indices), gate_back = ops.sigmoid_gate(logits, k, **options)
    elif kind == "sinkhorn":
        (weights, indices), gate_back = ops.sinkhorn_gate(logits, k, balanced=at.training)
    elif kind == "base":
        (weights, indices), gate_back = ops.base_gate(logits, balanced=at.training)
    else:
        k = config.experts if kind == "dense" else k
        options = {"renormalize": config.renormalize and k > 1, "scale": scale}
        (weights, indices), gate_back = ops.top_k_gate(logits, k, **options)

    def backward(dweights, dload):
        return gate_back(dweights, dload) if kind == "noisy" else gate_back(dweights)

    return (weights, indices, kept, load), backward


def from_table(x, p: Router, config: LanguageConfig, at: Situation):
    """Experts by token id, with weight 1 and without anything to learn."""
    (weights, indices), kept = ops.table_gate(at.ids, table(config), x.dtype), None
    counts, kept = within_capacity(weights, indices, kept, config, at)

    def backward(dweights, dlogits, dload):
        return np.zeros_like(x), p

    return Choice(weights, None, None, indices, kept, counts, at.mask), backward


@lru_cache(maxsize=4)
def table(config: LanguageConfig):
    """The expert of each token id (V,): drawn once and for all, or consecutive ids together."""
    if config.router == "partition":
        return ops.partition_table(config.vocabulary, config.experts)
    return ops.hash_table(config.vocabulary, config.experts, np.random.default_rng(42))


def within_capacity(weights, indices, kept, config: LanguageConfig, at: Situation):
    """(counts, kept): what was asked of each expert, and which assignments are carried out.

    Padding asks for nothing. Capacity holds in training only.
    """
    kept = ops.as_mask(indices.shape, kept, at.mask)
    counts = np.bincount(indices[kept], minlength=config.experts)
    if config.capacity_factor and at.training and config.router != "expert-choice":
        tokens = int(ops.as_mask(indices.shape[:1], at.mask).sum())
        room = ops.capacity(tokens, config.experts, indices.shape[1], config.capacity_factor)
        options = {"priority": config.drop, "weights": weights.real, "rng": at.rng, "kept": kept}
        kept = ops.keep_within_capacity(indices, config.experts, room, **options)
    return counts, kept


def balance(choice: Choice, config: LanguageConfig, at: Situation):
    """weight · Σ losses + z_weight · z, and Σ losses for reports; backward(dloss) → (dweights, dlogits, dload)."""
    terms: list[tuple[str, float, Any, Backward]] = []  # what it depends on, weight, value, backward
    losses, weight, z_weight = UNBALANCED if choice.logits is None else at.balancing  # a table has nothing to balance
    for name in losses:
        if name in ("switch", "global"):
            shares = at.shares if name == "global" else None
            terms.append(
                ("logits", weight, *ops.load_balance(choice.logits, choice.indices, mask=at.mask, shares=shares))
            )
        elif name == "sequence":
            terms.append(("logits", weight, *ops.sequence_balance(choice.logits, config.top_k, at.batch, mask=at.mask)))
        elif name == "importance":
            terms.append(("weights", weight, *importance_loss(choice, config, at)))
        else:
            terms.append(("load", weight, *ops.squared_variation(choice.load)))
    if z_weight:
        terms.append(("logits", z_weight, *ops.z_loss(choice.logits, mask=at.mask)))
    loss = sum(w * value for _, w, value, _ in terms)
    report = sum(value.real for _, _, value, _ in terms[: len(losses)])

    def backward(dloss):
        gradients: dict[str, Any] = {"weights": 0, "logits": 0, "load": 0}
        for of, w, _, term_back in terms:
            (gradient,) = term_back(dloss * w)
            gradients[of] = gradients[of] + gradient
        return tuple(gradients.values())

    return (loss, report), backward


def importance_loss(choice: Choice, config: LanguageConfig, at: Situation):
    """CV² of the sums of gate weights, over all that were chosen."""
    sums, sums_back = ops.importance(choice.weights, choice.indices, config.experts, mask=at.mask)
    loss, loss_back = ops.squared_variation(sums)

    def backward(dloss):
        return sums_back(*loss_back(dloss))

    return loss, backward
