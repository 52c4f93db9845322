"""Where two sequences meet: attention without a mask, and pictures joined to text as a prefix or as a sum.

A picture comes as R rows, one for each patch, that have the width of the text's rows already: where the two differ, a
projection comes first (`models/vision.py`).
"""

import math

import numpy as np


def full_attention(q, k, v):
    """Scaled dot-product attention in which every query sees every key; grouped key/value heads.

        s_ij = q_i · k_j / √P        a = softmax_j(s)        y_i = Σ_j a_ij v_j

        dv_j = Σ_i a_ij dy_i        da_ij = dy_i · v_j        ds_ij = a_ij (da_ij − δ_i)
        dq_i = Σ_j ds_ij k_j / √P   dk_j = Σ_i ds_ij q_i / √P,     δ_i = Σ_j da_ij a_ij = dy_i · y_i

    With q, k and v of one sequence it is the attention of an encoder, with k and v of another cross-attention. Nothing
    says where a key stands: keys and values in another order give the same y.

    q  (B, H, T, P)
    k  (B, G, S, P)  S keys; G divides H: query head h reads key/value head ⌊h G/H⌋
    v  (B, G, S, P)
    y  (B, H, T, P)  zeros where there are no keys

    Raises ValueError when G does not divide H.
    Source: Vaswani et al. 2017, eq. 1 and §3.2.3; Ainslie et al. 2023 (groups).
    """
    (B, H, T, P), G = q.shape, k.shape[1]
    if H % G:
        raise ValueError(f"{G} key/value heads do not divide {H} query heads")
    queries = q.reshape(B, G, H // G, T, P) / math.sqrt(P)
    keys, values = k[:, :, None], v[:, :, None]  # (B, G, 1, S, P)
    a = keys @ queries.swapaxes(-1, -2)  # (B, G, H/G, S, T), key j × query i, as in `causal_attention`
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


def fuse_prefix(features, text):
    """Put a picture's rows in front of the text's, so that causal attention lets the text see the picture.

        y = [features, text]        dfeatures = dy[:, :R],   dtext = dy[:, R:]

    features  (B, R, D)
    text      (B, T, D)
    y         (B, R+T, D)

    Raises ValueError unless there is one picture for each text, of its width.
    """
    _check_pairs(features, text)
    y = np.concatenate([features, text], 1)

    def backward(dy):
        rows = features.shape[1]
        return dy[:, :rows].copy(), dy[:, rows:].copy()

    return y, backward


def fuse_additive(features, text):
    """Add the mean of a picture's rows to every row of the text.

        y_bt = text_bt + 1/R Σ_r features_br        dfeatures_br = 1/R Σ_t dy_bt,   dtext = dy

    The document's combined_feature = image_feature + text_feature has a value only where both have one width, so both
    are projected to it first. The mean forgets which patch was which, but for what their positions left in them.

    features  (B, R, D)  R ≥ 1
    text      (B, T, D)
    y         (B, T, D)

    Raises ValueError unless there is one picture for each text, of its width, with a row at least.
    Source: 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §3.4.
    """
    _check_pairs(features, text)
    if not features.shape[1]:
        raise ValueError("the pictures have 0 rows each; a mean needs at least 1")
    y = text + features.mean(1, keepdims=True)

    def backward(dy):
        share = dy.sum(1, keepdims=True) / features.shape[1]
        return np.broadcast_to(share, features.shape).copy(), dy.copy()

    return y, backward


def text_rows(y, rows):
    """Take the text back from behind a prefix of R = `rows` rows.

        text = y[:, R:]        dy = [0, dtext]

    y     (B, R+T, D)
    text  (B, T, D)

    Raises ValueError unless 0 ≤ R ≤ R+T.
    """
    if not 0 <= rows <= y.shape[1]:
        raise ValueError(f"the prefix is said to have {rows} rows; it can have 0 to {y.shape[1]}, the length of y")
    text = y[:, rows:].copy()

    def backward(dtext):
        dy = np.zeros(y.shape, dtext.dtype)
        dy[:, rows:] = dtext
        return (dy,)

    return text, backward


def _check_pairs(features, text):
    if features.shape[::2] != text.shape[::2]:
        raise ValueError(
            f"features have shape {features.shape} and the text {text.shape}; both need one B and one D, "
            "(B, R, D) and (B, T, D)"
        )
