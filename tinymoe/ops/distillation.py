"""Learning from another model's probabilities instead of from the one token that happened to follow."""

import math

import numpy as np

from ..types import Array, Backward
from .masks import as_mask, count, without_padding
from .softmax import log_sum_exp


def distillation(logits: Array, *, teacher: Array, temperature=1.0, mask=None) -> tuple[float, Backward]:
    """How far the student's probabilities are from the teacher's, both softened by a temperature: mean over rows.

        loss = T²/n Σ_n KL(q_n ‖ p_n),     q = softmax(teacher/T),  p = softmax(logits/T),  n = number of real rows
        dlogits = dloss T/n (p − q)

    The teacher is a constant. Where it says −∞, q is 0 and adds nothing, since 0 ln 0 = 0. T > 1 brings out how it ranks
    the tokens that it thinks wrong. Without T² the gradient would shrink like 1/T², since p − q is about
    (logits − teacher)/(T V) for large T; with it the weight of this loss beside another keeps its meaning as T grows.
    The entropy of q, which cross-entropy with soft targets would leave in, is taken off: equal models have loss 0.

    logits   (N, V)
    teacher  (N, V)  logits too
    mask     (N,)    bool, False for padding, whose rows may hold NaN and get gradient 0; None if there is none
    loss     ()

    Raises ValueError for a temperature that is not positive and finite, or a teacher of another shape.
    Source: Hinton, Vinyals & Dean 2015, §2 and §2.1; 《稀疏专家模型》 §8.2 (知识蒸馏).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature is {temperature}; it must be positive and finite")
    if teacher.shape != logits.shape:
        raise ValueError(
            f"the teacher's logits have shape {teacher.shape}; they must have the student's, {logits.shape}"
        )
    real = as_mask(logits.shape[:1], mask)
    n = count(real)
    z, padding_back = without_padding(logits, real)  # zeros in both: equal, so no loss
    t, _ = without_padding(teacher.astype(logits.real.dtype, copy=False), real)
    log_p, log_q = (_log_softmax(scores / temperature) for scores in (z, t))
    p, q = np.exp(log_p), np.exp(log_q)
    ratio = np.subtract(log_q, log_p, out=np.zeros_like(log_p), where=q > 0)  # else 0 · −∞ where q is 0
    loss = temperature**2 / n * (q * ratio).sum()

    def backward(dloss):
        dz = dloss * temperature / n * (p - q)
        return padding_back(dz)

    return loss, backward


def _log_softmax(x):
    return x - log_sum_exp(x)[0][:, None]
