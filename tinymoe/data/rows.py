"""Tables: arrays of one length, of which a batch takes the same rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..types import Array


@dataclass(frozen=True, eq=False)
class Rows:
    """Raises ValueError when there are no rows, or not equally many in each array."""

    arrays: tuple[Array, ...]

    def __post_init__(self) -> None:
        lengths = {len(array) for array in self.arrays}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"the data have {sorted(lengths)} rows; all arrays must have equally many, at least one")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, rows: Array) -> "Rows":
        """Some of the rows."""
        return Rows(tuple(array[rows] for array in self.arrays))

    @property
    def predicted(self) -> int:
        """A row has one loss."""
        return len(self)

    def batches(self, size: int, rng: np.random.Generator) -> Iterator["Rows"]:
        """All rows once, in random order, `size` at a time; the last batch may be smaller."""
        order = rng.permutation(len(self))
        for start in range(0, len(order), size):
            yield self.take(order[start : start + size])
