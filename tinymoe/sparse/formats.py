"""The two formats: COO, the list of coordinates, and CSR, compressed sparse rows. One matrix in both:

    0 0 0 0
    0 5 0 0      COO   rows  1 2      CSR   indptr   0 0 1 2 2   row i owns the entries indptr[i] … indptr[i+1]−1
    0 0 0 7            cols  1 3            indices  1 3         their columns
    0 0 0 0            data  5 7            data     5 7         their values

COO has a row, a column and a value for every stored entry: the simplest storage and the one to build a matrix in.
In CSR the row numbers shrink to one pointer for each row: the storage to compute with, since a row is found at once
and its entries lie side by side. They stand in one file because each turns into the other; columns and values are the
same in both, and shared.

A routing decision is a CSR matrix of experts × tokens: indptr = where each expert's tokens begin, indices = tokens,
data = gates.

The matrix above is the example of 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6.1. The triples that its §6.2
prints for it, (0,1,5) (1,2,7) (2,3,7), describe another matrix: counted from 0, they must be (1,1,5) (2,3,7).
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Any, Self

import numpy as np

from ..types import Array
from .base import Sparse
from .checks import check_compressed, check_coordinates, frozen
from .products import Transpose, sampled_matmul, transpose_plan
from .sorting import sort_by, sorting_order
from .structure import entries_of, ordered, row_numbers, row_pointers
from .sums import Arrays, sum_duplicates


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
    def from_coordinates(cls, rows: Any, cols: Any, values: Any, shape: Any, *, keep_zeros: bool = False) -> Self:
        """Entries values[e] at (rows[e], cols[e]) in any order; values at the same place are summed."""
        return cls(rows, cols, values, shape, keep_zeros)

    @classmethod
    def _from_coordinates(cls, rows: Array, cols: Array, data: Array, shape: tuple[int, int]) -> Self:
        """The matrix of these canonical arrays, unchecked."""
        return cls._around(rows=rows, cols=cols, data=data, shape=shape)

    @classmethod
    def _from_compressed(cls, indptr: Array, indices: Array, data: Array, shape: tuple[int, int]) -> Self:
        return cls._from_coordinates(row_numbers(indptr), indices, data, shape)

    def _coordinates(self) -> Arrays:
        return self.rows, self.cols, self.data

    def _compressed(self) -> Arrays:
        return row_pointers(self.rows, self.shape[0]), self.cols, self.data

    def _with(self, data: Array) -> Self:
        return self._from_coordinates(self.rows, self.cols, data, self.shape)

    def to_coo(self) -> COO:
        """Itself."""
        return self

    def to_csr(self) -> CSR:
        """The same matrix with the rows compressed; columns and values are shared."""
        return CSR._from_compressed(*self._compressed(), self.shape)

    def to_scipy(self) -> Any:
        """A scipy.sparse.coo_array with the same entries (copied)."""
        from scipy.sparse import coo_array

        return coo_array((self.data.copy(), (self.rows.copy(), self.cols.copy())), shape=self.shape)

    @property
    def T(self) -> COO:
        """The transpose: rows and columns exchanged, then sorted again."""
        order = sorting_order(self.cols, self.rows, (self.shape[1], self.shape[0]))
        rows, cols, data = self.cols.take(order), self.rows.take(order), self.data.take(order)
        return self._from_coordinates(rows, cols, data, (self.shape[1], self.shape[0]))


@dataclass(frozen=True, eq=False, repr=False)
class CSR(Sparse):
    """A sparse matrix as compressed rows. Give a row's entries in any order; equal columns are summed."""

    indptr: Array  # (n_rows+1,) int32, or int64 where the shape needs it
    indices: Array  # (nnz,)
    data: Array  # (nnz,)
    shape: tuple[int, int]
    keep_zeros: InitVar[bool] = False

    def __post_init__(self, keep_zeros: bool) -> None:
        indptr, indices, data, shape = check_compressed(self.indptr, self.indices, self.data, self.shape)
        rows = row_numbers(indptr)
        if not ordered(rows, indices) or not (keep_zeros or data.all()):
            indptr, indices, data = COO(rows, indices, data, shape, keep_zeros)._compressed()
        self._set(indptr=frozen(indptr), indices=frozen(indices), data=frozen(data), shape=shape)

    @classmethod
    def from_coordinates(cls, rows: Any, cols: Any, values: Any, shape: Any, *, keep_zeros: bool = False) -> Self:
        """Entries values[e] at (rows[e], cols[e]) in any order; values at the same place are summed."""
        coo = COO(rows, cols, values, shape, keep_zeros)
        return cls._from_compressed(*coo._compressed(), coo.shape)

    @classmethod
    def from_scipy(cls, matrix: Any, *, keep_zeros: bool = False) -> Self:
        """As `Sparse.from_scipy`, by way of SciPy's own CSR."""
        csr = matrix.tocsr()
        return cls(csr.indptr, csr.indices, csr.data, csr.shape, keep_zeros)

    @classmethod
    def _from_compressed(cls, indptr: Array, indices: Array, data: Array, shape: tuple[int, int]) -> Self:
        return cls._around(indptr=indptr, indices=indices, data=data, shape=shape)

    def _coordinates(self) -> Arrays:
        return row_numbers(self.indptr), self.indices, self.data

    def _compressed(self) -> Arrays:
        return self.indptr, self.indices, self.data

    def _with(self, data: Array) -> Self:
        return self._from_compressed(self.indptr, self.indices, data, self.shape)

    @property
    def arrays(self) -> Arrays:
        """(indptr, indices, data)."""
        return self._compressed()

    def to_coo(self) -> COO:
        """The same matrix with a row number for every entry; columns and values are shared."""
        return COO._from_coordinates(*self._coordinates(), self.shape)

    def to_csr(self) -> CSR:
        """Itself."""
        return self

    def to_scipy(self) -> Any:
        """A scipy.sparse.csr_array with the same entries (copied)."""
        from scipy.sparse import csr_array

        return csr_array((self.data.copy(), self.indices.copy(), self.indptr.copy()), shape=self.shape)

    @property
    def T(self) -> CSR:
        """The transpose, by one counting sort of the column numbers."""
        starts, rows, values = sort_by(self.indices, self.shape[1], row_numbers(self.indptr), self.data)
        return self._from_compressed(starts.astype(rows.dtype), rows, values, (self.shape[1], self.shape[0]))

    def transpose_plan(self) -> Transpose:
        """The pattern of A.T and the order of its values, for transposing many times: see `products`."""
        return transpose_plan(self.indptr, self.indices, self.shape[1])

    def sampled_matmul(self, x: Array, y: Array) -> CSR:
        """This pattern with the values of X Y: x (n_rows, D), y (D, n_cols). A ∘ (X Y) is A * that."""
        if x.ndim != 2 or y.ndim != 2 or (len(x), y.shape[1]) != self.shape:
            raise ValueError(f"X {x.shape} @ Y {y.shape} must have the pattern's shape {self.shape}.")
        return self._with(sampled_matmul(self.indptr, self.indices, x, y))

    def row(self, i: int) -> tuple[Array, Array]:
        """The columns and the values of row i."""
        entries = slice(*self.indptr[range(self.shape[0])[i] :][:2].tolist())
        return self.indices[entries], self.data[entries]

    def __getitem__(self, rows: slice | Array | list[int]) -> CSR:
        """Rows of A as a matrix: A[2:5] (arrays shared), A[::-1], A[[3, 1, 1]]."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            first, last, _ = rows.indices(self.shape[0])
            indptr = self.indptr[first : max(first, last) + 1]
            entries: slice | Array = slice(int(indptr[0]), int(indptr[-1]))
            indptr = indptr - indptr[0]
        else:
            if np.ndim(rows) > 1 or not isinstance(rows, (slice, list, np.ndarray)):  # type: ignore[arg-type]
                raise TypeError("index a CSR by a slice or a list of rows; A.row(i) gives the entries of a row.")
            chosen = np.arange(self.shape[0])[rows]
            entries = entries_of(self.indptr, chosen)
            indptr = np.concatenate(([0], np.cumsum(np.diff(self.indptr)[chosen]))).astype(self.indptr.dtype)
        shape = len(indptr) - 1, self.shape[1]
        return self._from_compressed(indptr, self.indices[entries], self.data[entries], shape)
