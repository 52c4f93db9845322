"""Example and edge inputs for every operation: what `python -m tinymoe.check` and the tests run over.

Axes have different sizes, all above 1, so that a transposed product can't pass by accident; edge inputs have no rows,
one row, repeated ids, idle experts, or one expert for all.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..ops import group_by_expert
from ..sparse import CSR
from ..types import Operation
from .balance_cases import balance_cases
from .gate_cases import gate_cases
from .recurrent_cases import recurrent_cases


class Case(NamedTuple):
    name: str
    operation: Operation
    inputs: tuple[Any, ...]  # in the order of the signature
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    analytic: bool = True  # whether the complex step works

    def __str__(self) -> str:
        return f"{self.operation.__name__}: {self.name}"


def cases(seed: int = 0) -> Iterator[Case]:
    """Every case, with float64 inputs drawn from `seed`."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    yield from _pointwise(normal, rng)
    yield from _rows(normal, rng)
    yield from _attention(normal)
    yield from _routing(normal, rng)
    yield from _sparse(normal, rng)
    yield from _likelihood(normal, rng)
    yield from _distillation(normal)
    yield from _pictures(normal)
    yield from recurrent_cases(normal, rng, Case)
    yield from gate_cases(normal, rng, Case)
    yield from balance_cases(normal, rng, Case)


def _pointwise(normal: Any, rng: np.random.Generator) -> Iterator[Case]:
    for op in (ops.relu, ops.sigmoid, ops.tanh, ops.softplus, ops.silu, ops.gelu, ops.gelu_exact):
        analytic = op is not ops.gelu_exact
        yield Case("matrix", op, (normal((3, 5)),), analytic=analytic)
        yield Case("large values", op, (np.array([-60.0, -9.5, -1e-3, 2e-3, 9.5, 60.0]),), analytic=analytic)
        yield Case("no rows", op, (normal((0, 4)),), analytic=analytic)
    yield Case("a quarter dropped", ops.dropout, (normal((4, 6)), rng.random((4, 6)) >= 0.25, 0.25))
    yield Case("nothing dropped", ops.dropout, (normal((2, 3)), np.ones((2, 3), bool), 0.0))


def _rows(normal: Any, rng: np.random.Generator) -> Iterator[Case]:
    for rows in (4, 1, 0):
        name = f"{rows} rows"
        yield Case(name, ops.linear, (normal((rows, 3)), normal((3, 5))))
        yield Case(name + " with bias", ops.linear, (normal((rows, 3)), normal((3, 5)), normal(5)))
        yield Case(name, ops.rms_norm, (normal((rows, 6)), normal(6)))
        yield Case(name, ops.layer_norm, (normal((rows, 6)), normal(6), normal(6)))
        yield Case(name, ops.softmax, (normal((rows, 5)),))
        yield Case(name, ops.without_padding, (normal((rows, 5)), np.arange(rows) % 3 != 1))
        yield Case(name, ops.log_sum_exp, (normal((rows, 5)),))
        yield Case(name, ops.cross_entropy, (normal((rows, 7)), rng.integers(0, 7, rows)))
    yield Case("far from zero", ops.softmax, (normal((3, 4)) + 800,))
    yield Case("far from zero", ops.log_sum_exp, (normal((3, 4)) - 800,))
    yield Case("tiny rows", ops.rms_norm, (1e-3 * normal((3, 4)), normal(4)))
    yield Case("two ignored", ops.cross_entropy, (normal((5, 3)), np.array([0, -100, 2, -100, 1])))
    yield Case("all ignored", ops.cross_entropy, (normal((2, 3)), np.array([-100, -100])))
    yield Case("repeated ids", ops.embedding, (np.array([2, 0, 2, 5, 2, 0]), normal((6, 3))))
    yield Case("one id", ops.embedding, (np.array([1]), normal((2, 3))))
    yield Case("no ids", ops.embedding, (np.array([], int), normal((4, 3))))
    yield Case("shorter than the table", ops.add_positions, (normal((2, 3, 4)), normal((5, 4))))
    yield Case("as long as the table", ops.add_positions, (normal((3, 4, 2)), normal((4, 2))))
    yield Case("three positions", ops.token_shift, (normal((2, 3, 4)), normal(4)))
    yield Case("one position", ops.token_shift, (normal((3, 1, 2)), normal(2)))
    yield Case("from 0", ops.rotary, (normal((2, 5, 3, 4)), np.arange(5)))
    yield Case("from 7, base 100", ops.rotary, (normal((2, 3, 1, 6)), np.arange(7, 10), 100.0))


