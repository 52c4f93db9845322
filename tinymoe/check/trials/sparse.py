"""Example and edge inputs for `ops/sparse.py`."""

from collections.abc import Iterator

import numpy as np

from ... import ops
from ...sparse import CSR
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    for name, shape, stored in (("two in five", (6, 5), 0.4), ("full", (3, 4), 1.0), ("empty", (3, 5), 0.0)):
        pattern = CSR.from_dense(normal(shape), rng.random(shape) < stored)
        rows, columns = shape
        yield Trial(name, ops.sparse_matmul, (normal(pattern.nnz), normal((columns, 2)), pattern))
        yield Trial(name, ops.sparse_linear, (normal((7, rows)), normal(pattern.nnz), pattern))
        yield Trial(
            f"{name}, bias", ops.sparse_linear, (normal((2, rows)), normal(pattern.nnz), pattern, normal(columns))
        )
        yield Trial(f"{name}, no rows", ops.sparse_linear, (normal((0, rows)), normal(pattern.nnz), pattern))
    for name, counts in (("all at work", [2, 1, 3]), ("an idle expert", [2, 0, 1]), ("no rows", [0, 0, 0])):
        pattern = CSR.from_dense(normal((12, 5)), rng.random((12, 5)) < 0.4)
        x = normal((sum(counts), 4))
        yield Trial(name, ops.grouped_sparse_linear, (x, normal(pattern.nnz), pattern, np.array(counts)))
