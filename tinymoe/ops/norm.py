"""Normalisation of rows: to mean square 1 (RMS norm), or to mean 0 and variance 1 (layer norm)."""

import numpy as np

from ..types import Array, Backward


def rms_norm(x: Array, gain: Array, eps=1e-6) -> tuple[Array, Backward]:
    """Scale each row to root-mean-square 1, then by a learned gain.

        n = x s,   s = 1 / √(mean(x²) + eps)        y = n ⊙ gain
        dx = s (dn − n mean(dn ⊙ n)),   dn = dy ⊙ gain        dgain = Σ_rows dy ⊙ n

    x     (N, D)
    gain  (D,)
    y     (N, D)

    Source: Zhang & Sennrich 2019, eq. 4.
    """
    s = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)  # 1  (N, 1)
    n = x * s  # 2
    y = n * gain  # 3

    def backward(dy):  # read upwards
        dgain = (dy * n).sum(0)  # 3
        dn = dy * gain  # 3
        dx = s * (dn - n * (np.vecdot(dn, n) / n.shape[-1])[:, None])  # 2 and 1: dn less its part along n
        return dx, dgain

    return y, backward


def layer_norm(x: Array, gain: Array, bias: Array, eps=1e-5) -> tuple[Array, Backward]:
    """Shift and scale each row to mean 0 and variance 1, then by a learned gain and bias.

        n = (x − mean(x)) s,   s = 1 / √(var(x) + eps)        y = n ⊙ gain + bias
        dx = s (dn − mean(dn) − n mean(dn ⊙ n)),   dn = dy ⊙ gain
        dgain = Σ_rows dy ⊙ n,   dbias = Σ_rows dy

    x     (N, D)
    gain  (D,)
    bias  (D,)
    y     (N, D)

    Source: Ba, Kiros & Hinton 2016, eq. 4; the variance divides by D.
    """
    centred = x - x.mean(-1, keepdims=True)  # 1
    s = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)  # 2  (N, 1)
    n = centred * s  # 3
    y = n * gain + bias  # 4

    def backward(dy):  # read upwards
        dgain, dbias = (dy * n).sum(0), dy.sum(0)  # 4
        dn = dy * gain  # 4
        dx = s * (dn - dn.mean(-1, keepdims=True) - n * (np.vecdot(dn, n) / n.shape[-1])[:, None])  # 3 to 1
        return dx, dgain, dbias

    return y, backward