def _attention(normal: Any) -> Iterator[Case]:
    for name, b, h, g, t, p in (
        ("multi-head", 2, 3, 3, 5, 4),
        ("grouped", 2, 6, 2, 4, 3),
        ("multi-query", 3, 4, 1, 6, 2),
        ("one position", 2, 2, 2, 1, 3),
        ("no sequences", 0, 2, 1, 3, 4),
    ):
        yield Case(name, ops.causal_attention, (normal((b, h, t, p)), normal((b, g, t, p)), normal((b, g, t, p))))


def _routing(normal: Any, rng: np.random.Generator) -> Iterator[Case]:
    for name, indices, n_experts, *kept in _choices(rng):
        assignment = group_by_expert(indices, n_experts, *kept)
        (n, k), m = indices.shape, len(assignment.order)
        yield Case(name, ops.dispatch, (normal((n, 3)), assignment))
        yield Case(name, ops.combine, (normal((m, 3)), normal((n, k)), assignment))
        yield Case(name, ops.load_balance, (normal((n, n_experts)), indices))
        yield Case(name, ops.grouped_linear, (normal((m, 3)), normal((n_experts, 3, 2)), assignment.counts))
        up, down, gate = normal((n_experts, 3, 4)), normal((n_experts, 4, 3)), normal((n_experts, 3, 4))
        for kind, act, mlp in (
            ("ReLU", ops.relu, (up, down)),
            ("GELU", ops.gelu, (up, down)),
            ("SwiGLU", ops.silu, (up, down, gate)),
        ):
            yield Case(
                f"{kind}, {name}",
                ops.experts,
                (normal((m, 3)), *mlp),
                {"counts": assignment.counts, "activation": act},
            )
            inputs = normal((n, 3)), normal((n, k)), *mlp
            yield Case(f"{kind}, {name}", ops.routed_experts, inputs, {"assignment": assignment, "activation": act})

    for n, n_experts, k in ((7, 5, 2), (7, 5, 3), (1, 3, 1), (2, 6, 1), (0, 4, 2)):
        for kind, act, gated in (("ReLU", ops.relu, False), ("GELU", ops.gelu, False), ("SwiGLU", ops.silu, True)):
            up, down, gate = normal((n_experts, 3, 4)), normal((n_experts, 4, 3)), normal((n_experts, 3, 4))
            for renormalize in (True, False):
                yield Case(
                    f"{kind}, {n} rows, top-{k} of {n_experts}" + (", renormalised" if renormalize else ""),
                    ops.moe,
                    (normal((n, 3)), normal((3, n_experts)), up, down, *([gate] if gated else [])),
                    {"k": k, "renormalize": renormalize, "activation": act},
                )
            inputs = normal((n, 3)), normal((3, n_experts)), up, down
            route = partial(tight_route, k=k, room=2)
            yield Case(
                f"{kind}, {n} rows, top-{k}, 2 places at each of {n_experts}",
                ops.moe_layer,
                inputs,
                {"route": route, "activation": act},
            )
        yield Case(f"{n} rows, top-{k} of {n_experts}", ops.top_k_route, (normal((n, 3)), normal((3, n_experts)), k))


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


