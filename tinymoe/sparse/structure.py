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
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCK_BITS = 17  # `sort_by` sorts 2^17 entries at a time
BLOCK = 1 << 16  # entries handled at a time: index, value and product of so many stay in a 2 MB cache
ONE_BLOCK = 1 << 20  # … but fewer than these all at once


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


def sorting_order(rows: Array, cols: Array, shape: tuple[int, int]) -> Array:
    """The order that sorts entries by row and then column; equal places keep the order in which they came.

    Place and position are packed into one word, (row · n_cols + col) · 2^b + position, because sorting plain
    words is several times faster than sorting an order (`argsort`), and the position makes the sort stable.
    """
    position_bits = max(len(rows) - 1, 0).bit_length()
    if (shape[0] * shape[1]).bit_length() + position_bits > 63:
        return np.lexsort((cols, rows))
    word = rows.astype(np.int64)
    word *= shape[1]
    word += cols
    word <<= position_bits
    word |= np.arange(len(rows))
    word.sort()
    word &= (1 << position_bits) - 1
    return word


def sort_by(keys: Array, n_keys: int, *columns: Array) -> tuple[Array, ...]:
    """Counting sort: the columns reordered so that their keys ascend; equal keys keep their order.

        starts_k  = number of keys below k
        place     = starts_k + keys k in earlier blocks + keys k before it in its own block

    keys     (nnz,) integers in 0 … n_keys−1        columns  any arrays of length nnz
    returns  starts (n_keys+1,), then each column reordered

    With keys = column numbers this *is* the transpose of a CSR matrix (Gustavson 1978, algorithm HALFPERM).
    A block is sorted in the cache as packed words, key · 2^bits + position; then every run of equal keys goes
    to its place in one piece.
    """
    bits = len(keys).bit_length() if len(keys) <= ONE_BLOCK else max(BLOCK_BITS, n_keys.bit_length() + 2)
    blocks = [slice(begin, begin + (1 << bits)) for begin in range(0, len(keys), 1 << bits)]
    counts = np.zeros((len(blocks), n_keys), np.int64)
    for count, block in zip(counts, blocks, strict=True):
        count += np.bincount(keys[block], minlength=n_keys)
    starts = np.zeros(n_keys + 1, np.int64)
    np.cumsum(counts.sum(axis=0), out=starts[1:])
    if len(blocks) <= 1:
        order = _packed_order(keys, n_keys, bits)
        return starts, *(column.take(order) for column in columns)
    shift = starts[:-1] + counts.cumsum(axis=0) - counts.cumsum(axis=1)  # place − position
    results = tuple(np.empty_like(column) for column in columns)
    for count, shift_of_key, block in zip(counts, shift, blocks, strict=True):
        order = _packed_order(keys[block], n_keys, bits)
        place = np.repeat(shift_of_key, count)
        place += np.arange(len(place))
        for column, result in zip(columns, results, strict=True):
            result[place] = column[block].copy().take(order)  # the copy brings the block into the cache
    return starts, *results


def _packed_order(keys: Array, n_keys: int, bits: int) -> Array:
    """Stable order of at most 2^bits keys, by sorting the words key · 2^bits + position."""
    word = np.uint32 if n_keys <= 1 << max(32 - bits, 0) else np.uint64
    packed: Array = keys.astype(word)
    packed <<= word(bits)
    packed |= np.arange(len(keys), dtype=word)
    packed.sort()
    packed &= word((1 << bits) - 1)
    return packed.astype(np.intp)


def row_blocks(indptr: Array, limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows first … last−1, of about `limit` entries and at least a row each."""
    n_rows, nnz = len(indptr) - 1, int(indptr[-1])
    cuts = np.searchsorted(indptr, np.arange(limit, nnz, limit, dtype=indptr.dtype), side="right") - 1
    edges = sorted({0, n_rows, *cuts.tolist()})
    yield from pairwise(edges)


def rows_by_length(indptr: Array) -> tuple[Array, list[tuple[int, int, int]]]:
    """An order of the rows in which equally long rows stand together, and its groups (length, first, last).

    A group is a dense (last − first, length) block of entries. There are at most √(2·nnz) different lengths
    above zero, because their sum is at most nnz.
    """
    lengths = np.diff(indptr)
    longest = int(lengths.max(initial=0))
    order = _packed_order(lengths, longest + 1, len(lengths).bit_length())
    lengths = lengths[order]
    edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    return order, [(int(lengths[i]), i, j) for i, j in pairwise(edges) if i < j]


def entries_of(indptr: Array, rows: Array) -> Array:
    """Where the entries of these rows stand, row after row: row i gives indptr[i], …, indptr[i+1]−1."""
    begin = indptr.take(rows).astype(np.intp)
    lengths = indptr.take(rows + 1) - begin
    entries = np.repeat(begin - (lengths.cumsum() - lengths), lengths)
    entries += np.arange(len(entries))
    return entries
