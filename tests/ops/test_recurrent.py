"""Recurrent networks: gradients, numbers by hand, chunks, and how far a gradient reaches."""

import numpy as np
import pytest

from tinymoe.check.trials import recurrent
from tinymoe.gradcheck import check_gradients
from tinymoe.ops import sigmoid
from tinymoe.ops.recurrent import gru, lstm, rnn

RNG = np.random.default_rng(21)
CASES = list(recurrent.trials(RNG))
GATES = {rnn: 1, gru: 3, lstm: 4}
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_network = pytest.mark.parametrize("op", GATES)


def draw(op, B=3, T=7, D=2, H=4, dtype=np.float64):
    """(x, weights, states) of a network."""
    shapes = [(D, GATES[op] * H), (H, GATES[op] * H), (GATES[op] * H,), *([(H,)] if op is gru else [])]
    weights = [RNG.standard_normal(shape).astype(dtype) for shape in shapes]
    states = [RNG.standard_normal((B, H)).astype(dtype) for _ in range(2 if op is lstm else 1)]
    return RNG.standard_normal((B, T, D)).astype(dtype), weights, states


@every_case
def test_gradient_by_central_differences(case):
    report = check_gradients(case.operation, *case.inputs)
    assert report.ok, report


@every_case
def test_gradient_by_complex_step(case):
    report = check_gradients(case.operation, *case.inputs, method="complex", tolerance=1e-12)
    assert report.ok, report


def one_step(op, x, weights, states):
    """One position of one sequence, from the formulas, gate by gate."""
    w_in, w_rec, bias, *bias_rec = weights
    W, U, b = (np.split(a, GATES[op], axis=-1) for a in (w_in, w_rec, bias))
    h, *c = states
    a = [x @ w + v for w, v in zip(W, b, strict=True)]
    u = [h @ w for w in U]
    if op is rnn:
        return [np.tanh(a[0] + u[0])]
    first, second = sigmoid(a[0] + u[0])[0], sigmoid(a[1] + u[1])[0]
    if op is gru:
        new = np.tanh(a[2] + first * (u[2] + bias_rec[0]))
        return [(1 - second) * new + second * h]
    cell = second * c[0] + first * np.tanh(a[2] + u[2])
    return [sigmoid(a[3] + u[3])[0] * np.tanh(cell), cell]


@every_network
def test_a_sequence_is_its_steps_one_after_the_other(op):
    x, weights, states = draw(op)
    (y, *last), _ = op(x, *weights, *states)
    for b in range(len(x)):
        carried = [s[b] for s in states]
        for t in range(x.shape[1]):
            carried = one_step(op, x[b, t], weights, carried)
            np.testing.assert_allclose(y[b, t], carried[0], rtol=1e-12)
        for one, other in zip(last, carried, strict=True):
            np.testing.assert_allclose(one[b], other, rtol=1e-12)


