"""python -m tinymoe.golden: inputs, outputs and gradients to compare a mixture-of-experts kernel with.

Writes a folder of cases in float64, each one .npz file that NumPy reads; manifest.json, which states the convention of
every case, in fields and in words, since public systems differ; and compare.py, which needs nothing but NumPy.
"""

import argparse
import hashlib
import io
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__, ops
from ..errors import Parser, UserError, run, say
from ..ops.balance import importance, sequence_balance, squared_variation, z_loss
from ..ops.capacity import keep_within_capacity, renormalize_kept
from ..ops.gates import limit_groups, noisy_top_k_gate, sigmoid_gate
from ..ops.shared_gates import expert_choice_gate
from ..runs.checkpoint import write_atomically

Array = np.ndarray
Arrays = dict[str, Array]

MANIFEST, COMPARE = "manifest.json", "compare.py"
ACTIVATIONS = {"silu": ops.silu, "relu": ops.relu, "gelu_tanh": ops.gelu}
MATRICES = ("up", "down", "gate")


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


class Case(NamedTuple):
    about: str
    convention: Convention = Convention()
    change: Callable[[Arrays], Mapping[str, Array]] = lambda given: {}  # what to replace among the random inputs
    tokens: int = 24
    width: int = 16
    expert_width: int = 32


def favour(given: Arrays, expert: int | list[int], by: float) -> Arrays:
    """x and a router that scores the experts `by` higher than the others, whatever the token."""
    x, router = given["x"].copy(), given["router"] / 4
    x[:, 0], router[0] = 1, 0
    router[0, expert] = by
    return {"x": x, "router": router}


def pad(given: Arrays) -> Arrays:
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

ARRAYS = {  # shape and meaning; a given d<output> is the incoming gradient, the other d<name> are what backward returns
    "x": "(N, D) tokens",
    "router": "(D, E)",
    "up": "(E, D, F)",
    "down": "(E, F, D)",
    "gate": "(E, D, F)",
    "shared_up": "(D, S) the shared expert's",
    "shared_down": "(S, D)",
    "shared_gate": "(D, S)",
    "bias": "(E,) added to the scores for the choice only, a constant",
    "noise_router": "(D, E)",
    "noise": "(N, E) a constant",
    "mask": "(N,) bool, False for padding",
    "logits": "(N, E) x @ router",
    "spread": "(N, E) x @ noise_router",
    "load": "(E,) smooth number of tokens",
    "indices": "(N, K) int, the experts of each token, best first",
    "weights": "(N, K) factors of the experts' outputs, 0 where not kept",
    "kept": "(N, K) bool, False for what is dropped, not chosen, or padding",
    "order": "(M,) the kept assignments n*K + j sorted by expert, by token within an expert",
    "inverse": "(NK,) where each assignment stands in that order, M if it is not kept",
    "offsets": "(E+1,) rows offsets[e] to offsets[e+1] of that order belong to expert e",
    "outputs": "(M, D) what the experts return for those rows, not yet multiplied by weights",
    "y": "(N, D) what the layer returns",
    "balance": "()",
    "z_loss": "()",
    "sequence_balance": "()",
    "importance_loss": "()",
    "load_loss": "()",
    "objective": "() sum of dy * y, plus dloss * loss for each loss: all gradients are derivatives of this number",
}


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


def draw(name: str, seed: int) -> Arrays:
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


def solve(given: Arrays, c: Convention) -> Arrays:
    """All results and gradients of a case, by name."""
    real = given.get("mask", np.ones(len(given["x"]), bool))
    x, dy = (np.where(real[:, None], given[name], 0) for name in ("x", "dy"))
    results, route_back = (route_noisy if c.routing == "noisy" else route)(x, given, c)
    assignment = ops.group_by_expert(results["indices"], c.experts, results["kept"])
    rows, dispatch_back = ops.dispatch(x, assignment)
    matrices = {m: given[m] for m in MATRICES if m in given}
    activation = ACTIVATIONS[c.activation]
    outputs, experts_back = ops.experts(rows, *matrices.values(), counts=assignment.counts, activation=activation)
    y, combine_back = ops.combine(outputs, results["weights"], assignment)

    doutputs, dweights = combine_back(dy)  # from here read upwards
    drows, *dmatrices = experts_back(doutputs)
    gradients = route_back(dweights)
    gradients["dx"] = gradients["dx"] + dispatch_back(drows)[0]
    gradients |= {f"d{m}": dm for m, dm in zip(matrices, dmatrices, strict=True)}

    if c.shared_expert:  # one more expert, to which all tokens go
        shared = {f"shared_{m}": given[f"shared_{m}"][None] for m in matrices}
        more, shared_back = ops.experts(x, *shared.values(), counts=[len(x)], activation=activation)
        dx, *dshared = shared_back(dy)
        y, gradients["dx"] = y + more, gradients["dx"] + dx
        gradients |= {f"d{m}": dm[0] for m, dm in zip(shared, dshared, strict=True)}

    results["indices"] = np.where(real[:, None], results["indices"], -1)
    results |= {"order": assignment.order, "inverse": assignment.inverse, "outputs": outputs, "y": y}
    results["offsets"] = np.concatenate([[0], np.cumsum(assignment.counts)])
    results["objective"] = (dy * y).sum() + sum(given[f"d{loss}"] * results[loss] for loss in c.losses)
    return results | gradients


