"""Routers, balancing and capacity in the whole model and in the training command."""

import numpy as np
import pytest

from tests.conftest import assert_same_run, records, run, shaken, weights
from tinymoe import ops
from tinymoe.data.windows import Batch
from tinymoe.errors import UserError
from tinymoe.models.balancing import LOSSES, Balancing, applicable
from tinymoe.models.config import ONE_CHOICE, ROUTERS, SCORES, SHARED, LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.models.language import forward, loss
from tinymoe.models.objective import layer_report
from tinymoe.train import __main__ as train
from tinymoe.tree import named, tree_map

SMALL = {"vocabulary": 11, "context": 8, "layers": 2, "width": 12, "heads": 2, "kv_heads": 1, "expert_width": 5}


def model(**options):
    config = LanguageConfig(**(SMALL | {"experts": 4} | options))
    rng = np.random.default_rng(0)
    params = shaken(initialize(config, rng, np.float64), rng, 0.2)
    return params, config


def flags(router):
    return ["--router", router, *(["--top-k", 1] if router in ONE_CHOICE else [])]


@pytest.mark.parametrize("router", ROUTERS)
def test_each_router_trains_and_resumes_to_the_same_bits(router, text, tmp_path):
    more = [*flags(router), "--capacity-factor", 1.0, "--jitter", 0.1, "--z-weight", 0.001, "--shared-experts", 1]
    run(text, tmp_path / "whole", "--steps", 20, "--decay-steps", 20, *more)
    run(text, tmp_path / "parts", "--steps", 10, "--decay-steps", 20, *more)
    train.main(["--resume", str(tmp_path / "parts"), "--steps", "20"])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    losses = [r["loss"] for r in records(tmp_path / "whole") if r["split"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("architecture", ["rnn", "gru", "lstm"])
def test_recurrent_models_train_and_resume_to_the_same_bits(architecture, text, tmp_path):
    run(text, tmp_path / "whole", "--steps", 20, "--decay-steps", 20, "--architecture", architecture)
    run(text, tmp_path / "parts", "--steps", 10, "--decay-steps", 20, "--architecture", architecture)
    train.main(["--resume", str(tmp_path / "parts"), "--steps", "20"])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    losses = [r["loss"] for r in records(tmp_path / "whole") if r["split"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("router", ROUTERS)
def test_all_its_losses_at_once(router, text, tmp_path):
    _, config = model(router=router, top_k=1 if router in ONE_CHOICE else 2)
    more = [part for name in applicable(config) for part in ("--balance", name)]
    run(text, tmp_path / "run", "--steps", 3, *flags(router), *more)
    assert all(np.isfinite(r["balance"]) for r in records(tmp_path / "run") if r["split"] == "train")


def test_the_global_loss_is_the_same_however_the_batch_is_cut(text, tmp_path):
    """f of the whole batch and P of the parts: exactly what one pass over everything gives; f of the parts is not."""
    found = {}
    for name, cut in (("whole", [1, 1]), ("parts", [2, 2])):
        for balance in ("global", "switch"):
            out = tmp_path / f"{name}-{balance}"
            cutting = ["--workers", cut[0], "--accumulate", cut[1], "--dropout", 0, "--batch-size", 4]
            run(text, out, "--steps", 1, "--balance", balance, "--balance-weight", 1.0, *cutting)
            first = records(out)[0]
            found[name, balance] = first["balance"], first["gradient_norm"]
    assert found["whole", "global"] == pytest.approx(found["whole", "switch"], rel=1e-6)
    assert found["parts", "global"] == pytest.approx(found["whole", "global"], rel=1e-5)
    assert found["parts", "switch"] != pytest.approx(found["whole", "switch"], rel=1e-3)


def test_the_bias_moves_with_the_load_and_with_nothing_else(text, tmp_path):
    sigmoid = ["--router", "sigmoid", "--bias-rate", 0.01, "--weight-decay", 5.0]
    run(text, tmp_path / "bias", "--steps", 5, "--balance", "bias", *sigmoid)
    run(text, tmp_path / "none", "--steps", 5, "--balance", "none", *sigmoid)
    name = "blocks.1.mixture.router.bias"
    assert not weights(tmp_path / "none")[name].any()
    bias = weights(tmp_path / "bias")[name]
    assert bias.any()
    np.testing.assert_allclose(bias / 0.01, np.rint(bias / 0.01), atol=1e-4)
    assert np.abs(bias).max() <= 0.05 + 1e-6


def test_nothing_is_dropped_in_evaluation_and_capacity_holds_in_training():
    params, config = model(capacity_factor=0.5)
    ids = np.random.default_rng(1).integers(0, 11, (3, 8))
    (_, _, routed), _ = forward(params, config, ids)
    assert all(r.kept.all() for r in routed)
    (_, _, routed), _ = forward(params, config, ids, np.random.default_rng(2))
    room = ops.capacity(24, 4, 2, 0.5)
    for r in routed:
        kept = np.bincount(r.indices[r.kept], minlength=4)
        np.testing.assert_array_equal(kept, np.minimum(r.counts, room))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("router", ROUTERS)
def test_more_padding_changes_nothing(router, training):
    """The same texts, padded to 6 and to 20: loss and gradient are the same, in training with the same noise."""
    params, config = model(router=router, top_k=1 if router in ONE_CHOICE else 2, shared_experts=1, context=20)
    rng = np.random.default_rng(8)
    ids, targets = rng.integers(0, 11, (2, 3, 6))
    mask = np.arange(6) < np.array([[6], [4], [3]])
    targets[~mask] = -100
    balancing = Balancing(applicable(config), 0.3, 0.1)
    results = []
    for more in (0, 14):
        noise = np.random.default_rng(1) if training else None
        wide = [
            np.pad(a, ((0, 0), (0, more)), constant_values=fill)
            for a, fill in ((ids, 5), (targets, -100), (mask, False))
        ]
        (total, parts), backward = loss(params, config, Batch(*wide), balancing, noise)
        entropies = [layer_report(r).entropy for r in parts.routed if r is not None]
        results.append([total, entropies, *named(backward()).values()])
    for one_leaf, other in zip(*results, strict=True):
        np.testing.assert_allclose(one_leaf, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("router", [r for r in ROUTERS if r not in ("soft", "expert-choice")])
def test_padding_changes_nothing(router):
    """Sequences of 5 and 8, padded with any ids: losses and gradients as of each sequence without its padding."""
    one = router in ONE_CHOICE
    params, config = model(router=router, top_k=1 if one else 2, shared_experts=1, shared="gated")
    rng = np.random.default_rng(3)
    ids, targets = rng.integers(0, 11, (2, 2, 8))
    mask = np.ones((2, 8), bool)
    mask[1, 5:] = False
    targets[~mask] = -100
    balancing = Balancing(("switch", "importance") if "switch" in applicable(config) else (), 0.3, 0.1)
    results = []
    for filling in (ids, np.where(mask, ids, 7)):
        (total, parts), backward = loss(params, config, Batch(filling, targets, mask), balancing)
        results.append([total, *named(backward()).values()])
        for r in parts.routed:
            assert r.counts.sum() == (4 * 13 if router == "dense" else 13 if one else 26)
    for one_leaf, other in zip(*results, strict=True):
        np.testing.assert_allclose(one_leaf, other, rtol=1e-12, atol=1e-14)
    (logits, _, _), _ = forward(params, config, Batch(ids, mask=mask))
    (alone, _, _), _ = forward(params, config, ids[1:, :5])
    np.testing.assert_allclose(logits.reshape(2, 8, -1)[1, :5], alone, rtol=1e-12)


def test_a_router_in_float64_inside_a_float32_model():
    params, config = model(router_float="float64")
    params = tree_map(lambda a: a.astype(np.float32), params)
    ids, targets = np.random.default_rng(4).integers(0, 11, (2, 3, 8))
    (_, parts), backward = loss(params, config, Batch(ids, targets))
    assert parts.routed[0].logits.dtype == np.float64
    assert {a.dtype for a in named(backward(np.float32(1))).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("shared", SHARED)
def test_scores_and_shared_experts_train(scores, shared, text, tmp_path):
    run(text, tmp_path / "run", "--steps", 2, "--scores", scores, "--shared-experts", 1, "--shared", shared)
    assert any("shared" in name for name in weights(tmp_path / "run"))


def test_top_1_keeps_its_probability_so_that_the_router_learns():
    params, config = model(top_k=1)
    ids, targets = np.random.default_rng(5).integers(0, 11, (2, 3, 8))
    _, backward = loss(params, config, Batch(ids, targets), Balancing((), 0.0))
    assert all(np.abs(b.mixture.router.weight).max() > 1e-6 for b in backward().blocks)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--router", "hash"], "set top_k 1"),
        (["--router", "gshard", "--top-k", 1], "set top_k 2"),
        (["--router", "nearest"], "choose one of"),
        (["--balance", "load"], "--balance load does not go with"),
        (["--balance", "bias"], "--balance bias does not go with"),
        (["--router", "soft", "--balance", "switch"], "does not go with"),
        (["--balance", "none", "--balance", "switch"], "does not go with"),
        (["--router", "sigmoid", "--groups", 3], "groups must divide"),
        (["--router", "sigmoid", "--groups", 2, "--kept-groups", 1, "--top-k", 3], "keep more groups"),
        (["--groups", 2], "for router sigmoid"),
        (["--shared", "gated"], "no shared expert"),
        (["--capacity-factor", -1], "at least 0"),
        (["--jitter", 1], "below 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, message, text, tmp_path):
    with pytest.raises(UserError, match=message):
        run(text, tmp_path / "run", *given)
    assert not (tmp_path / "run").exists()


def test_every_loss_is_described():
    assert {name for router in ROUTERS for name in losses_of(router)} == set(LOSSES)


def losses_of(router):
    return applicable(LanguageConfig(router=router, top_k=1 if router in ONE_CHOICE else 2))
