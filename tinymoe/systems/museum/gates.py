"""Bugs of gates: who is chosen, with which weight, and what the load is said to be."""

import numpy as np

from ...gradcheck import check_gradients
from ...ops import expert_choice_gate, noisy_top_k_gate, softmax, top_k_gate, top_k_softmax
from ...ops.gates import limit_groups, smooth_load
from ...ops.top_k_gate import choose, pick
from .exhibit import Exhibit, require


def renormalised_single_choice(logits, k):
    """Weights are divided by their sum, which for k = 1 means by themselves: each is 1, whatever the router says. The
    choice has no gradient and now the weight has none either. Only the balancing loss still teaches the router, and it
    teaches it to be even: experts don't specialise. In minimind the mixture came out worse than the dense model."""
    return top_k_gate(logits, k, renormalize=True)


def raw_single_choice(logits, k):
    return top_k_gate(logits, k, renormalize=k > 1)


def check_router_learns(gate):
    logits = np.random.default_rng(0).standard_normal((5, 4))
    (weights, _), backward = gate(logits, 1)
    (dlogits,) = backward(np.ones_like(weights))
    require(dlogits.any(), "with one choice the gradient of the router is exactly 0")


def softmax_over_all_then_top_k(logits, k):
    """Softmax over all experts, top-k, and nothing more, where a softmax over the chosen ones is claimed. The order alone
    does no harm: divided by their sum, both orders give the same weights. Left undivided they add up to less than 1, and
    a layer that was trained with the one and is run with the other returns too little. Qwen3 is trained with
    the division, the class that loads its checkpoints leaves it out by default: a configuration that doesn't name the
    switch is wrong in silence."""
    return top_k_gate(logits, k, renormalize=False)


def check_weights_add_up(gate):
    logits = np.random.default_rng(0).standard_normal((5, 4))
    (weights, _), _ = gate(logits, 2)
    worst = weights.sum(1).min()
    require(np.isclose(worst, 1), f"the weights of a token must add up to 1; here they add up to {worst:.3f}")


def groups_masked_with_zero(scores, k, groups, kept_groups):
    """Experts outside a token's best groups get the score 0 instead of −∞. Without a bias all scores are positive and it
    works. With one, the scores of the kept groups can be negative, and then the masked experts win."""
    limited = limit_groups(scores, k, groups, kept_groups)
    return np.where(np.isneginf(limited), 0.0, limited)


def check_masked_groups_stay_out(limit):
    scores = np.array([[0.1, 0.2, 0.05, 0.04]])
    bias = np.array([-0.3, -0.3, -0.2, -0.2])  # scores + bias add up to −0.3 in the first group, −0.31 in the second
    chosen = sorted(choose(limit(scores + bias, 2, 2, 1), 2)[0].tolist())
    require(chosen == [0, 1], f"the first group is kept, so experts 0 and 1 must be chosen; here they are {chosen}")


def noise_in_evaluation(clean, spread, k, *, rng, training):
    """The noise that makes experts take turns in training is also drawn in evaluation, since nothing asks which of the
    two it is. The same text gets another loss each time."""
    return noisy_top_k_gate(clean, spread, k, noise=rng.standard_normal(clean.shape))


def noise_in_training(clean, spread, k, *, rng, training):
    return noisy_top_k_gate(clean, spread, k, noise=rng.standard_normal(clean.shape) if training else None)


def check_noise_stays_in_training(gate):
    clean, spread = np.random.default_rng(0).standard_normal((2, 20, 5))
    evaluations = [gate(clean, spread, 2, rng=np.random.default_rng(seed), training=False)[0] for seed in (1, 2)]
    require_the_same(*evaluations)


def sampled_second_expert(logits, *, rng, training):
    """The second expert is drawn by chance, with Gumbel noise on the logits of the others, and that in evaluation too:
    the first choice, the capacity and top-1 gates all ask whether it is training, this line doesn't. Loss, text and
    counts change from run to run on unchanged weights, and nothing is logged."""
    first = choose(logits, 1)
    others = logits.real + rng.gumbel(size=logits.shape)
    np.put_along_axis(others, first, -np.inf, 1)
    indices = np.hstack([first, choose(others, 1)])
    chosen, pick_back = pick(logits, indices)
    weights, softmax_back = softmax(chosen)

    def backward(dweights):
        return pick_back(*softmax_back(dweights))

    return (weights, indices), backward


def second_expert_by_rank(logits, *, rng, training):
    return sampled_second_expert(logits, rng=rng, training=True) if training else top_k_softmax(logits, 2)


def check_sampling_stays_in_training(gate):
    logits = np.random.default_rng(0).standard_normal((20, 5))
    require_the_same(*(gate(logits, rng=np.random.default_rng(seed), training=False)[0] for seed in (1, 2)))


def require_the_same(first, second):
    moved = (np.sort(first[1]) != np.sort(second[1])).any(1).sum()
    require(moved == 0, f"two evaluations of the same tokens must agree; {moved} of {len(first[1])} changed experts")
    require(np.array_equal(first[0], second[0]), "two evaluations of the same tokens gave different weights")


def probabilities_against_logits(clean, noisy, sigma, k):
    """The load compares a logit with the value it has to beat, but softmax was moved in front of top-k, so that value is a
    probability. A logit of 3 beats them all, one of −3 none, whoever is chosen. Each gradient is right, of the wrong
    thing: a gradient check finds nothing."""
    probabilities, softmax_back = softmax(noisy)
    load, load_back = smooth_load(clean, probabilities, sigma, k)

    def backward(dload):
        dclean, dprobabilities, dsigma = load_back(dload)
        return dclean, *softmax_back(dprobabilities), dsigma

    return load, backward


