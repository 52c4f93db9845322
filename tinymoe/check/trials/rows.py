"""Example and edge inputs for the operations on rows of numbers, ids and positions."""

from collections.abc import Iterator

import numpy as np

from ... import ops
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    for rows in (4, 1, 0):
        name = f"{rows} rows"
        yield Trial(name, ops.linear, (normal((rows, 3)), normal((3, 5))))
        yield Trial(name + " with bias", ops.linear, (normal((rows, 3)), normal((3, 5)), normal(5)))
        yield Trial(name, ops.rms_norm, (normal((rows, 6)), normal(6)))
        yield Trial(name, ops.layer_norm, (normal((rows, 6)), normal(6), normal(6)))
        yield Trial(name, ops.softmax, (normal((rows, 5)),))
        yield Trial(name, ops.without_padding, (normal((rows, 5)), np.arange(rows) % 3 != 1))
        yield Trial(name, ops.log_sum_exp, (normal((rows, 5)),))
        yield Trial(name, ops.cross_entropy, (normal((rows, 7)), rng.integers(0, 7, rows)))
    yield Trial("far from zero", ops.softmax, (normal((3, 4)) + 800,))
    yield Trial("far from zero", ops.log_sum_exp, (normal((3, 4)) - 800,))
    yield Trial("tiny rows", ops.rms_norm, (1e-3 * normal((3, 4)), normal(4)))
    yield Trial("two ignored", ops.cross_entropy, (normal((5, 3)), np.array([0, -100, 2, -100, 1])))
    yield Trial("all ignored", ops.cross_entropy, (normal((2, 3)), np.array([-100, -100])))
    yield Trial("repeated ids", ops.embedding, (np.array([2, 0, 2, 5, 2, 0]), normal((6, 3))))
    yield Trial("one id", ops.embedding, (np.array([1]), normal((2, 3))))
    yield Trial("no ids", ops.embedding, (np.array([], int), normal((4, 3))))
    yield Trial("shorter than the table", ops.add_positions, (normal((2, 3, 4)), normal((5, 4))))
    yield Trial("as long as the table", ops.add_positions, (normal((3, 4, 2)), normal((4, 2))))
    yield Trial("three positions", ops.token_shift, (normal((2, 3, 4)), normal(4)))
    yield Trial("one position", ops.token_shift, (normal((3, 1, 2)), normal(2)))
    yield Trial("from 0", ops.rotary, (normal((2, 5, 3, 4)), np.arange(5)))
    yield Trial("from 7, base 100", ops.rotary, (normal((2, 3, 1, 6)), np.arange(7, 10), 100.0))
