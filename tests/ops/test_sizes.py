"""Sizes and values beyond those of the cases: long texts, several chunks of a sparse product, far tails, ties."""

import math

import numpy as np
import pytest

from tinymoe import ops
from tinymoe.gradcheck import check_gradients
from tinymoe.sparse import CSR, blocks

RNG = np.random.default_rng(0)


# Long texts


@pytest.mark.parametrize("length", [1, 2, 33, 64, 65, 130, 257])
def test_attention_of_a_long_text_position_by_position(length):
    """Row i of causal attention is full attention of query i over the keys up to i; and so its gradients."""
    q = RNG.standard_normal((1, 2, length, 4))
    k, v = RNG.standard_normal((2, 1, 1, length, 4))
    y, backward = ops.causal_attention(q, k, v)
    dy = RNG.standard_normal(y.shape)
    dq, dk, dv = backward(dy)
    dk_sum, dv_sum = np.zeros((2, *k.shape))
    for i in range(length):
        now, seen = slice(i, i + 1), slice(0, i + 1)
        y_i, back_i = ops.full_attention(q[:, :, now], k[:, :, seen], v[:, :, seen])
        dq_i, dk_i, dv_i = back_i(dy[:, :, now])
        np.testing.assert_allclose(y[:, :, now], y_i, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(dq[:, :, now], dq_i, rtol=1e-10, atol=1e-13)
        dk_sum[:, :, seen] += dk_i
        dv_sum[:, :, seen] += dv_i
    np.testing.assert_allclose(dk, dk_sum, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dv, dv_sum, rtol=1e-10, atol=1e-12)


RECURRENT = {  # the gates, and how many states
    ops.rnn: (1, 1),
    ops.gru: (3, 1),
    ops.lstm: (4, 2),
}


@pytest.mark.parametrize("op", RECURRENT)
def test_recurrent_gradients_of_a_long_text(op):
    """41 positions: every dh and dc passes 41 steps."""
    gates, n_states = RECURRENT[op]
    width, of_rec = 2, ([RNG.standard_normal(2)] if op is ops.gru else [])
    weights = [RNG.standard_normal(shape) for shape in ((3, gates * width), (width, gates * width), (gates * width,))]
    inputs = [RNG.standard_normal((2, 41, 3)), *weights, *of_rec, *RNG.standard_normal((n_states, 2, width))]
    report = check_gradients(op, *inputs, method="complex", tolerance=1e-11)
    assert report.ok, report


@pytest.mark.parametrize("op", RECURRENT)
def test_a_text_in_two_chunks_is_the_text(op):
    """Forward by the states that are handed on, backward by their gradients: every one of them counts."""
    gates, n_states = RECURRENT[op]
    width, of_rec = 2, ([RNG.standard_normal(2)] if op is ops.gru else [])
    weights = [RNG.standard_normal(shape) for shape in ((3, gates * width), (width, gates * width), (gates * width,))]
    weights += of_rec
    x, states = RNG.standard_normal((2, 50, 3)), list(RNG.standard_normal((n_states, 2, width)))
    (h, *last), backward = op(x, *weights, *states)
    (h1, *middle), backward1 = op(x[:, :20], *weights, *states)
    (h2, *last2), backward2 = op(x[:, 20:], *weights, *middle)
    for whole, chunks in ((h, np.concatenate([h1, h2], 1)), *zip(last, last2, strict=True)):
        np.testing.assert_allclose(whole, chunks, rtol=1e-12)
    dh, dlast = RNG.standard_normal(h.shape), list(RNG.standard_normal((n_states, 2, width)))
    dx, *dweights = backward(dh, *dlast)
    dx2, *dweights2 = backward2(dh[:, 20:], *dlast)
    dx1, *dweights1 = backward1(dh[:, :20], *dweights2[len(weights) :])
    np.testing.assert_allclose(dx, np.concatenate([dx1, dx2], 1), rtol=1e-9, atol=1e-12)
    for i, whole in enumerate(dweights):
        chunks = dweights1[i] + dweights2[i] if i < len(weights) else dweights1[i]
        np.testing.assert_allclose(whole, chunks, rtol=1e-9, atol=1e-12)


# Several chunks of a sparse product


def equal_rows_pattern(n_rows, n_cols, length):
    columns = np.sort(np.argsort(RNG.random((n_rows, n_cols)), 1)[:, :length], 1)
    return CSR(np.arange(n_rows + 1) * length, columns.reshape(-1), np.ones(n_rows * length), (n_rows, n_cols))


def assert_sparse_products_are_dense_ones(pattern, width):
    values, x = RNG.standard_normal(pattern.nnz), RNG.standard_normal((pattern.shape[1], width))
    rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    dense = np.zeros(pattern.shape)
    dense[rows, pattern.indices] = values
    y, backward = ops.sparse_matmul(values, x, pattern)
    np.testing.assert_allclose(y, dense @ x, rtol=1e-10, atol=1e-11)
    dy = RNG.standard_normal(y.shape)
    dvalues, dx = backward(dy)
    np.testing.assert_allclose(dvalues, (dy @ x.T)[rows, pattern.indices], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(dx, dense.T @ dy, rtol=1e-10, atol=1e-11)
    z = RNG.standard_normal((width, pattern.shape[0]))
    y, backward = ops.sparse_linear(z, values, pattern)
    np.testing.assert_allclose(y, z @ dense, rtol=1e-10, atol=1e-11)
    dy = RNG.standard_normal(y.shape)
    dz, dvalues = backward(dy)
    np.testing.assert_allclose(dz, dy @ dense.T, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(dvalues, (z.T @ dy)[rows, pattern.indices], rtol=1e-10, atol=1e-11)


def test_sparse_products_of_many_rows_of_one_length():
    """1,500 rows of 3 entries at width 80: what is gathered, 240 numbers a row, needs three chunks."""
    assert 2 * blocks.GATHERED < 1500 * 3 * 80 < 3 * blocks.GATHERED
    assert_sparse_products_are_dense_ones(equal_rows_pattern(1500, 400, 3), 80)


@pytest.mark.parametrize("length", [1, 3, 12])
@pytest.mark.parametrize("limit", [1, 7, 50])
def test_sparse_products_by_chunks_of_any_size(length, limit, monkeypatch):
    for name in ("BLOCK", "GATHERED", "FILLED"):
        monkeypatch.setattr(blocks, name, limit)
    assert_sparse_products_are_dense_ones(equal_rows_pattern(17, 30, length), 5)


# Far tails


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_and_softplus_keep_their_digits_far_below_zero(dtype):
    """Both are exp(x) there, until exp(−x) all but overflows, and the gradient of both is too."""
    lowest = -0.98 * math.log(np.finfo(dtype).max)
    x = np.linspace(lowest, math.log(np.finfo(dtype).eps) - 1, 200).astype(dtype)
    expected = np.exp(x.astype(np.float64))
    for op in (ops.sigmoid, ops.softplus):
        y, backward = op(x)
        for found in (y, *backward(np.ones_like(x))):
            np.testing.assert_allclose(found, expected, rtol=8 * np.abs(lowest) * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pointwise_tails_above_zero(dtype):
    x = np.array([40, 1e3, 1e6], dtype)
    for op, expected, slope in ((ops.softplus, x, 1), (ops.silu, x, 1), (ops.sigmoid, 1, 0), (ops.relu, x, 1)):
        y, backward = op(x)
        assert (y == expected).all()
        np.testing.assert_allclose(backward(np.ones_like(x))[0], slope, atol=1e-15)


def test_relu_has_slope_0_at_0():
    """The docstring's `1 if x > 0 else 0`; at −0.0 too."""
    _, backward = ops.relu(np.array([0.0, -0.0, 5e-324, -5e-324]))
    assert backward(np.ones(4))[0].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_a_target_far_below_the_others(dtype):
    """−ln p is the distance of the logits where exp of it is 0 long before."""
    logits = np.array([[0, -1000], [-30_000, 2], [0, -1e6]], dtype)
    losses, backward = ops.cross_entropies(logits, np.array([1, 0, 1]))
    assert losses.tolist() == [1000, 30_002, 1e6]
    assert backward(np.ones(3, dtype))[0].tolist() == [[1, -1], [-1, 1], [1, -1]]
    loss, _ = ops.cross_entropy(logits, np.array([1, 0, 1]))
    assert loss == pytest.approx((1000 + 30_002 + 1e6) / 3, rel=1e-6)


# Ties


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_expert_choice_ties_go_to_the_lowest_token(capacity):
    (weights, _, kept), _ = ops.expert_choice_gate(np.zeros((5, 3)), capacity)
    assert (kept == (np.arange(5) < capacity)[:, None]).all()
    assert ((weights > 0) == kept).all()


def test_ties_of_scores_go_to_the_lowest_expert_in_every_gate():
    """So does the second among equal ones, behind a better one."""
    z = np.array([[0.0] * 7, [0, 0, 0, 1, 0, 0, 0]])
    gates = [ops.top_k_gate(z, 2), ops.top_k_softmax(z, 2), ops.gshard_gate(z), ops.sigmoid_gate(z, 2)]
    gates += [ops.noisy_top_k_gate(z, z, 2), ops.sinkhorn_gate(z, 2, balanced=False)]
    for (_, indices, *_), _ in gates:
        assert indices.tolist() == [[0, 1], [3, 0]]
