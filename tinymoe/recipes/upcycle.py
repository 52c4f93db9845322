"""From a dense model to a sparse one that computes the same, to rounding: sparse upcycling."""

from dataclasses import replace

import numpy as np

from ..models.config import LanguageConfig
from ..models.parameters import Experts, Language, Mixture, Router
from ..types import Array
from .fit import Model


def upcycle(
    params: Language,
    config: LanguageConfig,
    experts: int,
    top_k: int,
    rng: np.random.Generator,
    noise: float = 0.0,
    split: int = 1,
) -> Model:
    """A mixture of experts in each layer, made of copies of its dense feed-forward, with a random router.

        y = Σ_{i∈S} w_i f_i(x) = f(x) Σ_{i∈S} w_i = f(x)        since all f_i are f and the weights add up to 1

    So before training the new model is the old one, at K times the work in these layers. With `split` G a feed-forward of
    width W is cut into G shards of width W/G, and every shard is an expert: a copy of the layer is G experts in a row,
    whose columns of the router begin equal, so that a token that chooses one chooses all G. Then each has weight 1/K,
    and G times the output makes up for it: the K/G copies add up to f(x) again, at K/G times the work; with G = K at
    no more work than before. Training makes the columns differ.

    `noise` adds normal numbers to the experts' weights, of that many times each matrix's own root mean square: the copies
    differ from the start, and the model is no longer quite the old one. Without it they come to differ since they see
    different tokens.

    Raises ValueError unless each layer is dense or has a single expert, `split` divides experts, top_k and the dense
    width, and 2 ≤ top_k ≤ experts: the weight of a single choice would be the router's probability, not 1.
    Source: Komatsuzaki et al. 2022 (Sparse Upcycling); shards with grouped columns: He et al. 2024, arXiv 2410.07524.
    """
    width = _check(params, config, experts, top_k, split)
    dtype = params.embedding.dtype

    def copies(dense: Array, axis: int) -> Array:
        """(1, D, W) or (1, W, D), cut along the axis of W → shard by shard, copy after copy, (E, …)."""
        stack = np.tile(np.concatenate(np.split(dense, split, axis)), (experts // split, 1, 1))
        rms = np.sqrt((dense * dense).mean())
        return (stack + noise * rms * rng.standard_normal(stack.shape)).astype(dtype) if noise else stack

    def sparse(dense: Experts) -> Mixture:
        columns = rng.standard_normal((config.width, experts // split)) * config.width**-0.5
        router = Router(weight=np.repeat(columns, split, 1).astype(dtype))
        gate = None if dense.gate is None else copies(dense.gate, 2)
        up, down = copies(dense.up, 2), copies(split * dense.down, 1)
        return Mixture(router=router, experts=Experts(up=up, down=down, gate=gate))

    shape = replace(
        config,
        experts=experts,
        top_k=top_k,
        expert_width=width // split,
        dense_layers=(),
        router="softmax",
        scores="dot",
        renormalize=True,
        routed_scale=1.0,
        groups=1,
        kept_groups=1,
        shared_experts=0,
        shared="plain",
    )
    blocks = tuple(replace(block, mixture=sparse(block.mixture.experts)) for block in params.blocks)
    return Model(replace(params, blocks=blocks), shape)


def _check(params: Language, config: LanguageConfig, experts: int, top_k: int, split: int) -> int:
    """The width of the dense feed-forward."""
    single = (
        config.experts == 1 and config.router == "softmax" and config.routed_scale == 1 and not config.shared_experts
    )
    mixed = sorted(set(range(config.layers)) - set(config.dense_layers))
    if mixed and not single:
        raise ValueError(
            f"layers {mixed} are not dense; upcycling starts from a model with every layer in dense_layers"
        )
    if not 2 <= top_k <= experts:
        raise ValueError(f"top_k is {top_k}; it must lie between 2 and the number of experts, {experts}")
    width = config.top_k * config.expert_width
    for name, number in (("experts", experts), ("top_k", top_k), ("the dense width", width)):
        if split < 1 or number % split:
            raise ValueError(f"split is {split}; it must be a divisor of {name}, {number}")
    return width
