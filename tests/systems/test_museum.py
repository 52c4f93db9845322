"""The bug museum: every check passes the right code and catches the bug, for the reason it states, with its number."""

from typing import Any

import numpy as np
import pytest

from tinymoe import ops
from tinymoe.gradcheck import check_gradients
from tinymoe.ops.gates import smooth_load
from tinymoe.systems.conventions import BALANCE, balance_loss
from tinymoe.systems.dispatchers import DISPATCHERS
from tinymoe.systems.museum import MUSEUM, gates, layers, losses

RNG = np.random.default_rng(0)
every_exhibit = pytest.mark.parametrize("exhibit", MUSEUM, ids=lambda e: e.name)


@every_exhibit
def test_the_right_code_passes(exhibit):
    assert exhibit.check(exhibit.right) is None


@every_exhibit
def test_the_bug_is_caught_and_named(exhibit):
    with pytest.raises(AssertionError) as caught:  # any other error would mean that the exhibit itself is broken
        exhibit.check(exhibit.buggy)
    assert len(str(caught.value)) > 40


def test_every_exhibit_has_a_name_of_its_own_a_source_and_a_story():
    assert len({e.name for e in MUSEUM}) == len({e.buggy for e in MUSEUM}) == len(MUSEUM)
    for e in MUSEUM:
        assert e.source
        assert len(e.story) > 120
        assert e.story.endswith(".")
        assert "\n" not in e.story
    assert sum("#" in e.source for e in MUSEUM) >= 18  # the others name code that was read, or say that none is known


@pytest.mark.parametrize("name", ["loop", "grouped", "csr", "padded", "one_hot", "all_to_all"])
def test_checks_of_the_layer_accept_other_right_layers(name):
    """A check must judge what comes out, not how it is made."""
    layers.check_dropped_get_nothing(DISPATCHERS[name])
    layers.check_dropped_teach_nobody(DISPATCHERS[name])
    if name in ("loop", "csr"):
        layers.check_rows_computed(DISPATCHERS[name])


def test_checks_of_gates_accept_other_right_gates():
    gates.check_weights_add_up(lambda z, k: ops.top_k_gate(z, k, eps=1e-9))
    gates.check_router_learns(lambda z, k: ops.sigmoid_gate(z, k, normalize=False))
    gates.check_weights_add_up(ops.top_k_gate)


