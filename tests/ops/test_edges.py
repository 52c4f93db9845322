"""The edges of single operations: infinities, NaN in what was dropped, ids outside their range, no axes, no columns."""

import numpy as np
import pytest

from tinymoe import ops
from tinymoe.ops import metrics
from tinymoe.systems.conventions import balance_loss

RNG = np.random.default_rng(0)
INF = np.inf


# Infinities and far tails


def test_a_teacher_that_rules_a_token_out_adds_nothing_for_it():
    """q = (½, ½, 0) and p = (⅓, ⅓, ⅓): KL = ln 3/2, as the limit of ever smaller q_3 has it."""
    teacher = np.array([[0.0, 0.0, -INF]])
    loss, backward = ops.distillation(np.zeros((1, 3)), teacher=teacher)
    assert loss == pytest.approx(np.log(1.5), rel=1e-15)
    np.testing.assert_allclose(backward(1.0)[0], [[1 / 3 - 0.5, 1 / 3 - 0.5, 1 / 3]], rtol=1e-14)
    near, _ = ops.distillation(np.zeros((1, 3)), teacher=np.array([[0.0, 0.0, -50.0]]))
    assert loss == pytest.approx(near, rel=1e-14)
    same, same_back = ops.distillation(teacher, teacher=teacher)
    assert same == 0
    assert not same_back(1.0)[0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_silu_is_minus_zero_far_below(dtype):
    far = np.finfo(dtype).max
    x = np.array([-far, -INF, -far / 1e4, -1.0], dtype)
    y, backward = ops.silu(x)
    (dx,) = backward(np.ones(4, dtype))
    assert (y[:3] == 0).all()
    assert np.signbit(y[:3]).all()
    assert (dx[:3] == 0).all()
    np.testing.assert_allclose((y[3], dx[3]), (-0.2689414213699951, 0.0723294881285132), rtol=5 * np.finfo(dtype).eps)
    y, backward = ops.silu(x[1])
    assert (y, *backward(dtype(1))) == (0, 0)


@pytest.mark.parametrize("op", [ops.relu, ops.sigmoid, ops.tanh, ops.softplus, ops.silu, ops.gelu, ops.gelu_exact])
@pytest.mark.parametrize("x", [-0.7, 0.7])
def test_pointwise_operations_take_an_array_without_axes(op, x):
    """Any shape, as the docstrings say, so () too."""
    (y, backward), (row, row_back) = op(np.asarray(x)), op(np.array([x]))
    assert np.shape(y) == ()
    assert y == row[0]
    (dx,) = backward(np.asarray(2.0))
    assert np.shape(dx) == ()
    assert dx == row_back(np.array([2.0]))[0][0]


def test_a_score_of_minus_infinity_has_no_probability_and_gets_no_gradient():
    x = np.array([[0.0, -INF, 0.0], [-INF, -INF, 3.0]])
    y, backward = ops.softmax(x)
    assert y.tolist() == [[0.5, 0, 0.5], [0, 0, 1]]
    assert (backward(RNG.standard_normal((2, 3)))[0][x == -INF] == 0).all()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_row_of_nothing_but_minus_infinity_is_nan_and_leaves_the_other_rows_alone():
    x = np.array([[-INF, -INF, -INF], [2.0, 1.0, 0.0]])
    y, backward = ops.softmax(x)
    (dx,) = backward(np.ones((2, 3)))
    (weights, indices), _ = ops.top_k_gate(x, 2)
    for rows in (y, dx, weights, ops.log_sum_exp(x)[0]):
        assert np.isnan(rows[0]).all()
        assert np.isfinite(rows[1]).all()
    assert indices.tolist() == [[0, 1], [0, 1]]


def test_a_row_of_nothing_but_minus_infinity_is_not_passed_over_in_silence():
    with pytest.warns(RuntimeWarning, match="invalid value"):
        ops.top_k_gate(np.full((1, 3), -INF), 1)


def test_a_logit_of_minus_infinity_is_chosen_last_with_weight_and_gradient_0():
    logits = np.array([[-INF, 1.0, -INF], [0.0, 1.0, 2.0]])
    for renormalize in (True, False):
        (weights, indices), backward = ops.top_k_gate(logits, 2, renormalize)
        assert indices.tolist() == [[1, 0], [2, 1]]
        assert weights[0].tolist() == [1, 0]
        assert (backward(np.ones((2, 2)))[0][0] == 0).all()


def test_a_bias_of_minus_infinity_keeps_an_expert_out_while_others_are_left():
    logits, bias = np.array([[3.0, 2.0, 1.0]]), np.array([-INF, -INF, 0.0])
    (weights, indices), _ = ops.sigmoid_gate(logits, 1, bias=bias)
    assert indices.tolist() == [[2]]
    (weights, indices), _ = ops.sigmoid_gate(logits, 2, bias=bias, normalize=False)
    assert indices.tolist() == [[2, 0]]
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits[:, [2, 0]])), rtol=1e-15)


