"""First values of the parameters of a model."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..types import Array
from .config import GATES, LanguageConfig, VisionConfig, encoder_blocks
from .parameters import Attention, Block, Experts, Language, Mixture, Norm, Recurrent, Router, Shared, Vision

Draw = Callable[[tuple[int, ...]], Array]  # shape → numbers of mean 0 and standard deviation 1


def initialize(config: LanguageConfig, rng: np.random.Generator, dtype: Any = np.float32) -> Language:
    """Random parameters.

    Normal with standard deviation 1/√(inputs), so that products keep their size; what writes into the residual stream
    divided by √(2·layers) more (Radford et al. 2019, §2.3); the output projection, tied or not, 0.02, so that the first
    guess is an even one; an embedding of its own 0.5; gains 1; shares of token shift 0.3.
    """
    return language(config, rng.standard_normal, dtype)


def skeleton(config: LanguageConfig, dtype: Any = np.float32) -> Language:
    """Parameters of the right shapes, to be filled in: nothing is drawn."""
    return language(config, np.zeros, dtype)


def language(config: LanguageConfig, draw: Draw, dtype: Any) -> Language:
    """A model around the numbers that `draw` returns."""
    D = config.width
    normal = scaled(draw, dtype)
    params = Language(
        embedding=normal(config.vocabulary, D, std=0.02 if config.tied else 0.5),
        positions=normal(config.context, D, std=0.02) if config.position == "learned" else None,
        blocks=tuple(block(config, draw, dtype, layer) for layer in range(config.layers)),
        norm=norm(config, dtype),
        head=None if config.tied else normal(D, config.vocabulary, std=0.02),
    )
    if config.vision is not None:
        params.vision = vision(config.vision, draw, dtype)
    return params


def vision(config: VisionConfig, draw: Draw, dtype: Any) -> Vision:
    """An image encoder; positions 0.5, beside which the patches of a dark picture are no larger."""
    D = config.width
    normal = scaled(draw, dtype)
    return Vision(
        projection=normal(config.pixels, D),
        positions=normal(config.rows, D, std=0.5),
        blocks=language(encoder_blocks(config), draw, dtype).blocks if config.encoder == "transformer" else (),
        norm=Norm(gain=np.ones(D, dtype)),
        output=normal(D, D),
    )


def scaled(draw: Draw, dtype: Any) -> Callable[..., Array]:
    """normal(*shape, std): random numbers of that deviation, by default 1/√(inputs), the axis before the last."""

    def normal(*shape: int, std: float | None = None) -> Array:
        return (draw(shape) * (shape[-2] ** -0.5 if std is None else std)).astype(dtype)

    return normal


def block(config: LanguageConfig, draw: Draw, dtype: Any, layer: int) -> Block:
    """Whatever mixes positions, then the feed-forward layer, dense or a mixture."""
    shares = np.full(config.width, 0.3, dtype) if config.shift and not config.recurrent else None
    return Block(
        attention_norm=norm(config, dtype),
        attention_shift=shares,
        attention=recurrent(config, draw, dtype) if config.recurrent else attention(config, draw, dtype),
        mixture_norm=norm(config, dtype),
        mixture_shift=None if shares is None else shares.copy(),
        mixture=mixture(config, draw, dtype, dense=layer in config.dense_layers),
    )


def norm(config: LanguageConfig, dtype: Any) -> Norm:
    D = config.width
    return Norm(gain=np.ones(D, dtype), bias=np.zeros(D, dtype) if config.norm == "layer" else None)


def attention(config: LanguageConfig, draw: Draw, dtype: Any) -> Attention:
    normal, D = scaled(draw, dtype), config.width
    of_keys = config.kv_heads * (D // config.heads)
    return Attention(
        query=normal(D, D),
        key=normal(D, of_keys),
        value=normal(D, of_keys),
        output=normal(D, D, std=into_residual(config) * D**-0.5),
    )


def recurrent(config: LanguageConfig, draw: Draw, dtype: Any) -> Recurrent:
    """An LSTM begins with its forget gate at 1: at first, remember."""
    normal, D, gates = scaled(draw, dtype), config.width, GATES[config.architecture]
    bias = np.zeros(gates * D, dtype)
    if config.architecture == "lstm":
        bias[D : 2 * D] = 1
    return Recurrent(
        input=normal(D, gates * D),
        recurrent=normal(D, gates * D),
        bias=bias,
        inner_bias=np.zeros(D, dtype) if config.architecture == "gru" else None,
        output=normal(D, D, std=into_residual(config) * D**-0.5),
    )


def mixture(config: LanguageConfig, draw: Draw, dtype: Any, dense: bool) -> Mixture:
    F = config.expert_width
    if dense:
        return Mixture(experts=experts(config, draw, dtype, 1, config.top_k * F))
    own, gates = experts(config, draw, dtype, config.experts, F), {"plain": 0, "gated": 1, "residual": 2}[config.shared]
    choice, normal = router(config, draw, dtype), scaled(draw, dtype)
    shared = config.shared_experts and Shared(
        experts=experts(config, draw, dtype, 1, config.shared_experts * F),
        gate=normal(config.width, gates) if gates else None,
        bias=np.zeros(2, dtype) if gates == 2 else None,
    )
    return Mixture(router=choice, experts=own, shared=shared or None)


def experts(config: LanguageConfig, draw: Draw, dtype: Any, E: int, F: int) -> Experts:
    normal, D = scaled(draw, dtype), config.width
    return Experts(
        up=normal(E, D, F),
        down=normal(E, F, D, std=into_residual(config) * F**-0.5),
        gate=normal(E, D, F) if config.expert_kind == "swiglu" else None,
    )


def router(config: LanguageConfig, draw: Draw, dtype: Any) -> Router:
    """A noisy router begins at 0: at first the noise alone decides."""
    normal, D, E, kind = scaled(draw, dtype), config.width, config.experts, config.router
    if kind in ("hash", "partition"):
        return Router()
    scale = 1.0 if kind == "soft" else 10.0 if config.scores == "cosine" else None
    return Router(
        weight=normal(D, E * config.slots if kind == "soft" else E, std=0.0 if kind == "noisy" else None),
        hidden=normal(D, D) if config.scores == "mlp" else None,
        scale=None if scale is None else np.array([scale], dtype),
        noise=np.zeros((D, E), dtype) if kind == "noisy" else None,
        bias=np.zeros(E, dtype) if kind == "sigmoid" else None,
    )


def into_residual(config: LanguageConfig) -> float:
    """What the weights that write into the residual stream are multiplied by, since 2·layers of them add up there."""
    return float((2 * config.layers) ** -0.5)
