"""Scores, gates and soft mixtures: gradients, numbers by hand, and what must stay the same."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinymoe import ops
from tinymoe.check import trials
from tinymoe.gradcheck import check_gradients
from tinymoe.ops import gates, scores, shared_gates, soft

RNG = np.random.default_rng(11)
CASES = list(trials.gates.trials(RNG))


def dense(weights, indices, n_experts):
    """(N, E): each weight at its expert."""
    return ops.pick(np.zeros((len(weights), n_experts)), indices)[1](weights)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_by_central_differences(case):
    report = check_gradients(case.operation, *case.inputs, **case.options)
    assert report.ok, report


@pytest.mark.parametrize("case", [c for c in CASES if c.analytic], ids=str)
def test_gradient_by_complex_step(case):
    report = check_gradients(case.operation, *case.inputs, method="complex", tolerance=1e-12, **case.options)
    assert report.ok, report


# Gates that decide for each token alone, with everything that is random left out.
ROWWISE: dict[str, Callable[..., Any]] = {
    "softmax of the chosen": lambda z: gates.top_k_softmax(z, 2),
    "eps and scale": lambda z: ops.top_k_gate(z, 3, eps=0.1, scale=2.0),
    "raw": lambda z: ops.top_k_gate(z, 2, renormalize=False),
    "GShard": gates.gshard_gate,
    "noisy": lambda z: gates.noisy_top_k_gate(z, z, 2),
    "sigmoid": lambda z: gates.sigmoid_gate(z, 2),
    "Sinkhorn, evaluation": lambda z: shared_gates.sinkhorn_gate(z, 2, balanced=False),
    "BASE, evaluation": lambda z: shared_gates.base_gate(z, balanced=False),
}
SHARING: dict[str, Callable[..., Any]] = {
    "Sinkhorn": lambda z: shared_gates.sinkhorn_gate(z, 1),
    "BASE": shared_gates.base_gate,
    "expert choice": lambda z: shared_gates.expert_choice_gate(z, 3),
}
every_gate = pytest.mark.parametrize("gate", (ROWWISE | SHARING).values(), ids=list(ROWWISE | SHARING))


@every_gate
@pytest.mark.parametrize("n", [10, 12])
def test_renaming_experts_renames_the_results(gate, n):
    logits, order = RNG.standard_normal((n, 5)), RNG.permutation(5)
    (weights, indices, *_), _ = gate(logits)
    (renamed, renamed_indices, *_), _ = gate(logits[:, order])
    np.testing.assert_allclose(dense(renamed, renamed_indices, 5), dense(weights, indices, 5)[:, order], rtol=1e-13)


@pytest.mark.parametrize("gate", ROWWISE.values(), ids=list(ROWWISE))
def test_tokens_do_not_see_each_other(gate):
    logits = RNG.standard_normal((9, 5))
    (weights, indices, *_), _ = gate(logits)
    (first, first_indices, *_), _ = gate(logits[:4])
    np.testing.assert_array_equal(first, weights[:4])
    np.testing.assert_array_equal(first_indices, indices[:4])


@pytest.mark.parametrize("gate", SHARING.values(), ids=list(SHARING))
def test_sharing_out_is_not_causal(gate):
    """Token 0 would like expert 0; a later token that likes it more takes the place away."""
    logits = np.zeros((6, 2)) + [1.0, 0.0] + np.linspace(0.5, 0, 6)[:, None] * [1, 0]
    later = logits.copy()
    later[-1, 0] += 9
    before, after = (dense(w, i, 2)[:-1] for (w, i, *_), _ in (gate(logits), gate(later)))
    assert not np.array_equal(before > 0, after > 0)


@every_gate
def test_ties_go_to_the_lowest_index_and_float32_stays(gate):
    (weights, indices, *_), backward = gate(np.zeros((6, 4), np.float32))
    if gate is not shared_gates.base_gate:  # a balanced assignment has none to prefer
        assert (np.sort(indices, 1) == np.arange(indices.shape[1])).all()
    load = [np.ones(4, np.float32)] if gate is ROWWISE["noisy"] else []
    assert weights.dtype == backward(weights, *load)[0].dtype == np.float32


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_softmax_before_and_after_the_choice_are_the_same_gate(k):
    logits, dweights = RNG.standard_normal((6, 5)), RNG.standard_normal((6, k))
    (weights, indices), backward = ops.top_k_gate(logits, k)
    (w, i), other_back = gates.top_k_softmax(logits, k)
    np.testing.assert_array_equal(i, indices)
    np.testing.assert_allclose(w, weights, rtol=1e-14)
    np.testing.assert_allclose(other_back(dweights)[0], backward(dweights)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_weights_that_are_not_renormalised_are_picked_from_the_softmax(k):
    logits, dweights = RNG.standard_normal((6, 5)), RNG.standard_normal((6, k))
    (weights, indices), backward = ops.top_k_gate(logits, k, renormalize=False)
    p, softmax_back = ops.softmax(logits)
    w, pick_back = ops.pick(p, ops.choose(logits, k))
    np.testing.assert_array_equal(indices, ops.choose(logits, k))
    np.testing.assert_allclose(weights, w, rtol=1e-14)
    expected = softmax_back(*pick_back(dweights))[0]
    np.testing.assert_allclose(backward(dweights)[0], expected, rtol=1e-12, atol=1e-15)


def test_who_learns_from_a_choice():
    """Experts that were not chosen get exactly nothing, unless eps or the softmax over all ties them to the chosen."""
    logits = RNG.standard_normal((50, 7))
    for gate, learns in (
        (lambda z: gates.top_k_softmax(z, 3), False),
        (lambda z: ops.top_k_gate(z, 3, scale=2.5), False),
        (lambda z: ops.top_k_gate(z, 3, eps=1e-3), True),
        (lambda z: ops.top_k_gate(z, 3, renormalize=False), True),
        (lambda z: gates.sigmoid_gate(z, 3), False),
        (lambda z: shared_gates.sinkhorn_gate(z, 1), False),
        (lambda z: shared_gates.sinkhorn_gate(z, 3), True),
        (shared_gates.base_gate, False),
    ):
        (weights, indices), backward = gate(logits)
        (dlogits,) = backward(RNG.standard_normal(weights.shape))
        chosen = dense(np.ones(weights.shape), indices, 7) > 0
        assert (dlogits[chosen] != 0).all()
        assert (dlogits[~chosen] != 0).all() if learns else (dlogits[~chosen] == 0).all()


def test_with_all_experts_chosen_the_weights_are_those_of_a_dense_mixture():
    logits = RNG.standard_normal((6, 5))
    p, s = ops.softmax(logits)[0], ops.sigmoid(logits)[0]
    for gate, expected in (
        (lambda z: gates.top_k_softmax(z, 5), p),
        (lambda z: ops.top_k_gate(z, 5, scale=2.0), 2 * p),
        (lambda z: ops.top_k_gate(z, 5, eps=0.25), p / 1.25),
        (lambda z: gates.noisy_top_k_gate(z, z, 5), p),
        (lambda z: gates.sigmoid_gate(z, 5), s / s.sum(1, keepdims=True)),
        (lambda z: gates.sigmoid_gate(z, 5, normalize=False), s),
        (lambda z: shared_gates.sinkhorn_gate(z, 5), p),
        (lambda z: shared_gates.expert_choice_gate(z, 6), p),
    ):
        (weights, indices, *_), _ = gate(logits)
        np.testing.assert_allclose(dense(weights, indices, 5), expected, rtol=1e-14)


def test_the_second_expert_of_gshard_by_hand():
    """p = (.9, .1) is kept with probability .1/.2 = .5, p = (.6, .4) always; the weight stays, kept or not."""
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    (weights, indices, kept), _ = gates.gshard_gate(logits, uniforms=np.array([0.49, 0.51, 0.999]))
    assert kept.tolist() == [[True, True], [True, False], [True, True]]
    np.testing.assert_allclose(weights, [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]], rtol=1e-8)
    assert (indices == [0, 1]).all()
    (_, _, kept), _ = gates.gshard_gate(logits)
    assert kept.all()
    (_, _, kept), _ = gates.gshard_gate(
        logits, uniforms=np.array([0.19, 0.21, 0.79]), threshold=0.5
    )  # the paper's 2 w_2
    assert kept[:, 1].tolist() == [True, False, True]


def test_evaluation_has_no_noise_and_counts_the_load():
    clean, spread = RNG.standard_normal((2, 8, 4))
    (weights, indices, load), backward = gates.noisy_top_k_gate(clean, spread, 2)
    (expected, expected_indices), _ = ops.top_k_gate(clean, 2)
    np.testing.assert_allclose(weights, expected, rtol=1e-14)
    np.testing.assert_array_equal(indices, expected_indices)
    assert load.tolist() == np.bincount(indices.ravel(), minlength=4).tolist()
    dclean, dspread = backward(np.zeros((8, 2)), np.ones(4))
    assert not dclean.any()
    assert not dspread.any()


def test_smooth_load_is_a_probability_over_fresh_noise():
    """Draw one expert's noise again many times, all other noise staying, and count how often it is among the best 2."""
    clean, noise, sigma = RNG.standard_normal(5), RNG.standard_normal(5), 0.3 + RNG.random(5)
    noisy = clean + noise * sigma
    load, _ = gates.smooth_load(clean[None], noisy[None], sigma[None], 2)
    for e in range(5):
        drawn = clean[e] + sigma[e] * RNG.standard_normal(40_000)
        above = (np.delete(noisy, e)[:, None] > drawn).sum(0)
        assert load[e] == pytest.approx((above < 2).mean(), abs=0.01)


