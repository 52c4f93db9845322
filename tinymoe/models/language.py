"""A decoder-only transformer language model whose feed-forward layers are dense or sparse mixtures of experts.

    x = embedding(ids)
    for each block:   x = x + attention(norm(x));   x = x + mixture(norm(x))
    logits = norm(x) · head

Each function here reads downwards in the forward and upwards in the backward. The gradient of the whole model is the
composition of the gradients of its operations, and has the type of the parameters: `Language`.
"""

from typing import NamedTuple

import numpy as np

from .. import ops
from ..ops import Routing
from .parameters import EXPERT_KINDS, Attention, Block, Experts, Language, LanguageConfig, Mixture, Norm


def normalize(x, p: Norm):
    """RMS norm, or layer norm where there is a bias; x and y (N, D)."""
    y, norm_back = ops.rms_norm(x, p.gain) if p.bias is None else ops.layer_norm(x, p.gain, p.bias)

    def backward(dy):
        dx, dgain, *dbias = norm_back(dy)
        return dx, Norm(dgain, dbias[0] if dbias else None)

    return y, backward


def attention(x, p: Attention, config: LanguageConfig, batch: int):
    """Causal self-attention over B = `batch` sequences; x and y (N, D)."""
    shape = batch, len(x) // batch, -1, config.width // config.heads  # (B, T, H or G, P)
    positions = np.arange(shape[1])

    def heads(weight, rotate):
        rows, linear_back = ops.linear(x, weight)
        turned, rotary_back = ops.rotary(rows.reshape(shape), positions) if rotate else unchanged(rows.reshape(shape))

        def backward(dheads):
            (drows,) = rotary_back(dheads.swapaxes(1, 2))
            return linear_back(drows.reshape(rows.shape))

        return turned.swapaxes(1, 2), backward

    q, query_back = heads(p.query, config.position == "rotary")
    k, key_back = heads(p.key, config.position == "rotary")
    v, value_back = heads(p.value, False)
    a, attention_back = ops.causal_attention(q, k, v)
    y, output_back = ops.linear(a.swapaxes(1, 2).reshape(x.shape), p.output)

    def backward(dy):
        da, doutput = output_back(dy)
        dq, dk, dv = attention_back(da.reshape(shape).swapaxes(1, 2))
        dx_value, dvalue = value_back(dv)
        dx_key, dkey = key_back(dk)
        dx_query, dquery = query_back(dq)
        return dx_query + dx_key + dx_value, Attention(dquery, dkey, dvalue, doutput)

    return y, backward


def mixture(x, p: Mixture, config: LanguageConfig):
    """A sparse mixture of experts, or, without a router, one expert for all; x and y (N, D).

    Returns (y, balance, routing); a dense layer has neither balance nor routing: None, and its `dbalance` is unused.
    """
    weights = p.experts.up, p.experts.down, p.experts.gate
    activation = EXPERT_KINDS[config.expert_kind]
    if p.router is None:
        y, experts_back = ops.experts(x, *weights, counts=np.array([len(x)]), activation=activation)
        balance = routing = None
    else:
        (y, balance, routing), experts_back = ops.moe(
            x, p.router, *weights, k=config.top_k, renormalize=config.renormalize, activation=activation
        )

    def backward(dy, dbalance):
        if p.router is None:
            dx, *dexperts = experts_back(dy)
            return dx, Mixture(None, gradient_of_experts(*dexperts))
        dx, drouter, *dexperts = experts_back(dy, dbalance)
        return dx, Mixture(drouter, gradient_of_experts(*dexperts))

    return (y, balance, routing), backward


def gradient_of_experts(up, down, gate=None):
    """`Experts` from the gradients that `ops.experts` returns, which has none for an absent gate."""
    return Experts(up, down, gate)


def block(x, p: Block, config: LanguageConfig, batch: int, rng=None):
    """middle = x + attention(norm(x)),  y = middle + mixture(norm(middle)); returns (y, balance, routing)."""
    n, attention_norm_back = normalize(x, p.attention_norm)
    s, attention_shift_back = shift(n, p.attention_shift, batch)
    a, attention_back = attention(s, p.attention, config, batch)
    a_kept, attention_drop_back = drop(a, config.dropout, rng)
    middle = x + a_kept
    m, mixture_norm_back = normalize(middle, p.mixture_norm)
    t, mixture_shift_back = shift(m, p.mixture_shift, batch)
    (e, balance, routing), mixture_back = mixture(t, p.mixture, config)
    e_kept, mixture_drop_back = drop(e, config.dropout, rng)
    y = middle + e_kept

    def backward(dy, dbalance):
        (de,) = mixture_drop_back(dy)
        dt, dmixture = mixture_back(de, dbalance)
        dm, dmixture_shift = mixture_shift_back(dt)
        dmiddle, dmixture_norm = mixture_norm_back(dm)
        dmiddle += dy
        (da,) = attention_drop_back(dmiddle)
        ds, dattention = attention_back(da)
        dn, dattention_shift = attention_shift_back(ds)
        dx, dattention_norm = attention_norm_back(dn)
        dx += dmiddle
        dattended = dattention_norm, dattention_shift, dattention
        return dx, Block(*dattended, dmixture_norm, dmixture_shift, dmixture)

    return (y, balance, routing), backward


