"""Balancing losses, the bias rule, capacity: gradients, exact values, padding, and slow twins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import is_float
from tinymoe.check.trials import balance
from tinymoe.gradcheck import check_gradients
from tinymoe.ops.balance import (
    bias_update,
    device_balance,
    expert_shares,
    importance,
    load_balance,
    sequence_balance,
    squared_variation,
    z_loss,
)
from tinymoe.ops.capacity import PRIORITIES, capacity, keep_within_capacity, renormalize_kept


def cases(seed=0):
    return list(balance.trials(np.random.default_rng(seed)))


every_case = pytest.mark.parametrize("case", cases(), ids=str)


@every_case
def test_gradient(case):
    report = check_gradients(case.operation, *case.inputs, **case.options)
    assert report.ok, report
    report = check_gradients(case.operation, *case.inputs, method="complex", tolerance=1e-12, **case.options)
    assert report.ok, report


@every_case
def test_float32_stays_float32_and_agrees_with_float64(case):
    y64, _ = case.operation(*case.inputs, **case.options)
    inputs = [v.astype(np.float32) if is_float(v) else v for v in case.inputs]
    y, backward = case.operation(*inputs, **case.options)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, y64, rtol=2e-4, atol=2e-5)
    gradients = backward(np.ones(y.shape, np.float32)[()])
    assert [(g.shape, g.dtype) for g in gradients] == [(v.shape, v.dtype) for v in inputs if is_float(v)]


def batch(n=12, n_experts=5, k=2, seed=3):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, n_experts))
    return logits, np.argsort(-logits, 1)[:, :k]


MASKED = {
    "load": lambda z, i, mask: load_balance(z, i, mask=mask),
    "device": lambda z, i, mask: device_balance(z, i, np.array([0, 0, 1, 1, 1]), mask=mask),
    "sequence": lambda z, i, mask: sequence_balance(z, 2, 1, mask=mask),
    "z": lambda z, i, mask: z_loss(z, mask=mask),
    "importance": lambda z, i, mask: importance(z[:, :2], i, 5, mask=mask),
}


@pytest.mark.parametrize("loss", MASKED.values(), ids=list(MASKED))
def test_padding_counts_nowhere_and_may_hold_anything(loss):
    logits, indices = batch()
    real = np.arange(12) % 3 != 1
    expected, expected_back = loss(logits[real], indices[real], None)
    logits[~real], indices[~real] = np.nan, -7
    value, backward = loss(logits, indices, real)
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    dy = np.arange(1.0, 6)[: value.size].reshape(value.shape)
    (gradient,) = backward(dy)
    np.testing.assert_allclose(gradient[real], expected_back(dy)[0], rtol=1e-13)
    assert (gradient[~real] == 0).all()


@pytest.mark.parametrize("loss", MASKED.values(), ids=list(MASKED))
def test_a_mask_of_numbers_is_refused(loss):
    """As an index it would pick rows 0 and 1 again and again."""
    for mask in (np.ones(12, int), np.ones(11, bool)):
        with pytest.raises(ValueError, match="must be bool, one for each of 12 rows"):
            loss(*batch(), mask)


def test_micro_batches_with_the_shares_of_the_whole_batch_add_up_to_it():
    """Value and gradient, whatever the sizes of the parts; with shares of their own they don't."""
    logits, indices = batch(20)
    whole, whole_back = load_balance(logits, indices)
    shares = expert_shares(indices, 5)
    for counted, exact in ((shares, True), (None, False)):
        total, gradient = 0.0, np.zeros_like(logits)
        for part in (slice(0, 3), slice(3, 11), slice(11, 20)):
            loss, backward = load_balance(logits[part], indices[part], shares=counted)
            weight = (part.stop - part.start) / 20
            total += weight * loss
            gradient[part] = backward(weight)[0]
        assert (abs(total - whole) < 1e-14) == exact
        assert np.allclose(gradient, whole_back(1.0)[0], rtol=1e-12, atol=1e-15) == exact


