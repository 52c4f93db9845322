"""The likelihood of a mixture of experts, and the losses of single rows that it is made of.

Experts that are trained on their weighted mean learn to make up for each other's errors. Here each expert answers on its
own, and those that answer well are made responsible for more: they divide the task among them.
"""

import numpy as np


def half_squared_errors(outputs, targets):
    """Half the squared distance of each row from its target: −ln of a normal density of variance 1, less a constant.

        loss_m = ½ Σ_c (targets_mc − outputs_mc)²
        doutputs = dloss (outputs − targets)        dtargets = −doutputs

    outputs  (M, C)
    targets  (M, C)
    losses   (M,)

    Source: Jacobs, Jordan, Nowlan & Hinton 1991, the loss of one expert in the final error function.
    """
    off = outputs - targets
    losses = (off * off).sum(1) / 2

    def backward(dlosses):
        doutputs = dlosses[:, None] * off
        return doutputs, -doutputs

    return losses, backward


def cross_entropies(logits, targets):
    """The negative log-probability of each row's target, in nats: `cross_entropy` before the mean.

        loss_m = −ln p_m[target_m],   p = softmax(logits)        dlogits_m = dloss_m (p_m − onehot(target_m))

    logits   (M, C)
    targets  (M,)    int in [0, C)
    losses   (M,)

    Raises IndexError for any other target.
    """
    if targets.size and not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        raise IndexError(
            f"targets span {targets.min()} to {targets.max()}; allowed are 0 to {logits.shape[1] - 1}, one per column"
        )
    rows = np.arange(len(logits))
    z = logits - logits.real.max(1, keepdims=True)
    e = np.exp(z)
    total = e.sum(1)  # (M,)
    losses = np.log(total) - z[rows, targets]

    def backward(dlosses):
        dlogits = e * (dlosses / total)[:, None]
        dlogits[rows, targets] -= dlosses
        return (dlogits,)

    return losses, backward


def mixture_likelihood(scores, losses):
    """The negative log-likelihood of a mixture: one of the experts made the row, chosen by the gate before it is seen.

        L = −1/N Σ_n ln Σ_j p_nj exp(−loss_nj),   p = softmax(scores)              what the gate believed: the prior
        h_nj = p_nj exp(−loss_nj) / Σ_i p_ni exp(−loss_ni) = softmax(scores − losses)    who did it: the posterior
        dscores = dL/N (p − h)        dlosses = dL/N h

    The gate moves towards the experts whose loss was small; an expert learns a row as far as it is responsible for it.
    K is 1: p = h = 1, and the gate learns nothing. In a sparse mixture K is less than the number of experts: scores and
    losses of those that were chosen, and the others get nothing.

    scores  (N, K)  logits of the gate
    losses  (N, K)  of each expert, alone, on the row
    loss    ()

    Source: Jacobs, Jordan, Nowlan & Hinton 1991; the untitled document on sparse experts as a new view of the LLM, §4,
    where softmax chooses the sub-model with the smallest loss: that is h, which needs the label, so only in training.
    """
    n = max(len(scores), 1)
    joint = scores - losses
    top, joint_top = (a.real.max(1, keepdims=True) for a in (scores, joint))
    p, h = np.exp(scores - top), np.exp(joint - joint_top)
    total, joint_total = p.sum(1, keepdims=True), h.sum(1, keepdims=True)
    loss = (top + np.log(total) - joint_top - np.log(joint_total)).sum() / n
    p /= total
    h /= joint_total

    def backward(dloss):
        return dloss / n * (p - h), dloss / n * h

    return loss, backward
