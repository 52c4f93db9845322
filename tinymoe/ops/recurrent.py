"""Recurrent networks: read a sequence one position at a time and carry a state of fixed size along.

Each operation takes whole sequences and runs the loop over time itself, forward and, in `backward`, back through time.
The product with the input needs no state and is taken for all positions at once; of the products only the small one
with the previous state stays in the loop. Inside, time is the first axis, so that what a step needs lies together.
Formulas count positions from 1, arrays from 0: h[0] is the state that the caller passes in, h[t + 1] what the position
with inputs a[t] makes of h[t], and h[T] is handed back.

The state is an input and an output, both with a gradient. Long texts can be read in chunks that hand it on; the
chunks' backwards, chained from the last to the first, give the gradient of the whole.

H is the width of the state here. Gates stand side by side in the columns of the weights, in the order of
`torch.nn`, whose weights are the transposes of these.
"""

import numpy as np

from ..types import Array, Backward
from .linear import linear
from .pointwise import sigmoid
from .read_only import read_only


def rnn(x: Array, w_in: Array, w_rec: Array, bias: Array, h0: Array) -> tuple[tuple[Array, Array], Backward]:
    """The simple recurrent network.

        h_t = tanh(a_t),   a_t = x_t W + h_t−1 U + b
        backwards in time, from dh = dlast:
            dh += dstates_t        da_t = dh ⊙ (1 − h_t²)        dh = da_t Uᵀ, the gradient of h_t−1
        dx_t = da_t Wᵀ,   dW = Σ_t x_tᵀ da_t,   dU = Σ_t h_t−1ᵀ da_t,   db = Σ_t da_t,   dh0 = the last dh

    Each step back multiplies dh by the slope of tanh and by Uᵀ. When the singular values of U are below 1 it dies away
    exponentially, which `gru` and `lstm` are made against.

    x       (B, T, D)
    w_in    (D, H)     W
    w_rec   (H, H)     U
    bias    (H,)
    h0      (B, H)     the state before the first position; zeros at the start of a text
    states  (B, T, H)  the state after each position
    last    (B, H)     the state after the last one, h0 of the next chunk

    Raises ValueError when the shapes don't fit together.
    Source: Elman 1990; Werbos 1990 (back through time); the untitled document on the 稀疏门控 (sparse gate), §2.1;
    《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §2.
    """
    _check_shapes(1, x, w_in, w_rec, bias, h0=h0)
    a, input_back = _input_product(x, w_in, bias)
    h = np.empty((len(a) + 1, *h0.shape), np.result_type(a, w_rec, h0))
    h[0] = h0
    for t in range(len(a)):
        h[t + 1] = np.tanh(a[t] + h[t] @ w_rec)

    def backward(dstates, dlast):
        da = np.empty(a.shape, dlast.dtype)
        dh = dlast.copy()  # where there are no positions, it is dh0
        for t in reversed(range(len(a))):
            dh = dh + dstates[:, t]
            da[t] = dh * (1 - h[t + 1] * h[t + 1])
            dh = da[t] @ w_rec.T
        dx, dw_in, dbias = input_back(da)
        return dx, dw_in, _over_time(h[:-1], da), dbias, dh

    return (read_only(h[1:].swapaxes(0, 1)), read_only(h[-1])), backward


