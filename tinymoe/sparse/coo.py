"""COO, the list of coordinates: for every stored entry its row, its column and its value.

The simplest storage and the one to build a matrix in. The matrix

    0 0 0 0
    0 5 0 0        rows   1 2
    0 0 0 7        cols   1 3
    0 0 0 0        data   5 7

is the example of 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6.1. The triples that its §6.2
prints for it, (0,1,5) (1,2,7) (2,3,7), describe another matrix: counted from 0, they must be (1,1,5) (2,3,7).
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .base import Sparse
from .checks import check_coordinates, frozen
from .sorting import sorting_order
from .structure import Array, ordered, row_pointers
from .sums import sum_duplicates

if TYPE_CHECKING:
    from .csr import CSR


@dataclass(frozen=True, eq=False, repr=False)
class COO(Sparse):
    """A sparse matrix as coordinates. Give entries in any order; those at the same place are summed."""

    rows: Array  # (nnz,) int32, or int64 where the shape needs it
    cols: Array  # (nnz,)
    data: Array  # (nnz,)
    shape: tuple[int, int]
    keep_zeros: InitVar[bool] = False

    def __post_init__(self, keep_zeros: bool) -> None:
        rows, cols, data, shape = check_coordinates(self.rows, self.cols, self.data, self.shape)
        if not ordered(rows, cols):
            order = sorting_order(rows, cols, shape)
            rows, cols, data = sum_duplicates(rows.take(order), cols.take(order), data.take(order))
        if not keep_zeros and not data.all():
            stored = np.flatnonzero(data)
            rows, cols, data = rows[stored], cols[stored], data[stored]
        self._set(rows=frozen(rows), cols=frozen(cols), data=frozen(data), shape=shape)

    @classmethod
    def _trusted(cls, rows: Array, cols: Array, data: Array, shape: tuple[int, int]) -> Self:
        return cls._around(rows=rows, cols=cols, data=data, shape=shape)

    @classmethod
    def from_coordinates(cls, rows: Any, cols: Any, values: Any, shape: Any, *, keep_zeros: bool = False) -> Self:
        """Entries values[e] at (rows[e], cols[e]) in any order; values at the same place are summed."""
        return cls(rows, cols, values, shape, keep_zeros)

    def _with(self, data: Array) -> Self:
        return self._trusted(self.rows, self.cols, data, self.shape)

    def to_coo(self) -> COO:
        """Itself."""
        return self

    def to_csr(self) -> CSR:
        """The same matrix with the rows compressed; columns and values are shared."""
        from .csr import CSR

        return CSR._trusted(row_pointers(self.rows, self.shape[0]), self.cols, self.data, self.shape)

    def to_scipy(self) -> Any:
        """A scipy.sparse.coo_array with the same entries (copied)."""
        from scipy.sparse import coo_array

        return coo_array((self.data.copy(), (self.rows.copy(), self.cols.copy())), shape=self.shape)

    @property
    def T(self) -> COO:
        """The transpose: rows and columns exchanged, then sorted again."""
        order = sorting_order(self.cols, self.rows, (self.shape[1], self.shape[0]))
        rows, cols, data = self.cols.take(order), self.rows.take(order), self.data.take(order)
        return self._trusted(rows, cols, data, (self.shape[1], self.shape[0]))