@pytest.mark.parametrize("call", [ops.softmax, ops.log_sum_exp, lambda x: ops.cross_entropy(x, np.full(2, -100))])
def test_rows_without_a_score_are_refused(call):
    with pytest.raises(ValueError, match=r"x has shape \(2, 0\); each row must have at least one score"):
        call(np.zeros((2, 0)))


# What was dropped


def test_a_dropped_assignment_gets_weight_gradient_0_whatever_its_rows_hold():
    indices = np.array([[0, 1], [1, 2], [2, 0]])
    kept = np.array([[True, True], [False, False], [True, False]])
    assignment = ops.group_by_expert(indices, 3, kept)
    x, weights, dy = RNG.standard_normal((3, 4)), RNG.random((3, 2)), RNG.standard_normal((3, 4))
    expected, expected_back = ops.combine(ops.dispatch(x, assignment)[0], weights, assignment)
    drows, dweights = expected_back(dy)
    x[1], weights[~kept], dy[1] = np.nan, np.nan, np.nan  # token 1 goes nowhere
    rows, _ = ops.dispatch(x, assignment)
    y, backward = ops.combine(rows, weights, assignment)
    np.testing.assert_array_equal(y, expected)
    again = backward(dy)
    np.testing.assert_array_equal(again[0], drows)
    np.testing.assert_array_equal(again[1], dweights)
    assert (again[1][~kept] == 0).all()


def test_what_stands_in_the_place_of_a_dropped_choice_is_never_used():
    kept = np.array([[True, False, True]])
    w, dy = np.array([[0.25, np.nan, 0.25]]), np.array([[1.0, np.nan, 3.0]])
    y, backward = ops.renormalize_kept(w, kept)
    assert y.tolist() == [[0.5, 0, 0.5]]
    assert backward(dy)[0].tolist() == [[-2, 0, 2]]


# Ids outside their range

IDS = np.array([[0, 1], [2, 0], [1, 2]])
WEIGHTS, LABELS = np.full((3, 2), 0.5), np.zeros(3, int)
TAKES_IDS = {
    "group_by_expert": lambda i: ops.group_by_expert(i, 3),
    "keep_within_capacity": lambda i: ops.keep_within_capacity(i, 3, 9),
    "importance": lambda i: ops.importance(WEIGHTS, i, 3),
    "expert_shares": lambda i: ops.expert_shares(i, 3),
    "load_balance": lambda i: ops.load_balance(np.zeros((3, 3)), i),
    "balance_loss": lambda i: balance_loss(np.zeros((1, 3, 3)), i[None]),
    "pick": lambda i: ops.pick(np.zeros((3, 3)), i),
    "expert_counts": lambda i: metrics.expert_counts(i, 3),
    "co_activation": lambda i: metrics.co_activation(i, 3),
    "joint_counts": lambda i: metrics.joint_counts(i, LABELS, 3, 1),
    "specialisation": lambda i: metrics.specialisation(i, LABELS, 3, 1),
}


@pytest.mark.parametrize("name", TAKES_IDS)
@pytest.mark.parametrize(("wrong", "span"), [(9, "0 to 9"), (3, "0 to 3"), (-1, "-1 to 2"), (-7, "-7 to 2")])
def test_an_index_that_is_no_experts_is_refused(name, wrong, span):
    """In silence it would be dropped, counted from the end, or booked for the next label."""
    TAKES_IDS[name](IDS)
    indices = IDS.copy()
    indices[1, 1] = wrong
    with pytest.raises(IndexError, match=f"^indices span {span}; experts are 0 to 2$"):
        TAKES_IDS[name](indices)


LEAVES_OUT = {
    "group_by_expert": lambda i, kept, mask: ops.group_by_expert(i, 3, kept).counts,
    "keep_within_capacity": lambda i, kept, mask: ops.keep_within_capacity(i, 3, 9, kept=kept),
    "keep_within_capacity, mask": lambda i, kept, mask: ops.keep_within_capacity(i, 3, 9, mask=mask),
    "importance": lambda i, kept, mask: ops.importance(WEIGHTS, i, 3, mask=mask)[0],
    "expert_counts": lambda i, kept, mask: metrics.expert_counts(i, 3, kept=kept),
    "co_activation": lambda i, kept, mask: metrics.co_activation(i, 3, mask=mask),
    "joint_counts": lambda i, kept, mask: metrics.joint_counts(i, LABELS, 3, 1, mask=mask),
    "load_balance": lambda i, kept, mask: ops.load_balance(np.zeros((3, 3)), i, mask=mask)[0],
}


