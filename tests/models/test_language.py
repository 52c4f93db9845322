"""The whole model: its gradient by name, and properties that must hold whatever the parameters."""

import weakref
from typing import Any

import numpy as np
import pytest

from tinymoe.check.trial import carried_out
from tinymoe.check.trials.language import MODELS, SMALL, trial
from tinymoe.data.windows import Batch
from tinymoe.models import language
from tinymoe.models.balancing import Balancing
from tinymoe.models.blocks import block
from tinymoe.models.config import LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.models.language import forward, loss
from tinymoe.models.parameters import Language
from tinymoe.tree import named, tree_map, with_leaves

CONFIG = LanguageConfig(vocabulary=11, context=8, layers=2, width=12, heads=2, kv_heads=1, experts=4, expert_width=5)


def setup(config=CONFIG, batch=3, length=6, seed=0):
    rng = np.random.default_rng(seed)
    params = initialize(config, rng, np.float64)
    ids, targets = rng.integers(0, config.vocabulary, (2, batch, length))
    return params, ids, targets


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_the_right_gradient(name):
    assert carried_out(lambda seed: trial(name, np.random.default_rng(seed)), seed=1).ok


TEXT_MODELS = {name: options for name, options in MODELS.items() if "vision" not in options}


@pytest.mark.parametrize("options", TEXT_MODELS.values(), ids=TEXT_MODELS)
def test_a_token_does_not_see_what_follows_it(options):
    config = LanguageConfig(**{**SMALL, **options, "dropout": 0.0})
    params, ids, _ = setup(config)
    changed = ids.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % config.vocabulary
    before, after = ((forward(params, config, i)[0][0]).reshape(3, 6, -1) for i in (ids, changed))
    if config.router in ("expert-choice", "soft"):  # these look ahead, and say so
        assert np.abs(after[:, :4] - before[:, :4]).max() > 1e-3
        return
    np.testing.assert_allclose(after[:, :4], before[:, :4], rtol=1e-9)
    assert np.abs(after[:, 4:] - before[:, 4:]).max() > 1e-3


def test_a_batch_is_its_sequences_one_by_one():
    params, ids, _ = setup()
    (together, _, _), _ = forward(params, CONFIG, ids)
    apart = [forward(params, CONFIG, row[None])[0][0] for row in ids]
    np.testing.assert_allclose(together, np.concatenate(apart), rtol=1e-10)


def test_a_dense_layer_is_a_mixture_of_one_expert():
    dense = LanguageConfig(**{**CONFIG.__dict__, "experts": 1, "top_k": 1, "dense_layers": (0, 1)})
    routed = LanguageConfig(**{**CONFIG.__dict__, "experts": 1, "top_k": 1})
    params, ids, _ = setup(routed)
    without = with_leaves(initialize(dense, np.random.default_rng(0), np.float64), named(params))
    np.testing.assert_allclose(forward(without, dense, ids)[0][0], forward(params, routed, ids)[0][0])


def test_a_gradient_has_the_type_of_the_parameters_and_the_step_lowers_the_loss():
    params, ids, targets = setup()
    (before, _), backward = loss(params, CONFIG, Batch(ids, targets))
    gradient = backward()
    assert isinstance(gradient, Language)
    assert named(gradient).keys() == named(params).keys()
    better = tree_map(lambda p, g: p - 0.1 * g, params, gradient)
    assert loss(better, CONFIG, Batch(ids, targets))[0][0] < before


def test_the_balance_weight_reaches_the_gradient():
    params, ids, targets = setup()
    low, high = (
        named(loss(params, CONFIG, Batch(ids, targets), Balancing(weight=w))[1]())["blocks.0.mixture.router.weight"]
        for w in (0.0, 1.0)
    )
    assert np.abs(high - low).max() > 1e-4


def test_backward_of_a_model_can_be_called_once_and_says_so():
    params, ids, targets = setup()
    _, backward = loss(params, CONFIG, Batch(ids, targets))
    backward()
    with pytest.raises(RuntimeError, match="freed its activations"):
        backward()


def test_float32_stays_float32():
    params = initialize(CONFIG, np.random.default_rng(0))
    ids, targets = np.random.default_rng(1).integers(0, 11, (2, 2, 5))
    (total, _), backward = loss(params, CONFIG, Batch(ids, targets))
    assert total.dtype == np.float32
    assert {g.dtype for g in named(backward()).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 5}, "only 4 experts"),
        ({"heads": 5}, "not divisible by 5 heads"),
        ({"heads": 4, "kv_heads": 3}, "3 key/value heads"),
        ({"heads": 12, "kv_heads": 1}, "even width per head"),
        ({"layers": 0}, "layers is 0"),
        ({"dense_layers": (2,)}, "numbered 0 to 1"),
        ({"norm": "batch"}, "choose one of rms, layer"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_a_shape_that_can_not_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LanguageConfig(**{**CONFIG.__dict__, **change})


def test_a_text_longer_than_a_learned_table_is_refused():
    config = LanguageConfig(**{**CONFIG.__dict__, "position": "learned"})
    params, ids, _ = setup(config, length=9)
    with pytest.raises(ValueError, match="9 positions"):
        forward(params, config, ids)


def test_activations_are_freed_block_by_block_on_the_way_back(monkeypatch):
    alive: list[weakref.ref[Any]] = []
    seen = []

    def watched(*args):
        y, back = block(*args)

        def backward(dy, dbalance):
            seen.append(sum(reference() is not None for reference in alive))
            return back(dy, dbalance)

        alive.append(weakref.ref(backward))
        return y, backward

    monkeypatch.setattr(language, "block", watched)
    config = LanguageConfig(**{**CONFIG.__dict__, "layers": 4})
    params, ids, targets = setup(config)
    _, backward = loss(params, config, Batch(ids, targets))
    backward()
    assert seen == [4, 3, 2, 1]
