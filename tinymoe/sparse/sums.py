"""Entries that meet at one place are added up: what building a matrix, A + B, and A B have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..types import Array
from .sorting import sorting_order
from .structure import index_dtype, row_blocks, row_numbers

Arrays = tuple[Array, Array, Array]

ADDED = 1 << 14  # entries that A + B merges at a time


def sum_duplicates(rows: Array, cols: Array, values: Array) -> Arrays:
    """Sorted entries → one entry for every place, its value the sum of all that name it."""
    new = np.concatenate(([True], (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])))[: len(rows)]
    if new.all():
        return rows, cols, values
    first = np.flatnonzero(new)  # one entry for each place
    return rows[first], cols[first], np.add.reduceat(values, first, dtype=values.dtype)


def sum_runs(terms: Array, pointers: Array, sums: Array) -> None:
    """sums_i = Σ terms[pointers_i : pointers_(i+1)], written into an array of zeros: an empty run adds nothing."""
    starts = pointers[:-1]
    filled = pointers[1:] > starts
    if filled.all():
        np.add.reduceat(terms, starts, dtype=sums.dtype, out=sums)
    elif len(terms):
        runs = np.flatnonzero(filled)  # reduceat would give an empty run its neighbour's first term
        sums[runs] = np.add.reduceat(terms, starts.take(runs), dtype=sums.dtype)


def canonical_rows(rows: Array, cols: Array, values: Array, n_rows: int, n_cols: int) -> Arrays:
    """Entries of some rows in any order → (entries per row, columns, values): sorted, summed, no zeros."""
    return _summed(sorting_order(rows, cols, (n_rows, n_cols)), rows, cols, values, n_rows)


def merged_rows(rows: Array, cols: Array, values: Array, n_rows: int, n_cols: int) -> Arrays:
    """`canonical_rows` for a few sorted runs, one after another: a stable sort finds the runs and merges them."""
    if n_rows * n_cols >= 1 << 63:
        return canonical_rows(rows, cols, values, n_rows, n_cols)
    places = rows * np.int64(n_cols)
    places += cols
    return _summed(places.argsort(kind="stable"), rows, cols, values, n_rows)


def _summed(order: Array, rows: Array, cols: Array, values: Array, n_rows: int) -> Arrays:
    rows, cols, values = sum_duplicates(rows.take(order), cols.take(order), values.take(order))
    if not values.all():
        stored = np.flatnonzero(values)
        rows, cols, values = rows.take(stored), cols.take(stored), values.take(stored)
    return np.bincount(rows, minlength=n_rows), cols, values


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
    for first, last in row_blocks(a[0].astype(np.int64) + b[0], ADDED):
        pointers = a[0][first : last + 1], b[0][first : last + 1]
        entries = [slice(int(pointer[0]), int(pointer[-1])) for pointer in pointers]
        rows = np.concatenate([row_numbers(pointer) for pointer in pointers])
        cols = np.concatenate([a[1][entries[0]], b[1][entries[1]]])
        values = np.concatenate([a[2][entries[0]], b[2][entries[1]]], dtype=dtype)
        parts.append(merged_rows(rows, cols, values, last - first, n_cols))
    return assemble(parts, n_rows, n_cols, dtype)
