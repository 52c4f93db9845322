"""What the models share: training by the common trainer on mini-batches of rows, and the loss of numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from ..data.rows import Rows
from ..optim.hyperparameters import Training, fresh
from ..optim.objective import Objective
from ..optim.trainer import Trainer
from ..tree import Tree, tree_map, with_values
from ..types import Array


@dataclass(frozen=True, eq=False)
class RowLoss(Objective, Generic[Tree]):
    """A loss of the parameters and some rows: loss(parameters, *arrays) → loss, backward(dloss) → gradient."""

    like: Tree  # parameters of the right shapes; of a sparse matrix, the pattern
    loss: Callable[..., Any]

    def params(self, leaves: dict[str, Array]) -> Tree:
        return with_values(self.like, leaves)

    def __call__(self, params: Tree, batch: Rows, rng: np.random.Generator) -> Any:
        loss, backward = self.loss(params, *batch.arrays)
        return (loss, None), backward


def train(
    parameters: Tree,
    loss: Callable[..., Any],
    data: Sequence[Array],
    *,
    epochs: int,
    rng: np.random.Generator,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    lazy: bool = False,
) -> Iterator[tuple[Tree, float]]:
    """Yields new parameters and the mean training loss after each epoch; those passed in stay as they are.

    loss  loss(parameters, *rows) returns loss, backward; backward(1.0) the gradient, of the type of the parameters
    data  arrays of one length, from which each batch takes the same rows
    lazy  whether experts without rows in a batch stay as they are

    Raises ValueError when there are no rows, or not equally many.
    """
    rows, objective = Rows(tuple(data)), RowLoss(parameters, loss)
    training = Training(
        batch_size=batch_size,
        lr=learning_rate,
        final_lr=1.0,
        warmup=0,
        beta2=0.999,
        weight_decay=0.0,
        clip=0.0,
        lazy=lazy,
    )
    with Trainer(fresh(copied(parameters), training), objective, training) as trainer:
        for _ in range(epochs):
            total = sum(trainer.step(batch).loss * len(batch) for batch in rows.batches(batch_size, rng))
            yield copied(trainer.params), total / len(rows)


def copied(parameters: Tree) -> Tree:
    """The same numbers in arrays of their own; a sparse matrix, which is read-only, as it is."""
    return tree_map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, parameters)


def mean_squared_error(y, targets):
    """The squared distance to the targets, mean over rows.

        loss = 1/n Σ_nc (y_nc − targets_nc)²,   n = rows        dy = dloss 2/n (y − targets)        dtargets = −dy

    y        (N, C)
    targets  (N, C)
    loss     ()      0 if there are no rows

    Raises ValueError for targets of another shape, which would broadcast.
    """
    if y.shape != targets.shape:
        raise ValueError(f"targets have shape {targets.shape}; one is needed for each output, {y.shape}")
    off, n = y - targets, max(len(y), 1)
    loss = (off * off).sum() / n

    def backward(dloss):
        dy = (dloss * 2 / n) * off
        return dy, -dy

    return loss, backward