@pytest.mark.parametrize("name", LEAVES_OUT)
def test_an_index_that_is_left_out_may_be_anything(name):
    mask = np.array([True, False, True])
    kept = np.repeat(mask[:, None], 2, 1)
    indices = IDS.copy()
    indices[1] = -5, 9
    np.testing.assert_array_equal(LEAVES_OUT[name](indices, kept, mask), LEAVES_OUT[name](IDS, kept, mask))


@pytest.mark.parametrize(
    "targets",
    [np.zeros((4, 1), int), np.zeros(2, int), np.eye(4, 5, dtype=int), np.zeros(4), np.zeros(4, bool)],
    ids=["column", "two", "one-hot", "floats", "bools"],
)
@pytest.mark.parametrize("loss", [ops.cross_entropy, ops.cross_entropies])
def test_targets_are_one_int_for_each_row(loss, targets):
    with pytest.raises(
        ValueError, match=r"^targets have shape .* they must be ints, one for each of the 4 rows of logits"
    ):
        loss(np.zeros((4, 5)), targets)


def test_a_target_outside_the_columns_is_refused():
    for wrong in (5, -1, -101):
        with pytest.raises(
            IndexError, match=r"^targets span .*; allowed are 0 to 4, one per column, and the ignored -100$"
        ):
            ops.cross_entropy(np.zeros((2, 5)), np.array([2, wrong]))


# Masks and counts

BOOLS = np.array([True, False, True])
TAKES_MASK = {
    "dropped_fraction": lambda m: metrics.dropped_fraction(np.ones((3, 2), bool), mask=m),
    "dropped_fraction, kept": lambda m: metrics.dropped_fraction(np.stack([m, m], 1)),
    "dropped_tokens": lambda m: metrics.dropped_tokens(np.ones((3, 2), bool), mask=m),
    "dropped_tokens, kept": lambda m: metrics.dropped_tokens(np.stack([m, m], 1)),
    "router_entropy": lambda m: metrics.router_entropy(np.full((3, 2), 0.5), mask=m),
    "saturation": lambda m: metrics.saturation(IDS, IDS, mask=m),
    "co_activation": lambda m: metrics.co_activation(IDS, 3, mask=m),
    "specialisation": lambda m: metrics.specialisation(IDS, LABELS, 3, 1, mask=m),
    "joint_counts": lambda m: metrics.joint_counts(IDS, LABELS, 3, 1, mask=m),
    "joint_counts, kept": lambda m: metrics.joint_counts(IDS, LABELS, 3, 1, kept=np.stack([m, m], 1)),
    "expert_counts": lambda m: metrics.expert_counts(IDS, 3, mask=m),
    "expert_counts, kept": lambda m: metrics.expert_counts(IDS, 3, kept=np.stack([m, m], 1)),
}


@pytest.mark.parametrize("name", TAKES_MASK)
def test_metrics_refuse_a_mask_of_numbers(name):
    TAKES_MASK[name](BOOLS)
    for numbers in (BOOLS.astype(int), BOOLS.astype(float)):
        with pytest.raises(ValueError, match="must be bool"):
            TAKES_MASK[name](numbers)


@pytest.mark.parametrize(
    "counts",
    [
        np.array([1.5, 2]),
        np.array([2.0**24, 3], np.float32),
        np.array([2048, 1], np.float16),
        np.array([-1.0, 3]),
        np.array([np.nan, 3]),
        np.array([INF, 3]),
        np.array([True, False]),
    ],
    ids=str,
)
def test_counts_that_may_have_lost_something_are_refused(counts):
    with pytest.raises(ValueError, match=r"they must be ints, or whole floats from 0 to below"):
        ops.bias_update(np.zeros(2), counts, 0.1)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, np.float32, np.float64, np.float16])
def test_counts_of_any_type_that_holds_them_move_the_bias_alike(dtype):
    moved = ops.bias_update(np.zeros(4), np.array([100, 101, 99, 100], dtype), 0.5)
    assert moved.tolist() == [0, -0.5, 0.5, 0]


def test_counts_are_added_up_without_loss():
    """The sum of 64 float32 counts near 2^23 is beyond 2^24, and E times a count of int32 beyond 2^31."""
    counts = np.full(300, 2**23 + 1)
    counts[0] += 1
    expected = ops.bias_update(np.zeros(300), counts, 1.0)
    assert expected.tolist() == [-1] + [1] * 299
    for dtype in (np.float32, np.int32):
        np.testing.assert_array_equal(ops.bias_update(np.zeros(300), counts.astype(dtype), 1.0), expected)
