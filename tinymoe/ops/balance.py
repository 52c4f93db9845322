"""Losses and rules that keep the router from sending everything to a few experts.

    load_balance         f·P of a batch (Switch); with given shares, of a batch that is spread over many passes
    device_balance       the same over the devices that hold the experts (DeepSeekMoE)
    sequence_balance     the same within each sequence, on normalised sigmoids (DeepSeek-V3)
    squared_variation    of `importance` or of a smooth load (Shazeer 2017)
    z_loss               keeps logits small (ST-MoE)
    bias_update          moves a bias of the choice and needs no loss (DeepSeek-V3)

`mask` (N,) bool is False for padding, which counts neither in a share nor in a mean: its rows may hold NaN, and get
gradient 0. How public systems' versions of the loss differ is in `tinymoe.systems.conventions`.
"""

import numpy as np

from .pointwise import sigmoid, softplus
from .softmax import log_sum_exp, softmax


def load_balance(logits, indices, *, mask=None, shares=None):
    """The load-balance loss in the scale of Switch and Megatron: 1 when all experts get the same.

        L = E Σ_i f_i P_i,     f_i = (number of assignments to i) / (N K),     P_i = mean_n p_ni,  p = softmax(logits)
        dlogits_nj = dL (E/N) p_nj (f_j − Σ_i f_i p_ni)

    f is a count and carries no gradient. L can be below 1 when f and P disagree: 1 is not a lower bound.
    Implementations differ: some don't divide f by K (balanced value K), count first choices only, or pool layers
    before the product, which hides a collapse of single layers.

    `shares` are f counted elsewhere, over the whole batch when this call sees a part of it. L is linear in P, so the
    mean of the parts' losses, weighed by their numbers of tokens, is exactly the loss of the whole, and so are the
    gradients. With f of each part instead, every small part is pressed to be even by itself.

    logits   (N, E)
    indices  (N, K)  int, the experts chosen
    mask     (N,)    bool, False for padding; None if there is none
    shares   (E,)    `expert_shares` of the whole batch, without gradient; None to count them here
    loss     ()

    Raises ValueError for a mask or shares of another shape.
    Source: Fedus et al. 2021, eq. 4–6; counts over all k choices as in Dai et al. 2024 (DeepSeekMoE), eq. 12–14;
    f of the global batch: Qiu et al. 2025, arXiv 2501.11873.
    """
    n_experts = logits.shape[1]
    given = expert_shares(indices, n_experts, mask=mask) if shares is None else shares
    if given.shape != (n_experts,):
        raise ValueError(f"shares have shape {given.shape}; there must be one for each of the {n_experts} experts")
    z, n = without_padding(logits, mask)
    p = softmax(z)[0]
    f = given.astype(p.real.dtype)
    scale = n_experts / max(n, 1)
    expected = p @ f if mask is None else np.where(mask, p @ f, 0)  # (N,) Σ_i f_i p_ni
    loss = scale * expected.sum()

    def backward(dloss):
        dlogits = dloss * scale * p * (f - expected[:, None])
        return (dlogits if mask is None else np.where(mask[:, None], dlogits, 0),)

    return loss, backward


def expert_shares(indices, n_experts, *, mask=None):
    """f (E,): the share of the assignments, indices (N, K), that goes to each expert; adds up to 1, or 0 without any.

    To get f of a batch in several passes, average the shares weighed by their numbers of tokens.
    """
    chosen = indices if mask is None else indices[checked(mask, len(indices))]
    return np.bincount(chosen.reshape(-1), minlength=n_experts) / max(chosen.size, 1)


def device_balance(logits, indices, devices, *, mask=None):
    """Even out devices instead of experts, which may then differ within a device. 1 when all devices get the same.

        L = Σ_d f'_d P'_d,     f'_d = mean of E f_i over the experts i of device d,     P'_d = Σ_{i on d} P_i
          = E Σ_i (mean of f over the device of i) P_i

    so it is `load_balance` with f averaged over each device, and has its gradient.

    logits   (N, E)
    indices  (N, K)  int, the experts chosen
    devices  (E,)    int, the device of each expert
    mask     (N,)    bool, False for padding; None if there is none
    loss     ()

    Source: Dai et al. 2024 (DeepSeekMoE), eq. 15–17.
    """
    f = expert_shares(indices, logits.shape[1], mask=mask)
    mean = np.bincount(devices, weights=f) / np.maximum(np.bincount(devices), 1)
    return load_balance(logits, indices, mask=mask, shares=mean[devices])


