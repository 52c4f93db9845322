"""Attention: each query takes a weighted mean of the values, of those up to its own position or of all."""

import math

import numpy as np

from ..types import Array, Backward
from .read_only import read_only


def causal_attention(q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
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
    length = q.shape[2]
    return _attention(q, k, v, np.tril(np.full((length, length), -np.inf, q.real.dtype), -1))  # keys after the query


def full_attention(q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
    """Scaled dot-product attention in which every query sees every key; grouped key/value heads.

        s_ij = q_i · k_j / √P  for all j; the rest, and the gradients, as in `causal_attention`

    With q, k and v of one sequence it is the attention of an encoder, with k and v of another cross-attention. Nothing
    says where a key stands: keys and values in another order give the same y.

    q  (B, H, T, P)
    k  (B, G, S, P)  S keys; G divides H: query head h reads key/value head ⌊h G/H⌋
    v  (B, G, S, P)
    y  (B, H, T, P)  zeros where there are no keys

    Raises ValueError when G does not divide H.
    Source: Vaswani et al. 2017, eq. 1 and §3.2.3; Ainslie et al. 2023 (groups).
    """
    return _attention(q, k, v)


def _attention(q, k, v, mask=None):
    """The body of both. `mask` (S, T), where there is one, is added to the scores: −∞ hides key j from query i.

    Scores stand key × query, since NumPy reduces down columns much faster. They are the largest arrays of a long text,
    so that each step takes over the memory of the one before (`out=`).
    """
    (B, H, T, P), G = q.shape, k.shape[1]
    if H % G:
        raise ValueError(f"{G} key/value heads do not divide {H} query heads")
    keys, values = k[:, :, None], v[:, :, None]  # (B, G, 1, S, P)
    queries = q.reshape(B, G, H // G, T, P) / math.sqrt(P)  # 1
    s = keys @ queries.swapaxes(-1, -2)  # 2  (B, G, H/G, S, T)
    if mask is not None:
        s += mask
    s -= s.real.max(-2, keepdims=True, initial=-np.inf)
    e = np.exp(s, out=s)  # 3
    a = np.divide(e, e.sum(-2, keepdims=True), out=e)  # 3
    y = a.swapaxes(-1, -2) @ values  # 4  (B, G, H/G, T, P)

    def backward(dy):  # read upwards
        dy = dy.reshape(y.shape)
        dv = (a @ dy).sum(2)  # 4
        da = values @ dy.swapaxes(-1, -2)  # 4
        delta = np.vecdot(dy, y)[..., None, :]  # 3
        ds = np.multiply(a, np.subtract(da, delta, out=da), out=da)  # 3
        dk = (ds @ queries).sum(2)  # 2
        dq = (ds.swapaxes(-1, -2) @ keys) / math.sqrt(P)  # 2 and 1
        return dq.reshape(q.shape), dk, dv

    return read_only(y.reshape(q.shape)), backward