def test_a_load_without_the_path_through_the_threshold_is_caught(monkeypatch):
    """It is no small term, and easy to forget: the value to beat is some other expert's noisy score."""
    clean, spread, noise = RNG.standard_normal((3, 6, 5))
    assert check_gradients(gates.noisy_top_k_gate, clean, spread, 2, noise=noise).ok
    smooth_load = gates.smooth_load

    def forgetful(*inputs):
        load, load_back = smooth_load(*inputs)

        def backward(dload):
            dclean, dnoisy, dsigma = load_back(dload)
            return dclean, 0 * dnoisy, dsigma

        return load, backward

    monkeypatch.setattr(gates, "smooth_load", forgetful)
    report = check_gradients(gates.noisy_top_k_gate, clean, spread, 2, noise=noise)
    assert [i.name for i in report.inputs if i.error > 0.1] == ["clean", "spread"]


def test_masked_groups_stay_out_when_scores_are_negative():
    """Group 0 has s + b = −.2, −.1, in sum −.3; group 1 −.15, −.16, in sum −.31. With a mask of 0 group 1 would win."""
    s, bias = np.array([[0.1, 0.2, 0.05, 0.04]]), np.array([-0.3, -0.3, -0.2, -0.2])
    (weights, indices), _ = gates.sigmoid_gate(np.log(s / (1 - s)), 2, bias=bias, groups=2, kept_groups=1)
    assert indices.tolist() == [[1, 0]]
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3]])  # of s, without the bias
    (_, indices), _ = gates.sigmoid_gate(np.log(s / (1 - s)), 2, bias=bias)
    assert indices.tolist() == [[1, 2]]


