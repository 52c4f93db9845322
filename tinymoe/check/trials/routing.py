"""Example and edge inputs for the mixture-of-experts layer and what it is made of, but for its gates."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ... import ops
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    for name, indices, n_experts, *kept in _choices(rng):
        assignment = ops.group_by_expert(indices, n_experts, *kept)
        (n, k), m = indices.shape, len(assignment.order)
        yield Trial(name, ops.dispatch, (normal((n, 3)), assignment))
        yield Trial(name, ops.combine, (normal((m, 3)), normal((n, k)), assignment))
        yield Trial(name, ops.grouped_linear, (normal((m, 3)), normal((n_experts, 3, 2)), assignment.counts))
        up, down, gate = normal((n_experts, 3, 4)), normal((n_experts, 4, 3)), normal((n_experts, 3, 4))
        for kind, act, mlp in (
            ("ReLU", ops.relu, (up, down)),
            ("GELU", ops.gelu, (up, down)),
            ("SwiGLU", ops.silu, (up, down, gate)),
        ):
            yield Trial(
                f"{kind}, {name}",
                ops.experts,
                (normal((m, 3)), *mlp),
                {"counts": assignment.counts, "activation": act},
            )
            inputs = normal((n, 3)), normal((n, k)), *mlp
            yield Trial(f"{kind}, {name}", ops.routed_experts, inputs, {"assignment": assignment, "activation": act})

    for n, n_experts, k in ((7, 5, 2), (7, 5, 3), (1, 3, 1), (2, 6, 1), (0, 4, 2)):
        for kind, act, gated in (("ReLU", ops.relu, False), ("GELU", ops.gelu, False), ("SwiGLU", ops.silu, True)):
            up, down, gate = normal((n_experts, 3, 4)), normal((n_experts, 4, 3)), normal((n_experts, 3, 4))
            for renormalize in (True, False):
                yield Trial(
                    f"{kind}, {n} rows, top-{k} of {n_experts}" + (", renormalised" if renormalize else ""),
                    ops.moe,
                    (normal((n, 3)), normal((3, n_experts)), up, down, *([gate] if gated else [])),
                    {"k": k, "renormalize": renormalize, "activation": act},
                )
            inputs = normal((n, 3)), normal((3, n_experts)), up, down
            route = partial(tight_route, k=k, room=2)
            yield Trial(
                f"{kind}, {n} rows, top-{k}, 2 places at each of {n_experts}",
                ops.moe_layer,
                inputs,
                {"route": route, "activation": act},
            )
        yield Trial(f"{n} rows, top-{k} of {n_experts}", ops.top_k_route, (normal((n, 3)), normal((3, n_experts)), k))


def tight_route(x: Any, router: Any, k: int, room: int) -> Any:
    """`top_k_route` to experts that have `room` places each."""
    (weights, balance, routing), backward = ops.top_k_route(x, router, k)
    kept = ops.keep_within_capacity(routing.indices, router.shape[1], room)
    return (weights, balance, routing._replace(kept=kept)), backward


def _choices(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """(name, indices (N, K), E, kept (N, K) or nothing): who goes where, and who is dropped."""
    yield "top-2 of 4", np.argsort(rng.random((5, 4)), 1)[:, :2], 4
    yield "a third dropped", np.argsort(rng.random((6, 4)), 1)[:, :2], 4, np.tile([[1, 1], [1, 0], [0, 1]], (2, 1)) > 0
    yield "all dropped", np.argsort(rng.random((3, 4)), 1)[:, :2], 4, np.zeros((3, 2), bool)
    yield "an idle expert", np.array([[0, 2], [2, 0], [0, 3]]), 4
    yield "all to one", np.full((4, 1), 1), 3
    yield "no rows", np.zeros((0, 2), int), 4