def test_micro_batches_with_padding_are_weighed_by_their_real_tokens():
    logits, indices = batch(20)
    mask = np.random.default_rng(4).random(20) < 0.6
    whole, _ = load_balance(logits, indices, mask=mask)
    shares = expert_shares(indices, 5, mask=mask)
    parts = (slice(0, 7), slice(7, 20))
    losses = [mask[p].sum() * load_balance(logits[p], indices[p], mask=mask[p], shares=shares)[0] for p in parts]
    assert sum(losses) / mask.sum() == pytest.approx(whole, rel=1e-14)
    with pytest.raises(ValueError, match="one for each of the 5 experts"):
        load_balance(logits, indices, shares=shares[:4])


def test_devices_may_be_even_while_their_experts_are_not():
    """Experts 0 and 2 take all; with 0, 1 on one device and 2, 3 on the other nothing is wrong between devices."""
    logits = np.log([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]] * 3)
    indices = logits.argmax(1)[:, None]
    assert load_balance(logits, indices)[0] == pytest.approx(4 * (0.5 * 0.4 + 0.5 * 0.4))
    assert device_balance(logits, indices, np.array([0, 0, 1, 1]))[0] == pytest.approx(1, rel=1e-14)
    each_its_own = device_balance(logits, indices, np.arange(4))[0]
    assert each_its_own == pytest.approx(1.6, rel=1e-14)


def test_sequence_balance_by_hand():
    """Sigmoids ¾ ½ ¼ and ½ ½ ½, top-1: expert 0 twice (the tie goes to it). f = (3, 0, 0), s'_0 = ½ and ⅓."""
    logits = np.log([[3, 1, 1 / 3], [1.0, 1, 1]])
    assert sequence_balance(logits, 1, 1)[0] == pytest.approx(3 * (1 / 2 + 1 / 3) / 2, rel=1e-14)
    assert sequence_balance(logits, 1, 2)[0] == pytest.approx((3 / 2 + 3 / 3) / 2, rel=1e-14)
    assert sequence_balance(logits, 3, 1)[0] == pytest.approx(1, rel=1e-14)


def test_sequences_that_are_one_sided_do_not_hide_behind_each_other():
    one_sided = np.array([[3.0, -3]] * 4)
    logits = np.concatenate([one_sided, one_sided[:, ::-1]])
    assert sequence_balance(logits, 1, 1)[0] == pytest.approx(1, rel=1e-14)
    assert sequence_balance(logits, 1, 2)[0] > 1.9
    padded = np.concatenate([one_sided, np.full((4, 2), np.nan)])
    lone, _ = sequence_balance(one_sided, 1, 1)
    assert sequence_balance(padded, 1, 2, mask=np.arange(8) < 4)[0] == pytest.approx(lone, rel=1e-14)


def test_sigmoids_too_small_to_add_up_still_have_shares():
    logits = np.array([[-1000.0, -1000, -1001, -1002]])
    loss, backward = sequence_balance(logits, 1, 1)
    e = 1 + 1 + math.exp(-1) + math.exp(-2)
    assert loss == pytest.approx(4 / e, rel=1e-13)
    np.testing.assert_allclose(backward(1.0)[0][0, 0], 4 / e * (1 - 1 / e), rtol=1e-13)


def test_sequences_must_fit():
    with pytest.raises(ValueError, match="12 rows can't be 5 sequences"):
        sequence_balance(batch()[0], 2, 5)
    with pytest.raises(ValueError, match="top-k is 6"):
        sequence_balance(batch()[0], 6, 2)


def test_squared_variation_and_importance_by_hand():
    """Weights sum to 1, 2, 3, 0: mean 1.5, variance 1.25, so 5/9."""
    weights, indices = np.array([[1.0, 2], [2, 1]]), np.array([[0, 1], [2, 2]])
    imp, _ = importance(weights, indices, 4)
    assert imp.tolist() == [1, 2, 3, 0]
    assert squared_variation(imp)[0] == pytest.approx(5 / 9, rel=1e-9)
    assert squared_variation(np.full(7, 3.0))[0] == 0
    assert squared_variation(np.eye(6)[2])[0] == pytest.approx(5, rel=1e-8)
    assert squared_variation(np.zeros(4))[0] == 0


def test_z_loss_by_hand():
    """Σ exp is 4 and 1/2, so the logarithms are 2 ln 2 and −ln 2; it is 0 where Σ exp = 1, a minimum."""
    logits = np.log([[1.0, 3.0], [1 / 4, 1 / 4]])
    assert z_loss(logits)[0] == pytest.approx(2.5 * math.log(2) ** 2, rel=1e-14)
    loss, backward = z_loss(np.log([[0.25, 0.75]]))
    assert abs(loss) < 1e-30
    assert np.abs(backward(1.0)[0]).max() < 1e-15


