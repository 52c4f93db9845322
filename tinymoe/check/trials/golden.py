"""The layers of the pack for authors of kernels: their objective, as a function of the arrays that are given."""

from collections.abc import Iterator

import numpy as np

from ...golden.agreements import Convention
from ...golden.cases import CASES, draw
from ...golden.solve import solve
from ...types import Array
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    """One of each case, but for `ties`: across these there is no derivative."""
    for name, case in CASES.items():
        if name != "ties":
            yield trial(name, case.convention, draw(name, int(rng.integers(1000))))


def trial(name: str, convention: Convention, drawn: dict[str, Array]) -> Trial:
    """The objective as a function of those arrays for which `solve` returns a gradient."""
    given = {key: np.nan_to_num(array) for key, array in drawn.items()}  # padding holds NaN
    wanted = [key for key in given if f"d{key}" in solve(given, convention)]

    def objective(*arrays):
        inputs = given | dict(zip(wanted, arrays, strict=True))
        results = solve(inputs, convention)

        def backward(dobjective):
            gradients = solve(inputs, convention)
            return tuple(dobjective * gradients[f"d{key}"] for key in wanted)

        return (results["objective"], results["indices"]), backward

    return Trial(name, objective, tuple(given[key] for key in wanted), names=wanted, analytic=False)
