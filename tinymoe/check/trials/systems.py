"""The ways to dispatch, and the balance losses of public systems."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import ops
from ...systems.dispatchers import DISPATCHERS, all_to_all_dispatch, batched_experts, padded_dispatch
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    for name, n, n_experts, k, kept, gated in (
        ("a third dropped, SwiGLU", 5, 4, 2, 0.7, True),
        ("nothing dropped, ReLU", 4, 3, 2, None, False),
        ("more experts than tokens", 2, 6, 1, None, True),
        ("all dropped", 3, 4, 2, 0.0, False),
        ("no rows", 0, 4, 2, 0.7, True),
    ):
        inputs, indices = layer(rng, n, n_experts, k, gated)
        options: dict[str, Any] = {"indices": indices, "activation": ops.silu if gated else ops.relu}
        if kept is not None:
            options["kept"] = rng.random(indices.shape) < kept
            options["kept"][1:2] = False  # the second token is padding
        for way in DISPATCHERS.values():
            yield Trial(name, way, inputs, options)
        yield Trial(f"{name}, 3 ranks", all_to_all_dispatch, inputs, {**options, "ranks": 3})
        yield Trial(f"{name}, room for all", padded_dispatch, inputs, {**options, "capacity": n * k})
    for rows in (3, 1, 0):
        x, up, gate = (rng.standard_normal(shape) for shape in ((2, rows, 3), (2, 3, 4), (2, 3, 4)))
        down = rng.standard_normal((2, 4, 3))
        yield Trial(f"GELU, {rows} rows", batched_experts, (x, up, down), {"activation": ops.gelu})
        yield Trial(f"SwiGLU, {rows} rows", batched_experts, (x, up, down, gate), {"activation": ops.silu})


def layer(rng: np.random.Generator, n: int, n_experts: int, k: int, gated: bool, d: int = 3, f: int = 4) -> Any:
    """x, weights, up, down and, if wanted, gate, with distinct random experts for each token: (inputs, indices)."""
    indices = np.argsort(rng.random((n, n_experts)), 1)[:, :k]
    shapes = [(n, d), (n, k), (n_experts, d, f), (n_experts, f, d)] + [(n_experts, d, f)] * gated
    return tuple(rng.standard_normal(shape) for shape in shapes), indices
