"""The load-balance loss and the capacity of public systems: one name, many meanings.

    loss, backward = balance_loss(logits, indices, BALANCE["megatron"])
    places = CAPACITY["mesh"](tokens, experts, k, factor)

A coefficient or a capacity factor means something only together with its convention. The loss, E Σ_i f_i P_i in one way
of writing or another, is 1 or K when all is even, or as many times the number of layers; and from factor 1.25 on 16
tokens and 8 experts the systems below conclude capacities from 2 to 8. The first of the presets, `tinymoe`, are our own.

    choices        f counts every choice, or the first of each token only
    divided        f is divided by the number of choices counted, so that it adds up to 1, or is not
    layers         the mean of the layers' losses; their sum, what autograd makes of losses that are added one by one;
                   or pooled: the tokens of all layers are taken for tokens of one layer, before the product
    probabilities  P is the mean of the softmax over all experts; of the gates, a softmax over the chosen ones; or twice,
                   a softmax of the softmax

E² times a mean over experts is E times a sum: there these systems only look different. What can't be written as a
function of logits and choices is left out: systems that count after dropping (fastmoe, ST-MoE of lucidrains). Those
that compute it per group of tokens, be it a sequence or a device's share, are called with one group at a time. Whether
padding counts is up to the caller's mask; public code often counts it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..ops.capacity import capacity
from ..ops.ids import check_ids
from ..ops.masks import as_mask
from ..ops.softmax import softmax


@dataclass(frozen=True)
class BalanceConvention:
    """See the module for the switches. Raises ValueError for a value that is not among them."""

    choices: str = "all"
    divided: bool = True
    layers: str = "mean"
    probabilities: str = "softmax"
    note: str = field(default="", compare=False)  # where it was read

    def __post_init__(self) -> None:
        for name, allowed in SWITCHES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")


SWITCHES = {
    "choices": ("all", "first"),
    "layers": ("mean", "sum", "pooled"),
    "probabilities": ("softmax", "gates", "twice"),
}


def _balance(note, choices="all", divided=True, layers="sum", probabilities="softmax"):
    return BalanceConvention(choices, divided, layers, probabilities, note)


BALANCE = {
    "tinymoe": _balance("`ops.load_balance`, and the mean over layers", layers="mean"),
    "switch": _balance("Fedus et al. 2021, eq. 4–6, added for each layer; there K = 1", "first"),
    "deepseek-moe": _balance("Dai et al. 2024, eq. 12–14"),
    "megatron": _balance("Megatron-LM, moe_utils.py, switch_load_balancing_loss_func"),
    "olmo-core": _balance("OLMo-core, nn/moe/loss.py, MoELoadBalancingLoss"),
    "megablocks": _balance("megablocks, layers/moe.py, batched_load_balancing_loss", layers="mean"),
    "deepspeed": _balance("DeepSpeed, moe/sharded_moe.py, top1gating and top2gating", "first"),
    "deepspeed-top-k": _balance("DeepSpeed, moe/sharded_moe.py, topkgating"),
    "mesh": _balance("mesh-tensorflow, transformer/moe.py, _top_2_gating; GShard, algorithm 1", "first"),
    "lucidrains": _balance("lucidrains' mixture-of-experts, Top2Gating", "first"),
    "tutel": _balance("tutel, impls/losses.py, gshard_loss", "first"),
    "vmoe": _balance("vmoe, nn/routing.py, the gshard loss; summed in nn/vit_moe.py", "first"),
    "labml": _balance("labml, transformers/switch/experiment.py: one sum over experts and layers; there K = 1"),
    "flaxformer": _balance(
        "flaxformer, routing.py; the mean over layers in t5x, contrib/moe/models.py", divided=False, layers="mean"
    ),
    "nanomoe": _balance(
        "nanoMoE, model.py, Router.compute_aux_loss; summed in manager.py", divided=False, probabilities="gates"
    ),
    "hf-switch": _balance(
        "transformers, modeling_switch_transformers.py: layers joined, per sequence", divided=False, layers="pooled"
    ),
    "hf": _balance("transformers, modeling_mixtral.py, load_balancing_loss_func", divided=False, layers="pooled"),
    "hf-5.0.0": _balance(
        "the same in 5.0.0, whose router returned probabilities as logits",
        divided=False,
        layers="pooled",
        probabilities="twice",
    ),
}


def balance_loss(logits, indices, convention=BALANCE["tinymoe"], *, mask=None):
    """The load-balance loss of all layers as one of the public systems has it.

        L = Σ_l E Σ_i f_li P_li  (or its mean over l),     f_li = (number of choices of i) / (tokens · choices, if divided)
        dP_li = dL E f_li (over the number of layers),     from there through the mean and the probabilities

    Pooled, there is a single l with L·N tokens, so that layers which collapse on different experts look evener
    together. With "gates" the gradient reaches the chosen logits only, and for K = 1, where the only gate is always 1,
    none at all. "twice" leaves probabilities that differ by less than a factor e, and a gradient smaller by about the
    factor E.

    logits      (L, N, E)
    indices     (L, N, K)  int, the experts chosen, best first
    convention             one of BALANCE, or a `BalanceConvention` of your own
    mask        (N,)       bool, False for padding, the same in all layers; None if there is none
    loss        ()

    Raises ValueError for a mask of another shape, IndexError for an index of a real token that is no expert's.
    Source: the note of each convention.
    """
    n_layers, n, n_experts = logits.shape
    real = np.tile(as_mask((n,), mask), (n_layers, 1))
    check_ids("indices", indices[real], n_experts, "experts are")
    rows = (1, n_layers * n) if convention.layers == "pooled" else (n_layers, n)
    valid = real.reshape(*rows, 1)
    z = np.where(valid, logits.reshape(*rows, n_experts), 0)
    chosen = indices.reshape(*rows, indices.shape[2])
    counted = chosen[..., :1] if convention.choices == "first" else chosen
    p, p_back = _probabilities(z, chosen, valid, convention.probabilities)

    tokens = max(int(valid[0].sum()), 1)
    f = _multi_hot(counted, n_experts, valid).sum(1, keepdims=True, dtype=p.real.dtype) / tokens
    share = f / counted.shape[-1] if convention.divided else f
    price = valid * share * (n_experts / tokens / (rows[0] if convention.layers == "mean" else 1))  # of a unit of p
    loss = (price * p).sum()

    def backward(dloss):
        return (p_back(dloss * price)[0].reshape(logits.shape),)

    return loss, backward


def _multi_hot(indices, n_experts, valid):
    """(…, N, K) → (…, N, E): how often each expert is among the choices of a row; 0 in rows of padding."""
    return (indices[..., None] == np.arange(n_experts)).sum(-2) * valid


def _probabilities(z, chosen, valid, kind):
    """P before the mean, (…, N, E), and its backward."""
    if kind == "gates":
        among = (_multi_hot(chosen, z.shape[-1], valid) > 0) | ~valid
        return softmax(np.where(among, z, -np.inf))
    p, softmax_back = softmax(z)
    if kind == "softmax":
        return p, softmax_back
    twice, again_back = softmax(p)

    def backward(dtwice):
        return softmax_back(*again_back(dtwice))

    return twice, backward


@dataclass(frozen=True)
class CapacityConvention:
    """Places per expert from tokens, experts, top-k and factor.

    In the system's own order of operations and type of number: where a product is a whole number but for its rounding,
    `ceil` and `int` turn the last bit into a place.
    """

    formula: Callable[[int, int, int, float], int]
    note: str  # the formula in the system's own terms, and where it stands

    def __call__(self, tokens: int, experts: int, k: int, factor: float) -> int:
        return self.formula(tokens, experts, k, factor)


def _deepspeed(tokens, experts, k, factor):
    return max(math.ceil(np.float32(tokens / experts) * np.float32(factor * k)), 4)


def _megablocks(tokens, experts, k, factor):
    return int(factor * (k * tokens / experts)) if factor else tokens


def _tutel(tokens, experts, k, factor):
    limit = k * int(abs(factor) * math.ceil(tokens / experts))
    return limit if factor > 0 else tokens if factor == 0 else min(limit, tokens)


def _nanomoe(tokens, experts, k, factor):
    places = math.floor(k * factor * tokens / experts)
    return max(places + places % 2, 4)


def _vmoe(tokens, experts, k, factor):
    return 4 * math.ceil(math.ceil(tokens * k * factor / experts) / 4)


CAPACITY = {
    "tinymoe": CapacityConvention(capacity, "ceil(cf·k·T/E): `ops.capacity`"),
    "switch": CapacityConvention(
        lambda t, e, k, cf: math.ceil(cf * t / e), "cf·T/E, here rounded up; there k = 1 (eq. 3)"
    ),
    "mesh": CapacityConvention(
        lambda t, e, k, cf: max(min(t, int(t * cf / e)), 4),
        "max(min(T, int(T·cf/E)), 4), without k; so lucidrains, ST-MoE",
    ),
    "flaxformer": CapacityConvention(
        lambda t, e, k, cf: max(round(cf * t / e), 4), "max(round(cf·T/E), 4), without k: moe_layers.py"
    ),
    "deepspeed": CapacityConvention(_deepspeed, "ceil((T/E)·(cf·k)) in float32, and min_capacity, by default 4"),
    "megatron": CapacityConvention(lambda t, e, k, cf: math.ceil(t * k / e * cf), "ceil(T·k/E·cf): moe_utils.py"),
    "megablocks": CapacityConvention(_megablocks, "int(cf·(k·T/E)), T of all ranks; factor 0 for no limit"),
    "makemoe": CapacityConvention(lambda t, e, k, cf: int(k * t / e * cf), "int(k·T/E·cf)"),
    "tutel": CapacityConvention(_tutel, "k·int(cf·ceil(T/E)); factor 0 for no limit, −cf for the less of both"),
    "nanomoe": CapacityConvention(_nanomoe, "floor(k·cf·T/E), made even, and at least 4"),
    "vmoe": CapacityConvention(_vmoe, "ceil(T·k·cf/E), up to a multiple of 4"),
    "vmoe-expert-choice": CapacityConvention(lambda t, e, k, cf: _vmoe(t, e, 1, cf), "as vmoe, without k"),
    "hf-switch": CapacityConvention(
        lambda t, e, k, cf: int(cf), "expert_capacity, by default 64, is no factor: per sequence"
    ),
    "labml": CapacityConvention(lambda t, e, k, cf: int(cf * t / e), "int(cf·T/E); there k = 1"),
}
