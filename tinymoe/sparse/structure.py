"""Index arithmetic: what every sparse format needs before any value is multiplied.

A matrix of shape (n_rows, n_cols) with nnz stored entries, sorted by row and then by column, is written as

    coordinates    rows (nnz,)          cols (nnz,)      the row and the column of each entry
    compressed     indptr (n_rows+1,)   indices (nnz,)   row i owns the entries indptr[i] … indptr[i+1]−1

Functions here see integer arrays only. They trust them: `checks.py` is where untrusted arrays are examined.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ..types import Array


def index_dtype(shape: tuple[int, int], nnz: int) -> np.dtype[Any]:
    """The narrower of int32 and int64 that can hold every index: half the memory for most matrices."""
    return np.dtype(np.int32 if max(*shape, nnz) <= np.iinfo(np.int32).max else np.int64)


def row_numbers(indptr: Array) -> Array:
    """indptr → rows (nnz,): row i repeated once for each of its entries."""
    return np.repeat(np.arange(len(indptr) - 1, dtype=indptr.dtype), np.diff(indptr))


def row_pointers(rows: Array, n_rows: int) -> Array:
    """Sorted rows (nnz,) → indptr (n_rows+1,): the first entry whose row is i or later, for each i."""
    return np.searchsorted(rows, np.arange(n_rows + 1, dtype=rows.dtype)).astype(rows.dtype, copy=False)


def ordered(rows: Array, cols: Array) -> bool:
    """True if the entries ascend strictly by (row, column): sorted, and no place named twice."""
    later_row = rows[1:] > rows[:-1]
    same_row_later_col = (rows[1:] == rows[:-1]) & (cols[1:] > cols[:-1])
    return bool((later_row | same_row_later_col).all())


def row_blocks(indptr: Array, limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows first … last−1, of about `limit` entries and at least a row each."""
    n_rows, nnz = len(indptr) - 1, int(indptr[-1])
    edges = {0, n_rows}
    if nnz > limit:
        cuts = np.searchsorted(indptr, np.arange(limit, nnz, limit, dtype=indptr.dtype), side="right") - 1
        edges.update(cuts.tolist())
    yield from pairwise(sorted(edges))


def entries_of(indptr: Array, rows: Array) -> Array:
    """Where the entries of these rows stand, row after row: row i gives indptr[i], …, indptr[i+1]−1."""
    begin = indptr.take(rows).astype(np.intp)
    lengths = indptr.take(rows + 1) - begin
    entries = np.repeat(begin - (lengths.cumsum() - lengths), lengths)
    entries += np.arange(len(entries))
    return entries
