"""The estimator's mixture, for classes and for numbers."""

from collections.abc import Iterator

import numpy as np

from ...estimator.network import Network, initialize, mixture_loss
from ...tree import tree_map
from ...types import Array
from ..trial import Trial, of_parameters


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    for classes in (True, False):
        for k in (1, 2, 5):
            p, x, targets = small(rng, classes)
            yield of_parameters(f"{'classes' if classes else 'numbers'}, k = {k}", mixture_loss, p, x, targets, k, 0.3)


def small(rng: np.random.Generator, classes: bool, n: int = 9) -> tuple[Network, Array, Array]:
    """(parameters, rows, targets): 5 experts, and 4 classes or 4 numbers for each of n rows of 3."""
    p = tree_map(lambda a: a + 0.1 * rng.standard_normal(a.shape), initialize(rng, 3, 6, 4, 5))
    return p, rng.standard_normal((n, 3)), rng.integers(0, 4, n) if classes else rng.standard_normal((n, 4))