@pytest.mark.parametrize(
    ("wrong", "inputs"),
    [
        (losses.double_softmax, (RNG.standard_normal((5, 4)), np.array([[0, 1], [2, 3], [1, 0], [3, 1], [1, 2]]))),
        (losses.probabilities_of_the_chosen, (RNG.standard_normal((3, 4)), np.array([[0, 1], [2, 3], [1, 3]]))),
        (losses.shares_not_divided_by_k, (RNG.standard_normal((3, 4)), np.array([[0, 1], [2, 3], [1, 0]]))),
        (losses.layers_pooled, (RNG.standard_normal((2, 3, 4)), RNG.integers(0, 4, (2, 3, 1)))),
        (gates.probabilities_against_logits, (*RNG.standard_normal((2, 3, 4)), RNG.uniform(1, 2, (3, 4)), 2)),
        (layers.dropped_pass_inside, (*RNG.standard_normal((2, 3, 2)), *RNG.standard_normal((2, 4, 2, 2)))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_gradient_of_a_wrong_value_can_be_right(wrong, inputs):
    """So it takes more than a gradient check to find these; and what they show is the bug alone, not a second one."""
    choice: dict[str, Any] = {
        "indices": np.array([[0, 1], [2, 3], [1, 0]]),
        "kept": np.array([[1, 0], [0, 0], [1, 1]]) > 0,
    }
    report = check_gradients(wrong, *inputs, **(choice if wrong is layers.dropped_pass_inside else {}))
    assert report.ok, report


@pytest.mark.parametrize(("n_experts", "factor"), [(8, 0.16), (64, 0.020), (128, 0.0098)])
def test_double_softmax_shrinks_the_gradient_to_about_one_in_the_number_of_experts(n_experts, factor):
    logits = 2 * np.random.default_rng(0).standard_normal((512, n_experts))
    (_, indices), _ = ops.top_k_gate(logits, 2)
    norms = [np.linalg.norm(f(logits, indices)[1](1.0)[0]) for f in (losses.double_softmax, ops.load_balance)]
    assert norms[0] / norms[1] == pytest.approx(factor, rel=0.05)
    assert 1 < factor * n_experts < 1.4


def test_two_collapsed_layers_look_perfect_when_pooled():
    logits = np.stack([losses.FIRST, losses.SECOND])
    indices = np.stack([losses.TO_FIRST, losses.TO_SECOND])
    assert balance_loss(logits, indices)[0] == pytest.approx(1.8)
    assert losses.layers_pooled(logits, indices)[0] == pytest.approx(1.0)


def test_bugs_of_losses_are_those_of_the_systems_that_had_them():
    """`conventions` was written from the systems' code for another purpose; the same numbers and gradients come out."""
    logits = RNG.standard_normal((2, 6, 4))
    indices = np.argsort(-logits, 2)[..., :2]
    one = logits[0], indices[0]
    for bug, inputs, system in (
        (losses.layers_pooled, (logits, indices), "hf"),
        (losses.double_softmax, one, "hf-5.0.0"),
        (losses.probabilities_of_the_chosen, one, "nanomoe"),
    ):
        z, chosen = (a.reshape(-1, 6, a.shape[-1]) for a in inputs)
        expected, expected_back = balance_loss(z, chosen, BALANCE[system])
        found, found_back = bug(*inputs)
        assert 2 * found == pytest.approx(expected)  # none of them divides by k
        np.testing.assert_allclose(2 * found_back(1.0)[0], expected_back(1.0)[0].reshape(inputs[0].shape), atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_undivided_shares_are_k_at_balance(k):
    indices = (np.arange(4)[:, None] + np.arange(k)) % 4
    assert losses.shares_not_divided_by_k(np.zeros((4, 4)), indices)[0] == pytest.approx(k)
    assert ops.load_balance(np.zeros((4, 4)), indices)[0] == pytest.approx(1)


def test_probabilities_of_one_choice_teach_nobody_exactly():
    logits = RNG.standard_normal((6, 4))
    loss, backward = losses.probabilities_of_the_chosen(logits, logits.argmax(1)[:, None])
    assert (backward(1.0)[0] == 0).all()
    f = ops.expert_shares(logits.argmax(1)[:, None], 4)
    assert loss == pytest.approx(4 * (f * f).sum())  # P is f


def test_dropped_tokens_in_the_shares_by_hand():
    """Two of six stay at expert 1. Erased and counted as expert 0: f = (4/6, 2/6); erased: f = (0, 2/6)."""
    kept = np.arange(6)[:, None] < 2
    example = losses.SECOND, losses.TO_SECOND
    assert losses.dropped_counted_as_first(*example, kept=kept)[0] == pytest.approx(2 * (4 / 6 * 0.1 + 2 / 6 * 0.9))
    assert losses.dropped_through_a_view(*example, kept=kept)[0] == pytest.approx(2 * 2 / 6 * 0.9)


def test_without_the_threshold_path_about_half_the_gradient_is_missing():
    """Router weights W_gate and W_noise see it through clean and noisy logits, and through their spread."""
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((256, 16)), rng.standard_normal((256, 8))
    w_gate, w_noise = 0.1 * rng.standard_normal((2, 16, 8))
    clean, sigma = x @ w_gate, np.log1p(np.exp(x @ w_noise)) + 0.01
    slope = 1 - np.exp(-(sigma - 0.01))  # of softplus
    gradients = []
    for load in (smooth_load, gates.thresholds_as_constants):
        value, load_back = load(clean, clean + noise * sigma, sigma, 2)
        _, variation_back = ops.squared_variation(value)
        dclean, dnoisy, dsigma = load_back(*variation_back(1.0))
        gradients.append((x.T @ (dclean + dnoisy), x.T @ ((dsigma + dnoisy * noise) * slope)))
    for whole, part in zip(*gradients, strict=True):
        assert 0.4 < np.linalg.norm(part - whole) / np.linalg.norm(whole) < 1


def test_both_orders_of_softmax_and_top_k_agree_once_divided():
    """What is wrong is not the order, as one might read issue #32, but the missing division: it costs Σ_S p."""
    logits = RNG.standard_normal((6, 5))
    (divided, _), _ = ops.top_k_gate(logits, 2)
    (after, _), _ = ops.top_k_softmax(logits, 2)
    (before, _), _ = gates.softmax_over_all_then_top_k(logits, 2)
    np.testing.assert_allclose(divided, after, rtol=1e-14)
    np.testing.assert_allclose(before, after * before.sum(1, keepdims=True), rtol=1e-14)
    assert before.sum(1).max() < 1


def test_a_layer_that_runs_every_expert_does_the_work_of_them_all():
    x, router, up, down = layers.example(n_experts=8)
    (weights, indices), _ = ops.top_k_gate(x @ router, 2)
    rows = []

    def counting(u):
        rows.append(u.size // u.shape[-1])
        return ops.relu(u)

    y, _ = layers.every_expert_runs(x, weights, up, down, indices=indices, activation=counting)
    np.testing.assert_allclose(y, DISPATCHERS["grouped"](x, weights, up, down, indices=indices)[0], rtol=1e-12)
    assert sum(rows) == 8 * 6 == 4 * indices.size


def test_a_dropped_token_comes_out_of_the_block_scaled_up():
    """On the residual path x + layer(x) it should leave as x, and leaves as (1 + p) x."""
    x, router, up, down = layers.example()
    (weights, indices), _ = ops.top_k_gate(x @ router, 1, renormalize=False)
    y, _ = layers.dropped_pass_inside(x, weights, up, down, indices=indices, kept=np.zeros((6, 1), bool))
    np.testing.assert_allclose(x + y, (1 + weights) * x)


def test_the_weights_of_dropped_assignments_have_no_slope():
    """The output doesn't show the bug, a gradient check does."""
    x, router, up, down = layers.example()
    (weights, indices), _ = ops.top_k_gate(x @ router, 2)
    options: dict[str, Any] = {"indices": indices, "kept": np.arange(12).reshape(6, 2) % 3 > 0}
    y, _ = layers.dropped_teach_the_router(x, weights, up, down, **options)
    np.testing.assert_allclose(y, DISPATCHERS["grouped"](x, weights, up, down, **options)[0], rtol=1e-12)
    report = check_gradients(layers.dropped_teach_the_router, x, weights, up, down, **options)
    assert [i.name for i in report.inputs if i.error > 1e-7] == ["weights"]


@pytest.mark.parametrize(
    ("wrong", "inputs"),
    [(layers.detached_scores, ["x", "router"]), (layers.router_term_missing, ["x"])],
)
def test_which_gradients_of_the_layer_go_wrong(wrong, inputs):
    report = check_gradients(wrong, *layers.example(), k=2)
    assert [i.name for i in report.inputs if i.error > 1e-7] == inputs


def test_positive_logits_hide_the_wrong_priority():
    """Why nobody noticed: where all logits are positive the zeros lose, and both agree."""
    logits = RNG.uniform(1, 2, (12, 4))
    (_, indices), _ = ops.top_k_gate(logits, 1)
    counts = np.bincount(indices[:, 0], minlength=4)
    for f in (layers.logits_as_priority, layers.probabilities_as_priority):
        assert f(logits, indices, int(counts.max())).all()
    assert not layers.logits_as_priority(logits - 3, indices, 3).all()
    assert layers.probabilities_as_priority(logits - 3, indices, int(counts.max())).all()
