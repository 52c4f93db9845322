"""Experts trained apart, chosen by how well they do, connected by a router, and trained on together.

Source: 《稀疏专家模型》 §3.2: initialise, train each expert independently, connect a part of them by performance, update by
gradient descent. It names no router, so the experts could not be told apart in use; here a router is learned in the last
step, as in Branch-Train-MiX (Sukhbaatar et al. 2024).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..data import toy
from ..data.corpora import Split
from ..models.config import LanguageConfig
from ..models.parameters import Experts, Mixture, Router
from ..runs.settings import Settings
from ..types import Array
from .fit import Model, fit


def train_apart(seed: Model, settings: Settings, parts: Sequence[Array]) -> list[Model]:
    """For each part of the text a copy of a dense model, of which that part has trained on the feed-forwards only."""
    return [fit(seed, settings, part, only="expert") for part in parts]


def choose(losses: Array, count: int) -> list[int]:
    """`count` experts that do well together, were each token answered by whichever of them answers it best.

    Greedy: always the one that lowers the mean over tokens of the least loss most. The best experts one by one might all
    be good at the same thing.

    losses  (candidates, tokens)

    Raises ValueError unless 1 ≤ count ≤ candidates.
    Source: Nemhauser, Wolsey & Fisher 1978, for greedy choices under such measures.
    """
    if not 1 <= count <= len(losses):
        raise ValueError(f"{count} experts can't be chosen from {len(losses)}")
    chosen: list[int] = []
    least = np.full(losses.shape[1], np.inf)
    for _ in range(count):
        means = np.minimum(losses, least).mean(1)
        means[chosen] = np.inf
        chosen.append(int(np.argmin(means)))
        least = np.minimum(least, losses[chosen[-1]])
    return chosen


def connect(models: Sequence[Model], top_k: int, rng: np.random.Generator) -> Model:
    """A sparse model whose experts are the feed-forwards of dense ones with a common trunk, and whose router is random."""
    params, config = models[0]

    def mixture(layer: int) -> Mixture:
        parts = [model.params.blocks[layer].mixture.experts for model in models]
        up, down = np.concatenate([p.up for p in parts]), np.concatenate([p.down for p in parts])
        gates = [p.gate for p in parts if p.gate is not None]
        weight = (rng.standard_normal((config.width, len(models))) * config.width**-0.5).astype(up.dtype)
        experts = Experts(up=up, down=down, gate=np.concatenate(gates) if gates else None)
        return Mixture(router=Router(weight=weight), experts=experts)

    blocks = tuple(replace(block, mixture=mixture(layer)) for layer, block in enumerate(params.blocks))
    width = config.top_k * config.expert_width
    shape = replace(config, experts=len(models), top_k=top_k, expert_width=width, dense_layers=())
    return Model(replace(params, blocks=blocks), shape)


def dense_shape(config: LanguageConfig) -> LanguageConfig:
    """The dense model whose feed-forward is one expert of the sparse one."""
    return replace(config, experts=1, top_k=1, dense_layers=tuple(range(config.layers)))


def divide(split: Split, seed: int, count: int) -> dict[str, Array]:
    """Parts of the training text by name: the dialects of the toy text, else `count` sections of equal length."""
    if split.name == "toy":
        text = toy.generate(1_000_000, np.random.default_rng(seed))  # as the corpus was made
        domains = text.domains[: len(split.train)]
        return {name: split.train[domains == label] for label, name in enumerate(text.names)}
    return {f"section {i}": part for i, part in enumerate(np.array_split(split.train, count), 1)}
