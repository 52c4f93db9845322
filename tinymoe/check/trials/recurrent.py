"""Example and edge inputs for the operations in `ops/recurrent.py`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ...ops.recurrent import gru, lstm, rnn
from ..trial import Trial

SIZES = (  # B, T, D, H
    ("three positions", 2, 3, 4, 5),
    ("seven positions", 3, 7, 2, 4),
    ("one position", 3, 1, 2, 4),
    ("one sequence", 1, 4, 3, 2),
    ("no positions", 2, 0, 3, 4),
    ("no sequences", 0, 3, 4, 2),
)


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal, positive = rng.standard_normal, partial(rng.uniform, 0.2, 0.8)
    for op in (rnn, gru, lstm):
        for name, *sizes in SIZES:
            yield Trial(name, op, _inputs(op, normal, *sizes))
        lone = _inputs(
            op, positive, 1, 1, 1, 1
        )  # which leave the gates half open: through a shut one there is no slope
        yield Trial("one of each", op, lone)
        x, w_in, w_rec, bias, *rest = _inputs(op, normal, 2, 6, 2, 3)
        yield Trial("gates nearly shut or open", op, (x, w_in, w_rec, rng.choice([-3.0, 3.0], bias.shape), *rest))


def _inputs(op: Any, draw: Any, B: int, T: int, D: int, H: int) -> tuple[Any, ...]:
    """(x, w_in, w_rec, bias, …, states), with weights that keep sums near 1."""
    F = {rnn: 1, gru: 3, lstm: 4}[op] * H
    rest: dict[Any, list[Any]] = {rnn: [(B, H)], gru: [(H,), (B, H)], lstm: [(B, H), (B, H)]}
    weights = draw((D, F)) / D**0.5, draw((H, F)) / H**0.5, draw(F)
    return draw((B, T, D)), *weights, *map(draw, rest[op])
