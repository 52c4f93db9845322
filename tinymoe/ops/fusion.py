"""Where a picture meets text: joined to it as a prefix, or added to it.

A picture comes as R rows, one for each patch, that have the width of the text's rows already: where the two differ, a
projection comes first (`models/vision.py`).
"""

import numpy as np

from ..types import Array, Backward


def fuse_prefix(features: Array, text: Array) -> tuple[Array, Backward]:
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


def fuse_additive(features: Array, text: Array) -> tuple[Array, Backward]:
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
        dmean = dy.sum(1, keepdims=True)
        return np.broadcast_to(dmean / features.shape[1], features.shape).copy(), dy.copy()

    return y, backward


def text_rows(y: Array, rows) -> tuple[Array, Backward]:
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
