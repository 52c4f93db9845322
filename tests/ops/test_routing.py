"""Routing and the MoE layer against their slow twins: the loop over tokens, the one-hot product, the sum by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymoe import ops
from tinymoe.sparse import CSR

RNG = np.random.default_rng(0)


def test_ties_go_to_the_lowest_index():
    logits = np.array([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, -1.0, 3.0, -1.0]])
    (_, indices), _ = ops.top_k_gate(logits, 2)
    assert indices.tolist() == [[1, 2], [0, 1], [0, 2]]


def test_weights_by_hand():
    """softmax([ln 6, ln 3, ln 1]) is [.6, .3, .1]; the best two renormalised are 2/3 and 1/3."""
    logits = np.log([[6.0, 3.0, 1.0]])
    (weights, _), _ = ops.top_k_gate(logits, 2)
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3]])
    (weights, _), _ = ops.top_k_gate(logits, 2, renormalize=False)
    np.testing.assert_allclose(weights, [[0.6, 0.3]])


def test_a_renormalised_gate_passes_exactly_nothing_to_experts_that_were_not_chosen():
    logits = RNG.standard_normal((50, 7))
    (weights, indices), backward = ops.top_k_gate(logits, 3)
    (dlogits,) = backward(RNG.standard_normal(weights.shape))
    chosen = np.zeros(logits.shape, bool)
    np.put_along_axis(chosen, indices, True, 1)
    assert (dlogits[~chosen] == 0).all()
    assert (dlogits[chosen] != 0).all()


def test_one_renormalised_choice_teaches_the_router_nothing_and_a_raw_one_does():
    logits = RNG.standard_normal((4, 3))
    for renormalize, learns in ((True, False), (False, True)):
        (weights, _), backward = ops.top_k_gate(logits, 1, renormalize)
        assert np.any(backward(np.ones(weights.shape))[0]) == learns


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 6), st.data())
def test_grouping_is_a_stable_permutation(n, n_experts, data):
    k = data.draw(st.integers(1, n_experts))
    indices = np.array(data.draw(st.lists(st.permutations(range(n_experts)), min_size=n, max_size=n)), int)
    indices = indices.reshape(n, n_experts)[:, :k]
    grouped = ops.group_by_expert(indices, n_experts)
    experts = indices.reshape(-1)[grouped.order]
    assert (np.diff(experts) >= 0).all()
    assert all((np.diff(grouped.order[experts == e]) > 0).all() for e in range(n_experts))
    assert (grouped.order[grouped.inverse] == np.arange(n * k)).all()
    assert (grouped.tokens == grouped.order // k).all()
    assert grouped.counts.tolist() == [int((indices == e).sum()) for e in range(n_experts)]


def loop_over_tokens(x, router, up, down, gate, k, renormalize):
    """The layer as a child could write it."""
    y = np.zeros_like(x)
    for n, token in enumerate(x):
        scores = token @ router
        p = np.exp(scores) / np.exp(scores).sum()
        best = sorted(range(len(p)), key=lambda e: (-p[e], e))[:k]
        total = sum(p[e] for e in best) if renormalize else 1.0
        for e in best:
            g = token @ gate[e]
            hidden = g / (1 + np.exp(-g)) * (token @ up[e])
            y[n] += p[e] / total * (hidden @ down[e])
    return y


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("n", "n_experts", "k"), [(9, 5, 2), (9, 4, 4), (3, 6, 1), (1, 2, 2)])
def test_the_layer_equals_the_loop_over_tokens(n, n_experts, k, renormalize):
    x, router = RNG.standard_normal((n, 3)), RNG.standard_normal((3, n_experts))
    up, gate = RNG.standard_normal((2, n_experts, 3, 4))
    down = RNG.standard_normal((n_experts, 4, 3))
    (y, _, _), _ = ops.moe(x, router, up, down, gate, k=k, renormalize=renormalize, activation=ops.silu)
    np.testing.assert_allclose(y, loop_over_tokens(x, router, up, down, gate, k, renormalize), rtol=1e-12)


def test_dispatch_and_combine_equal_one_hot_products():
    indices = np.array([[0, 2], [2, 1], [2, 0]])
    x, weights = RNG.standard_normal((3, 4)), RNG.standard_normal((3, 2))
    grouped = ops.group_by_expert(indices, 4)
    onehot = np.zeros((6, 3))
    onehot[np.arange(6), grouped.tokens] = 1
    rows, dispatch_back = ops.dispatch(x, grouped)
    np.testing.assert_array_equal(rows, onehot @ x)
    drows = RNG.standard_normal(rows.shape)
    np.testing.assert_allclose(dispatch_back(drows)[0], onehot.T @ drows)
    weighted = onehot * weights.reshape(-1)[grouped.order][:, None]
    np.testing.assert_allclose(ops.combine(rows, weights, grouped)[0], weighted.T @ rows)


def test_experts_without_tokens_get_zero_gradients():
    x, router = RNG.standard_normal((4, 3)), np.zeros((3, 5))  # all ties: experts 0 and 1
    up, down = RNG.standard_normal((5, 3, 2)), RNG.standard_normal((5, 2, 3))
    (_, _, routing), backward = ops.moe(x, router, up, down, k=2, activation=ops.gelu)
    assert routing.counts.tolist() == [4, 4, 0, 0, 0]
    _, _, dup, ddown = backward(np.ones_like(x), 0.0)
    assert not dup[2:].any()
    assert not ddown[2:].any()
    assert dup[:2].any()


def test_balance_is_one_when_even_and_grows_when_not():
    even = np.eye(4)[np.arange(8) % 4] * 5
    loss, _ = ops.load_balance(even, even.argmax(1)[:, None])
    assert loss == pytest.approx(1)
    collapsed = np.tile([5.0, 0, 0, 0], (8, 1))
    loss, _ = ops.load_balance(collapsed, collapsed.argmax(1)[:, None])
    assert loss > 3.8


def test_balance_of_a_layer_does_not_hide_behind_another_layer():
    """Two layers that collapse on different experts are bad by the mean of 1.8; pooled first they would look even."""
    p = np.log([[0.9, 0.1]] * 6)
    first, _ = ops.load_balance(p, np.zeros((6, 1), int))
    second, _ = ops.load_balance(p[:, ::-1], np.ones((6, 1), int))
    assert (first + second) / 2 == pytest.approx(1.8)


def test_more_experts_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="top-k is 4"):
        ops.top_k_gate(np.zeros((2, 3)), 4)
    with pytest.raises(ValueError, match="add up to 3"):
        ops.grouped_linear(np.zeros((2, 3)), np.zeros((2, 3, 1)), np.array([1, 2]))


def test_routing_is_a_sparse_matrix_and_the_layer_its_products():
    indices = np.array([[3, 0], [0, 2], [3, 2], [0, 3]])
    x, weights = RNG.standard_normal((4, 5)), RNG.random((4, 2))
    grouped = ops.group_by_expert(indices, 5)
    spread, gather = ops.dispatch_matrix(grouped, 4), ops.combine_matrix(grouped, weights)
    rows, dispatch_back = ops.dispatch(x, grouped)
    y, combine_back = ops.combine(rows, weights, grouped)
    np.testing.assert_array_equal(spread @ x, rows)
    np.testing.assert_allclose(gather @ rows, y, rtol=1e-14)
    drows, dy = RNG.standard_normal(rows.shape), RNG.standard_normal(y.shape)
    np.testing.assert_allclose(spread.T @ drows, dispatch_back(drows)[0], rtol=1e-14)
    np.testing.assert_allclose(gather.T @ dy, combine_back(dy)[0], rtol=1e-14)

    routing = ops.routing_matrix(grouped, weights)
    assert routing.shape == (5, 4)
    assert np.diff(routing.indptr).tolist() == grouped.counts.tolist() == [3, 0, 2, 3, 0]
    np.testing.assert_array_equal(routing.indices, grouped.tokens)
    np.testing.assert_array_equal(routing.to_dense().sum(0), weights.sum(1))


def test_embedding_is_the_product_with_a_one_hot_csr_matrix():
    ids, table = np.array([2, 0, 2, 1]), RNG.standard_normal((4, 3))
    y, backward = ops.embedding(ids, table)
    onehot, dy = ops.one_hot(ids, 4), RNG.standard_normal((4, 3))
    np.testing.assert_array_equal(onehot @ table, y)
    np.testing.assert_allclose(onehot.T @ dy, backward(dy)[0], rtol=1e-14)


def test_a_sparse_linear_layer_is_the_dense_one_with_zeros():
    weight = RNG.standard_normal((6, 5)) * (RNG.random((6, 5)) < 0.3)
    x, b, dy = RNG.standard_normal((4, 6)), RNG.standard_normal(5), RNG.standard_normal((4, 5))
    pattern = CSR.from_dense(weight)
    y, backward = ops.sparse_linear(x, pattern.data, pattern, b)
    dense, dense_back = ops.linear(x, weight, b)
    np.testing.assert_allclose(y, dense, rtol=1e-13)
    dx, dvalues, db = backward(dy)
    np.testing.assert_allclose(dx, dense_back(dy)[0], rtol=1e-13)
    np.testing.assert_allclose(dvalues, dense_back(dy)[1][weight != 0], rtol=1e-13)
    np.testing.assert_allclose(db, dense_back(dy)[2], rtol=1e-13)
    with pytest.raises(ValueError, match="one value for each"):
        ops.sparse_linear(x, pattern.data[1:], pattern)