def test_a_group_is_as_good_as_its_two_best():
    """.6 + .5 beats .9 + .1, so the best expert of all is out, and the third of a group does not count."""
    s = np.array([[0.9, 0.1, 0.09, 0.6, 0.5, 0.01]])
    (_, indices), _ = gates.sigmoid_gate(np.log(s / (1 - s)), 2, groups=2, kept_groups=1)
    assert indices.tolist() == [[3, 4]]
    limited = gates.limit_groups(np.array([[0.5, 0.5, 0.5, 0.6, 0.5, 0.1]]), 2, 2, 1)
    assert limited.tolist() == [[-np.inf] * 3 + [0.6, 0.5, 0.1]]


def test_a_sinkhorn_plan_gives_all_the_same():
    logits = 2 * RNG.standard_normal((512, 8)) + np.linspace(0, 5, 8)  # expert 7 is everybody's favourite
    plan = shared_gates.sinkhorn(logits)
    np.testing.assert_allclose(plan.sum(1), 1 / 512, rtol=1e-3)
    np.testing.assert_allclose(plan.sum(0), 1 / 8, rtol=1e-3)
    np.testing.assert_allclose(shared_gates.sinkhorn(logits + 3 * RNG.standard_normal((512, 1))), plan, rtol=1e-10)
    most = {
        b: np.bincount(shared_gates.sinkhorn_gate(logits, 1, balanced=b)[0][1][:, 0]).max() / 64 for b in (True, False)
    }
    assert most[True] < 1.25
    assert most[False] > 2
    assert np.isfinite(shared_gates.sinkhorn(1e4 * logits)).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 6, 7, 8, 100])
def test_a_balanced_assignment_differs_by_one_at_most(n):
    scores_ = RNG.standard_normal((n, 3)) + 5 * np.eye(3)[0]
    (_, indices), _ = shared_gates.base_gate(scores_)
    counts = np.bincount(indices[:, 0], minlength=3)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1
    (_, indices), _ = shared_gates.base_gate(scores_, balanced=False)
    np.testing.assert_array_equal(indices[:, 0], scores_.argmax(1))


def test_a_balanced_assignment_needs_scipy_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ValueError, match="pip install scipy"):
        shared_gates.base_gate(np.zeros((2, 2)))
    shared_gates.base_gate(np.zeros((2, 2)), balanced=False)


@pytest.mark.parametrize(("n", "capacity", "taken"), [(9, 2, 2), (9, 9, 9), (3, 8, 3), (5, 0, 0), (0, 4, 0)])
def test_every_expert_chooses_as_many_tokens_as_it_may(n, capacity, taken):
    logits = RNG.standard_normal((n, 4)) + 9 * np.eye(4)[0]
    (weights, indices, kept), backward = shared_gates.expert_choice_gate(logits, capacity)
    assert kept.sum(0).tolist() == [taken] * 4
    assert (indices == np.arange(4)).all()
    np.testing.assert_array_equal(weights > 0, kept)
    (dlogits,) = backward(np.where(kept, 0, 1.0))  # what is not kept teaches nothing
    assert not dlogits.any()


