"""Parameters: what a leaf is stands in its field, and a gradient that forgets one can't be made."""

import numpy as np
import pytest

from tinymoe.check.trials.language import MODELS, SMALL
from tinymoe.models.config import LanguageConfig, VisionConfig
from tinymoe.models.initialise import initialize, skeleton
from tinymoe.models.parameters import Experts, Norm, Router
from tinymoe.tree import named, roles, tree_map, with_role

SHAPES = {
    **MODELS,
    "LSTM, residual shared expert, learned positions": {
        "architecture": "lstm",
        "shared_experts": 1,
        "shared": "residual",
        "position": "learned",
    },
    "MLP scores, pictures": {"scores": "mlp", "vision": VisionConfig((4, 4, 1), 2, 12, heads=2)},
}
every_shape = pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)


def config_of(options):
    return LanguageConfig(**{**SMALL, **options})


@every_shape
def test_roles_say_what_leaves_are(options):
    config = config_of(options)
    params = initialize(config, np.random.default_rng(0))
    leaves, of = named(params), roles(params)
    assert list(of) == list(leaves)
    assert {n for n, r in of.items() if "matrix" in r} == {n for n, leaf in leaves.items() if leaf.ndim > 1}
    assert with_role(params, "embedding") == ["embedding"]
    for name in with_role(params, "expert"):
        assert leaves[name].ndim == 3 and len(leaves[name]) in (1, config.experts)
    mixes = (".attention.", ".experts.")  # the matrices of attention and experts, wherever they are
    assert with_role(params, "sparsifiable") == [n for n in leaves if any(m in n for m in mixes) and "bias" not in n]
    biases = [f"blocks.{i}.mixture.router.bias" for i in range(config.layers) if config.router == "sigmoid"]
    assert with_role(params, "router bias") == biases


@every_shape
def test_a_skeleton_has_the_shapes_of_parameters_and_draws_nothing(options, monkeypatch):
    config = config_of(options)
    params = initialize(config, np.random.default_rng(0))
    monkeypatch.setattr(np.random, "default_rng", None)
    empty = skeleton(config)
    assert {n: (a.shape, a.dtype) for n, a in named(empty).items()} == {
        n: (a.shape, a.dtype) for n, a in named(params).items()
    }
    tree_map(lambda a, b: None, params, empty)  # one type


@pytest.mark.parametrize(
    "build",
    [Norm, lambda: Experts(up=np.ones(1)), lambda: Router(np.ones(1))],  # type: ignore[call-arg]
    ids=["no gain", "no down", "unnamed"],
)
def test_a_forgotten_or_unnamed_part_is_an_error(build):
    with pytest.raises(TypeError):
        build()
