"""The parts that the layers of a model are made of: norm, attention or recurrence, mixture of experts, and the block of them.

The functions here read downwards in the forward and upwards in the backward; gradients have the type of their
parameters.
"""

from functools import partial
from typing import Any

import numpy as np

from .. import ops
from .config import EXPERT_KINDS, LanguageConfig
from .parameters import Attention, Block, Experts, Mixture, Norm, Recurrent, Router, Shared
from .routers import Situation, route, unchanged


def normalize(x, p: Norm):
    """RMS norm, or layer norm where there is a bias; x and y (N, D)."""
    y, norm_back = ops.rms_norm(x, p.gain) if p.bias is None else ops.layer_norm(x, p.gain, p.bias)

    def backward(dy):
        dx, dgain, *dbias = norm_back(dy)
        return dx, Norm(gain=dgain, bias=dbias[0] if dbias else None)

    return y, backward


def attention(x, p: Any, config: LanguageConfig, batch: int, attend=ops.causal_attention):
    """Self-attention over B = `batch` sequences, causal or full by `attend`; p an `Attention`, x and y (N, D)."""
    length, width = len(x) // max(batch, 1), config.width // config.heads  # T, P
    positions = np.arange(length)

    def heads(weight, rotate):
        rows, linear_back = ops.linear(x, weight)
        split = rows.reshape(batch, length, rows.shape[1] // width, width)  # (B, T, H or G, P)
        turned, rotary_back = ops.rotary(split, positions) if rotate else unchanged(split)

        def backward(dheads):
            (drows,) = rotary_back(dheads.swapaxes(1, 2))
            return linear_back(drows.reshape(rows.shape))

        return turned.swapaxes(1, 2), backward

    q, query_back = heads(p.query, config.position == "rotary")
    k, key_back = heads(p.key, config.position == "rotary")
    v, value_back = heads(p.value, False)
    a, attention_back = attend(q, k, v)
    y, output_back = ops.linear(a.swapaxes(1, 2).reshape(x.shape), p.output)

    def backward(dy):
        da, doutput = output_back(dy)
        dq, dk, dv = attention_back(da.reshape(batch, length, config.heads, width).swapaxes(1, 2))
        dx_value, dvalue = value_back(dv)
        dx_key, dkey = key_back(dk)
        dx_query, dquery = query_back(dq)
        dp = Attention(query=dquery, key=dkey, value=dvalue, output=doutput)
        return dx_query + dx_key + dx_value, dp

    return y, backward


def recurrence(x, p: Any, config: LanguageConfig, batch: int, state=None):
    """A recurrent layer over B = `batch` sequences; p a `Recurrent`, x and y (N, D).

    state  the arrays (B, D) that an earlier call returned for the text before this one; None at the start of a text

    Returns (y, state); the gradient stops at the state handed in (truncated back-propagation through time).
    """
    zeros = np.zeros((batch, config.width), x.dtype)
    h0, c0 = state or (zeros, zeros)
    rows = x.reshape(batch, -1, config.width)
    weights = p.input, p.recurrent, p.bias
    if config.architecture == "rnn":
        (states, last), layer_back = ops.rnn(rows, *weights, h0)
        carried: tuple[Any, ...] = last, zeros
    elif config.architecture == "gru":
        (states, last), layer_back = ops.gru(rows, *weights, p.inner_bias, h0)
        carried = last, zeros
    else:
        (states, last, cell), layer_back = ops.lstm(rows, *weights, h0, c0)
        carried = last, cell
    y, output_back = ops.linear(states.reshape(x.shape), p.output)

    def backward(dy):
        dstates, doutput = output_back(dy)
        none = np.zeros(zeros.shape, dy.dtype)
        ends = (none, none) if config.architecture == "lstm" else (none,)
        drows, dinput, drecurrent, dbias, *others = layer_back(dstates.reshape(states.shape), *ends)
        dinner = others[0] if config.architecture == "gru" else None
        dp = Recurrent(input=dinput, recurrent=drecurrent, bias=dbias, inner_bias=dinner, output=doutput)
        return drows.reshape(x.shape), dp

    return (y, carried), backward


def mix_positions(x, p: Attention | Recurrent, config: LanguageConfig, at: Situation):
    """Attention or a recurrent layer; returns (y, state), the state None for attention."""
    if isinstance(p, Recurrent):
        return recurrence(x, p, config, at.batch, at.state)
    y, backward = attention(x, p, config, at.batch)
    return (y, None), backward


def mixture(x, p: Mixture, config: LanguageConfig, at: Situation):
    """A mixture of experts; x and y (N, D). Returns (y, loss, routed): the weighed balancing losses, and for reports what
    the router did; a dense layer has neither loss nor report."""
    if p.router is None:
        return dense(x, p, config)
    if config.router == "soft":
        return soft_mixture(x, p, config, at)
    tokens, padding_back = unchanged(x) if at.mask is None else ops.without_padding(x, at.mask)
    activation = EXPERT_KINDS[config.expert_kind]
    (routed, loss, choice), layer_back = ops.moe_layer(
        tokens, p.router, *matrices(p.experts), route=partial(route, config=config, at=at), activation=activation
    )
    y, shared_back = with_shared(tokens, routed, p.shared, config)

    def backward(dy, dloss):
        dtokens_shared, drouted, dshared = shared_back(dy)
        dtokens, drouter, *dexperts = layer_back(drouted, dloss)
        (dx,) = padding_back(dtokens + dtokens_shared)
        return dx, Mixture(router=drouter, experts=gradient_of_experts(*dexperts), shared=dshared)

    return (y, loss, choice), backward


def dense(x, p: Mixture, config: LanguageConfig):
    """One expert for all: a feed-forward network."""
    y, experts_back = feed_forward(x, p.experts, config)

    def backward(dy, _):
        dx, dexperts = experts_back(dy)
        return dx, Mixture(experts=dexperts)

    return (y, 0.0, None), backward


def soft_mixture(x, p: Mixture, config: LanguageConfig, at: Situation):
    """Soft MoE, each sequence on its own: its experts see weighted means of the sequence's tokens, padding left out."""
    router: Any = p.router
    activation = EXPERT_KINDS[config.expert_kind]
    real = ops.as_mask((len(x),), at.mask)
    rows = [sequence[real[sequence]] for sequence in np.arange(len(x)).reshape(at.batch, -1)]
    outputs, soft_backs = zip(
        *[
            ops.soft_moe(x[some], router.weight, router.scale[0], *matrices(p.experts), activation=activation)
            for some in rows
        ],
        strict=True,
    )
    routed = np.zeros(x.shape, outputs[0].dtype)
    routed[np.concatenate(rows)] = np.concatenate(outputs)
    y, shared_back = with_shared(x, routed, p.shared, config)

    def backward(dy, _):
        dx_shared, dsoft, dshared = shared_back(dy)
        dtokens, *dweights = zip(*[back(dsoft[some]) for back, some in zip(soft_backs, rows, strict=True)], strict=True)
        dslots, dscale, *dexperts = (np.sum(dweight, axis=0) for dweight in dweights)
        dx = np.zeros(x.shape, dy.dtype)
        dx[np.concatenate(rows)] = np.concatenate(dtokens)
        drouter = Router(weight=dslots, scale=np.reshape(dscale, 1))
        return dx_shared + dx, Mixture(router=drouter, experts=gradient_of_experts(*dexperts), shared=dshared)

    return (y, 0.0, None), backward


def with_shared(x, routed, p: Shared | None, config: LanguageConfig):
    """Add what a shared expert, visited by all tokens, makes of x to what the routed ones returned; all (N, D).

        plain      y = routed + s                                   DeepSeekMoE
        gated      y = routed + sigmoid(x g) s                      Qwen2-MoE
        residual   y = α₀ routed + α₁ s,   α = softmax(x g + b)     DeepSpeed's residual MoE

    backward(dy) → (dx, drouted, dshared)
    """
    if p is None:
        return routed, lambda dy: (0, dy, None)
    s, experts_back = feed_forward(x, p.experts, config)
    if p.gate is None:

        def backward(dy):
            dx, dexperts = experts_back(dy)
            return dx, dy, Shared(experts=dexperts)

        return routed + s, backward
    scores, linear_back = ops.linear(x, p.gate) if p.bias is None else ops.linear(x, p.gate, p.bias)
    shares, shares_back = ops.sigmoid(scores) if p.bias is None else ops.softmax(scores)  # (N, 1) or (N, 2)
    of_routed = 1 if p.bias is None else shares[:, :1]
    y = of_routed * routed + shares[:, -1:] * s

    def gated_backward(dy):
        dshares = [np.vecdot(part, dy) for part in ((s,) if p.bias is None else (routed, s))]
        dx_gate, *dgate = linear_back(*shares_back(np.stack(dshares, 1)))
        dx_experts, dexperts = experts_back(shares[:, -1:] * dy)
        return (
            dx_gate + dx_experts,
            of_routed * dy,
            Shared(experts=dexperts, gate=dgate[0], bias=dgate[1] if p.bias is not None else None),
        )

    return y, gated_backward


def feed_forward(x, p: Experts, config: LanguageConfig):
    """A single expert for all rows of x (N, D)."""
    y, experts_back = ops.experts(
        x, *matrices(p), counts=np.array([len(x)]), activation=EXPERT_KINDS[config.expert_kind]
    )

    def backward(dy):
        dx, *dexperts = experts_back(dy)
        return dx, gradient_of_experts(*dexperts)

    return y, backward


def matrices(p: Experts):
    """In the order in which `ops.experts` takes them."""
    return p.up, p.down, p.gate


def gradient_of_experts(up, down, gate=None):
    """`Experts` from the gradients that `ops.experts` returns, which has none for an absent gate."""
    return Experts(up=up, down=down, gate=gate)


def block(x, p: Block, config: LanguageConfig, at: Situation):
    """middle = x + attention(norm(x)),  y = middle + mixture(norm(middle)); returns (y, loss, routed, state)."""
    n, attention_norm_back = normalize(x, p.attention_norm)
    s, attention_shift_back = shift(n, p.attention_shift, at.batch)
    (a, state), attention_back = mix_positions(s, p.attention, config, at)
    a_kept, attention_drop_back = drop(a, config.dropout, at.rng)
    middle = x + a_kept
    m, mixture_norm_back = normalize(middle, p.mixture_norm)
    t, mixture_shift_back = shift(m, p.mixture_shift, at.batch)
    (e, loss, routed), mixture_back = mixture(t, p.mixture, config, at)
    e_kept, mixture_drop_back = drop(e, config.dropout, at.rng)
    y = middle + e_kept

    def backward(dy, dloss):
        (de,) = mixture_drop_back(dy)
        dt, dmixture = mixture_back(de, dloss)
        dm, dmixture_shift = mixture_shift_back(dt)
        dmiddle, dmixture_norm = mixture_norm_back(dm)
        dmiddle += dy
        (da,) = attention_drop_back(dmiddle)
        ds, dattention = attention_back(da)
        dn, dattention_shift = attention_shift_back(ds)
        dx, dattention_norm = attention_norm_back(dn)
        dx += dmiddle
        return dx, Block(
            attention_norm=dattention_norm,
            attention_shift=dattention_shift,
            attention=dattention,
            mixture_norm=dmixture_norm,
            mixture_shift=dmixture_shift,
            mixture=dmixture,
        )

    return (y, loss, routed, state), backward


def shift(x, mix, batch: int):
    """Token shift over B = `batch` sequences, or nothing where there is no `mix`; x and y (N, D)."""
    y, shift_back = unchanged(x) if mix is None else ops.token_shift(x.reshape(batch, -1, x.shape[1]), mix)

    def backward(dy):
        dx, *dmix = shift_back(dy.reshape(y.shape))
        return dx.reshape(x.shape), dmix[0] if dmix else None

    return y.reshape(x.shape), backward


def drop(x, rate, rng):
    """Dropout with a mask drawn from `rng`; without one (evaluation), nothing."""
    if rng is None or rate == 0:
        return unchanged(x)
    return ops.dropout(x, rng.random(x.shape, dtype=np.float32) >= rate, rate)
