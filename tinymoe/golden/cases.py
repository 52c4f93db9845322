"""The cases: what is particular about each, and its inputs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..types import Array
from .agreements import Convention

Named = dict[str, Any]  # arrays by their names

MATRICES = ("up", "down", "gate")  # of experts


class Case(NamedTuple):
    about: str
    convention: Convention = Convention()
    change: Callable[[Named], Mapping[str, Array]] = lambda given: {}  # what to replace among the random inputs
    tokens: int = 24
    width: int = 16
    expert_width: int = 32


def favour(given: Named, expert: int | list[int], by: float) -> Named:
    """x and a router that scores the experts `by` higher than the others, whatever the token."""
    x, router = given["x"].copy(), given["router"] / 4
    x[:, 0], router[0] = 1, 0
    router[0, expert] = by
    return {"x": x, "router": router}


def pad(given: Named) -> Named:
    mask = np.arange(len(given["x"])) % 5 != 0
    mask[-2:] = False
    return {"mask": mask} | {name: np.where(mask[:, None], given[name], np.nan) for name in ("x", "dy")}


TIGHT = Convention(capacity=4, priority="choice")
DEEPSEEK = Convention("sigmoid", 16, 3, scale=2.5, groups=4, kept_groups=2, losses=("sequence_balance",), sequences=2)
CASES = {
    "swiglu": Case("the plain layer: top-2 of 8, SwiGLU experts"),
    "relu": Case("ReLU experts", Convention(activation="relu", gated=False)),
    "gelu": Case("GELU experts, in the tanh form", Convention(activation="gelu_tanh", gated=False)),
    "idle_experts": Case("experts 1 and 6 get no token", change=lambda g: favour(g, [1, 6], -8.0)),
    "all_to_one": Case(
        "expert 2 gets every token", Convention(k=1, normalize="no"), change=lambda g: favour(g, 2, 4.0)
    ),
    "switch": Case("top-1 with the raw probability as weight (Switch)", Convention(k=1, normalize="no")),
    "top1_normalized": Case(
        "top-1 divided by itself: weights 1, so the gate teaches the router nothing; no loss either",
        Convention(k=1, losses=()),
    ),
    "all_experts": Case("every token to all experts", Convention(experts=5, k=5)),
    "ties": Case(
        "integer inputs, so that logits are exact in any type, and many are equal",
        change=lambda g: {name: np.sign(np.round(g[name] * f)) for name, f in (("x", 1), ("router", 2))},
    ),
    "few_tokens": Case("fewer tokens than experts", tokens=3),
    "no_tokens": Case("no tokens: gradients of weights are zeros", tokens=0),
    "over_capacity": Case("choices beyond 4 places per expert are dropped, the other weights stay", TIGHT),
    "over_capacity_normalized": Case(
        "the same, and the weights of what is kept add up to 1 (DeepSpeed)",
        Convention(capacity=4, priority="choice", normalize="kept"),
    ),
    "duplicates": Case("every token four times", change=lambda g: {"x": g["x"][np.arange(len(g["x"])) % 6]}),
    "padding": Case("rows that are no tokens hold NaN", Convention(padding=True), change=pad),
    "padding_over_capacity": Case(
        "padding takes no place at an expert", Convention(capacity=4, priority="choice", padding=True), change=pad
    ),
    "deepseek_v3": Case("sigmoid scores, a bias on the choice, limited groups (DeepSeek-V3)", DEEPSEEK),
    "noisy": Case(
        "noise of a learned size, importance and load losses (Shazeer 2017)",
        Convention("noisy", losses=("importance_loss", "load_loss")),
    ),
    "expert_choice": Case(
        "experts choose 6 tokens each", Convention("expert choice", k=8, normalize="no", capacity=6, losses=())
    ),
    "shared_expert": Case("a shared expert for all tokens is added", Convention(shared_expert=True)),
    "scaled": Case("raw probabilities times 2.5 (DeepSeek-V2)", Convention(k=3, normalize="no", scale=2.5)),
    "z_loss": Case("balance loss and z-loss", Convention(losses=("balance", "z_loss"))),
    "long": Case("512 tokens", Convention(experts=16, k=4), tokens=512, width=32, expert_width=48),
}


def draw(name: str, seed: int) -> Named:
    """The given arrays of a case. All are bfloat16 numbers, so that kernels in any type start from the same."""
    case, rng = CASES[name], np.random.default_rng([seed, *name.encode()])
    c, n, d, f = case.convention, case.tokens, case.width, case.expert_width
    e, s = c.experts, case.expert_width // 2

    def normal(*shape: int, fan: float = 1.0) -> Array:
        return rng.standard_normal(shape) / np.sqrt(fan)

    given = {"x": normal(n, d), "router": normal(d, e, fan=d / 4), "dy": normal(n, d)}
    given |= {"up": normal(e, d, f, fan=d), "down": normal(e, f, d, fan=f)}
    if c.gated:
        given["gate"] = normal(e, d, f, fan=d)
    if c.shared_expert:
        given |= {f"shared_{m}": normal(*((s, d) if m == "down" else (d, s)), fan=d) for m in MATRICES}
    if c.routing == "sigmoid":
        given["bias"] = normal(e, fan=25)
    if c.routing == "noisy":
        given |= {"noise_router": normal(d, e, fan=d), "noise": normal(n, e)}
    given |= {f"d{loss}": normal() for loss in c.losses}
    given |= case.change(given)
    return {name: a if a.dtype == bool else to_bfloat16(a) for name, a in given.items()}


def to_bfloat16(a: Array) -> Array:
    """Rounded to the 8 significant bits of bfloat16, still float64."""
    mantissa, exponent = np.frexp(a)
    return np.ldexp(np.round(mantissa * 256), exponent - 8)