def test_tables():
    """稀疏专家模型 §4.3: each expert handles a part of the input, here a run of ids."""
    assert shared_gates.partition_table(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert np.bincount(shared_gates.partition_table(256, 8)).tolist() == [32] * 8
    table = shared_gates.hash_table(1000, 4, np.random.default_rng(42))
    np.testing.assert_array_equal(table, shared_gates.hash_table(1000, 4, np.random.default_rng(42)))
    assert set(table) == {0, 1, 2, 3}
    ids = np.array([5, 0, 999, 5])
    weights, indices = shared_gates.table_gate(ids, table, np.float64)
    np.testing.assert_array_equal(indices, table[ids][:, None])
    assert weights.tolist() == [[1]] * 4
    assert weights.dtype == np.float64
    assert shared_gates.table_gate(ids[:0], table)[1].shape == (0, 1)
    for wrong in (-1, 1000):
        with pytest.raises(IndexError, match=f"span {min(wrong, 3)} to {max(wrong, 3)}"):
            shared_gates.table_gate(np.array([3, wrong]), table)


def test_cosine_scores_do_not_see_lengths():
    x, router = RNG.standard_normal((6, 3)), RNG.standard_normal((3, 5))
    z, _ = scores.cosine_scores(x, router, np.array(4.0))
    longer, _ = scores.cosine_scores(7 * x, 0.1 * router, np.array(4.0))
    np.testing.assert_allclose(longer, z, rtol=1e-9)
    assert np.abs(z).max() <= 4
    np.testing.assert_allclose(scores.cosine_scores(router.T, router, np.array(4.0))[0].diagonal(), 4)
    assert not scores.cosine_scores(0 * x, router, np.array(4.0))[0].any()


def test_cast_computes_in_one_type_and_returns_gradients_in_the_other():
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    y, backward = scores.cast(x, np.float64)
    assert y.dtype == np.float64
    assert backward(y)[0].dtype == np.float32
    assert scores.cast(x + 1j, "float64")[0].dtype == np.complex128
    assert scores.cast(x.astype(complex), np.float32)[0].dtype == np.complex64


def test_a_soft_mixture_averages():
    """With scale 0 every slot holds the mean token, and every token gets the mean of the slots."""
    x, slots = RNG.standard_normal((5, 4)), RNG.standard_normal((4, 6))
    up, down = RNG.standard_normal((3, 4, 7)), RNG.standard_normal((3, 7, 4))
    y, _ = soft.soft_moe(x, slots, np.array(0.0), up, down)
    mean = np.mean([np.maximum(x.mean(0) @ u, 0) @ d for u, d in zip(up, down, strict=True)], 0)
    np.testing.assert_allclose(y, np.tile(mean, (5, 1)), rtol=1e-12)
    (dispatch, combine), _ = soft.soft_routing(x, slots, np.array(3.0))
    np.testing.assert_allclose(dispatch.sum(0), 1)
    np.testing.assert_allclose(combine.sum(1), 1)


def test_a_soft_mixture_follows_the_order_of_tokens_and_sees_later_ones():
    x, slots, scale = RNG.standard_normal((5, 4)), RNG.standard_normal((4, 6)), np.array(2.0)
    mlp = RNG.standard_normal((3, 4, 7)), RNG.standard_normal((3, 7, 4))
    y, _ = soft.soft_moe(x, slots, scale, *mlp)
    np.testing.assert_allclose(soft.soft_moe(x[::-1], slots, scale, *mlp)[0], y[::-1], rtol=1e-12)
    assert np.abs(soft.soft_moe(x[:4], slots, scale, *mlp)[0] - y[:4]).min() > 1e-6


def test_what_makes_no_sense_is_refused():
    z = np.zeros((2, 6))
    for k in (0, 7):
        for gate in (gates.top_k_softmax, ops.top_k_gate, gates.sigmoid_gate, shared_gates.sinkhorn_gate):
            with pytest.raises(ValueError, match=f"top-k is {k}"):
                gate(z, k)
    with pytest.raises(ValueError, match="number of experts, 1"):
        gates.gshard_gate(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="fewer than the experts, 6"):
        gates.smooth_load(z, z, z + 1, 6)
    for groups, kept in ((4, 2), (3, 0), (3, 4), (0, 1), (6, 1)):
        with pytest.raises(ValueError, match=f"of {groups} groups; allowed are"):
            gates.sigmoid_gate(z, 2, groups=groups, kept_groups=kept)
    with pytest.raises(ValueError, match="capacity is -1"):
        shared_gates.expert_choice_gate(z, -1)
    with pytest.raises(ValueError, match="5 slots for 2 experts"):
        soft.soft_moe(z, np.zeros((6, 5)), np.array(1.0), np.zeros((2, 6, 3)), np.zeros((2, 3, 6)))