def sequence_balance(logits, k, batch, *, mask=None):
    """Balance within each sequence, on sigmoid scores: 1 when every sequence uses all experts alike.

        s = sigmoid(logits)     s' = s / Σ_j s_j     f_i = E/(K T) (number of tokens with s_i among the K largest s)
        L = mean over sequences of Σ_i f_i P_i,      P_i = mean_t s'_ti
        dlogits_ti = dL/(B T) s'_ti (f_i − Σ_j f_j s'_tj) (1 − s_ti)

    The choice is counted on s alone. Where a bias or a limit on groups takes part in the routing, this is not the
    choice that is carried out; DeepSeek-V3 and Megatron accept that. Padding makes T the number of real tokens of a
    sequence; a sequence of nothing else is left out of the mean.

    logits   (N, E)  rows of the sequences one after another
    k                experts chosen per token
    batch            number of sequences B, all of T = N/B rows
    mask     (N,)    bool, False for padding; None if there is none
    loss     ()

    Raises ValueError unless 1 ≤ k ≤ E and `batch` divides N.
    Source: DeepSeek-AI 2024 (DeepSeek-V3), §2.1.2, eq. 17–20.
    """
    n, n_experts = logits.shape
    if not 1 <= k <= n_experts:
        raise ValueError(f"top-k is {k}; it must lie between 1 and the number of experts, {n_experts}")
    if batch < 1 or n % batch:
        raise ValueError(f"{n} rows can't be {batch} sequences of equal length; batch must be a divisor of the rows")
    z, _ = without_padding(logits, mask)
    s = sigmoid(z)[0]
    share = softmax(-softplus(-z)[0])[0]  # s', of ln s = −softplus(−z): also where all s are too small to divide by
    chosen = np.zeros((n, n_experts), z.real.dtype)
    np.put_along_axis(chosen, np.argsort(-z.real, 1, kind="stable")[:, :k], 1, 1)  # the sigmoid keeps the order
    real = np.ones((n, 1), chosen.dtype) if mask is None else mask[:, None].astype(chosen.dtype)
    length = real.reshape(batch, -1, 1).sum(1, keepdims=True)  # (B, 1, 1) real tokens
    f = (real * chosen).reshape(batch, -1, n_experts).sum(1, keepdims=True) * (n_experts / k) / np.maximum(length, 1)
    each = real.reshape(batch, -1, 1) / np.maximum(length * int((length > 0).sum()), 1)  # (B, T, 1) weight of a token
    dshare = (each * f).reshape(n, n_experts)
    loss = (dshare * share).sum()

    def backward(dloss):
        inner = (dshare * share).sum(1, keepdims=True)
        return (dloss * share * (dshare - inner) * (1 - s),)

    return loss, backward


def importance(weights, indices, n_experts, *, mask=None):
    """How much gate weight each expert gets in a batch. Its `squared_variation` is the importance loss.

        imp_i = Σ_n w_ni        dweights_nj = dimp at i_nj

    weights     (N, K)
    indices     (N, K)  int, the experts chosen
    n_experts
    mask        (N,)    bool, False for padding; None if there is none
    imp         (E,)

    Source: Shazeer et al. 2017, eq. 6.
    """
    real = np.ones(len(weights), bool) if mask is None else checked(mask, len(weights))
    goes = (indices[..., None] == np.arange(n_experts)) & real[:, None, None]  # (N, K, E)
    onehot = goes.reshape(-1, n_experts).astype(weights.real.dtype)
    imp = np.where(real[:, None], weights, 0).reshape(-1) @ onehot

    def backward(dimp):
        return ((onehot @ dimp).reshape(weights.shape),)

    return imp, backward


def squared_variation(v):
    """Squared coefficient of variation: 0 when all are equal, E − 1 when one has everything.

        y = V / (m² + ε),     m = mean(v),     V = mean((v − m)²),     ε = 1e-10
        dv_i = dy (2 (v_i − m) − 2 m y) / (E (m² + ε))

    Of `importance` or of a smooth load it is a balancing loss (weight 0.01 in the paper). Some implementations take
    the variance with E − 1, which is E/(E−1) times this.

    v  (E,)
    y  ()

    Source: Shazeer et al. 2017, eq. 7; population variance and ε as in Tensor2Tensor, which is by its authors.
    """
    m = v.mean()
    d = v - m
    below = m * m + 1e-10
    y = (d * d).mean() / below

    def backward(dy):
        return (dy * (2 * d - 2 * m * y) / (v.size * below),)

    return y, backward


def z_loss(logits, *, mask=None):
    """Mean square of the logarithm of the router's softmax denominator: keeps logits small, so that rounding stays so.

        L = mean_n (ln Σ_j exp(logits_nj))²        dlogits_nj = dL (2/N) lse_n softmax(logits_n)_j

    It is least, 0, not at logits 0 but where Σ exp = 1.

    logits  (N, E)
    mask    (N,)    bool, False for padding; None if there is none
    loss    ()

    Source: Zoph et al. 2022 (ST-MoE), eq. 5.
    """
    z, n = without_padding(logits, mask)
    lse, lse_back = log_sum_exp(z)
    counted = lse if mask is None else np.where(mask, lse, 0)
    loss = (counted * counted).sum() / max(n, 1)

    def backward(dloss):
        return lse_back(dloss * 2 * counted / max(n, 1))

    return loss, backward


def bias_update(bias, counts, rate, *, centred=False):
    """The bias (E,) after a step whose choices had counts (E,): experts below the mean get `rate` more, those above less.

        b_i + γ sign(c̄ − c_i)        sign(0) = 0

    Call it once per optimiser step with the counts of all its passes. The bias takes part in the choice, never in a
    weight. Its mean may drift without bound, which changes no choice; `centred` subtracts the mean of the changes and
    keeps Σ b constant, as torchtitan does.

    Source: Wang et al. 2024, arXiv 2408.15664, algorithm 1; DeepSeek-AI 2024 (DeepSeek-V3), §2.1.2.
    """
    change = (rate * np.sign(counts.sum() - len(counts) * counts)).astype(bias.dtype)
    return bias + (change - change.mean() if centred else change)


def without_padding(logits, mask):
    """(logits with 0 in the rows of padding, number of real rows): what stands there is replaced before it is used."""
    if mask is None:
        return logits, len(logits)
    real = checked(mask, len(logits))
    return np.where(real[:, None], logits, 0), int(real.sum())


def checked(mask, n):
    """The mask, or a ValueError: numbers instead of bools would pick rows by their number."""
    if mask.shape != (n,) or mask.dtype != bool:
        raise ValueError(
            f"the mask has shape {mask.shape} and type {mask.dtype}; it must be bool, one for each of {n} rows"
        )
    return mask
