"""The likelihood of a mixture of experts, made of losses of single rows: these here, or `cross_entropies`.

Experts that are trained on their weighted mean learn to make up for each other's errors. Here each expert answers on its
own, and those that answer well are made responsible for more: they divide the task among them.
"""

import numpy as np

from ..types import Array, Backward
from .softmax import log_sum_exp


def half_squared_errors(outputs: Array, targets: Array) -> tuple[Array, Backward]:
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


def mixture_likelihood(scores: Array, losses: Array) -> tuple[float, Backward]:
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
    prior, prior_back = log_sum_exp(scores)  # 1  (N,)
    joint, joint_back = log_sum_exp(scores - losses)  # 2  (N,)
    loss = (prior - joint).sum() / n  # 3

    def backward(dloss):  # read upwards
        dprior = np.full(prior.shape, dloss / n, prior.real.dtype)  # 3
        (dless,) = joint_back(-dprior)  # 2  −dL/N h, of scores − losses
        (dscores,) = prior_back(dprior)  # 1  dL/N p
        return dscores + dless, -dless

    return loss, backward
