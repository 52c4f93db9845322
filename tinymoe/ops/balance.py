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

from ..types import Array, Backward
from .ids import check_ids
from .masks import as_mask, count, without_padding
from .pointwise import sigmoid, softplus
from .softmax import log_sum_exp, softmax
from .top_k_gate import choose


def load_balance(logits: Array, indices: Array, *, mask=None, shares=None) -> tuple[float, Backward]:
    """The load-balance loss in the scale of Switch and Megatron: 1 when all experts get the same.

        L = E Σ_i f_i P_i,     f_i = (number of assignments to i) / (N K),     P_i = mean_n p_ni,  p = softmax(logits)
        dlogits_nj = dL (E/N) p_nj (f_j − Σ_i f_i p_ni)

    f is a count and carries no gradient. L can be below 1 when f and P disagree: 1 is not a lower bound.
    Implementations differ: some don't divide f by K (balanced value K), count first choices only, or pool layers
    before the product, which hides a collapse of single layers.

    `shares` are f counted elsewhere, over the whole batch when this call sees a part of it. L is linear in P, so the
    mean of the parts' losses, weighed by their numbers of tokens, is the loss of the whole, and so are the gradients.
    With f of each part instead, every small part is pressed to be even by itself.

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
    real = as_mask(logits.shape[:1], mask)
    z, padding_back = without_padding(logits, real)
    p = softmax(z)[0]
    f = given.astype(p.real.dtype)
    scale = n_experts / count(real)
    expected = np.where(real, p @ f, 0)  # (N,) Σ_i f_i p_ni
    loss = scale * expected.sum()

    def backward(dloss):
        dz = dloss * scale * p * (f - expected[:, None])
        return padding_back(dz)

    return loss, backward


def expert_shares(indices, n_experts, *, mask=None):
    """f (E,): the share of the assignments, indices (N, K), that goes to each expert; adds up to 1, or 0 without any.

    To get f of a batch in several passes, average the shares weighed by their numbers of tokens.

    Raises IndexError for an index of a real token that is no expert's.
    """
    chosen = indices[as_mask(indices.shape[:1], mask)]
    check_ids("indices", chosen, n_experts, "experts are")
    return np.bincount(chosen.reshape(-1), minlength=n_experts) / max(chosen.size, 1)


def device_balance(logits: Array, indices: Array, devices: Array, *, mask=None) -> tuple[float, Backward]:
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


def sequence_balance(logits: Array, k, batch, *, mask=None) -> tuple[float, Backward]:
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
    if batch < 1 or n % batch:
        raise ValueError(f"{n} rows can't be {batch} sequences of equal length; batch must be a divisor of the rows")
    real = as_mask((n,), mask)
    z, padding_back = without_padding(logits, real)
    s = sigmoid(z)[0]
    share = softmax(-softplus(-z)[0])[0]  # s', of ln s = −softplus(−z): also where all s are too small to divide by
    chosen = np.zeros((n, n_experts), z.real.dtype)
    np.put_along_axis(chosen, choose(z, k), 1, 1)  # the sigmoid keeps the order
    tokens = real[:, None].astype(chosen.dtype)  # (N, 1)
    length = tokens.reshape(batch, -1, 1).sum(1, keepdims=True)  # (B, 1, 1) real tokens
    f = (tokens * chosen).reshape(batch, -1, n_experts).sum(1, keepdims=True) * (n_experts / k) / np.maximum(length, 1)
    each = tokens.reshape(batch, -1, 1) / np.maximum(length * count(length > 0), 1)  # (B, T, 1) its weight
    price = (each * f).reshape(n, n_experts)  # of a unit of s'
    loss = (price * share).sum()

    def backward(dloss):
        mean = (price * share).sum(1, keepdims=True)
        dz = dloss * share * (price - mean) * (1 - s)
        return padding_back(dz)

    return loss, backward


def importance(weights: Array, indices: Array, n_experts, *, mask=None) -> tuple[Array, Backward]:
    """How much gate weight each expert gets in a batch. Its `squared_variation` is the importance loss.

        imp_i = Σ_n w_ni        dweights_nj = dimp at i_nj

    weights     (N, K)
    indices     (N, K)  int, the experts chosen
    n_experts
    mask        (N,)    bool, False for padding; None if there is none
    imp         (E,)

    Raises IndexError for an index of a real token that is no expert's.
    Source: Shazeer et al. 2017, eq. 6.
    """
    real = as_mask(weights.shape[:1], mask)
    check_ids("indices", indices[real], n_experts, "experts are")
    w, padding_back = without_padding(weights, real)
    onehot = (indices.reshape(-1, 1) == np.arange(n_experts)).astype(weights.real.dtype)  # (N·K, E)
    imp = w.reshape(-1) @ onehot

    def backward(dimp):
        dw = (onehot @ dimp).reshape(weights.shape)
        return padding_back(dw)

    return imp, backward


def squared_variation(v: Array) -> tuple[float, Backward]:
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


def z_loss(logits: Array, *, mask=None) -> tuple[float, Backward]:
    """Mean square of the logarithm of the router's softmax denominator: keeps logits small, so that rounding stays so.

        L = mean_n (ln Σ_j exp(logits_nj))²        dlogits_nj = dL (2/N) lse_n softmax(logits_n)_j

    It is least, 0, not at logits 0 but where Σ exp = 1.

    logits  (N, E)
    mask    (N,)    bool, False for padding; None if there is none
    loss    ()

    Source: Zoph et al. 2022 (ST-MoE), eq. 5.
    """
    real = as_mask(logits.shape[:1], mask)
    n = count(real)
    z, padding_back = without_padding(logits, real)
    lse, lse_back = log_sum_exp(z)
    counted = np.where(real, lse, 0)
    loss = (counted * counted).sum() / n

    def backward(dloss):
        dlse = dloss * 2 * counted / n
        return padding_back(*lse_back(dlse))

    return loss, backward


def bias_update(bias, counts, rate, *, centred=False):
    """The bias (E,) after a step whose choices had counts (E,): experts below the mean get `rate` more, those above less.

        b_i + γ sign(c̄ − c_i)        sign(0) = 0

    Call it once per optimiser step with the counts of all its passes. The bias takes part in the choice, never in a
    weight. Its mean may drift without bound, which changes no choice; `centred` subtracts the mean of the changes and
    keeps Σ b constant, as torchtitan does.

    Counts are ints, or whole floats below the size from which their type skips some: 2^24 in float32, 2^11 in float16.
    A count that was rounded before, such as 40,000 to 39,936 in bfloat16, can't be told from a right one here, and flips
    signs: add up ints. Raises ValueError for other counts.
    Source: Wang et al. 2024, arXiv 2408.15664, algorithm 1; DeepSeek-AI 2024 (DeepSeek-V3), §2.1.2.
    """
    n = _whole(counts)
    change = (rate * np.sign(n.sum() - len(n) * n)).astype(bias.dtype)
    return bias + (change - change.mean() if centred else change)


def _whole(counts):
    if counts.dtype.kind in "iu":
        return counts.astype(np.int64)
    limit = 2.0 ** (np.finfo(counts.dtype).nmant + 1) if counts.dtype.kind == "f" else 0
    if not ((counts == np.floor(counts)) & (counts >= 0) & (counts < limit)).all():
        raise ValueError(
            f"counts of type {counts.dtype} span {counts.min()} to {counts.max()}; they must be ints, or whole floats "
            f"from 0 to below {limit:.0f}, since a rounded count can flip the sign of a change"
        )
    return counts.astype(np.int64)
