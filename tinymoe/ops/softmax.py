"""Softmax and the losses built on it. All subtract the row's maximum first, so no input overflows."""

import numpy as np


def softmax(x):
    """Turn each row of scores into probabilities.

        y_i = exp(x_i) / Σ_j exp(x_j)        dx = y ⊙ (dy − Σ_j dy_j y_j)

    x  (N, E)
    y  (N, E)
    """
    y = np.exp(x - x.real.max(-1, keepdims=True))
    y /= y.sum(-1, keepdims=True)

    def backward(dy):
        return (y * (dy - (dy * y).sum(-1, keepdims=True)),)

    return y, backward


def log_sum_exp(x):
    """The logarithm of the softmax's denominator, a smooth maximum.

        y = ln Σ_j exp(x_j)        dx = dy softmax(x)

    x  (N, E)
    y  (N,)
    """
    top = x.real.max(-1, keepdims=True)
    e = np.exp(x - top)
    total = e.sum(-1, keepdims=True)  # (N, 1)
    y = (top + np.log(total))[:, 0]

    def backward(dy):
        return (dy[:, None] * e / total,)

    return y, backward


def cross_entropy(logits, targets, ignore_index=-100):
    """Mean negative log-probability of the targets, in nats; ignored targets count neither above nor below.

        loss = −1/n Σ_{t not ignored} ln p_t[target_t],   p = softmax(logits),   n = number not ignored
        dlogits_t = dloss/n (p_t − onehot(target_t)),  0 where ignored

    logits   (N, V)
    targets  (N,)    int in [0, V), or `ignore_index`
    loss     ()      0 if every target is ignored

    Raises IndexError for any other target.
    """
    rows = np.flatnonzero(targets != ignore_index)
    columns = targets[rows]
    if rows.size and not 0 <= columns.min() <= columns.max() < logits.shape[1]:
        raise IndexError(
            f"targets span {columns.min()} to {columns.max()}; allowed are 0 to {logits.shape[1] - 1} "
            f"and the ignored {ignore_index}"
        )
    n = max(rows.size, 1)
    z = logits - logits.real.max(-1, keepdims=True)
    e = np.exp(z)
    total = e.sum(-1)  # (N,)
    loss = (np.log(total[rows]) - z[rows, columns]).sum() / n

    def backward(dloss):
        share = np.zeros_like(total)  # (N,) what one row's loss weighs in the mean
        share[rows] = dloss / n
        dlogits = e * (share / total)[:, None]
        dlogits[rows, columns] -= share[rows]
        return (dlogits,)

    return loss, backward
