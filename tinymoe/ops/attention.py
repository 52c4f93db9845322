"""Causal self-attention: each position takes a weighted mean of the values at and before it."""

import math

import numpy as np


def causal_attention(q, k, v):
    """Scaled dot-product attention with a causal mask and grouped key/value heads.

        s_ij = q_i · k_j / √P  for j ≤ i,  −∞ for j > i        a = softmax_j(s)        y_i = Σ_j a_ij v_j

        dv_j = Σ_i a_ij dy_i        da_ij = dy_i · v_j        ds_ij = a_ij (da_ij − δ_i)
        dq_i = Σ_j ds_ij k_j / √P   dk_j = Σ_i ds_ij q_i / √P,     δ_i = Σ_j da_ij a_ij = dy_i · y_i

    q  (B, H, T, P)
    k  (B, G, T, P)  G divides H: query head h reads key/value head ⌊h G/H⌋
    v  (B, G, T, P)
    y  (B, H, T, P)

    G = H is multi-head attention, G = 1 multi-query, between them grouped-query. Raises ValueError when G does
    not divide H.
    Source: Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (groups); Dao et al. 2022 (δ from y).
    """
    (B, H, T, P), G = q.shape, k.shape[1]
    if H % G:
        raise ValueError(f"{G} key/value heads do not divide {H} query heads")
    queries = q.reshape(B, G, H // G, T, P) / math.sqrt(P)
    keys, values = k[:, :, None], v[:, :, None]  # (B, G, 1, T, P)
    a = keys @ queries.swapaxes(-1, -2)  # (B, G, H/G, T, T), key j × query i: NumPy reduces down columns much faster
    a += np.tril(np.full((T, T), -np.inf, a.real.dtype), -1)  # keys after the query
    a -= a.real.max(-2, keepdims=True, initial=-np.inf)
    np.exp(a, out=a)
    a /= a.sum(-2, keepdims=True)
    y = a.swapaxes(-1, -2) @ values  # (B, G, H/G, T, P)

    def backward(dy):
        dy = dy.reshape(y.shape)
        dv = (a @ dy).sum(2)
        ds = values @ dy.swapaxes(-1, -2)
        ds -= np.vecdot(dy, y)[..., None, :]
        ds *= a
        dk = (ds @ queries).sum(2)
        dq = (ds.swapaxes(-1, -2) @ keys) / math.sqrt(P)
        return dq.reshape(q.shape), dk, dv

    return y.reshape(q.shape), backward
