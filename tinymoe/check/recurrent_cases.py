"""Example and edge inputs for the operations in `ops/recurrent.py`; see `cases.py`."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..ops.recurrent import gru, lstm, rnn

SIZES = (  # B, T, D, H
    ("three positions", 2, 3, 4, 5),
    ("seven positions", 3, 7, 2, 4),
    ("one position", 3, 1, 2, 4),
    ("one sequence", 1, 4, 3, 2),
    ("one of each", 1, 1, 1, 1),
    ("no positions", 2, 0, 3, 4),
    ("no sequences", 0, 3, 4, 2),
)


def recurrent_cases(normal: Any, rng: np.random.Generator, case: Callable[..., Any]) -> Iterator[Any]:
    """Every case as `case(name, operation, inputs)`; `case` is `cases.Case`, which imports this."""
    for op in (rnn, gru, lstm):
        for name, *sizes in SIZES:
            yield case(name, op, _inputs(op, normal, *sizes))
        x, w_in, w_rec, bias, *rest = _inputs(op, normal, 2, 6, 2, 3)
        yield case("gates nearly shut or open", op, (x, w_in, w_rec, rng.choice([-4.0, 4.0], bias.shape), *rest))


def _inputs(op: Any, normal: Any, B: int, T: int, D: int, H: int) -> tuple[Any, ...]:
    """(x, w_in, w_rec, bias, …, states), with weights that keep sums near 1."""
    F = {rnn: 1, gru: 3, lstm: 4}[op] * H
    rest: dict[Any, list[Any]] = {rnn: [(B, H)], gru: [(H,), (B, H)], lstm: [(B, H), (B, H)]}
    weights = normal((D, F)) / D**0.5, normal((H, F)) / H**0.5, normal(F)
    return normal((B, T, D)), *weights, *map(normal, rest[op])