def gru(
    x: Array, w_in: Array, w_rec: Array, bias: Array, bias_rec: Array, h0: Array
) -> tuple[tuple[Array, Array], Backward]:
    """The gated recurrent unit: a gate per channel decides how much of the old state stays.

        r = sigmoid(x_t W_r + b_r + h_t−1 U_r)        reset: how much of the old state the new one sees
        z = sigmoid(x_t W_z + b_z + h_t−1 U_z)        update: how much of the old state stays
        m = h_t−1 U_n + c
        n = tanh(x_t W_n + b_n + r ⊙ m)               the new state
        h_t = (1 − z) ⊙ n + z ⊙ h_t−1

        backwards in time, from dh = dlast:
            dh += dstates_t
            da_n = dh ⊙ (1 − z) ⊙ (1 − n²)            dm = da_n ⊙ r
            da_r = da_n ⊙ m ⊙ r ⊙ (1 − r)             da_z = dh ⊙ (h_t−1 − n) ⊙ z ⊙ (1 − z)
            dh = dh ⊙ z + [da_r, da_z, dm] Uᵀ, the gradient of h_t−1
        dW, db and dx from [da_r, da_z, da_n];   dU = Σ_t h_t−1ᵀ [da_r, da_z, dm],   dc = Σ_t dm

    This is the form of cuDNN and of `torch.nn.GRU`: r acts after the product with U_n, so that one product serves all
    three, and that product has a bias c of its own. In the paper r acts before, (r ⊙ h_t−1) U_n, another function.
    Others swap z and 1 − z (Chung et al. 2014).

    x         (B, T, D)
    w_in      (D, 3H)    W = [W_r, W_z, W_n]
    w_rec     (H, 3H)    U = [U_r, U_z, U_n]
    bias      (3H,)      b = [b_r, b_z, b_n]
    bias_rec  (H,)       c
    h0        (B, H)     the state before the first position; zeros at the start of a text
    states    (B, T, H)  the state after each position
    last      (B, H)     the state after the last one, h0 of the next chunk

    Raises ValueError when the shapes don't fit together.
    Source: Cho et al. 2014, eq. 5–8; 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §2.
    """
    _check_shapes(3, x, w_in, w_rec, bias, bias_rec, h0=h0)
    a, input_back = _input_product(x, w_in, bias)
    dtype = np.result_type(a, w_rec, bias_rec, h0)
    h = np.empty((len(a) + 1, *h0.shape), dtype)
    r, z, n, m = np.empty((4, len(a), *h0.shape), dtype)
    h[0] = h0
    for t in range(len(a)):
        (a_r, a_z, a_n), (u_r, u_z, u_n) = np.split(a[t], 3, 1), np.split(h[t] @ w_rec, 3, 1)
        r[t], z[t], m[t] = sigmoid(a_r + u_r)[0], sigmoid(a_z + u_z)[0], u_n + bias_rec
        n[t] = np.tanh(a_n + r[t] * m[t])
        h[t + 1] = n[t] + z[t] * (h[t] - n[t])

    def backward(dstates, dlast):
        da, du = np.empty((2, *a.shape), dlast.dtype)  # of x W + b and of h U + [0, 0, c]
        dh = dlast.copy()  # where there are no positions, it is dh0
        for t in reversed(range(len(a))):
            dh = dh + dstates[:, t]
            da_n = dh * (1 - z[t]) * (1 - n[t] * n[t])
            da_r = da_n * m[t] * r[t] * (1 - r[t])
            da_z = dh * (h[t] - n[t]) * z[t] * (1 - z[t])
            np.concatenate([da_r, da_z, da_n], 1, out=da[t])
            np.concatenate([da_r, da_z, da_n * r[t]], 1, out=du[t])
            dh = dh * z[t] + du[t] @ w_rec.T
        dx, dw_in, dbias = input_back(da)
        dbias_rec = du[:, :, -len(w_rec) :].sum((0, 1))
        return dx, dw_in, _over_time(h[:-1], du), dbias, dbias_rec, dh

    return (read_only(h[1:].swapaxes(0, 1)), read_only(h[-1])), backward