def route(x: Array, given: Arrays, c: Convention) -> tuple[Arrays, Callable[[Array], Arrays]]:
    """(results by name, backward) of router, gate, capacity and losses; backward takes dweights of the kept."""
    mask = given.get("mask")
    logits, router_back = ops.linear(x, given["router"])
    (raw, indices, chosen), gate_back = choose(logits, given, c)
    if c.priority is None:
        kept = chosen if mask is None else chosen & mask[:, None]
    else:
        kept = keep_within_capacity(indices, c.experts, c.capacity, priority=c.priority, mask=mask)
    weights, keep_back = renormalize_kept(raw, kept) if c.normalize == "kept" else only_kept(raw, kept)
    makers: dict[str, Callable[[], Any]] = {
        "balance": lambda: ops.load_balance(logits, indices, mask=mask),
        "z_loss": lambda: z_loss(logits, mask=mask),
        "sequence_balance": lambda: sequence_balance(logits, c.k, c.sequences, mask=mask),
    }
    losses = {name: makers[name]() for name in c.losses}
    results = {"logits": logits, "indices": indices, "weights": weights, "kept": kept}
    results |= {name: loss for name, (loss, _) in losses.items()}

    def backward(dweights: Array) -> Arrays:
        (from_gate,) = gate_back(*keep_back(dweights))
        dlogits = from_gate + sum(loss_back(given[f"d{name}"])[0] for name, (_, loss_back) in losses.items())
        dx, drouter = router_back(dlogits)
        return {"dx": dx, "drouter": drouter, "dlogits": dlogits, "dweights": dweights}

    return results, backward


def choose(logits: Array, given: Arrays, c: Convention) -> Any:
    """(weights, indices, chosen), backward: whichever gate the convention names; nothing is dropped yet."""
    if c.routing == "expert choice":
        return expert_choice_gate(logits, c.capacity)
    if c.routing == "sigmoid":
        limit = {"groups": c.groups, "kept_groups": c.kept_groups}
        (weights, indices), backward = sigmoid_gate(logits, c.k, bias=given["bias"], scale=c.scale, **limit)
    else:
        renormalize = c.normalize == "chosen"
        (weights, indices), backward = ops.top_k_gate(logits, c.k, renormalize, scale=c.scale)
    return (weights, indices, np.ones(indices.shape, bool)), backward


def only_kept(weights: Array, kept: Array) -> tuple[Array, Callable[[Array], tuple[Array]]]:
    """The weights, with 0 for what is not kept."""
    y = np.where(kept, weights, 0)

    def backward(dy: Array) -> tuple[Array]:
        return (np.where(kept, dy, 0),)

    return y, backward


def route_noisy(x: Array, given: Arrays, c: Convention) -> tuple[Arrays, Callable[[Array], Arrays]]:
    """`route` for the noisy gate, whose losses come from the weights and from the load."""
    logits, router_back = ops.linear(x, given["router"])
    spread, spread_back = ops.linear(x, given["noise_router"])
    (weights, indices, load), gate_back = noisy_top_k_gate(logits, spread, c.k, noise=given["noise"])
    of_expert, importance_back = importance(weights, indices, c.experts)
    importance_loss, of_importance_back = squared_variation(of_expert)
    load_loss, of_load_back = squared_variation(load)
    results: dict[str, Any] = {"logits": logits, "spread": spread, "load": load, "indices": indices, "weights": weights}
    results |= {"kept": np.ones(indices.shape, bool), "importance_loss": importance_loss, "load_loss": load_loss}

    def backward(dweights_of_y: Array) -> Arrays:
        (dload,) = of_load_back(given["dload_loss"])
        (dimportance,) = of_importance_back(given["dimportance_loss"])
        dweights = dweights_of_y + importance_back(dimportance)[0]
        dlogits, dspread = gate_back(dweights, dload)
        dx_noise, dnoise_router = spread_back(dspread)
        dx, drouter = router_back(dlogits)
        gradients = {"dx": dx + dx_noise, "drouter": drouter, "dnoise_router": dnoise_router}
        return gradients | {"dlogits": dlogits, "dspread": dspread, "dweights": dweights}

    return results, backward


