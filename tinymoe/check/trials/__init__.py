"""What is checked, and on which inputs.

Axes have different sizes, all above 1, so that a transposed product can't pass by accident; edge inputs have no rows,
one row, repeated ids, idle experts, or one expert for all.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..trial import Trial
from . import (
    attention,
    balance,
    documents,
    estimator,
    fusion,
    gates,
    golden,
    language,
    likelihood,
    pointwise,
    recipes,
    recurrent,
    routing,
    rows,
    sparse,
    systems,
)

FAMILIES = (pointwise, rows, attention, routing, sparse, likelihood, fusion, recurrent, gates, balance)


def operations(rng: np.random.Generator) -> Iterator[Trial]:
    """Those of `ops`, and what has their form in `systems/conventions.py`."""
    for family in FAMILIES:
        yield from family.trials(rng)


class Group(NamedTuple):
    title: str
    trials: Callable[[np.random.Generator], Iterator[Trial]]  # as many and in the same order from any generator
    by_input: bool = False  # whether the report has a line for each input, as for the parameters of a model


GROUPS = (
    Group("operations", operations),
    Group("dispatchers", systems.trials),
    Group("documents", documents.operations),
    Group("golden pack", golden.trials),
    Group("language model", language.trials, by_input=True),
    Group("estimator", estimator.trials, by_input=True),
    Group("document's model", documents.trials, by_input=True),
    Group("recipe", recipes.trials, by_input=True),
)
