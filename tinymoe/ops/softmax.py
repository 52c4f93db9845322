"""Softmax and the losses built on it. All subtract the row's maximum first, so no exponential overflows."""

import numpy as np

from ..types import Array, Backward
from .masks import count


def softmax(x: Array) -> tuple[Array, Backward]:
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


def log_sum_exp(x: Array) -> tuple[Array, Backward]:
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


def cross_entropies(logits: Array, targets: Array, ignore_index=-100) -> tuple[Array, Backward]:
    """The negative log-probability of each row's target, in nats; 0 for ignored targets.

        loss_n = −ln p_n[target_n],   p = softmax(logits)        dlogits_n = dloss_n (p_n − onehot(target_n)),  0 where ignored

    logits   (N, V)
    targets  (N,)    int in [0, V), or `ignore_index`
    losses   (N,)

    Raises IndexError for any other target.
    """
    counted = targets != ignore_index
    if counted.any() and not 0 <= targets[counted].min() <= targets[counted].max() < logits.shape[1]:
        raise IndexError(
            f"targets span {targets[counted].min()} to {targets[counted].max()}; allowed are 0 to {logits.shape[1] - 1}, "
            f"one per column, and the ignored {ignore_index}"
        )
    target = np.arange(len(logits)), np.where(counted, targets, 0)  # row and column
    z = logits - logits.real.max(-1, keepdims=True)
    e = np.exp(z)  # 1
    total = e.sum(-1)  # 2  (N,)
    losses = np.where(counted, np.log(total) - z[target], 0)  # 3

    def backward(dlosses):  # read upwards
        dcounted = np.where(counted, dlosses, 0)  # 3
        dlogits = e * (dcounted / total)[:, None]  # 3 to 1, through the total
        dlogits[target] -= dcounted  # 3, at the target
        return (dlogits,)

    return losses, backward


def cross_entropy(logits: Array, targets: Array, ignore_index=-100) -> tuple[float, Backward]:
    """Mean negative log-probability of the targets, in nats; ignored targets count neither above nor below.

        loss = 1/n Σ_t loss_t,   the losses of `cross_entropies`,   n = number not ignored        dloss_t = dloss/n

    logits   (N, V)
    targets  (N,)    int in [0, V), or `ignore_index`
    loss     ()      0 if every target is ignored

    Raises IndexError for any other target.
    """
    losses, losses_back = cross_entropies(logits, targets, ignore_index)
    counted = targets != ignore_index
    n = count(counted)
    loss = losses[counted].sum() / n

    def backward(dloss):
        dlosses = np.full(losses.shape, dloss / n, losses.real.dtype)
        return losses_back(dlosses)

    return loss, backward
