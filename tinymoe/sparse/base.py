"""What every format can do: sizes, arithmetic, and the ways in and out of dense arrays and triples.

A format says how it is made of plain arrays and how it becomes them, by row and column or with the rows compressed;
everything here is written in those arrays, and so for formats that it does not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from ..types import Array
from .checks import check_shape, frozen
from .gustavson import Triple, csr_csr_matmul
from .picture import picture
from .products import csr_matmul, dense_csr_matmul
from .sorting import sorting_order
from .sums import Arrays, csr_add


class Sparse(ABC):
    """A matrix that stores some of its places; the rest are zero.

    Canonical and frozen: entries are sorted by row and then column, no place occurs twice, a stored zero
    occurs only where it was asked for (`keep_zeros`, a mask, `with_data`), and the arrays are read-only. Sums, products
    and quotients are canonical, too, and without stored zeros.
    """

    data: Array  # (nnz,)
    shape: tuple[int, int]
    __array_ufunc__ = None  # lets `array @ A` and `number * A` reach the methods below
    __hash__ = object.__hash__

    @classmethod
    @abstractmethod
    def from_coordinates(cls, rows: Any, cols: Any, values: Any, shape: Any, *, keep_zeros: bool = False) -> Self:
        """Entries values[e] at (rows[e], cols[e]) in any order; values at the same place are summed."""

    @classmethod
    @abstractmethod
    def _from_compressed(cls, indptr: Array, indices: Array, data: Array, shape: tuple[int, int]) -> Self:
        """The matrix of these canonical arrays, unchecked."""

    @abstractmethod
    def _coordinates(self) -> Arrays:
        """(rows, cols, data), sorted."""

    @abstractmethod
    def _compressed(self) -> Arrays:
        """(indptr, indices, data)."""

    @abstractmethod
    def _with(self, data: Array) -> Self:
        """The same pattern around other values, unchecked."""

    @classmethod
    def from_triples(
        cls, triples: Iterable[Triple], shape: Any, dtype: Any = None, *, keep_zeros: bool = False
    ) -> Self:
        """Entries (row, column, value) in any order; values at the same place are summed."""
        rows, cols, values = zip(*triples, strict=True) if (triples := list(triples)) else ((), (), ())
        return cls.from_coordinates(rows, cols, np.array(values, dtype), shape, keep_zeros=keep_zeros)

    @classmethod
    def from_dense(cls, dense: Any, where: Array | None = None) -> Self:
        """The non-zeros of a dense matrix, or exactly the places where a Boolean mask is true."""
        dense = np.asarray(dense)
        if dense.ndim != 2:
            raise ValueError(f"dense has shape {dense.shape}: a matrix has two axes.")
        mask = dense != 0 if where is None else np.asarray(where)
        if mask.shape != dense.shape or mask.dtype != bool:
            raise ValueError(f"where is {mask.dtype} {mask.shape}: it must be bool {dense.shape}, like dense.")
        rows, cols = np.nonzero(mask)
        return cls.from_coordinates(rows, cols, dense[mask], dense.shape, keep_zeros=True)

    @classmethod
    def from_scipy(cls, matrix: Any, *, keep_zeros: bool = False) -> Self:
        """A SciPy sparse matrix or array of numbers: sorted, duplicates summed, stored zeros dropped or kept."""
        coo = matrix.tocoo()
        return cls.from_coordinates(coo.row, coo.col, coo.data, coo.shape, keep_zeros=keep_zeros)

    @classmethod
    def from_diagonal(cls, values: Any) -> Self:
        """The square matrix with these values on its diagonal."""
        values = np.asarray(values)
        place = np.arange(values.size)
        return cls.from_coordinates(place, place, values, (values.size, values.size))

    @classmethod
    def identity(cls, n: int, dtype: Any = np.float64) -> Self:
        """The n×n matrix that changes nothing: I @ x = x."""
        return cls.from_diagonal(np.ones(check_shape((n, n))[0], dtype))

    def to_dense(self) -> Array:
        """The full array, zeros and all."""
        rows, cols, data = self._coordinates()
        dense = np.zeros(self.shape, self.dtype)
        dense[rows, cols] = data
        return dense

    def to_triples(self) -> list[Triple]:
        """The entries as (row, column, value), sorted."""
        rows, cols, data = self._coordinates()
        return list(zip(rows.tolist(), cols.tolist(), data.tolist(), strict=True))

    def diagonal(self) -> Array:
        """a_ii for i = 0 … min(shape)−1, as a dense vector."""
        rows, cols, data = self._coordinates()
        on = rows == cols
        diagonal = np.zeros(min(self.shape), self.dtype)
        diagonal[rows[on]] = data[on]
        return diagonal

    nnz = property(lambda self: len(self.data), doc="The number of stored entries.")
    dtype = property(lambda self: self.data.dtype, doc="The dtype of the values.")
    ndim = 2

    @property
    def density(self) -> float:
        """The share of places that are stored (0 for a matrix without places)."""
        return self.nnz / max(self.shape[0] * self.shape[1], 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays: compare with shape[0] · shape[1] · itemsize for the dense matrix."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    @classmethod
    def _around(cls, **fields: Any) -> Self:
        """A matrix around arrays that are canonical already and that nobody else will write to."""
        for array in fields.values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        matrix = object.__new__(cls)
        matrix._set(**fields)
        return matrix

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def with_data(self, values: Any) -> Self:
        """The same pattern with other values (nnz,), which may be zero."""
        values = np.asarray(values)
        if values.shape != self.data.shape or values.dtype.kind not in "iufc":
            raise ValueError(f"values are {values.dtype} {values.shape}: the pattern takes numbers {self.data.shape}.")
        return self._with(frozen(values))

    def __repr__(self) -> str:
        share = self.nbytes / max(self.shape[0] * self.shape[1] * self.dtype.itemsize, 1)
        return (
            f"<{type(self).__name__} {self.shape[0]}×{self.shape[1]} {self.dtype}, {self.nnz} entries, "
            f"density {self.density:.3g}, {self.nbytes} bytes, {share:.3g} of dense>"
        )

    def picture(self) -> str:
        """The matrix drawn with characters: its values if it is small, else how full each part of it is."""
        return picture(*self._coordinates(), self.shape)

    def __matmul__(self, other: Any) -> Any:
        """A @ x, A @ X (dense results) or A @ B (sparse, of A's own class)."""
        if not isinstance(other, Sparse):
            return csr_matmul(*self._compressed(), _operand(other), self.shape[1])
        if self.shape[1] != other.shape[0]:
            raise ValueError(f"A {self.shape} @ B {other.shape}: A's columns must be as many as B's rows.")
        shape = self.shape[0], other.shape[1]
        return self._from_compressed(*csr_csr_matmul(self._compressed(), other._compressed(), shape[1]), shape)

    def __rmatmul__(self, other: Any) -> Array:
        """x @ A or X @ A, dense."""
        return dense_csr_matmul(_operand(other), *self._compressed(), self.shape[1])

    def __add__(self, other: Any) -> Self:
        """A + B: the entries of both together, those at the same place summed."""
        if not isinstance(other, Sparse):
            return NotImplemented
        if self.shape != other.shape:
            raise ValueError(f"A {self.shape} + B {other.shape}: both must have one shape.")
        return self._from_compressed(*csr_add(self._compressed(), other._compressed(), self.shape[1]), self.shape)

    def __sub__(self, other: Any) -> Self:
        return self + -other if isinstance(other, Sparse) else NotImplemented

    def __neg__(self) -> Self:
        return self._with(frozen(-self.data))

    def __mul__(self, other: Any) -> Self:
        """A ∘ B place by place: B a number, a dense array of A's shape, or a sparse matrix.

        Only stored places are multiplied: 0 · ∞ is not computed where A stores nothing.
        """
        rows, cols, data = self._coordinates()
        if not isinstance(other, Sparse):
            dense = _operand(other)
            if dense.ndim and dense.shape != self.shape:
                raise ValueError(f"A {self.shape} * B {dense.shape}: B must be a number or have A's shape.")
            return self.from_coordinates(rows, cols, data * (dense[rows, cols] if dense.ndim else other), self.shape)
        if self.shape != other.shape:
            raise ValueError(f"A {self.shape} * B {other.shape}: both must have one shape.")
        a, b = _common((rows, cols), other._coordinates()[:2], self.shape)
        return self.from_coordinates(rows[a], cols[a], data[a] * other.data[b], self.shape)

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> Self:
        """A / s for a number s."""
        if np.ndim(number) or isinstance(number, Sparse):
            return NotImplemented
        rows, cols, data = self._coordinates()
        return self.from_coordinates(rows, cols, data / number, self.shape)


def _operand(dense: Any) -> Array:
    """A dense operand as an array of numbers (truth values count as 0 and 1)."""
    dense = np.asarray(dense)
    if dense.dtype.kind not in "biufc":
        raise ValueError(f"the dense operand has dtype {dense.dtype}: it must be numbers.")
    return dense


def _common(a: tuple[Array, Array], b: tuple[Array, Array], shape: tuple[int, int]) -> tuple[Array, Array]:
    """Which entries (rows, cols) of A and of B stand at the same places: sort both, then look for equal neighbours."""
    rows, cols = np.concatenate((a[0], b[0])), np.concatenate((a[1], b[1]))
    order = sorting_order(rows, cols, shape)
    rows, cols = rows.take(order), cols.take(order)
    same = np.flatnonzero((rows[1:] == rows[:-1]) & (cols[1:] == cols[:-1]))
    return order[same], order[same + 1] - len(a[0])