def check_load_ignores_a_common_shift(load):
    clean = np.random.default_rng(0).standard_normal((20, 5))
    sigma = np.ones_like(clean)
    before, after = (load(clean + shift, clean + shift, sigma, 2)[0].sum() for shift in (0, 10))
    require(
        np.isclose(before, after),
        f"10 more on every logit changes no choice, so no load; here the sum of loads goes from {before:.1f} to {after:.1f}",
    )


def load_without_spread(clean, spread, k):
    """In evaluation the spread of the noise is set to 0, and the load divides by it: infinite where an expert is clearly
    in or out, 0/0 where it meets the value to beat exactly, as the experts of a token of zeros do."""
    with np.errstate(all="ignore"):
        return smooth_load(clean, clean, np.zeros_like(spread), k)[0]


def load_in_evaluation(clean, spread, k):
    return noisy_top_k_gate(clean, spread, k, noise=None)[0][2]


def check_load_without_noise_is_a_number(load):
    found = load(np.zeros((3, 4)), np.zeros((3, 4)), 2)
    require(np.isfinite(found).all(), f"in evaluation the load is {found}")


def thresholds_as_constants(clean, noisy, sigma, k):
    """The value that an expert has to beat is some other expert's noisy logit, and moves with it. Taken for a constant,
    the gradient loses that path and is off by about half its length, or more: it is no small term."""
    load, load_back = smooth_load(clean, noisy, sigma, k)

    def backward(dload):
        dclean, dnoisy, dsigma = load_back(dload)
        return dclean, np.zeros_like(dnoisy), dsigma

    return load, backward


def check_gradient_of_load(load):
    rng = np.random.default_rng(0)
    clean, noise, sigma = rng.standard_normal((6, 5)), rng.standard_normal((6, 5)), rng.uniform(0.5, 1, (6, 5))
    report = check_gradients(load, clean, clean + noise * sigma, sigma, 2)
    require(report.ok, str(report))


def experts_choose_tokens(logits, k):
    """Each expert takes its best tokens of the whole text. The load is perfectly even, and whether a token is taken
    depends on tokens that come after it: in training a language model sees its future, and in generation, where there is
    none, it is another model."""
    (_, _, kept), _ = expert_choice_gate(logits, len(logits) * k // logits.shape[1])
    return kept


def tokens_choose_experts(logits, k):
    visits = np.zeros(logits.shape, bool)
    np.put_along_axis(visits, top_k_gate(logits, k)[0][1], True, 1)
    return visits


def check_earlier_tokens_ignore_later_ones(visits):
    logits = np.random.default_rng(0).standard_normal((12, 4))
    later = logits.copy()
    later[8:] += 5 * np.eye(4)
    moved = (visits(logits, 2)[:8] != visits(later, 2)[:8]).any(1).sum()
    require(moved == 0, f"only the last 4 tokens have changed, and {moved} of the 8 before them go to other experts")


GATES = (
    Exhibit(
        "one choice, renormalised",
        "davidmrau/mixture-of-experts #27; jingyaogong/minimind #858, mended by #859",
        right=raw_single_choice,
        buggy=renormalised_single_choice,
        check=check_router_learns,
    ),
    Exhibit(
        "softmax before top-k, not renormalised",
        "asked in davidmrau/mixture-of-experts #32; norm_topk_prob of Qwen3-MoE in huggingface/transformers",
        right=top_k_softmax,
        buggy=softmax_over_all_then_top_k,
        check=check_weights_add_up,
    ),
    Exhibit(
        "groups masked with 0",
        "huggingface/transformers #45440, mended by #45441; vllm-project/vllm #13474; sgl-project/sglang #3705; "
        "deepseek-ai/DeepSeek-V3 #741",
        right=limit_groups,
        buggy=groups_masked_with_zero,
        check=check_masked_groups_stay_out,
    ),
    Exhibit(
        "noise in evaluation",
        "the code of makeMoE and nanoMoE",
        right=noise_in_training,
        buggy=noise_in_evaluation,
        check=check_noise_stays_in_training,
    ),
    Exhibit(
        "second expert sampled in evaluation",
        "deepspeedai/DeepSpeed #8620; PKU-YuanGroup/MoE-LLaVA #60",
        right=second_expert_by_rank,
        buggy=sampled_second_expert,
        check=check_sampling_stays_in_training,
    ),
    Exhibit(
        "units mixed in the load",
        "davidmrau/mixture-of-experts #31",
        right=smooth_load,
        buggy=probabilities_against_logits,
        check=check_load_ignores_a_common_shift,
    ),
    Exhibit(
        "load divided by no noise",
        "davidmrau/mixture-of-experts #9; noisy_gate.py of fastmoe",
        right=load_in_evaluation,
        buggy=load_without_spread,
        check=check_load_without_noise_is_a_number,
    ),
    Exhibit(
        "threshold path dropped",
        "no public report known; Tensor2Tensor, the reference, keeps the path",
        right=smooth_load,
        buggy=thresholds_as_constants,
        check=check_gradient_of_load,
    ),
    Exhibit(
        "experts that see the future",
        "allenai/OLMoE #46",
        right=tokens_choose_experts,
        buggy=experts_choose_tokens,
        check=check_earlier_tokens_ignore_later_ones,
    ),
)
