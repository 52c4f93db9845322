"""Gates beside `top_k_gate`: who is chosen, and with which weight.

    top_k_softmax       the same gate, written the other way  Mixtral, GPT-OSS
    gshard_gate         the second choice by chance           GShard, Mesh TensorFlow
    noisy_top_k_gate    noise with a learned spread           Shazeer 2017
    sigmoid_gate        a score per expert, a choice by bias  DeepSeek-V3

A gate returns weights (N, K) and indices (N, K), two of them a third array; its backward takes dweights, and dload
where there is a load. The choice itself has no gradient: it is constant almost everywhere. Ties go to the lowest index.
"""

import math

import numpy as np

from ..types import Array, Backward
from .pointwise import sigmoid, softplus
from .softmax import softmax
from .top_k_gate import choose, pick, top_k_gate

_erfc = np.frompyfunc(math.erfc, 1, 1)  # NumPy has none; erfc keeps its digits where erf rounds to −1


def top_k_softmax(logits: Array, k) -> tuple[tuple[Array, Array], Backward]:
    """Choose first, then softmax over the chosen logits only: `top_k_gate` renormalised, written the other way.

        S = the k largest        w_i = exp(z_i) / Σ_{j∈S} exp(z_j)
        dz_i = w_i (dw_i − Σ_{j∈S} dw_j w_j) for i∈S, exactly 0 else

    The softmax over all experts divides by a number that cancels. With k = 1 the weight is 1 and nothing is learned.

    logits   (N, E)
    weights  (N, K)
    indices  (N, K)  int, best first

    Raises ValueError unless 1 ≤ k ≤ E.
    Source: Shazeer et al. 2017, eq. 3 and 5; Jiang et al. 2024 (Mixtral), §2.1.
    """
    indices = choose(logits, k)
    chosen, pick_back = pick(logits, indices)
    weights, softmax_back = softmax(chosen)

    def backward(dweights):
        return pick_back(*softmax_back(dweights))

    return (weights, indices), backward


def gshard_gate(logits: Array, *, uniforms=None, threshold=0.2) -> tuple[tuple[Array, Array, Array], Backward]:
    """The best expert always, the second one with a probability that grows with its weight.

        w_1, w_2 = the two largest probabilities / (their sum + 1e-9)
        the second is kept when u < w_2 / max(threshold, 1e-9),  u uniform in [0, 1)
        backward: `top_k_gate` with k = 2, eps = 1e-9; `kept` is a constant

    The weights are divided before anything is dropped, so a token that loses its second expert keeps w_1 < 1. The GShard
    paper keeps the second with probability 2 w_2, which is threshold = 0.5; fastmoe likewise when 2 w_2 ≥ u.

    logits    (N, E)
    uniforms  (N,)    or None: keep both, as in evaluation
    weights   (N, 2)
    indices   (N, 2)  int, best first
    kept      (N, 2)  bool

    Raises ValueError for fewer than two experts.
    Source: Lepikhin et al. 2020 (GShard), §2.2, algorithm 1; threshold and eps as in Mesh TensorFlow.
    """
    (weights, indices), backward = top_k_gate(logits, 2, eps=1e-9)
    kept = np.ones(weights.shape, bool)
    if uniforms is not None:
        kept[:, 1] = uniforms < weights[:, 1].real / max(threshold, 1e-9)
    return (weights, indices, kept), backward


def noisy_top_k_gate(clean: Array, spread: Array, k, *, noise=None) -> tuple[tuple[Array, Array, Array], Backward]:
    """Add noise whose size is learned, then choose; and say smoothly how many tokens each expert can expect.

        σ = softplus(spread) + 0.01        h = clean + noise ⊙ σ        weights, indices = top_k_softmax(h)
        dclean = dh + (load's),   dσ = dh ⊙ noise + (load's),   dspread = dσ ⊙ sigmoid(spread)

    Without noise (evaluation) h = clean. Then, and for k = E, the load is the number of tokens that chose the expert,
    without gradient; otherwise it is `smooth_load`, whose gradient teaches an expert that is not chosen, too.

    clean    (N, E)  x W_gate
    spread   (N, E)  x W_noise
    noise    (N, E)  constants, drawn by the caller from the standard normal distribution, or None
    weights  (N, K)
    indices  (N, K)  int, best first
    load     (E,)

    Raises ValueError unless 1 ≤ k ≤ E.
    Source: Shazeer et al. 2017, eq. 3–5 and appendix A, eq. 8–10; 0.01 is from its code in Tensor2Tensor.
    """
    shake = 0 if noise is None else noise.astype(clean.real.dtype, copy=False)
    positive, softplus_back = softplus(spread)
    sigma = positive + 0.01
    noisy = clean + shake * sigma
    (weights, indices), gate_back = top_k_softmax(noisy, k)
    load_of = counted_load if noise is None or k == clean.shape[1] else smooth_load
    load, load_back = load_of(clean, noisy, sigma, k)

    def backward(dweights, dload):  # read upwards
        dclean, dnoisy, dsigma = load_back(dload)
        dh = dnoisy + gate_back(dweights)[0]
        (dspread,) = softplus_back(dsigma + dh * shake)
        return dclean + dh, dspread

    return (weights, indices, load), backward


