"""The parameters of a model: dataclasses of arrays, which gradients are made of too.

What a leaf is, beside its shape, stands in its field (`leaf`): a matrix, which weight decay works on; a matrix that recipes
may make sparse; part of an expert; a table with a row for each token; a bias that the load moves.
"""

from dataclasses import dataclass

from ..tree import leaf
from ..types import Array


@dataclass(kw_only=True)
class Norm:
    gain: Array  # (D,)
    bias: Array | None = None  # (D,), layer norm only


@dataclass(kw_only=True)
class Attention:
    query: Array = leaf("matrix", "sparsifiable")  # (D, H·P)
    key: Array = leaf("matrix", "sparsifiable")  # (D, G·P)
    value: Array = leaf("matrix", "sparsifiable")  # (D, G·P)
    output: Array = leaf("matrix", "sparsifiable")  # (H·P, D)


@dataclass(kw_only=True)
class Recurrent:
    input: Array = leaf("matrix", "sparsifiable")  # (D, G·D), G the number of gates: 1 rnn, 3 gru, 4 lstm
    recurrent: Array = leaf("matrix", "sparsifiable")  # (D, G·D)
    bias: Array  # (G·D,)
    inner_bias: Array | None = None  # (D,), gru only: added before the reset gate
    output: Array = leaf("matrix", "sparsifiable")  # (D, D)


@dataclass(kw_only=True)
class Experts:
    up: Array = leaf("matrix", "sparsifiable", "expert")  # (E, D, F)
    down: Array = leaf("matrix", "sparsifiable", "expert")  # (E, F, D)
    gate: Array | None = leaf("matrix", "sparsifiable", "expert", default=None)  # (E, D, F), SwiGLU only


@dataclass(kw_only=True)
class Router:
    """Empty for a table, which has nothing to learn."""

    weight: Array | None = leaf("matrix", default=None)  # (D, E), Soft MoE (D, E·S); scores by an MLP: of `hidden`
    hidden: Array | None = leaf("matrix", default=None)  # (D, D), scores by an MLP only
    scale: Array | None = None  # (1,), cosine scores and Soft MoE only
    noise: Array | None = leaf("matrix", default=None)  # (D, E), noisy only
    bias: Array | None = leaf("router bias", default=None)  # (E,), sigmoid only: moved by the load, without a gradient


@dataclass(kw_only=True)
class Shared:
    experts: Experts  # one of width S·F
    gate: Array | None = leaf("matrix", default=None)  # (D, 1) gated, (D, 2) residual
    bias: Array | None = None  # (2,), residual only


@dataclass(kw_only=True)
class Mixture:
    router: Router | None = None  # None in a dense layer, which is one expert that every token visits
    experts: Experts
    shared: Shared | None = None


@dataclass(kw_only=True)
class Block:
    attention_norm: Norm
    attention_shift: Array | None = None  # (D,), token shift only
    attention: Attention | Recurrent  # what mixes positions
    mixture_norm: Norm
    mixture_shift: Array | None = None  # (D,), token shift only
    mixture: Mixture


@dataclass(kw_only=True)
class Language:
    embedding: Array = leaf("matrix", "embedding")  # (V, D)
    positions: Array | None = leaf("matrix", default=None)  # (context, D), learned positions only
    blocks: tuple[Block, ...]
    norm: Norm
    head: Array | None = leaf("matrix", default=None)  # (D, V); None when tied to the embedding
    vision: "Vision | None" = None  # the image encoder of a model of texts about pictures


@dataclass(kw_only=True)
class Vision:
    projection: Array = leaf("matrix")  # (S·S·C, D)
    positions: Array = leaf("matrix")  # (R, D)
    blocks: tuple[Block, ...] = ()  # none in a linear encoder
    norm: Norm
    output: Array = leaf("matrix")  # (D, D)
