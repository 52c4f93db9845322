"""Example and edge inputs for `ops/attention.py`."""

from collections.abc import Iterator

import numpy as np

from ... import ops
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    for name, b, h, g, t, p in (
        ("multi-head", 2, 3, 3, 5, 4),
        ("grouped", 2, 6, 2, 4, 3),
        ("multi-query", 3, 4, 1, 6, 2),
        ("one position", 2, 2, 2, 1, 3),
        ("no sequences", 0, 2, 1, 3, 4),
    ):
        yield Trial(name, ops.causal_attention, (normal((b, h, t, p)), normal((b, g, t, p)), normal((b, g, t, p))))
    for name, b, h, g, t, s, p in (
        ("multi-head", 2, 3, 3, 5, 5, 4),
        ("grouped, more queries than keys", 2, 6, 2, 7, 4, 3),
        ("multi-query, more keys than queries", 3, 4, 1, 2, 6, 5),
        ("no queries", 2, 2, 1, 0, 3, 4),
        ("no keys", 2, 2, 1, 3, 0, 4),
        ("no sequences", 0, 2, 1, 3, 5, 4),
    ):
        yield Trial(name, ops.full_attention, (normal((b, h, t, p)), normal((b, g, s, p)), normal((b, g, s, p))))