def smooth_load(clean: Array, noisy: Array, sigma: Array, k) -> tuple[Array, Backward]:
    """How many tokens each expert would get if its own noise were drawn once more, all other noise staying.

        load_i = Σ_n Φ(u_ni),   u_ni = (clean_ni − τ_ni) / σ_ni,   Φ the normal distribution, φ its density
        τ_ni = the value that expert i must beat: among the noisy ones the (k+1)-th largest if i is chosen, else the k-th
        q_ni = dload_i φ(u_ni) / σ_ni        dclean = q,   dσ = −q ⊙ u
        dnoisy: −q_ni goes to the expert whose noisy value τ_ni is; leaving this out is a common, large error

    clean  (N, E)
    noisy  (N, E)  clean + noise ⊙ σ
    sigma  (N, E)  positive
    load   (E,)

    Raises ValueError unless 1 ≤ k < E.
    Source: Shazeer et al. 2017, appendix A, eq. 8–10.
    """
    if not 1 <= k < clean.shape[1]:
        raise ValueError(f"top-k is {k}; a smooth load needs at least 1 and fewer than the experts, {clean.shape[1]}")
    order = choose(noisy, k + 1)
    rival = np.repeat(order[:, k - 1 : k], clean.shape[1], 1)  # (N, E) the expert whose value is τ
    np.put_along_axis(rival, order[:, :k], order[:, k:], 1)
    u = (clean - np.take_along_axis(noisy, rival, 1)) / sigma
    load = np.asarray(_erfc(-u / math.sqrt(2)), float).sum(0).astype(clean.dtype) / 2

    def backward(dload):
        q = dload * np.exp(-u * u / 2) / (math.sqrt(2 * math.pi) * sigma)
        q_chosen = np.take_along_axis(q, order[:, :k], 1).sum(1)  # (N,)
        dnoisy = np.zeros_like(q)
        np.put_along_axis(dnoisy, order[:, k:], -q_chosen[:, None], 1)
        np.put_along_axis(dnoisy, order[:, k - 1 : k], (q_chosen - q.sum(1))[:, None], 1)
        return q, dnoisy, -q * u

    return load, backward


def counted_load(clean: Array, noisy: Array, sigma: Array, k) -> tuple[Array, Backward]:
    """The load as a plain count, for `noisy_top_k_gate` where nothing is left to chance; it has no gradient.

        load_i = number of tokens whose k largest noisy values include i        dclean = dnoisy = dσ = 0

    clean  (N, E)
    noisy  (N, E)
    sigma  (N, E)
    load   (E,)
    """
    load = np.bincount(choose(noisy, k).reshape(-1), minlength=clean.shape[1]).astype(clean.real.dtype)

    def backward(dload):
        return tuple(np.zeros(a.shape, a.real.dtype) for a in (clean, noisy, sigma))

    return load, backward


def sigmoid_gate(
    logits: Array, k, *, bias=None, groups=1, kept_groups=None, scale=1.0, normalize=True, eps=1e-20
) -> tuple[tuple[Array, Array], Backward]:
    """Experts that don't compete by softmax: each has a score of its own, and a bias steers the choice alone.

        s = sigmoid(z)        S = the k largest s + bias, if `kept_groups` is given from a token's best groups only
        normalize:  w_i = scale s_i / D,  D = Σ_{j∈S} s_j + eps        ds_i = scale (dw_i − Σ_{j∈S} dw_j s_j / D) / D
        otherwise:  w_i = scale s_i                                    ds_i = scale dw_i
        dz_i = ds_i s_i (1 − s_i) for i∈S, exactly 0 else

    The bias has no gradient: after each step it is raised for experts with few tokens and lowered for those with many.
    A bias of −∞ keeps an expert out while k others are left; then it is chosen as any other, with its score as weight.
    For the groups see `limit_groups`.

    logits   (N, E)
    bias     (E,)    or None
    weights  (N, K)  the weights know nothing of the bias
    indices  (N, K)  int, best first by s + bias

    Raises ValueError for impossible k or groups.
    Source: DeepSeek-AI 2024 (DeepSeek-V3), §2.1.2, eq. 12–16.
    """
    s, sigmoid_back = sigmoid(logits)
    preference = s.real if bias is None else s.real + bias
    allowed = preference if kept_groups is None else limit_groups(preference, k, groups, kept_groups)
    indices = choose(allowed, k)
    chosen, pick_back = pick(s, indices)
    total = chosen.sum(1, keepdims=True) + eps if normalize else 1
    parts = chosen / total
    weights = scale * parts

    def backward(dweights):
        inner = (dweights * parts).sum(1, keepdims=True) if normalize else 0
        return sigmoid_back(*pick_back(scale * (dweights - inner) / total))

    return (weights, indices), backward


def limit_groups(scores, k, groups, kept_groups):
    """Scores (N, E) with −inf for the experts outside each token's best groups, so that it visits few machines.

    Experts form `groups` equal runs; a group's score is the sum of its two largest; the best `kept_groups` stay. The mask
    is −inf, not 0: with a bias scores can be negative, and a masked expert would win over a kept one.

    Raises ValueError when the groups are unequal, or the kept ones have fewer than k experts.
    Source: DeepSeek-AI 2024 (DeepSeek-V3), §2.1.2; groups, mask and their scores as in its code.
    """
    n, n_experts = scores.shape
    if groups < 1 or n_experts % groups or not 1 <= kept_groups <= groups or kept_groups * (n_experts // groups) < k:
        raise ValueError(
            f"top-{k} of {n_experts} experts in {kept_groups} of {groups} groups; allowed are groups of equal size, at least "
            "one of them kept, and at least k experts in those"
        )
    of_group = np.sort(scores.reshape(n, groups, n_experts // groups), 2)[:, :, -2:].sum(2)  # (N, groups)
    stays = np.zeros(of_group.shape, bool)
    np.put_along_axis(stays, choose(of_group, kept_groups), True, 1)
    return np.where(np.repeat(stays, n_experts // groups, 1), scores, -np.inf)