def test_all_to_one_expert():
    """Certain and wrong costs E; a gradient that vanishes is the softmax's doing, so unsure and wrong has one."""
    certain = np.tile([50.0, 0, 0, 0], (6, 1))
    indices = np.zeros((6, 1), int)
    assert load_balance(certain, indices)[0] == pytest.approx(4, rel=1e-14)
    assert sequence_balance(certain, 1, 2)[0] == pytest.approx(4 / 2.5, rel=1e-14)
    (gradient,) = load_balance(np.zeros((6, 4)), indices)[1](1.0)
    np.testing.assert_allclose(gradient, np.tile([0.125, -1 / 24, -1 / 24, -1 / 24], (6, 1)), rtol=1e-14)


def test_bias_moves_by_the_sign_only_and_centred_keeps_its_sum():
    bias, counts = np.array([0.5, 0, 0, -0.25]), np.array([9, 1, 4, 2])
    np.testing.assert_array_equal(bias_update(bias, counts, 0.125), [0.375, 0.125, 0, -0.125])
    centred = bias_update(bias, counts, 0.125, centred=True)
    np.testing.assert_array_equal(centred, [0.34375, 0.09375, -0.03125, -0.15625])
    assert centred.sum() == bias.sum()
    assert bias.tolist() == [0.5, 0, 0, -0.25]
    thirds = bias_update(np.zeros(3, np.float32), np.array([5, 5, 5]), 0.1)
    assert thirds.dtype == np.float32
    assert not thirds.any()


# Capacity


def serve(indices, n_experts, places, priority, weights, start="kept"):
    """Who gets in, told one by one. `start`: what the line of the second choices counts as standing before it."""
    n, k = indices.shape
    tokens = list(range(n))
    if priority == "batch":
        tokens.sort(key=lambda t: -max(weights[t]))
    line = [(t, j) for t in tokens for j in range(k)]
    if priority in ("choice", "batch"):
        line.sort(key=lambda visit: visit[1])
    if priority == "probability":
        line.sort(key=lambda visit: -weights[visit])
    kept, before = np.zeros((n, k), bool), [0] * n_experts
    for t, j in line:
        e = indices[t, j]
        kept[t, j] = before[e] < places
        before[e] += 1 if start == "all" else int(kept[t, j])
    return kept


