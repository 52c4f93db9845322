"""Example and edge inputs for `ops/scores.py`, `ops/top_k_gate.py`, `ops/gates.py`, `ops/shared_gates.py` and
`ops/soft.py`.

Scores are drawn, never typed, so that no two are so close that a step of the checker changes a choice; where one is, the
checker refuses it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...ops.gates import (
    counted_load,
    gshard_gate,
    noisy_top_k_gate,
    sigmoid_gate,
    smooth_load,
    top_k_softmax,
)
from ...ops.pointwise import gelu, relu, silu
from ...ops.scores import cast, cosine_scores, jitter, mlp_scores, unit_rows
from ...ops.shared_gates import base_gate, expert_choice_gate, sinkhorn_gate
from ...ops.soft import soft_moe, soft_routing
from ...ops.top_k_gate import pick, top_k_gate
from ..trial import Trial

SIZES = ((6, 5, 2), (7, 4, 1), (5, 3, 3), (1, 4, 2), (0, 5, 2), (3, 6, 5))  # N, E, K


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    yield from _scores(normal, rng)
    for n, n_experts, k in SIZES:
        yield from _softmax_gates(f"{n} rows, top-{k} of {n_experts}", normal((n, n_experts)), k)
    yield from _gshard(normal, rng)
    yield from _noisy(normal, rng)
    yield from _sigmoid(normal)
    yield from _shared_out(normal)
    yield from _soft(normal)


def _scores(normal: Any, rng: np.random.Generator) -> Iterator[Trial]:
    for rows in (4, 1, 0):
        name = f"{rows} rows"
        yield Trial(name, unit_rows, (normal((rows, 3)),))
        yield Trial(name, cosine_scores, (normal((rows, 3)), normal((3, 5)), np.array(1.7)))
        yield Trial(name, mlp_scores, (normal((rows, 3)), normal((3, 4)), normal((4, 5))))
        yield Trial(name, jitter, (normal((rows, 3)),), {"factors": rng.uniform(0.9, 1.1, (rows, 3))})
        yield Trial(name, cast, (normal((rows, 3)),), {"dtype": "float64"})
    yield Trial("large eps", unit_rows, (normal((2, 3)),), {"eps": 0.5})
    yield Trial(
        "negative scale, large eps", cosine_scores, (normal((4, 2)), normal((2, 3)), np.array(-3.0)), {"eps": 0.3}
    )
    yield Trial("nothing shaken", jitter, (normal((3, 2)),), {"factors": np.ones((3, 2))})


def _softmax_gates(name: str, logits: Any, k: int) -> Iterator[Trial]:
    indices = np.argsort(-logits, 1)[:, :k]
    yield Trial(name, pick, (logits, indices))
    yield Trial(name, top_k_softmax, (logits, k))
    yield Trial(f"{name}, far from zero", top_k_softmax, (logits - 800, k))
    yield Trial(name, top_k_gate, (logits, k))
    yield Trial(f"{name}, eps", top_k_gate, (logits, k), {"eps": 0.1})
    yield Trial(f"{name}, eps, scaled", top_k_gate, (logits, k), {"eps": 0.3, "scale": 2.5})
    yield Trial(f"{name}, raw", top_k_gate, (logits, k, False))
    yield Trial(f"{name}, scaled raw", top_k_gate, (logits, k, False), {"scale": 16.0})
    yield Trial(f"{name}, far from zero", top_k_gate, (logits - 800, k))
    for balanced in (True, False):
        mode = "training" if balanced else "evaluation"
        yield Trial(f"{name}, {mode}", sinkhorn_gate, (logits, k), {"balanced": balanced})


def _gshard(normal: Any, rng: np.random.Generator) -> Iterator[Trial]:
    for n, n_experts in ((6, 5), (5, 2), (1, 3), (0, 4)):
        name = f"{n} rows, {n_experts} experts"
        yield Trial(f"{name}, training", gshard_gate, (normal((n, n_experts)),), {"uniforms": rng.random(n)})
        yield Trial(f"{name}, evaluation", gshard_gate, (normal((n, n_experts)),))
    yield Trial("threshold 0", gshard_gate, (normal((4, 3)),), {"uniforms": rng.random(4), "threshold": 0.0})


def _noisy(normal: Any, rng: np.random.Generator) -> Iterator[Trial]:
    for n, n_experts, k in SIZES:
        shape, name = (n, n_experts), f"{n} rows, top-{k} of {n_experts}"
        analytic = k == n_experts  # the normal distribution is not
        inputs = normal(shape), normal(shape), k
        yield Trial(f"{name}, training", noisy_top_k_gate, inputs, {"noise": normal(shape)}, analytic)
        yield Trial(f"{name}, evaluation", noisy_top_k_gate, inputs)
        yield Trial(name, counted_load, (normal(shape), normal(shape), rng.random(shape), k))
        if k < n_experts:
            yield Trial(name, smooth_load, (normal(shape), normal(shape), 0.3 + rng.random(shape), k), {}, False)
    zero = np.zeros((8, 4))  # both matrices start at 0: noise alone chooses
    yield Trial("at the start", noisy_top_k_gate, (zero, zero, 2), {"noise": normal((8, 4))}, False)


def _sigmoid(normal: Any) -> Iterator[Trial]:
    for n, n_experts, k in SIZES:
        name, logits = f"{n} rows, top-{k} of {n_experts}", normal((n, n_experts))
        yield Trial(name, sigmoid_gate, (logits, k))
        yield Trial(f"{name}, bias, scaled", sigmoid_gate, (logits, k), {"bias": normal(n_experts), "scale": 2.5})
        yield Trial(f"{name}, eps", sigmoid_gate, (logits, k), {"eps": 0.2})
        yield Trial(f"{name}, raw", sigmoid_gate, (logits, k), {"normalize": False, "scale": 0.5})
    for n, groups, kept in ((5, 4, 2), (4, 2, 1), (3, 8, 3), (2, 1, 1), (0, 4, 3)):
        options = {"groups": groups, "kept_groups": kept, "bias": normal(8) - 1}
        yield Trial(f"{n} rows, {kept} of {groups} groups", sigmoid_gate, (normal((n, 8)), 2), options)


def _shared_out(normal: Any) -> Iterator[Trial]:
    for n, n_experts, capacity in ((6, 3, 2), (7, 3, 3), (2, 4, 1), (1, 2, 1), (0, 3, 0), (5, 2, 9)):
        name, logits = f"{n} rows, {n_experts} experts", normal((n, n_experts))
        yield Trial(f"{name}, training", base_gate, (logits,))
        yield Trial(f"{name}, evaluation", base_gate, (logits,), {"balanced": False})
        yield Trial(f"{name}, {capacity} each", expert_choice_gate, (logits, capacity))


def _soft(normal: Any) -> Iterator[Trial]:
    for n, n_experts, n_slots in ((5, 3, 2), (4, 2, 1), (1, 2, 3), (0, 3, 2)):
        name = f"{n} rows, {n_slots} slots for each of {n_experts}"
        routing = normal((n, 4)), normal((4, n_experts * n_slots)), np.array(2.5)
        yield Trial(name, soft_routing, routing)
        up, down, gate = normal((n_experts, 4, 6)), normal((n_experts, 6, 4)), normal((n_experts, 4, 6))
        for kind, activation, mlp in (
            ("ReLU", relu, (up, down)),
            ("GELU", gelu, (up, down)),
            ("SwiGLU", silu, (up, down, gate)),
        ):
            yield Trial(f"{kind}, {name}", soft_moe, (*routing, *mlp), {"activation": activation})
