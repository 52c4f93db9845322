"""Metrics of routing: exact small numbers, the properties that define them, padding and empty input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinymoe.ops import metrics

COUNTS = np.array([2, 4, 7, 1, 2, 5, 4, 7])  # 16 tokens, 8 experts, 2 choices
some_counts = st.integers(1, 9).flatmap(lambda e: arrays(np.int64, e, elements=st.integers(0, 50)))
quick = settings(max_examples=60, deadline=None)


def test_the_load_of_the_example_batch():
    """The mean is 4, the squared deviations add up to 4+0+9+9+4+1+0+9 = 36."""
    assert metrics.max_violation(COUNTS) == 0.75
    assert metrics.load_entropy(COUNTS) == pytest.approx(0.928, abs=5e-4)
    assert metrics.cv_squared(COUNTS) == pytest.approx(36 / 8 / 16, rel=1e-10)
    assert metrics.realised_capacity_factor(COUNTS, 16, 2) == 1.75
    assert metrics.expert_usage(COUNTS, 8) == 0.5


def test_entropy_by_hand():
    """Shares ½, ¼, ¼: ½ ln 2 + ½ ln 4 = 1.5 ln 2, of ln 4 possible with four experts."""
    assert metrics.load_entropy(np.array([2, 1, 0, 1])) == pytest.approx(0.75, rel=1e-15)
    p = np.array([[0.5, 0.25, 0.0, 0.25], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert metrics.router_entropy(p) == pytest.approx((1.5 + 0 + 2) / 3 * math.log(2), rel=1e-15)


def test_a_stack_of_layers_gives_one_value_each():
    stack = np.stack([COUNTS, np.full(8, 4), 32 * np.eye(8, dtype=int)[3]])
    np.testing.assert_array_equal(metrics.max_violation(stack), [0.75, 0, 7])
    np.testing.assert_allclose(metrics.load_entropy(stack), [0.928, 1, 0], atol=5e-4)
    np.testing.assert_allclose(metrics.cv_squared(stack), [36 / 128, 0, 7], rtol=1e-9)
    np.testing.assert_array_equal(metrics.realised_capacity_factor(stack, 16, 2), [1.75, 1, 8])
    np.testing.assert_array_equal(metrics.expert_usage(stack, 32), [0.125] * 3)


@quick
@given(some_counts, st.randoms())
def test_load_metrics_stay_in_range_and_do_not_ask_which_expert_is_which(counts, random):
    n_experts = len(counts)
    shuffled = counts[random.sample(range(n_experts), n_experts)]
    assert -1e-15 <= metrics.load_entropy(counts) <= 1 + 1e-15
    assert 0 <= metrics.max_violation(counts) <= n_experts - 1
    assert 0 <= metrics.cv_squared(counts) <= n_experts - 1 + 1e-12
    for metric in (metrics.load_entropy, metrics.max_violation, metrics.cv_squared):
        assert metric(shuffled) == pytest.approx(metric(counts), rel=1e-12, abs=1e-12)
        assert metric(3 * counts) == pytest.approx(metric(counts), rel=1e-8, abs=1e-8)
    if counts.sum():
        factor = metrics.realised_capacity_factor(counts, int(counts.sum()), 1)
        assert factor == pytest.approx(metrics.max_violation(counts) + 1, rel=1e-12)


def test_dropping():
    kept = np.array([[True, True], [True, False], [False, False], [False, True]])
    assert metrics.dropped_fraction(kept) == 0.5
    assert metrics.dropped_tokens(kept) == 0.25
    real = np.array([True, True, False, True])
    assert metrics.dropped_fraction(kept, mask=real) == pytest.approx(1 / 3, rel=1e-15)
    assert metrics.dropped_tokens(kept, mask=real) == 0
    indices = np.array([[0, 1], [2, 0], [2, 2], [1, 0]])
    assert metrics.expert_counts(indices, 4, kept=kept).tolist() == [2, 1, 1, 0]
    assert metrics.expert_counts(indices, 4, mask=real).tolist() == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="must not exceed the capacity, 1"):
        metrics.expert_usage(np.array([2, 1]), 1)


def test_saturation_counts_sets_not_places():
    """Tokens that keep both experts in another order, one of two, and none: (1 + ½ + 0) / 3."""
    then, now = np.array([[0, 1], [2, 3], [0, 1]]), np.array([[1, 0], [3, 0], [2, 3]])
    assert metrics.saturation(then, now) == 0.5
    assert metrics.saturation(then, now, mask=np.array([True, True, False])) == 0.75
    with pytest.raises(ValueError, match="shapes"):
        metrics.saturation(then, now[:, :1])


def test_co_activation_is_conditional_so_it_is_not_symmetric():
    indices = np.array([[0, 1], [0, 1], [2, 0], [0, 2]])
    expected = [[1, 0.5, 0.5, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(metrics.co_activation(indices, 4), expected)
    first = metrics.co_activation(indices, 4, mask=np.array([True, False, False, False]))
    np.testing.assert_array_equal(first, [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4])


def test_specialisation_by_hand():
    """Label 0 has tokens {0,1} and {0,2}; label 1 has {1,2}; label 2 none."""
    indices, labels = np.array([[0, 1], [1, 2], [2, 0]]), np.array([0, 1, 0])
    assert metrics.joint_counts(indices, labels, 3, 3).tolist() == [[2, 1, 1], [0, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(metrics.specialisation(indices, labels, 3, 3), [[1, 0.5, 0.5], [0, 1, 1], [0, 0, 0]])
    kept = np.array([[True, False], [True, True], [True, True]])
    assert metrics.joint_counts(indices, labels, 3, 2, kept=kept).tolist() == [[2, 0, 1], [0, 1, 1]]
    with pytest.raises(ValueError, match="labels span 0 to 1; allowed are 0 to 0"):
        metrics.specialisation(indices, labels, 3, 1)


@quick
@given(arrays(np.int64, 3, elements=st.integers(0, 9)), arrays(np.int64, 4, elements=st.integers(0, 9)))
def test_mutual_information_of_independent_counts_is_exactly_zero(labels, experts):
    assert metrics.mutual_information(np.outer(labels, experts)) == 0
    assert metrics.mutual_information(np.outer(labels, experts), normalised=True) == 0


@pytest.mark.parametrize("n_labels", [1, 2, 5])
def test_mutual_information_of_perfect_specialists_is_all_there_is_to_know(n_labels):
    """It doesn't matter that every label has two experts, nor which."""
    counts = np.kron(np.eye(n_labels, dtype=int), [[4, 3]])[:, ::-1]
    assert metrics.mutual_information(counts) == pytest.approx(math.log(n_labels), rel=1e-14)
    assert metrics.mutual_information(counts, normalised=True) == pytest.approx(float(n_labels > 1), rel=1e-14)


