"""The shape of a language model and its parameters: dataclasses of arrays, which gradients are made of too."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops

Array = np.ndarray

EXPERT_KINDS: dict[str, Any] = {"relu": ops.relu, "gelu": ops.gelu, "gelu_exact": ops.gelu_exact, "swiglu": ops.silu}
NORMS = ("rms", "layer")
POSITIONS = ("rotary", "learned", "sinusoidal", "none")


@dataclass(frozen=True)
class LanguageConfig:
    """The shape of a model. Raises ValueError for a combination that can't be built."""

    vocabulary: int = 256  # V
    context: int = 64  # longest T; only learned and sinusoidal positions are bound to it
    layers: int = 4
    width: int = 128  # D
    heads: int = 4  # H
    kv_heads: int = 4  # G
    experts: int = 8  # E
    top_k: int = 2  # K
    expert_width: int = 128  # F; a dense layer is one expert of width K·F, the same work per token
    expert_kind: str = "swiglu"
    renormalize: bool = True
    dense_layers: tuple[int, ...] = ()  # the layers without a router, counted from 0
    norm: str = "rms"
    position: str = "rotary"
    shift: bool = False  # each half of a block also sees the token before
    tied: bool = True  # the output projection is the embedding table
    dropout: float = 0.0  # on the embedding and on what each half of a block adds

    def __post_init__(self) -> None:
        for name in (
            "vocabulary",
            "context",
            "layers",
            "width",
            "heads",
            "kv_heads",
            "experts",
            "top_k",
            "expert_width",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, allowed in (("expert_kind", EXPERT_KINDS), ("norm", NORMS), ("position", POSITIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.top_k > self.experts:
            raise ValueError(
                f"top_k is {self.top_k}, but there are only {self.experts} experts; lower top_k or add experts"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; change one of them")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads are not divisible by {self.kv_heads} key/value heads; change one of them"
            )
        if self.position == "rotary" and self.width // self.heads % 2:
            raise ValueError(
                f"rotary positions need an even width per head, not {self.width // self.heads}; "
                "change width or heads, or choose another position"
            )
        if any(not 0 <= layer < self.layers for layer in self.dense_layers):
            raise ValueError(
                f"dense_layers is {list(self.dense_layers)}; the layers are numbered 0 to {self.layers - 1}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


@dataclass
class Norm:
    gain: Array  # (D,)
    bias: Array | None  # (D,), layer norm only


@dataclass
class Attention:
    query: Array  # (D, H·P)
    key: Array  # (D, G·P)
    value: Array  # (D, G·P)
    output: Array  # (H·P, D)


@dataclass
class Experts:
    up: Array  # (E, D, F)
    down: Array  # (E, F, D)
    gate: Array | None  # (E, D, F), SwiGLU only


@dataclass
class Mixture:
    router: Array | None  # (D, E); None in a dense layer, which is one expert that every token visits
    experts: Experts


@dataclass
class Block:
    attention_norm: Norm
    attention_shift: Array | None  # (D,), token shift only
    attention: Attention
    mixture_norm: Norm
    mixture_shift: Array | None  # (D,), token shift only
    mixture: Mixture


@dataclass
class Language:
    embedding: Array  # (V, D)
    positions: Array | None  # (context, D), learned positions only
    blocks: tuple[Block, ...]
    norm: Norm
    head: Array | None  # (D, V); None when tied to the embedding


def initialize(config: LanguageConfig, rng: np.random.Generator, dtype: Any = np.float32) -> Language:
    """Random parameters.

    Normal with standard deviation 1/√(inputs), so that products keep their size; what writes into the residual stream
    divided by √(2·layers) more (Radford et al. 2019, §2.3); the output projection, tied or not, 0.02, so that the first
    guess is an even one; an embedding of its own 0.5; gains 1; shares of token shift 0.3.
    """
    D, F = config.width, config.expert_width
    P = D // config.heads
    residual = (2 * config.layers) ** -0.5

    def normal(*shape: int, std: float | None = None) -> Array:
        return (rng.standard_normal(shape) * (shape[-2] ** -0.5 if std is None else std)).astype(dtype)

    def norm() -> Norm:
        return Norm(np.ones(D, dtype), np.zeros(D, dtype) if config.norm == "layer" else None)

    def block(layer: int) -> Block:
        attention = Attention(
            normal(D, D),
            normal(D, config.kv_heads * P),
            normal(D, config.kv_heads * P),
            normal(D, D, std=residual * D**-0.5),
        )
        dense = layer in config.dense_layers
        E, width = (1, config.top_k * F) if dense else (config.experts, F)
        experts = Experts(
            normal(E, D, width),
            normal(E, width, D, std=residual * width**-0.5),
            normal(E, D, width) if config.expert_kind == "swiglu" else None,
        )
        mix = [np.full(D, 0.3, dtype) if config.shift else None for _ in range(2)]
        return Block(norm(), mix[0], attention, norm(), mix[1], Mixture(None if dense else normal(D, E), experts))

    return Language(
        normal(config.vocabulary, D, std=0.02 if config.tied else 0.5),
        normal(config.context, D, std=0.02) if config.position == "learned" else None,
        tuple(block(layer) for layer in range(config.layers)),
        norm(),
        None if config.tied else normal(D, config.vocabulary, std=0.02),
    )
