"""What is minimised: all that the trainer knows of a model, beside the roles of its leaves."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..types import Array


class Examples(Protocol):
    """A batch: a number of examples, of which some can be taken."""

    def __len__(self) -> int: ...

    def take(self, rows: Array) -> "Examples": ...

    @property
    def predicted(self) -> int:
        """What its mean loss weighs: the number of things it predicts."""
        ...


class Objective:
    """What is minimised, and what it means for parameters to be a model. It is sent to every member of the team.

    `(loss, report), backward = objective(params, batch, rng)`, with backward(share) → a gradient of the type of params,
    `share` times that of the mean loss of the batch; `rng` draws noise and dropout.
    """

    def params(self, leaves: dict[str, Array]) -> Any:
        """The parameters around these numbers, by dotted name."""
        raise NotImplementedError

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator) -> tuple[tuple[Any, Any], Any]:
        raise NotImplementedError

    def score(self, params: Any, batch: Any) -> tuple[float, int]:
        """In evaluation: the sum of the losses of a batch, and how many they are."""
        raise NotImplementedError

    asks_first = False  # whether all shards are surveyed before any gradient

    def survey(self, params: Any, batch: Any, rng: np.random.Generator) -> Any:
        """What the others must know of a shard, from a forward pass with the noise of the real one."""

    def informed(self, surveys: Sequence[Any]) -> "Objective":
        """This objective, knowing what was found in all shards of the batch."""
        return self

    def merged(self, reports: Sequence[tuple[float, Any]]) -> Any:
        """One report of the batch from those of its shards and their shares of it."""

    def after(self, params: Any, report: Any) -> None:
        """Change what no gradient changes, in place."""