@quick
@given(arrays(np.int64, (3, 4), elements=st.integers(0, 20)))
def test_mutual_information_is_symmetric_and_in_range(counts):
    information = metrics.mutual_information(counts)
    assert -1e-12 <= information <= math.log(3) + 1e-12
    assert metrics.mutual_information(counts.T) == pytest.approx(information, rel=1e-12, abs=1e-12)
    assert metrics.mutual_information(counts[:, ::-1]) == pytest.approx(information, rel=1e-12, abs=1e-12)
    assert -1e-12 <= metrics.mutual_information(counts, normalised=True) <= 1 + 1e-12


def test_mutual_information_by_hand():
    """p = ½, ¼; 0, ¼: ½ ln (½ / ⅜) + ¼ ln (¼ / ⅜) + ¼ ln (¼ / ⅛), and H(label) = ¾ ln (4/3) + ¼ ln 4."""
    expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    counts = np.array([[2, 1], [0, 1]])
    assert metrics.mutual_information(counts) == pytest.approx(expected, rel=1e-14)
    of_label = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert metrics.mutual_information(counts, normalised=True) == pytest.approx(expected / of_label, rel=1e-14)


def test_a_small_modality_that_collapses_hides_in_the_pool():
    labels = np.repeat([0, 1], [576, 30])  # image, text
    indices = np.concatenate([np.arange(576) % 4, np.zeros(30, int)])[:, None]
    balance = metrics.per_group_balance(metrics.joint_counts(indices, labels, 4, 2))
    np.testing.assert_array_equal(balance.max_violation, [0, 3])
    np.testing.assert_allclose(balance.load_entropy, [1, 0], atol=1e-15)
    np.testing.assert_allclose(balance.share, [576 / 606, 30 / 606])
    assert balance.pooled_max_violation == pytest.approx(22.5 / 151.5)
    assert balance.pooled_load_entropy > 0.99


def test_padding_is_never_looked_at():
    """Its rows may hold NaN, and numbers of experts and labels that do not exist."""
    rng = np.random.default_rng(0)
    real = np.array([True, False, True, True, False])
    p, indices, labels = (
        rng.dirichlet(np.ones(4), 5),
        rng.permuted(np.tile(np.arange(4), (5, 1)), axis=1)[:, :2],
        real * 1,
    )
    p[~real], indices[~real], labels[~real] = np.nan, -7, 99
    assert metrics.router_entropy(p, mask=real) == metrics.router_entropy(p[real])
    for by_expert in (metrics.expert_counts, metrics.co_activation):
        np.testing.assert_array_equal(by_expert(indices, 4, mask=real), by_expert(indices[real], 4))
    for by_label in (metrics.joint_counts, metrics.specialisation):
        masked = by_label(indices, labels, 4, 2, mask=real)
        np.testing.assert_array_equal(masked, by_label(indices[real], labels[real], 4, 2))


def test_nothing_to_measure_is_a_perfect_router():
    none, idle = np.zeros((0, 2), int), np.zeros(4, int)
    assert metrics.max_violation(idle) == 0
    assert metrics.load_entropy(idle) == 1
    assert metrics.load_entropy(np.array([7])) == 1
    assert metrics.cv_squared(idle) == 0
    assert metrics.realised_capacity_factor(idle, 0, 2) == 0
    assert metrics.expert_usage(idle, 0) == 0
    assert metrics.dropped_fraction(none.astype(bool)) == metrics.dropped_tokens(none.astype(bool)) == 0
    assert metrics.router_entropy(np.zeros((0, 4))) == 0
    assert metrics.router_entropy(np.full((2, 4), np.nan), mask=np.zeros(2, bool)) == 0
    assert metrics.saturation(none, none) == 1
    assert not metrics.co_activation(none, 4).any()
    assert not metrics.specialisation(none, np.zeros(0, int), 4, 3).any()
    assert metrics.mutual_information(np.zeros((3, 4), int)) == 0
    assert metrics.mutual_information(np.zeros((3, 4), int), normalised=True) == 0
    assert metrics.per_group_balance(np.zeros((2, 4), int)).pooled_load_entropy == 1


def test_logits_are_no_probabilities():
    with pytest.raises(ValueError, match=r"take softmax\(logits\)"):
        metrics.router_entropy(np.array([[1.0, 2.0]]))
