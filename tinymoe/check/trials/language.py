"""Small language models, in which together each backward of `models/` runs."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...data.windows import Batch
from ...models.balancing import Balancing, applicable
from ...models.config import LanguageConfig, VisionConfig
from ...models.initialise import initialize
from ...models.language import loss
from ...models.parameters import Language
from ...optim.sparsify import as_csr
from ...tree import named, tree_map, with_leaves, with_role
from ..trial import Trial, of_parameters

SMALL: dict[str, Any] = {
    "vocabulary": 13,
    "context": 6,
    "layers": 2,
    "width": 12,
    "heads": 2,
    "kv_heads": 1,
    "experts": 4,
    "top_k": 2,
    "expert_width": 5,
}
MODELS: dict[str, dict[str, Any]] = {
    "rotary, RMS norm, SwiGLU, grouped heads, tied": {},
    "learned positions, layer norm, GELU, one dense layer, untied, token shift": {
        "position": "learned",
        "shift": True,
        "norm": "layer",
        "expert_kind": "gelu",
        "dense_layers": (0,),
        "tied": False,
        "kv_heads": 2,
    },
    "sinusoidal positions, ReLU, top-1 not renormalised": {
        "position": "sinusoidal",
        "expert_kind": "relu",
        "top_k": 1,
        "renormalize": False,
    },
    "no positions, exact GELU, all dense, dropout": {
        "position": "none",
        "expert_kind": "gelu_exact",
        "dense_layers": (0, 1),
        "dropout": 0.2,
    },
    "noisy router, importance and load losses": {"router": "noisy"},
    "GShard router, capacity 0.6 for the highest probability first": {
        "router": "gshard",
        "capacity_factor": 0.6,
        "drop": "probability",
    },
    "sigmoid router in groups, plain shared experts, scaled weights, jitter": {
        "router": "sigmoid",
        "groups": 2,
        "shared_experts": 2,
        "routed_scale": 2.5,
        "jitter": 0.1,
    },
    "softmax router of cosine scores, gated shared expert, capacity 0.8": {
        "scores": "cosine",
        "shared_experts": 1,
        "shared": "gated",
        "capacity_factor": 0.8,
    },
    "softmax router of scores by an MLP, top-1, residual expert, router in float64": {
        "scores": "mlp",
        "top_k": 1,
        "shared_experts": 1,
        "shared": "residual",
        "router_float": "float64",
    },
    "Sinkhorn router": {"router": "sinkhorn"},
    "BASE router": {"router": "base", "top_k": 1},
    "expert choice": {"router": "expert-choice"},
    "Soft MoE": {"router": "soft"},
    "RNN": {"architecture": "rnn"},
    "GRU, layer norm": {"architecture": "gru", "norm": "layer"},
    "LSTM, sigmoid router": {"architecture": "lstm", "router": "sigmoid"},
    "pictures before the text, transformer encoder": {
        "vision": VisionConfig((4, 4, 2), 2, 12, layers=1, heads=2, hidden=6),
        "shared_experts": 1,
    },
    "pictures added to the text, linear encoder": {
        "vision": VisionConfig((4, 2, 1), 2, 12, "linear", fusion="additive"),
        "router": "hash",
        "top_k": 1,
    },
    "mixture of all experts": {"router": "dense"},
    "hashed tokens, random capacity": {"router": "hash", "top_k": 1, "capacity_factor": 0.5, "drop": "random"},
}


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    yield from (trial(name, rng) for name in MODELS)
    config = LanguageConfig(**SMALL)
    params, batch = draw(config, rng)
    leaves: dict[str, Any] = named(params)
    for name in with_role(params, "expert"):
        leaves[name] = as_csr(np.where(rng.random(leaves[name].shape) < 0.5, leaves[name], 0))
    sparse = with_leaves(params, leaves)
    yield of_parameters("experts whose matrices are stored sparse", loss, sparse, config, batch)


def trial(name: str, rng: np.random.Generator) -> Trial:
    """The loss of the model of this name, as a function of its parameters."""
    config = LanguageConfig(**{**SMALL, **MODELS[name]})
    params, batch = draw(config, rng)
    shares = [rng.dirichlet(np.ones(config.experts)) for _ in range(config.layers)]
    balancing, noise = Balancing(applicable(config), 0.1, 0.01), int(rng.integers(1000))

    def of(tree: Language) -> Any:
        return loss(tree, config, batch, balancing, np.random.default_rng(noise), shares=shares)

    analytic = config.expert_kind != "gelu_exact" and config.router != "noisy"  # erf has no complex form here
    return of_parameters(name, of, params, analytic=analytic)


def draw(config: LanguageConfig, rng: np.random.Generator) -> tuple[Language, Batch]:
    """Parameters away from their initial ones and zeros, and a batch with padding and ignored targets."""
    params = tree_map(lambda a: a + 0.3 * rng.standard_normal(a.shape), initialize(config, rng, np.float64))
    ids, targets = rng.integers(0, config.vocabulary, (2, 3, config.context))
    targets[0, 0] = targets[2, 4:] = -100
    mask = np.ones(ids.shape, bool)
    mask[2, 4:] = False  # the last sequence ends in padding
    images = None if config.vision is None else rng.random((len(ids), *config.vision.image))
    return params, Batch(ids, targets, mask, images)
