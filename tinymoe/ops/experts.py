"""Experts: one small network per expert, each applied to the rows that were routed to it."""

import numpy as np

from ..sparse import CSR
from ..types import Array, Backward
from .pointwise import relu
from .sparse import grouped_sparse_linear


def grouped_linear(x: Array, weight: Array, counts: Array) -> tuple[Array, Backward]:
    """A different linear map for each group of consecutive rows.

        y_r = x_r W_e  for the rows r of expert e        dx_r = dy_r W_eᵀ,   dW_e = Σ_{r of e} x_rᵀ dy_r

    An expert without rows gets the product of (D, 0) and (0, F): a zero gradient, with no branch.

    x       (M, D)     rows grouped by expert
    weight  (E, D, F)
    counts  (E,)       int, rows per expert; they add up to M
    y       (M, F)

    Raises ValueError when the counts don't add up.
    Source: Gale et al. 2022 (MegaBlocks), §4; 《稀疏专家模型》 §2.2: each expert runs on its part of the input only.
    """
    ends = np.cumsum(counts).tolist()
    if ends[-1] != len(x):
        raise ValueError(f"the counts add up to {ends[-1]}, but there are {len(x)} rows")
    groups = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    y = np.empty((len(x), weight.shape[2]), np.result_type(x, weight))
    for rows, w in zip(groups, weight, strict=True):
        np.matmul(x[rows], w, out=y[rows])

    def backward(dy):
        dx = np.empty(x.shape, dy.dtype)
        dweight = np.empty(weight.shape, dy.dtype)
        for rows, w, dw in zip(groups, weight, dweight, strict=True):
            np.matmul(dy[rows], w.T, out=dx[rows])
            np.matmul(x[rows].T, dy[rows], out=dw)
        return dx, dweight

    return y, backward


def experts(x: Array, up, down, gate=None, *, counts, activation=relu) -> tuple[Array, Backward]:
    """Two-layer networks, or gated ones when `gate` is given. For the rows of expert e:

        y = h Down_e,   h = activation(u)        u = x Up_e                    (ReLU and GELU experts)
                        h = activation(g) ⊙ u    u = x Up_e,  g = x Gate_e     (SwiGLU experts: activation = silu)

        dh = dy Down_eᵀ        dDown_e = hᵀ dy        dUp_e = xᵀ du
        two layers:  du = dh ⊙ activation'(u)                                            dx = du Up_eᵀ
        gated:       du = dh ⊙ activation(g),   dg = dh ⊙ u ⊙ activation'(g)             dx = du Up_eᵀ + dg Gate_eᵀ
                     dGate_e = xᵀ dg

    x       (M, D)     rows grouped by expert
    up      (E, D, F)  or a `CSR` of shape (E·D, F), the experts' matrices below one another; its gradient is one too
    down    (E, F, D)  likewise
    gate    (E, D, F)  likewise, or None
    counts  (E,)       int, rows per expert
    y       (M, D)

    Source: Shazeer et al. 2017, §3.2 (ReLU); Shazeer 2020, eq. 6 (SwiGLU).
    """
    if gate is None:
        return _two_layers(x, up, down, counts, activation)
    u, up_back = _grouped(x, up, counts)  # 1
    g, gate_back = _grouped(x, gate, counts)  # 2
    a, activation_back = activation(g)  # 3
    h = a * u  # 4
    y, down_back = _grouped(h, down, counts)  # 5

    def backward(dy):  # read upwards
        dh, ddown = down_back(dy)  # 5
        (dg,) = activation_back(dh * u)  # 4 and 3
        dx_gate, dgate = gate_back(dg)  # 2
        dx_up, dup = up_back(dh * a)  # 4 and 1
        return dx_up + dx_gate, dup, ddown, dgate

    return y, backward


def _two_layers(x, up, down, counts, activation):
    u, up_back = _grouped(x, up, counts)  # 1
    h, activation_back = activation(u)  # 2
    y, down_back = _grouped(h, down, counts)  # 3

    def backward(dy):  # read upwards
        dh, ddown = down_back(dy)  # 3
        (du,) = activation_back(dh)  # 2
        dx, dup = up_back(du)  # 1
        return dx, dup, ddown

    return y, backward


def _grouped(x, weight, counts):
    """`grouped_linear`, with dense or sparse weights."""
    if not isinstance(weight, CSR):
        return grouped_linear(x, weight, counts)
    y, sparse_back = grouped_sparse_linear(x, weight.data, weight, counts)

    def backward(dy):
        dx, dvalues = sparse_back(dy)
        return dx, weight.with_data(dvalues)

    return y, backward
