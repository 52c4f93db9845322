"""Losses that keep the router from sending everything to a few experts."""

import numpy as np


def load_balance(logits, indices):
    """The load-balance loss in the scale of Switch and Megatron: 1 when all experts get the same.

        L = E Σ_i f_i P_i,     f_i = (number of assignments to i) / (N K),     P_i = mean_n p_ni,  p = softmax(logits)
        dlogits_nj = dL (E/N) p_nj (f_j − Σ_i f_i p_ni)

    f is a count and carries no gradient. L can be below 1 when f and P disagree: 1 is not a lower bound.
    Implementations differ: some don't divide f by K (balanced value K), count first choices only, or pool layers
    before the product, which hides a collapse of single layers.

    logits   (N, E)
    indices  (N, K)  int, the experts chosen
    loss     ()

    Source: Fedus et al. 2021, eq. 4–6; counts over all k choices as in Dai et al. 2024 (DeepSeekMoE), eq. 12–14.
    """
    n, n_experts = logits.shape
    p = np.exp(logits - logits.real.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    f = np.bincount(indices.reshape(-1), minlength=n_experts).astype(p.real.dtype) / max(indices.size, 1)
    scale = n_experts / max(n, 1)
    loss = scale * (p @ f).sum()

    def backward(dloss):
        return (dloss * scale * p * (f - (p @ f)[:, None]),)

    return loss, backward
