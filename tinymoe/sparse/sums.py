"""Entries that meet at one place are added up: what building a matrix, A + B, and A B have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .structure import BLOCK, Array, index_dtype, row_blocks, row_numbers, sorting_order

Arrays = tuple[Array, Array, Array]


def sum_duplicates(rows: Array, cols: Array, values: Array) -> Arrays:
    """Sorted entries → one entry for every place, its value the sum of all that name it."""
    new = np.concatenate(([True], (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])))[: len(rows)]
    if new.all():
        return rows, cols, values
    first = np.flatnonzero(new)  # one entry for each place
    return rows[first], cols[first], np.add.reduceat(values, first, dtype=values.dtype)


def canonical_rows(rows: Array, cols: Array, values: Array, n_rows: int, n_cols: int) -> Arrays:
    """Entries of some rows in any order → (entries per row, columns, values): sorted, summed, no zeros."""
    order = sorting_order(rows, cols, (n_rows, n_cols))
    rows, cols, values = sum_duplicates(rows.take(order), cols.take(order), values.take(order))
    stored = np.flatnonzero(values)
    return np.bincount(rows[stored], minlength=n_rows), cols[stored], values[stored]


def assemble(parts: Sequence[Arrays], n_rows: int, n_cols: int, dtype: Any) -> Arrays:
    """(entries per row, columns, values) of consecutive blocks of rows → (indptr, indices, data) of all."""
    lengths, indices, data = zip(*parts, strict=True) if parts else ((), (), ())
    index = index_dtype((n_rows, n_cols), sum(len(values) for values in data))
    indptr = np.zeros(n_rows + 1, index)
    np.cumsum(np.concatenate([*lengths, np.zeros(0, index)]), out=indptr[1:])
    nothing = np.zeros(0, index), np.zeros(0, dtype)  # np.concatenate needs at least one array
    return (
        indptr,
        np.concatenate([*indices, nothing[0]], dtype=index),
        np.concatenate([*data, nothing[1]], dtype=dtype),
    )


def csr_add(a: Arrays, b: Arrays, n_cols: int) -> Arrays:
    """A + B for (indptr, indices, data): both matrices' entries of some rows, sorted together and summed."""
    n_rows, dtype = len(a[0]) - 1, np.result_type(a[2], b[2])
    parts = []
    for first, last in row_blocks(a[0].astype(np.int64) + b[0], BLOCK):
        pointers = a[0][first : last + 1], b[0][first : last + 1]
        entries = [slice(int(pointer[0]), int(pointer[-1])) for pointer in pointers]
        rows = np.concatenate([row_numbers(pointer) for pointer in pointers])
        cols = np.concatenate([a[1][entries[0]], b[1][entries[1]]])
        values = np.concatenate([a[2][entries[0]], b[2][entries[1]]], dtype=dtype)
        parts.append(canonical_rows(rows, cols, values, last - first, n_cols))
    return assemble(parts, n_rows, n_cols, dtype)
