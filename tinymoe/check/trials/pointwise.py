"""Example and edge inputs for the operations on single elements: `ops/pointwise.py`."""

from collections.abc import Iterator

import numpy as np

from ... import ops
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    for op in (ops.relu, ops.sigmoid, ops.tanh, ops.softplus, ops.silu, ops.gelu, ops.gelu_exact):
        analytic = op is not ops.gelu_exact
        yield Trial("matrix", op, (normal((3, 5)),), analytic=analytic)
        yield Trial("large values", op, (np.array([-60.0, -9.5, -1e-3, 2e-3, 9.5, 60.0]),), analytic=analytic)
        yield Trial("no rows", op, (normal((0, 4)),), analytic=analytic)
    yield Trial("a quarter dropped", ops.dropout, (normal((4, 6)), rng.random((4, 6)) >= 0.25, 0.25))
    yield Trial("nothing dropped", ops.dropout, (normal((2, 3)), np.ones((2, 3), bool), 0.0))