def margin(given: Arrays, results: Arrays, c: Convention) -> float | None:
    """The smallest gap between scores that a choice, or its order, depends on; None without any.

    A kernel whose scores are off by more than half of it may choose otherwise, and is then not comparable.
    """
    real = given.get("mask", np.ones(len(given["x"]), bool))
    scores = results["logits"][real]
    if c.routing == "noisy":
        scores = scores + given["noise"] * (ops.softplus(results["spread"])[0] + 0.01)
    gaps = [np.diff(np.sort(scores, 1)[:, -c.k - 1 :])]
    if c.routing == "expert choice":  # who is in and who is out; an order there is not
        gaps = [_edge(ops.softmax(scores)[0].T, c.capacity or 0)]
    if c.routing == "sigmoid":
        free = ops.sigmoid(scores)[0] + given["bias"]
        of_group = np.sort(free.reshape(len(free), c.groups, -1), 2)[:, :, -2:].sum(2)
        within = np.sort(limit_groups(free, c.k, c.groups, c.kept_groups), 1)
        gaps = [np.diff(within[:, -c.k - 1 :]), _edge(of_group, c.kept_groups)]
    return min((float(gap.min()) for gap in gaps if gap.size), default=None)


def _edge(scores: Array, k: int) -> Array:
    """How far the k-th largest of each row is above the next."""
    return np.diff(np.sort(scores, 1)[:, -k - 1 :][:, :2])


def pack(seed: int) -> Iterator[tuple[str, bytes]]:
    """The names and contents of all files. The manifest comes first: it knows the checksums of the others."""
    files, entries = {COMPARE: Path(__file__).with_name("compare.py").read_bytes()}, {}
    for name, case in CASES.items():
        given = draw(name, seed)
        results = solve(given, case.convention)
        arrays = {name: np.asarray(a) for name, a in (given | results).items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its entries are dated 1980: equal seeds, equal bytes
        files[f"{name}.npz"] = buffer.getvalue()
        entries[name] = {
            "about": case.about,
            "words": in_words(case.convention),
            "convention": asdict(case.convention),
            "margin": margin(given, results, case.convention),
            "file": f"{name}.npz",
            "sha256": hashlib.sha256(files[f"{name}.npz"]).hexdigest(),
            "given": _shapes(arrays, given),
            "expected": _shapes(arrays, results),
        }
    manifest = {
        "format": 1,
        "made_by": f"python -m tinymoe.golden --seed {seed}",
        "versions": {"tinymoe": __version__, "numpy": np.__version__, "python": platform.python_version()},
        "letters": "N tokens, D width, E experts, K choices per token, M kept assignments, F expert width, S shared width",
        "arrays": ARRAYS,
        "gradients": "a given d<name> is the gradient of the objective that comes in; an expected one has the shape of "
        "<name>, and is the derivative of the objective by it, along all paths",
        "cases": entries,
    }
    yield MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    yield from files.items()


def _shapes(arrays: Arrays, names: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [str(arrays[name].dtype), *arrays[name].shape] for name in names}


def write_pack(folder: Path, files: Mapping[str, bytes], overwrite: bool) -> None:
    """Write whole files only, the manifest first, so that a pack cut short is recognised by its checksums.

    Raises UserError where that can't be, or where the folder holds anything else than a pack to be overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [file.name for file in folder.iterdir()]
        if found and not overwrite:
            raise UserError(f"{folder} is not empty; replace its pack with --overwrite, or choose another --out")
        if found and (MANIFEST not in found or b"tinymoe.golden" not in (folder / MANIFEST).read_bytes()):
            raise UserError(f"{folder} holds files that are no pack, so it is not overwritten; choose another --out")
        if COMPARE in found and (folder / COMPARE).read_bytes() != files[COMPARE]:
            raise UserError(
                f"{folder / COMPARE} is not as it was written, perhaps there is a kernel in it; move it away"
            )
        for name, data in files.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}; choose another --out") from None


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m tinymoe.golden",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write, new or empty")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the inputs (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the pack that is in DIR")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; it must be 0 or more")
    write_pack(args.out, dict(pack(args.seed)), args.overwrite)
    say(f"wrote {len(CASES)} cases to {args.out}; put your kernel into {args.out / COMPARE} and run it")
    return 0


if __name__ == "__main__":
    run(main)
