"""Normalisation of rows: to mean square 1 (RMS norm), or to mean 0 and variance 1 (layer norm)."""

import numpy as np


def rms_norm(x, gain, eps=1e-6):
    """Scale each row to root-mean-square 1, then by a learned gain.

        n = x s,   s = 1 / √(mean(x²) + eps)        y = n ⊙ gain
        dx = s (dn − n mean(dn ⊙ n)),   dn = dy ⊙ gain        dgain = Σ_rows dy ⊙ n

    x     (N, D)
    gain  (D,)
    y     (N, D)

    Source: Zhang & Sennrich 2019, eq. 4.
    """
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)  # (N, 1)
    n = x * scale
    y = n * gain

    def backward(dy):
        dn = dy * gain
        dx = dn - n * (np.vecdot(dn, n) / n.shape[-1])[:, None]  # dn less its part along n
        dx *= scale
        return dx, (dy * n).sum(0)

    return y, backward


def layer_norm(x, gain, bias, eps=1e-5):
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
    centred = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)  # (N, 1)
    n = centred * scale
    y = n * gain + bias

    def backward(dy):
        dn = dy * gain
        dx = dn - dn.mean(-1, keepdims=True) - n * (np.vecdot(dn, n) / n.shape[-1])[:, None]
        dx *= scale
        return dx, (dy * n).sum(0), dy.sum(0)

    return y, backward
