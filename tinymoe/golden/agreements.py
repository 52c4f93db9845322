"""What two implementations must agree on before their numbers can be compared, and how that is said in words."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Convention:
    """What two implementations must agree on before their numbers can be compared; `in_words` says it."""

    routing: str = "softmax"  # or sigmoid, noisy, expert choice
    experts: int = 8
    k: int = 2  # choices per token, the width of `indices`; all experts where these choose
    normalize: str = "chosen"  # weights add up to 1 over the chosen, over those kept within capacity, or not: no
    scale: float = 1.0  # a factor on the weights after that
    groups: int = 1
    kept_groups: int = 1  # experts outside a token's best groups can't be chosen
    capacity: int | None = None  # places per expert, stated as a number since formulas for it differ; None: no limit
    priority: str | None = None  # who gets the places
    ties: str = "lowest index first"
    padding: bool = False
    activation: str = "silu"
    gated: bool = True
    shared_expert: bool = False
    losses: tuple[str, ...] = ("balance",)
    sequences: int = 1


def in_words(c: Convention) -> list[str]:
    """The convention as sentences, made from its fields."""
    score = "s" if c.routing == "sigmoid" else "p"
    over = {"chosen": "all that it chose", "kept": "those of them that are kept", "no": ""}[c.normalize]
    division = f" divided by the sum over {over}" + (" + 1e-20" if score == "s" else "") if over else ""
    hidden = f"{c.activation}(x @ gate[e]) * (x @ up[e])" if c.gated else f"{c.activation}(x @ up[e])"
    shared = ", plus the shared expert, of the same form, with weight 1" if c.shared_expert else ""
    sentences = [
        _ROUTERS[c.routing].format(**asdict(c)),
        f"Ties: {c.ties}.",
        f"The weight of a token's choice is its {score}{division}{'' if c.scale == 1 else f', times {c.scale}'}.",
        f"expert_e(x) = ({hidden}) @ down[e]; y = sum of weight * expert(x) over the kept choices{shared}.",
    ]
    if c.priority is not None:
        sentences.append(
            f"An expert keeps {c.capacity} assignments: all first choices before all second ones, tokens in order within "
            "a choice. What is dropped has weight 0. Losses see the choice before dropping."
        )
    elif c.capacity is None:
        sentences.append("There is no capacity: nothing is dropped.")
    if c.padding:
        sentences.append(
            "Padding (mask False) holds NaN in x and dy. There logits, weights, y and all gradients are 0, indices -1 "
            "and kept False; it takes no place at an expert and counts in no mean."
        )
    return sentences + [_LOSSES[name].format(**asdict(c)) for name in c.losses]


_ROUTERS = {
    "softmax": "p = softmax(logits) over all {experts} experts; a token chooses the {k} largest.",
    "sigmoid": "s = sigmoid(logits); a token chooses the {k} largest s + bias within its {kept_groups} best of {groups} "
    "groups, equal runs of the {experts} experts; a group's score is the sum of its two largest s + bias.",
    "noisy": "noisy = logits + noise * (softplus(spread) + 0.01), p = softmax(noisy) over all {experts} experts; a token "
    "chooses the {k} largest.",
    "expert choice": "p = softmax(logits) over all {experts} experts; each expert chooses the {capacity} tokens with the "
    "largest p in its column. Column e of indices is expert e; kept says which tokens it has chosen.",
}
_LOSSES = {
    "balance": "balance = E sum_i f_i P_i: f_i = assignments to i / (N K), a constant; P_i = mean of p_i; 1 when even "
    "(Switch and Megatron scale).",
    "z_loss": "z_loss = mean of logsumexp(logits) squared.",
    "sequence_balance": "sequence_balance = mean over {sequences} sequences (of consecutive tokens) of sum_i f_i P_i: "
    "f_i = E / (K T) * number of tokens with s_i among the {k} largest s, no bias and no groups, a constant; P_i = mean "
    "of s_i / sum_j s_j.",
    "importance_loss": "importance_i = sum of the weights of expert i; importance_loss = Var / (mean squared + 1e-10), "
    "the population's variance.",
    "load_loss": "load_i = sum over tokens of Phi((logits_i - t_i) / (softplus(spread_i) + 0.01)), t_i = the (k+1)-th "
    "largest noisy value if i is chosen, else the k-th, with gradient through t; load_loss from it like importance_loss.",
}