@st.composite
def crowds(draw):
    """(indices, E, places, weights, mask), with weights from few values so that there are ties."""
    n, n_experts = draw(st.integers(0, 9)), draw(st.integers(1, 5))
    k = draw(st.integers(1, n_experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = np.argsort(rng.random((n, n_experts)) * rng.random(n_experts), 1)[:, :k]
    return indices, n_experts, draw(st.integers(0, 6)), rng.integers(1, 4, (n, k)) / 4, rng.random(n) < 0.7


@settings(max_examples=150, deadline=None)
@given(crowds(), st.sampled_from([p for p in PRIORITIES if p != "random"]))
def test_capacity_equals_serving_one_by_one(crowd, priority):
    """And counting all that asked before, or only those that got in, comes to the same."""
    indices, n_experts, places, weights, mask = crowd
    kept = keep_within_capacity(indices, n_experts, places, priority=priority, weights=weights)
    for start in ("kept", "all"):
        np.testing.assert_array_equal(kept, serve(indices, n_experts, places, priority, weights, start))
    real = serve(indices[mask], n_experts, places, priority, weights[mask])
    garbage, noise = np.where(mask[:, None], indices, -7), np.where(mask[:, None], weights, np.nan)
    padded = keep_within_capacity(garbage, n_experts, places, priority=priority, weights=noise, mask=mask)
    np.testing.assert_array_equal(padded[mask], real)
    assert not padded[~mask].any()


@settings(max_examples=50, deadline=None)
@given(crowds(), st.sampled_from(list(PRIORITIES)), st.integers(0, 99))
def test_an_expert_takes_all_that_ask_or_as_many_as_it_may(crowd, priority, seed):
    indices, n_experts, places, weights, mask = crowd
    before = np.random.default_rng(seed).random(indices.shape) < 0.6
    options = {"priority": priority, "weights": weights, "rng": np.random.default_rng(seed), "mask": mask}
    kept = keep_within_capacity(indices, n_experts, places, kept=before, **options)
    asked = before & mask[:, None]
    assert not kept[~asked].any()
    for e in range(n_experts):
        assert kept[indices == e].sum() == min(places, asked[indices == e].sum())


def test_priorities_by_hand():
    """Two experts with two places each, three tokens that want both."""
    indices = np.array([[0, 1], [0, 1], [0, 1]])
    weights = np.array([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1]])
    for priority, expected in (
        ("token", [[1, 1], [1, 1], [0, 0]]),
        ("choice", [[1, 1], [1, 1], [0, 0]]),
        ("probability", [[0, 1], [1, 1], [1, 0]]),
        ("batch", [[0, 0], [1, 1], [1, 1]]),
    ):
        kept = keep_within_capacity(indices, 2, 2, priority=priority, weights=weights)
        assert kept.tolist() == (np.array(expected) > 0).tolist(), priority
    best_gone = np.array([[True, True], [True, True], [False, True]])  # so the last comes by its second weight, last
    kept = keep_within_capacity(indices, 2, 1, priority="batch", weights=weights, kept=best_gone)
    assert kept.tolist() == [[False, False], [True, True], [False, False]]
    turned = np.array([[0, 1], [1, 0]])  # one place each: token by token the first gets all, by choice each its best
    assert keep_within_capacity(turned, 2, 1, priority="token").tolist() == [[True, True], [False, False]]
    assert keep_within_capacity(turned, 2, 1).tolist() == [[True, False], [True, False]]


def test_random_priority_is_fair_and_repeatable():
    indices = np.zeros((4, 1), int)
    rng = np.random.default_rng(5)
    kept = np.mean([keep_within_capacity(indices, 1, 1, priority="random", rng=rng) for _ in range(400)], 0)
    assert np.abs(kept - 0.25).max() < 0.1
    same = [keep_within_capacity(indices, 1, 2, priority="random", rng=np.random.default_rng(6)).tolist() for _ in "ab"]
    assert same[0] == same[1]


def test_capacity_is_rounded_up_but_not_for_rounding_errors():
    assert capacity(16, 8, 2, 1.25) == 5
    assert capacity(17, 8, 1, 1.0) == 3
    assert capacity(0, 8, 2, 1.0) == 0
    assert 1.1 * 2 * 50 / 10 > 11
    assert capacity(50, 10, 2, 1.1) == 11


def test_what_makes_no_sense_is_an_error():
    indices = np.array([[0, 1]])
    for wrong in ((-1, 8, 2, 1.0), (16, 8, 9, 1.0), (16, 8, 2, 0.0), (16, 8, 2, math.nan)):
        with pytest.raises(ValueError, match="no capacity for"):
            capacity(*wrong)
    with pytest.raises(ValueError, match="choose one of choice, token, probability, batch, random"):
        keep_within_capacity(indices, 2, 1, priority="first")
    with pytest.raises(ValueError, match="batch needs weights"):
        keep_within_capacity(indices, 2, 1, priority="batch")
    with pytest.raises(ValueError, match="random needs an rng"):
        keep_within_capacity(indices, 2, 1, priority="random")
    with pytest.raises(ValueError, match="can't be negative"):
        keep_within_capacity(indices, 2, -1)


def test_survivors_share_what_was_lost_and_nobody_divides_by_zero():
    weights = np.array([[0.6, 0.2, 0.2], [np.nan, 0.2, 0.3], [np.nan] * 3])
    kept = np.array([[True, True, False], [False, True, True], [False] * 3])
    y, backward = renormalize_kept(weights, kept)
    np.testing.assert_allclose(y, [[0.75, 0.25, 0], [0, 0.4, 0.6], [0.0, 0, 0]], rtol=1e-14)
    (dweights,) = backward(np.array([[1.0, 0, 5], [5, 1, 0], [5, 5, 5]]))
    np.testing.assert_allclose(dweights, [[0.3125, -0.9375, 0], [0, 1.2, -0.8], [0.0, 0, 0]], rtol=1e-14)