def lstm(
    x: Array, w_in: Array, w_rec: Array, bias: Array, h0: Array, c0: Array
) -> tuple[tuple[Array, Array, Array], Backward]:
    """Long short-term memory: a cell c that is added to, so that its gradient passes a step unchanged where f = 1.

        [a_i, a_f, a_g, a_o] = x_t W + h_t−1 U + b
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)        input, forget and output gate
        g = tanh(a_g)                                             what may be added
        c_t = f ⊙ c_t−1 + i ⊙ g
        h_t = o ⊙ q,   q = tanh(c_t)

        backwards in time, from dh = dlast, dc = dcell:
            dh += dstates_t        dc += dh ⊙ o ⊙ (1 − q²)
            da_i = dc ⊙ g ⊙ i ⊙ (1 − i)               da_f = dc ⊙ c_t−1 ⊙ f ⊙ (1 − f)
            da_g = dc ⊙ i ⊙ (1 − g²)                  da_o = dh ⊙ q ⊙ o ⊙ (1 − o)
            dh = da Uᵀ,   dc = dc ⊙ f, the gradients of h_t−1 and c_t−1
        dx_t = da_t Wᵀ,   dW = Σ_t x_tᵀ da_t,   dU = Σ_t h_t−1ᵀ da_t,   db = Σ_t da_t

    Gates don't look at the cell (no peepholes). b_f well above 0 at the start keeps f near 1 and the memory long.
    `torch.nn.LSTM` has two biases and uses their sum, b.

    x       (B, T, D)
    w_in    (D, 4H)    W = [W_i, W_f, W_g, W_o]
    w_rec   (H, 4H)    U = [U_i, U_f, U_g, U_o]
    bias    (4H,)      b = [b_i, b_f, b_g, b_o]
    h0      (B, H)     the state before the first position; zeros at the start of a text
    c0      (B, H)     the cell before the first position; likewise
    states  (B, T, H)  the state h after each position
    last    (B, H)     the state after the last one, h0 of the next chunk
    cell    (B, H)     the cell after the last one, c0 of the next chunk

    Raises ValueError when the shapes don't fit together.
    Source: Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000 (the forget gate);
    《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §2.
    """
    _check_shapes(4, x, w_in, w_rec, bias, h0=h0, c0=c0)
    a, input_back = _input_product(x, w_in, bias)
    dtype = np.result_type(a, w_rec, h0, c0)
    h, c = np.empty((2, len(a) + 1, *h0.shape), dtype)
    i, f, g, o, q = np.empty((5, len(a), *h0.shape), dtype)
    h[0], c[0] = h0, c0
    for t in range(len(a)):
        a_i, a_f, a_g, a_o = np.split(a[t] + h[t] @ w_rec, 4, 1)
        i[t], f[t], g[t], o[t] = sigmoid(a_i)[0], sigmoid(a_f)[0], np.tanh(a_g), sigmoid(a_o)[0]
        c[t + 1] = f[t] * c[t] + i[t] * g[t]
        q[t] = np.tanh(c[t + 1])
        h[t + 1] = o[t] * q[t]

    def backward(dstates, dlast, dcell):
        da = np.empty(a.shape, dlast.dtype)
        dh, dc = dlast.copy(), dcell.copy()  # where there are no positions, they are dh0 and dc0
        for t in reversed(range(len(a))):
            dh = dh + dstates[:, t]
            dc = dc + dh * o[t] * (1 - q[t] * q[t])
            da_i = dc * g[t] * i[t] * (1 - i[t])
            da_f = dc * c[t] * f[t] * (1 - f[t])
            da_g = dc * i[t] * (1 - g[t] * g[t])
            da_o = dh * q[t] * o[t] * (1 - o[t])
            np.concatenate([da_i, da_f, da_g, da_o], 1, out=da[t])
            dh, dc = da[t] @ w_rec.T, dc * f[t]
        dx, dw_in, dbias = input_back(da)
        return dx, dw_in, _over_time(h[:-1], da), dbias, dh, dc

    return (read_only(h[1:].swapaxes(0, 1)), read_only(h[-1]), read_only(c[-1])), backward


def _input_product(x, weight, bias):
    """x W + b at all positions in one product; x (B, T, D), the result (T, B, F): time first."""
    by_time = np.ascontiguousarray(x.swapaxes(0, 1))
    y, linear_back = linear(by_time.reshape(-1, x.shape[2]), weight, bias)

    def backward(dy):
        dx, dweight, dbias = linear_back(dy.reshape(-1, dy.shape[2]))
        return dx.reshape(by_time.shape).swapaxes(0, 1), dweight, dbias

    return y.reshape(*by_time.shape[:2], weight.shape[1]), backward


def _over_time(h, da):
    """Σ_t h_tᵀ da_t as one product; h (T, B, H), da (T, B, F), the result (H, F)."""
    return h.reshape(-1, h.shape[2]).T @ da.reshape(-1, da.shape[2])


def _check_shapes(gates, x, w_in, w_rec, bias, bias_rec=None, **states):
    """Said here, since broadcasting lets some through that are wrong, such as one h0 for all sequences."""
    if x.ndim != 3:
        raise ValueError(f"x has shape {x.shape}; it must have three axes, (B, T, D)")
    (B, _, D), H = x.shape, len(w_rec)
    needed = [("w_in", w_in, (D, gates * H)), ("w_rec", w_rec, (H, gates * H)), ("bias", bias, (gates * H,))]
    needed += [] if bias_rec is None else [("bias_rec", bias_rec, (H,))]
    needed += [(name, state, (B, H)) for name, state in states.items()]
    for name, array, shape in needed:
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; for x {x.shape} and a state of width {H} it is {shape}")
