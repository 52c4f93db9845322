"""python -m tinymoe.check: prove every gradient of the package on this machine.

For each operation and for whole models it compares what the hand-written backward returns with slopes measured on the
forward, in float64, by central differences and by the complex step. Prints one line per operation and per parameter;
exits 1 if any relative error exceeds 1e-7.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..data.windows import Batch
from ..errors import Parser, UserError, run
from ..gradcheck import TOLERANCE, MarginError, Report, check_gradients
from ..models.balancing import Balancing, applicable
from ..models.config import LanguageConfig, VisionConfig
from ..models.initialise import initialize
from ..models.language import loss
from ..ops import OPERATIONS
from ..tree import named, with_leaves
from .cases import cases

SMALL = {
    "vocabulary": 13,
    "context": 6,
    "layers": 2,
    "width": 12,
    "heads": 2,
    "kv_heads": 1,
    "experts": 4,
    "top_k": 2,
    "expert_width": 5,
}
MODELS: dict[str, dict[str, Any]] = {
    "rotary, RMS norm, SwiGLU, grouped heads, tied": {},
    "learned positions, layer norm, GELU, one dense layer, untied, token shift": {
        "position": "learned",
        "shift": True,
        "norm": "layer",
        "expert_kind": "gelu",
        "dense_layers": (0,),
        "tied": False,
        "kv_heads": 2,
    },
    "sinusoidal positions, ReLU, top-1 not renormalised": {
        "position": "sinusoidal",
        "expert_kind": "relu",
        "top_k": 1,
        "renormalize": False,
    },
    "no positions, exact GELU, all dense, dropout": {
        "position": "none",
        "expert_kind": "gelu_exact",
        "dense_layers": (0, 1),
        "dropout": 0.2,
    },
    "noisy router, importance and load losses": {"router": "noisy"},
    "GShard router, capacity 0.6 for the highest probability first": {
        "router": "gshard",
        "capacity_factor": 0.6,
        "drop": "probability",
    },
    "sigmoid router in groups, plain shared experts, scaled weights, jitter": {
        "router": "sigmoid",
        "groups": 2,
        "shared_experts": 2,
        "routed_scale": 2.5,
        "jitter": 0.1,
    },
    "softmax router of cosine scores, gated shared expert, capacity 0.8": {
        "scores": "cosine",
        "shared_experts": 1,
        "shared": "gated",
        "capacity_factor": 0.8,
    },
    "softmax router of scores by an MLP, top-1, residual expert, router in float64": {
        "scores": "mlp",
        "top_k": 1,
        "shared_experts": 1,
        "shared": "residual",
        "router_float": "float64",
    },
    "Sinkhorn router": {"router": "sinkhorn"},
    "BASE router": {"router": "base", "top_k": 1},
    "expert choice": {"router": "expert-choice"},
    "Soft MoE": {"router": "soft"},
    "RNN": {"architecture": "rnn"},
    "GRU, layer norm": {"architecture": "gru", "norm": "layer"},
    "LSTM, sigmoid router": {"architecture": "lstm", "router": "sigmoid"},
    "pictures before the text, transformer encoder": {
        "vision": VisionConfig((4, 4, 2), 2, 12, layers=1, heads=2, hidden=6),
        "shared_experts": 1,
    },
    "pictures added to the text, linear encoder": {
        "vision": VisionConfig((4, 2, 1), 2, 12, "linear", fusion="additive"),
        "router": "hash",
        "top_k": 1,
    },
    "mixture of all experts": {"router": "dense"},
    "hashed tokens, random capacity": {"router": "hash", "top_k": 1, "capacity_factor": 0.5, "drop": "random"},
}


def check_operations(seed: int) -> dict[str, list[float]]:
    """Relative errors of all cases and methods, by operation."""
    errors: dict[str, list[float]] = defaultdict(list)
    for place, case in enumerate(cases(seed)):
        for method in ("central", "complex") if case.analytic else ("central",):
            report = _redrawn(partial(_check_case, place, method), seed)
            if not report.ok:
                print(f"{case}\n{report}", file=sys.stderr)
            errors[case.operation.__name__].append(np.inf if report.problems else report.error)
    return errors


def _check_case(place: int, method: str, seed: int) -> Report:
    case = list(cases(seed))[place]
    return check_gradients(case.operation, *case.inputs, method=method, seed=seed, **case.options)


def _redrawn(check: Callable[[int], Any], seed: int) -> Any:
    """What `check(seed)` returns; where the sample has no margin, says so and draws another.

    Only central differences notice a missing margin, so they come first and the complex step gets the same sample.
    """
    for attempt in range(20):
        try:
            return check(seed + 1000 * attempt)
        except MarginError as error:
            print(f"refused a sample and drew another: {error}", file=sys.stderr)
    raise MarginError("twenty samples in a row had no margin")


def check_model(options: dict[str, Any], seed: int) -> dict[str, float]:
    """The worst relative error of each parameter of a small model, by dotted name."""
    config = LanguageConfig(**{**SMALL, **options})
    real = config.expert_kind == "gelu_exact" or config.router == "noisy"  # erf has no complex form here
    methods = ("central",) if real else ("central", "complex")
    reports = _redrawn(lambda seed: [_check_language(config, method, seed) for method in methods], seed)
    for report in reports:
        if not report.ok:
            print(report, file=sys.stderr)
    return {
        same[0].name: np.inf if any(r.problems for r in reports) else max(i.error for i in same)
        for same in zip(*(r.inputs for r in reports), strict=True)
    }


def _check_language(config: LanguageConfig, method: str, seed: int) -> Report:
    rng = np.random.default_rng(seed)
    params = initialize(config, rng, np.float64)
    leaves = {name: leaf + 0.3 * rng.standard_normal(leaf.shape) for name, leaf in named(params).items()}
    ids, targets = rng.integers(0, config.vocabulary, (2, 3, config.context))
    targets[0, 0] = targets[2, 4:] = -100
    mask = np.ones(ids.shape, bool)
    mask[2, 4:] = False  # the last sequence ends in padding
    images = None if config.vision is None else rng.random((len(ids), *config.vision.image))
    shares = [rng.dirichlet(np.ones(config.experts)) for _ in range(config.layers)]

    def language_loss(*arrays: np.ndarray) -> Any:
        tree = with_leaves(params, dict(zip(leaves, arrays, strict=True)))
        options = Balancing(applicable(config), 0.1, 0.01), np.random.default_rng(seed)
        y, backward = loss(tree, config, Batch(ids, targets, mask, images), *options, shares=shares)
        return y, lambda dloss: tuple(named(backward(dloss)).values())

    return check_gradients(language_loss, *leaves.values(), names=list(leaves), method=method, seed=seed)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m tinymoe.check",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws the inputs; another seed is another proof (default 0)"
    )
    seed = parser.parse_args(argv).seed
    if seed < 0:
        raise UserError(f"--seed is {seed}; it must be 0 or more")

    worst = []
    print(f"{'operation':<18} {'cases':>5}  worst relative error")
    errors = check_operations(seed)
    for name in dict.fromkeys([op.__name__ for op in OPERATIONS] + list(errors)):
        worst.append(max(errors[name], default=np.inf))
        print(f"{name:<18} {len(errors[name]):>5}  {worst[-1]:.1e}{_mark(worst[-1])}")
    for name, options in MODELS.items():
        print(f"\nwhole model: {name}")
        for parameter, error in check_model(options, seed).items():
            worst.append(error)
            print(f"  {parameter:<36} {error:.1e}{_mark(error)}")
    ok = max(worst) <= TOLERANCE
    print(f"\nworst of all {max(worst):.1e}, allowed {TOLERANCE:.0e}: {'every gradient is right' if ok else 'WRONG'}")
    return 0 if ok else 1


def _mark(error: float) -> str:
    return "" if error <= TOLERANCE else "  WRONG"


if __name__ == "__main__":
    run(main)
