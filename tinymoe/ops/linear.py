"""Linear maps of rows: a matrix product, and the gather that a product with one-hot rows comes down to."""

import numpy as np

from ..types import Array, Backward
from .ids import check_ids


def linear(x: Array, weight: Array, bias=None) -> tuple[Array, Backward]:
    """Map every row.

        y = x W + b        dx = dy Wᵀ,   dW = xᵀ dy,   db = Σ_n dy_n

    x       (N, D)
    weight  (D, F)
    bias    (F,)    or None
    y       (N, F)

    The document writes W·x + b for one column x; a batch of rows is its transpose, so W here is W ᵀ there.
    Its worked example, W = [[1, 2], [3, 4]], x = [5, 6], b = [7, 8], gives [24, 47] (it prints [35, 43]).

    Source: 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §4.3.
    """
    y = x @ weight if bias is None else x @ weight + bias

    def backward(dy):
        dx = dy @ weight.T
        dweight = x.T @ dy
        if bias is None:
            return dx, dweight
        return dx, dweight, dy.sum(0)

    return y, backward


def embedding(ids: Array, table: Array) -> tuple[Array, Backward]:
    """Look up a row of the table for every id.

        y_n = table[ids_n]        dtable_v = Σ_{n : ids_n = v} dy_n

    The same as onehot(ids) · table, with backward onehotᵀ · dy. An id that occurs several times collects
    several gradients: the rows of dy are sorted by id and each run is summed.

    ids    (N,)    int in [0, V)
    table  (V, D)
    y      (N, D)

    Raises IndexError for an id outside the table (NumPy would count negative ids from the end).
    Source: 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §4.1, which prints a row of W for W·onehot,
    where the product is a column.
    """
    check_ids("ids", ids, len(table), "the table has rows")
    y = table[ids]

    def backward(dy):
        order = np.argsort(ids, kind="stable")
        rows, first = np.unique(ids[order], return_index=True)
        dtable = np.zeros(table.shape, dy.dtype)
        dtable[rows] = np.add.reduceat(dy[order], first)
        return (dtable,)

    return y, backward