def shift(x, mix, batch: int):
    """Token shift over B = `batch` sequences, or nothing where there is no `mix`; x and y (N, D)."""
    y, shift_back = unchanged(x) if mix is None else ops.token_shift(x.reshape(batch, -1, x.shape[1]), mix)

    def backward(dy):
        dx, *dmix = shift_back(dy.reshape(y.shape))
        return dx.reshape(x.shape), dmix[0] if dmix else None

    return y.reshape(x.shape), backward


def unchanged(x):
    """The identity, for a step that a model leaves out."""

    def backward(dy):
        return (dy,)

    return x, backward


def drop(x, rate, rng):
    """Dropout with a mask drawn from `rng`; without one (evaluation), nothing."""
    if rng is None or rate == 0:
        return unchanged(x)
    return ops.dropout(x, rng.random(x.shape, dtype=np.float32) >= rate, rate)


def place(x, params: Language, config: LanguageConfig, batch: int):
    """Add learned or sinusoidal positions to the embeddings x (N, D); rotary ones enter in `attention`."""
    if config.position in ("rotary", "none"):
        y, add_back = unchanged(x)
    else:
        table = (
            ops.sinusoidal(config.context, config.width).astype(x.real.dtype)
            if params.positions is None
            else params.positions
        )
        y, add_back = ops.add_positions(x.reshape(batch, -1, config.width), table)

    def backward(dy):
        dx, *dtable = add_back(dy.reshape(y.shape))
        return dx.reshape(x.shape), dtable[0] if params.positions is not None else None

    return y.reshape(x.shape), backward


def forward(params: Language, config: LanguageConfig, ids, rng=None):
    """Scores for the next token at every position.

    ids     (B, T)    int
    logits  (B·T, V)

    Returns (logits, balances, routings), backward; balances and routings have one entry per layer, None for a dense
    one. `rng` draws the dropout masks; without it nothing is dropped. `backward` frees the activations block by block
    as it goes down, so it can be called once.
    """
    batch = len(ids)
    e, embedding_back = ops.embedding(ids.reshape(-1), params.embedding)
    placed, place_back = place(e, params, config, batch)
    x, drop_back = drop(placed, config.dropout, rng)
    block_backs, balances, routings = [], [], []
    for p in params.blocks:
        (x, balance, routing), block_back = block(x, p, config, batch, rng)
        block_backs.append(block_back)
        balances.append(balance)
        routings.append(routing)
    n, norm_back = normalize(x, params.norm)
    logits, head_back = ops.linear(n, params.embedding.T if params.head is None else params.head)

    def backward(dlogits, dbalances):
        if len(block_backs) != len(params.blocks):
            raise RuntimeError("this backward has run and freed its activations; run the forward again")
        dn, dhead = head_back(dlogits)
        dx, dnorm = norm_back(dn)
        dblocks = []
        for dbalance in reversed(dbalances):
            dx, dblock = block_backs.pop()(dx, dbalance)
            dblocks.append(dblock)
        (dplaced,) = drop_back(dx)
        de, dpositions = place_back(dplaced)
        (dembedding,) = embedding_back(de)
        if params.head is None:
            return Language(dembedding + dhead.T, dpositions, tuple(reversed(dblocks)), dnorm, None)
        return Language(dembedding, dpositions, tuple(reversed(dblocks)), dnorm, dhead)

    return (logits, tuple(balances), tuple(routings)), backward


class Parts(NamedTuple):
    """What a loss is made of, for reports."""

    cross_entropy: float  # nats per token
    balance: float  # mean over the layers with a router; 0 if there are none
    routings: tuple[Routing | None, ...]  # by layer


def loss(params: Language, config: LanguageConfig, ids, targets, balance_weight=0.01, rng=None):
    """Cross-entropy of the targets plus the weighted load-balance loss.

        loss = cross_entropy(logits, targets) + balance_weight · mean over MoE layers of balance

    ids      (B, T)  int
    targets  (B, T)  int, the token that follows each; −100 where there is none to predict

    Returns (loss, parts), backward; `backward(1.0)` is the gradient, a `Language`, and can be called once.
    """
    (logits, balances, routings), forward_back = forward(params, config, ids, rng)
    cross_entropy, cross_entropy_back = ops.cross_entropy(logits, targets.reshape(-1))
    present = [b for b in balances if b is not None]
    balance = sum(present) / max(len(present), 1)
    total = cross_entropy + balance_weight * balance

    def backward(dloss=1.0):
        (dlogits,) = cross_entropy_back(dloss)
        dbalance = dloss * balance_weight / max(len(present), 1)
        return forward_back(dlogits, [dbalance] * len(balances))

    return (total, Parts(cross_entropy, balance, routings)), backward
