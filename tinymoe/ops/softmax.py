"""Softmax and the losses built on it. All subtract the row's maximum first, so no exponential overflows."""

import numpy as np

from ..types import Array, Backward
from .ids import check_ids
from .masks import count
from .read_only import read_only


def softmax(x: Array) -> tuple[Array, Backward]:
    """Turn each row of scores into probabilities.

        y_i = exp(x_i) / Σ_j exp(x_j)        dx = y ⊙ (dy − Σ_j dy_j y_j)

    A score of −∞ gets 0, and no gradient. A row of nothing but −∞ has no probabilities: NaN, and NumPy's warning.

    x  (N, E)
    y  (N, E)

    Raises ValueError for rows without a score.
    """
    y = np.exp(x - _largest(x))
    y /= y.sum(-1, keepdims=True)

    def backward(dy):
        return (y * (dy - (dy * y).sum(-1, keepdims=True)),)

    return read_only(y), backward


def log_sum_exp(x: Array) -> tuple[Array, Backward]:
    """The logarithm of the softmax's denominator, a smooth maximum.

        y = ln Σ_j exp(x_j)        dx = dy softmax(x)

    A row of nothing but −∞ gives NaN, as in `softmax`.

    x  (N, E)
    y  (N,)

    Raises ValueError for rows without a score.
    """
    top = _largest(x)
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

    Raises IndexError for any other target, ValueError for targets that are not one int for each row: one-hot rows are
    given by the column of their 1, `onehot.argmax(1)`.
    """
    if targets.shape != logits.shape[:1] or targets.dtype.kind not in "iu":
        raise ValueError(
            f"targets have shape {targets.shape} and type {targets.dtype}; they must be ints, one for each of the "
            f"{len(logits)} rows of logits"
        )
    counted = targets != ignore_index
    check_ids("targets", targets[counted], logits.shape[1], more=f", one per column, and the ignored {ignore_index}")
    target = np.arange(len(logits)), np.where(counted, targets, 0)  # row and column
    z = logits - _largest(logits)
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

    Raises IndexError for any other target, ValueError for targets that are not one int for each row.
    """
    losses, losses_back = cross_entropies(logits, targets, ignore_index)
    counted = targets != ignore_index
    n = count(counted)
    loss = losses[counted].sum() / n

    def backward(dloss):
        dlosses = np.full(losses.shape, dloss / n, losses.real.dtype)
        return losses_back(dlosses)

    return loss, backward


def _largest(x):
    """The maximum of each row, as a column (N, 1)."""
    if not x.shape[-1]:
        raise ValueError(f"x has shape {x.shape}; each row must have at least one score")
    return x.real.max(-1, keepdims=True)
