"""What the models share: their parameters as plain arrays, training by Adam on mini-batches, and the loss of numbers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..optim import adamw, new_slots
from ..sparse import Sparse
from ..tree import Tree, named, with_leaves

Array = np.ndarray


def values_of(tree: Any) -> dict[str, Array]:
    """The numbers that are trained, by dotted name: an array itself, of a sparse matrix its stored values (Z,)."""
    return {name: leaf.data if isinstance(leaf, Sparse) else leaf for name, leaf in named(tree).items()}


def with_values(tree: Tree, values: dict[str, Array]) -> Tree:
    """The same tree with other numbers; what a sparse matrix does not store stays zero."""
    leaves: dict[str, Any] = dict(values)
    for name, leaf in named(tree).items():
        if isinstance(leaf, Sparse):
            leaves[name] = leaf.with_data(values[name])
    return with_leaves(tree, leaves)


def train(
    parameters: Tree,
    loss: Callable[..., Any],
    data: Sequence[Array],
    *,
    epochs: int,
    rng: np.random.Generator,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    update: Callable[..., None] = adamw,
) -> Iterator[tuple[Tree, float]]:
    """Yields new parameters and the mean training loss after each epoch; those passed in stay as they are.

    loss    loss(parameters, *rows) returns loss, backward; backward(1.0) the gradient, of the type of the parameters
    data    arrays of one length, from which each batch takes the same rows
    update  of `optim`: adamw, or its lazy form

    Raises ValueError when there are no rows, or not equally many.
    """
    lengths = {len(array) for array in data}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"the data have {sorted(lengths)} rows; all arrays must have equally many, at least one")
    values = {name: v.copy() for name, v in values_of(parameters).items()}
    slots = {name: new_slots("adamw", v) for name, v in values.items()}
    step = 0
    for _ in range(epochs):
        order, total = rng.permutation(len(data[0])), 0.0
        for start in range(0, len(order), batch_size):
            rows, step = order[start : start + batch_size], step + 1
            batch_loss, backward = loss(with_values(parameters, values), *(array[rows] for array in data))
            for name, gradient in values_of(backward(1.0)).items():
                update(values[name], gradient, slots[name], lr=learning_rate, step=step, beta2=0.999)
            total += float(batch_loss) * len(rows)
        yield with_values(parameters, {name: v.copy() for name, v in values.items()}), total / len(order)


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
