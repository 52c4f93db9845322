"""Taking experts out: which are needed least, and what it costs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..data.windows import evaluation_batches
from ..models.config import LanguageConfig
from ..models.language import forward
from ..models.parameters import Language, Mixture
from ..tree import tree_map
from ..types import Array
from .fit import Model, evaluate

PRUNABLE = ("softmax", "noisy", "sigmoid")


def prune_experts(params: Language, config: LanguageConfig, keep: Sequence[Array]) -> Model:
    """The model with some of its experts only, and with their columns of the router.

    A token goes to the best of those that are left; where gate weights are renormalised they still add up to 1.

    keep  for each layer the experts that stay, ints: as many in each; dense layers have none to lose, and ignore theirs

    Raises ValueError for a router that is not among PRUNABLE, or for `keep` that is not top_k or more different
    experts.
    """
    check_prunable(config)
    sizes = {len(np.unique(k)) for k in keep} | {len(k) for k in keep}
    if len(keep) != config.layers or len(sizes) != 1 or not config.top_k <= min(sizes):
        raise ValueError(
            f"each of the {config.layers} layers must keep equally many different experts, at least top_k, {config.top_k}"
        )
    blocks = tuple(replace(b, mixture=_only(b.mixture, k)) for b, k in zip(params.blocks, keep, strict=True))
    return Model(replace(params, blocks=blocks), replace(config, experts=sizes.pop()))


def check_prunable(config: LanguageConfig) -> None:
    """Raises ValueError for a router that is not among PRUNABLE, or has groups."""
    if config.router not in PRUNABLE or config.groups > 1:
        raise ValueError(
            f"router is {config.router} with groups {config.groups}; experts can be taken from {', '.join(PRUNABLE)} "
            "without groups"
        )


def _only(p: Mixture, kept: Array) -> Mixture:
    if p.router is None:
        return p
    router = replace(
        p.router,
        weight=_columns(p.router.weight, kept),
        noise=_columns(p.router.noise, kept),
        bias=_columns(p.router.bias, kept),
    )
    return replace(p, router=router, experts=tree_map(lambda stack: stack[kept], p.experts))


def _columns(a: Array | None, kept: Array) -> Array | None:
    return None if a is None else a[..., kept]


def usage(model: Model, tokens: Array, limit: int = 0) -> Array:
    """(layers, E) int: how many tokens of the text go to each expert; 0 in a dense layer."""
    counts = np.zeros((model.config.layers, model.config.experts), int)
    for batch in evaluation_batches(tokens, model.config.context, 16, limit):
        (_, _, routed), _ = forward(*model, batch)
        for layer, choice in enumerate(routed):
            counts[layer] += 0 if choice is None else choice.counts
    return counts


def damage(model: Model, tokens: Array, limit: int = 0) -> Array:
    """(layers, E): by how much the loss on the text rises when this expert alone is taken out; 0 in a dense layer.

    Raises ValueError for a router that is not among PRUNABLE, or when all experts are needed for top_k.
    """
    config = model.config
    check_prunable(config)
    if config.experts == config.top_k:
        raise ValueError(
            f"every one of the {config.experts} experts is needed for top_k {config.top_k}; none can be missed"
        )
    whole, rise = evaluate(model, tokens, limit), np.zeros((config.layers, config.experts))
    for layer, block in enumerate(model.params.blocks):
        for expert in range(config.experts) if block.mixture.router else ():
            rise[layer, expert] = evaluate(Model(_without(model.params, layer, expert), config), tokens, limit) - whole
    return rise


def _without(params: Language, layer: int, expert: int) -> Language:
    """The expert stands last in its layer, and has no column in the router: nothing is ever sent there."""
    blocks = list(params.blocks)
    p = blocks[layer].mixture
    others = np.delete(np.arange(len(p.experts.up)), expert)
    stacks = tree_map(lambda stack: stack[np.append(others, expert)], p.experts)
    blocks[layer] = replace(blocks[layer], mixture=replace(_only(p, others), experts=stacks))
    return replace(params, blocks=tuple(blocks))


def best(scores: Array, count: int) -> list[Array]:
    """For each row of scores (layers, E) the `count` highest, in the order of their numbers; ties to the lowest."""
    return [np.sort(np.argsort(-row, kind="stable")[:count]) for row in scores]
