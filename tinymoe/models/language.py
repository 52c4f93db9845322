"""A decoder-only language model whose feed-forward layers are dense or sparse mixtures of experts.

    x = embedding(ids)
    for each block:   x = x + attention(norm(x));   x = x + mixture(norm(x))      (or a recurrent layer for attention)
    logits = norm(x) · head

The functions here read downwards in the forward and upwards in the backward. The gradient of the whole model is the
composition of the gradients of its operations, and has the type of the parameters: `Language`.
"""

from typing import Any, NamedTuple

from .. import ops
from ..data.windows import Batch
from ..types import Array
from .balancing import SWITCH, UNBALANCED
from .blocks import block, drop, normalize
from .config import LanguageConfig
from .parameters import Language
from .routers import Choice, Situation, unchanged
from .vision import with_picture


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


def forward(
    params: Language, config: LanguageConfig, batch: Batch | Array, rng=None, *, balancing=UNBALANCED, shares=None
):
    """Scores for the next token at every position.

    batch   a `Batch`, or the ids (B, T) of one without padding and pictures. No router sends padding to
            an expert, and it counts in no balancing loss; attention and recurrence look back only, so it stands at the end
    shares  a list with (E,) for each layer, the share of the tokens of a larger batch; for balancing by "global" only
    logits  (B·T, V)

    Returns (logits, losses, routed), backward(dlogits, dlosses); losses and records have one entry per layer, 0 and None
    for a layer without a router. `rng` draws noise and dropout masks of training; without it the model is evaluated.
    `backward` frees the activations block by block as it goes down, so it can be called once.
    """
    (logits, losses, routed, _), backward = read_on(
        params, config, batch, None, rng, balancing=balancing, shares=shares
    )
    return (logits, losses, routed), backward


def read_on(
    params: Language,
    config: LanguageConfig,
    batch: Batch | Array,
    states,
    rng=None,
    *,
    balancing=UNBALANCED,
    shares=None,
):
    """`forward` for a text that goes on: returns (logits, losses, routed, states), backward.

    states  what the call for the text before returned, one entry per layer; None at the start. Recurrent layers carry
            theirs over; attention has none, and sees only this chunk

    Source: 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §9.5 (long texts in chunks).
    """
    given = batch if isinstance(batch, Batch) else Batch(batch)
    ids = given.ids
    e, embedding_back = ops.embedding(ids.reshape(-1), params.embedding)
    placed, place_back = place(e, params, config, len(given))
    (fused, seen_ids, seen_mask), fuse_back = with_picture(placed, given, params.vision, config)
    at = Situation(len(given), seen_ids, rng, seen_mask, balancing)
    dropped, drop_back = drop(fused, config.dropout, rng)
    (x, losses, records, carried), blocks_back = through_blocks(dropped, params.blocks, config, at, shares, states)
    rows = x.reshape(len(given), -1, config.width)
    text, text_back = ops.text_rows(rows, rows.shape[1] - ids.shape[1])
    n, norm_back = normalize(text.reshape(-1, config.width), params.norm)
    logits, head_back = ops.linear(n, params.embedding.T if params.head is None else params.head)

    def backward(dlogits, dlosses):
        dn, dhead = head_back(dlogits)
        dtext, dnorm = norm_back(dn)
        (drows,) = text_back(dtext.reshape(text.shape))
        dx, dblocks = blocks_back(drows.reshape(x.shape), dlosses)
        (dfused,) = drop_back(dx)
        dplaced, dvision = fuse_back(dfused)
        de, dpositions = place_back(dplaced)
        (dembedding,) = embedding_back(de)
        tied = params.head is None
        return Language(
            embedding=dembedding + dhead.T if tied else dembedding,
            positions=dpositions,
            blocks=dblocks,
            norm=dnorm,
            head=None if tied else dhead,
            vision=dvision,
        )

    return (logits, losses, records, carried), backward


def through_blocks(x, blocks, config: LanguageConfig, at: Situation, shares, states):
    """x (N, D) through all blocks: (x, losses, records, states), the last three with an entry per block.

    backward(dx, dlosses) → (dx, gradients of the blocks), which frees each block's activations as it goes down.
    """
    block_backs: list[Any] = []
    outcomes: list[list[Any]] = []
    for layer, p in enumerate(blocks):
        share, state = (None if each is None else each[layer] for each in (shares, states))
        (x, *outcome), block_back = block(x, p, config, at._replace(shares=share, state=state))
        block_backs.append(block_back)
        outcomes.append(outcome)
    losses, records, carried = zip(*outcomes, strict=True)

    def backward(dx, dlosses):
        if len(block_backs) != len(blocks):
            raise RuntimeError("this backward has run and freed its activations; run the forward again")
        dblocks = []
        for dloss in reversed(dlosses):
            dx, dblock = block_backs.pop()(dx, dloss)
            dblocks.append(dblock)
        return dx, tuple(reversed(dblocks))

    return (x, losses, records, carried), backward


class Parts(NamedTuple):
    """What a loss is made of, for reports."""

    cross_entropy: float  # nats per token
    balance: float  # sum of the balancing losses, mean over the layers with a router; 0 if there are none
    routed: tuple[Choice | None, ...]  # by layer


def next_token(logits, batch: Batch):
    """The usual loss of the logits (B·T, V): cross-entropy of the tokens that follow."""
    assert batch.targets is not None
    return ops.cross_entropy(logits, batch.targets.reshape(-1))


def loss(
    params: Language,
    config: LanguageConfig,
    batch: Batch,
    balancing=SWITCH,
    rng=None,
    *,
    shares=None,
    of_logits=next_token,
):
    """Cross-entropy of the targets plus the balancing losses.

        loss = cross_entropy(logits, targets) + mean over MoE layers of (weight · Σ balancing losses + z_weight · z)

    batch      with targets
    shares     see `forward`
    of_logits  what stands in the place of the cross-entropy: of_logits(logits, batch) → loss, backward(dloss) → (dlogits,)

    Returns (loss, parts), backward; `backward(1.0)` is the gradient, a `Language`, and can be called once.
    """
    (logits, losses, routed), forward_back = forward(params, config, batch, rng, balancing=balancing, shares=shares)
    cross_entropy, cross_entropy_back = of_logits(logits, batch)
    reports = [r.balance for r in routed if r is not None]
    layers = max(len(reports), 1)
    total = cross_entropy + sum(losses) / layers

    def backward(dloss=1.0):
        (dlogits,) = cross_entropy_back(dloss)
        return forward_back(dlogits, [dloss / layers] * len(losses))

    return (total, Parts(cross_entropy, sum(reports) / layers, routed)), backward
