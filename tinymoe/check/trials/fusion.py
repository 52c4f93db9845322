"""Example and edge inputs for `ops/fusion.py`."""

from collections.abc import Iterator

import numpy as np

from ... import ops
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    for name, b, r, t, d in (
        ("more rows than text", 2, 5, 3, 4),
        ("one row", 3, 1, 4, 2),
        ("no text", 2, 3, 0, 5),
        ("no sequences", 0, 2, 3, 4),
    ):
        yield Trial(name, ops.fuse_prefix, (normal((b, r, d)), normal((b, t, d))))
        yield Trial(name, ops.fuse_additive, (normal((b, r, d)), normal((b, t, d))))
        yield Trial(name, ops.text_rows, (normal((b, r + t, d)), r))
    yield Trial("no prefix", ops.text_rows, (normal((2, 3, 4)), 0))
