"""Example and edge inputs for `ops/likelihood.py`, `ops/distillation.py`, and the cross-entropy of each row."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import ops
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    for n in (5, 1, 0):
        yield Trial(f"{n} rows", ops.half_squared_errors, (normal((n, 3)), normal((n, 3))))
        yield Trial(f"{n} rows", ops.cross_entropies, (normal((n, 4)), rng.integers(0, 4, n)))
        for k in (2, 3):
            yield Trial(f"{n} rows, {k} experts", ops.mixture_likelihood, (normal((n, k)), 2 * normal((n, k)) ** 2))
    yield Trial("far from zero", ops.cross_entropies, (normal((3, 4)) + 800, np.array([3, 0, 0])))
    yield Trial("far from zero", ops.mixture_likelihood, (normal((4, 3)) - 800, normal((4, 3)) + 900))
    yield from _distillation(normal)


def _distillation(normal: Any) -> Iterator[Trial]:
    def trial(name: str, logits: Any, **options: Any) -> Trial:
        return Trial(name, ops.distillation, (logits,), {"teacher": normal(logits.shape), **options})

    yield trial("T = 1", normal((4, 6)))
    yield trial("T = 3", normal((4, 6)), temperature=3.0)
    yield trial("T = 1/2", normal((3, 5)), temperature=0.5)
    yield trial("padding", normal((5, 3)), temperature=2.0, mask=np.arange(5) % 3 != 1)
    yield trial("far from zero", normal((3, 4)) + 800)
    yield trial("no rows", normal((0, 4)), temperature=2.0)