def _sparse(normal: Any, rng: np.random.Generator) -> Iterator[Case]:
    for name, shape, stored in (("two in five", (6, 5), 0.4), ("full", (3, 4), 1.0), ("empty", (3, 5), 0.0)):
        pattern = CSR.from_dense(normal(shape), rng.random(shape) < stored)
        rows, columns = shape
        yield Case(name, ops.sparse_matmul, (normal(pattern.nnz), normal((columns, 2)), pattern))
        yield Case(name, ops.sparse_linear, (normal((7, rows)), normal(pattern.nnz), pattern))
        yield Case(
            f"{name}, bias", ops.sparse_linear, (normal((2, rows)), normal(pattern.nnz), pattern, normal(columns))
        )
        yield Case(f"{name}, no rows", ops.sparse_linear, (normal((0, rows)), normal(pattern.nnz), pattern))
    for name, counts in (("all at work", [2, 1, 3]), ("an idle expert", [2, 0, 1]), ("no rows", [0, 0, 0])):
        pattern = CSR.from_dense(normal((12, 5)), rng.random((12, 5)) < 0.4)
        rows = normal((sum(counts), 4))
        yield Case(name, ops.grouped_sparse_linear, (rows, normal(pattern.nnz), pattern, np.array(counts)))


def _likelihood(normal: Any, rng: np.random.Generator) -> Iterator[Case]:
    for n in (5, 1, 0):
        yield Case(f"{n} rows", ops.half_squared_errors, (normal((n, 3)), normal((n, 3))))
        yield Case(f"{n} rows", ops.cross_entropies, (normal((n, 4)), rng.integers(0, 4, n)))
        for k in (2, 3):
            yield Case(f"{n} rows, {k} experts", ops.mixture_likelihood, (normal((n, k)), 2 * normal((n, k)) ** 2))
    yield Case("far from zero", ops.cross_entropies, (normal((3, 4)) + 800, np.array([3, 0, 0])))
    yield Case("far from zero", ops.mixture_likelihood, (normal((4, 3)) - 800, normal((4, 3)) + 900))


def _distillation(normal: Any) -> Iterator[Case]:
    def case(name: str, logits: Any, **options: Any) -> Case:
        return Case(name, ops.distillation, (logits,), {"teacher": normal(logits.shape), **options})

    yield case("T = 1", normal((4, 6)))
    yield case("T = 3", normal((4, 6)), temperature=3.0)
    yield case("T = 1/2", normal((3, 5)), temperature=0.5)
    yield case("padding", normal((5, 3)), temperature=2.0, mask=np.arange(5) % 3 != 1)
    yield case("far from zero", normal((3, 4)) + 800)
    yield case("no rows", normal((0, 4)), temperature=2.0)


def _pictures(normal: Any) -> Iterator[Case]:
    for name, b, h, g, t, s, p in (
        ("multi-head", 2, 3, 3, 5, 5, 4),
        ("grouped, more queries than keys", 2, 6, 2, 7, 4, 3),
        ("multi-query, more keys than queries", 3, 4, 1, 2, 6, 5),
        ("no queries", 2, 2, 1, 0, 3, 4),
        ("no keys", 2, 2, 1, 3, 0, 4),
        ("no sequences", 0, 2, 1, 3, 5, 4),
    ):
        yield Case(name, ops.full_attention, (normal((b, h, t, p)), normal((b, g, s, p)), normal((b, g, s, p))))
    for name, b, r, t, d in (
        ("more rows than text", 2, 5, 3, 4),
        ("one row", 3, 1, 4, 2),
        ("no text", 2, 3, 0, 5),
        ("no sequences", 0, 2, 3, 4),
    ):
        yield Case(name, ops.fuse_prefix, (normal((b, r, d)), normal((b, t, d))))
        yield Case(name, ops.fuse_additive, (normal((b, r, d)), normal((b, t, d))))
        yield Case(name, ops.text_rows, (normal((b, r + t, d)), r))
    yield Case("no prefix", ops.text_rows, (normal((2, 3, 4)), 0))