@pytest.mark.parametrize("ends", [[3], [1, 2, 6], [0, 7], [4, 4]], ids=str)
@every_network
def test_chunks_with_a_carried_state_are_the_whole(op, ends):
    """Forward the chunks hand on the state, backward its gradient; the weights' gradients add up."""
    x, weights, states = draw(op)
    whole, whole_back = op(x, *weights, *states)
    dstates, *dlast = [RNG.standard_normal(y.shape) for y in whole]
    dx, *dweights_and_states = whole_back(dstates, *dlast)

    parts, backs = [], []
    for chunk in np.split(x, ends, 1):
        (y, *states), back = op(chunk, *weights, *states)
        parts.append(y)
        backs.append(back)
    for one, other in zip((np.concatenate(parts, 1), *states), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)  # BLAS may round fewer rows otherwise

    dxs: list[np.ndarray] = []
    total = [0] * len(weights)
    for back, dy in zip(reversed(backs), reversed(np.split(dstates, ends, 1)), strict=True):
        dchunk, *gradients = back(dy, *dlast)
        dweights, dlast = gradients[: len(weights)], gradients[len(weights) :]
        total = [a + b for a, b in zip(total, dweights, strict=True)]
        dxs.insert(0, dchunk)
    for one, other in zip((np.concatenate(dxs, 1), *total, *dlast), (dx, *dweights_and_states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@every_network
def test_no_position_sees_a_later_one_and_no_sequence_another(op):
    x, weights, states = draw(op)
    (y, *_), backward = op(x, *weights, *states)
    changed = x.copy()
    changed[1, 4:] += 1
    (other, *_), _ = op(changed, *weights, *states)
    same = np.ones(y.shape, bool)
    same[1, 4:] = False
    np.testing.assert_array_equal(other == y, same)
    dy = np.zeros(y.shape)
    dy[1, 4] = 1
    dx, *_ = backward(dy, *np.zeros((len(states), *states[0].shape)))
    seen = np.zeros(x.shape, bool)
    seen[1, :5] = True
    np.testing.assert_array_equal(dx != 0, seen)


@every_network
def test_no_positions_leave_the_state_and_pass_its_gradient(op):
    x, weights, states = draw(op, T=0)
    (y, *last), backward = op(x, *weights, *states)
    assert y.shape == (3, 0, 4)
    dlast = [RNG.standard_normal(s.shape) for s in states]
    dx, *gradients = backward(y, *dlast)
    assert dx.shape == x.shape
    assert not any(g.any() for g in gradients[: len(weights)])
    for one, other in zip((*last, *gradients[len(weights) :]), (*states, *dlast), strict=True):
        np.testing.assert_array_equal(one, other)


@every_network
def test_float32_stays(op):
    x, weights, states = draw(op, dtype=np.float32)
    outputs, backward = op(x, *weights, *states)
    assert {a.dtype for a in (*outputs, *backward(*outputs))} == {np.dtype(np.float32)}


@every_network
def test_inputs_of_any_size_do_not_overflow(op):
    x, weights, states = draw(op)
    outputs, backward = op(1e6 * x, *weights, *states)
    assert all(np.isfinite(a).all() for a in (*outputs, *backward(*outputs)))


def test_networks_without_weights_by_hand():
    """All weights 0: gates are ½, nothing new comes in, and what was there halves at every position."""
    x = RNG.standard_normal((1, 3, 2))
    (y, last), _ = rnn(x, np.zeros((2, 1)), np.zeros((1, 1)), np.array([0.5]), np.ones((1, 1)))
    np.testing.assert_allclose(y[0, :, 0], np.tanh(0.5))
    (y, last), _ = gru(x, np.zeros((2, 3)), np.zeros((1, 3)), np.zeros(3), np.zeros(1), np.ones((1, 1)))
    np.testing.assert_allclose(y[0, :, 0], [0.5, 0.25, 0.125])
    assert last == y[:, -1]
    (y, last, cell), _ = lstm(x, np.zeros((2, 4)), np.zeros((1, 4)), np.zeros(4), np.ones((1, 1)), np.ones((1, 1)))
    np.testing.assert_allclose(y[0, :, 0], 0.5 * np.tanh([0.5, 0.25, 0.125]))
    assert last == y[:, -1]
    assert cell == 0.125


def test_the_reset_gate_acts_after_the_product():
    """One position, r = (0, 1), z = 0: h = tanh(r ⊙ (h U)), and not tanh((r ⊙ h) U) as in the paper."""
    h0, U = np.array([[0.5, -1.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    w_rec = np.hstack([np.zeros((2, 4)), U])
    bias = np.array([-99.0, 99, -99, -99, 0, 0])
    (_, last), _ = gru(np.zeros((1, 1, 1)), np.zeros((1, 6)), w_rec, bias, np.zeros(2), h0)
    np.testing.assert_allclose(last, np.tanh([[0, 0.5 * 2 - 4]]), atol=1e-40)  # the paper's: tanh([−3, −4])


def reach(op, T, w_rec, bias):
    """‖∂h_T/∂s_0‖, the largest singular value, with s the state of `rnn` and `gru` and the cell of `lstm`.

    H copies of one sequence, and the unit vectors as dlast: backward returns the Jacobian row by row.
    """
    H = len(w_rec)
    x = np.tile(np.random.default_rng(5).standard_normal((1, T, 3)), (H, 1, 1))
    w_in = 0.3 * np.random.default_rng(6).standard_normal((3, GATES[op] * H))
    weights, zeros = [w_in, w_rec, bias, *([np.zeros(H)] if op is gru else [])], np.zeros((H, H))
    (y, *last), backward = op(x, *weights, *[zeros] * (2 if op is lstm else 1))
    rest = [zeros] * (len(last) - 1)
    return np.linalg.norm(backward(np.zeros(y.shape), np.eye(H), *rest)[-1], 2)


def test_how_far_a_gradient_reaches():
    """The gradient of a simple network dies away exponentially; with open forget gates that of an LSTM stays."""
    H, lengths = 8, (10, 20, 40, 80)
    rotation = np.linalg.qr(np.random.default_rng(7).standard_normal((H, H)))[0]  # all singular values 1
    simple = [reach(rnn, T, 0.5 * rotation, np.zeros(H)) for T in lengths]
    assert all(norm <= 0.5**T for norm, T in zip(simple, lengths, strict=True))
    assert simple[-1] > 0  # so small, and yet no underflow to 0

    small = np.tile(0.1 * rotation, 4)

    def forget(b):
        return [reach(lstm, T, small, np.repeat([0, b, 0, 0], H)) for T in lengths]

    open_gates, even_gates = forget(6.0), forget(0.0)
    assert min(open_gates) > 0.5 * open_gates[0]
    assert even_gates[-1] < 1e-10 * even_gates[0]

    kept = [reach(gru, T, small[:, : 3 * H], np.repeat([0, b, 0], H)) for b in (6.0, 0.0) for T in lengths]
    assert kept[3] > 0.5 * kept[0]
    assert kept[7] < 1e-10 * kept[4]


def test_the_reach_of_a_simple_network_is_the_product_of_its_steps():
    T, H = 6, 5
    x, (w_in, w_rec, bias), _ = draw(rnn, B=1, T=T, H=H)
    (y, _), backward = rnn(np.tile(x, (H, 1, 1)), w_in, w_rec, bias, np.zeros((H, H)))
    steps = [w_rec * (1 - y[0, t] ** 2) for t in range(T)]  # ∂h_t/∂h_t−1, for rows
    dh0 = backward(np.zeros(y.shape), np.eye(H))[-1]
    np.testing.assert_allclose(dh0.T, np.linalg.multi_dot(steps), rtol=1e-10)


@every_network
def test_shapes_that_do_not_fit_are_refused(op):
    x, weights, states = draw(op)
    for place in {*range(len(weights) + len(states))} - {1}:  # the width of the state is read off w_rec
        wrong = [*weights, *states]
        wrong[place] = wrong[place][:1]  # most of them would broadcast
        with pytest.raises(ValueError, match=r"has shape \(1,"):
            op(x, *wrong)
    with pytest.raises(ValueError, match="three axes"):
        op(x[0], *weights, *states)
    with pytest.raises(ValueError, match=r"h0 has shape \(3, 4\); for x \(7, 3, 2\)"):
        op(x.swapaxes(0, 1), *weights, *states)
