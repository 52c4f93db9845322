"""Sorting entries: by row and column, by one key (which is a transpose), and rows by their length."""

from itertools import pairwise

import numpy as np

from ..types import Array

SORTED = 1 << 16  # entries that `sort_by` sorts at a time


def stable_order(keys: Array, n_keys: int) -> Array:
    """The order that sorts keys 0 … n_keys−1; equal keys keep the order in which they came.

    NumPy sorts 16-bit integers by radix: in linear time, and not by instructions that some processors are slow at. A
    longer key is sorted 16 bits at a time, the lowest first.
    """
    order = keys.astype(np.uint16).argsort(kind="stable")
    for bits in range(16, max(n_keys - 1, 0).bit_length(), 16):
        order = order.take((keys >> bits).astype(np.uint16).take(order).argsort(kind="stable"))
    return order


def sorting_order(rows: Array, cols: Array, shape: tuple[int, int]) -> Array:
    """The order that sorts entries by row and then column; equal places keep the order in which they came."""
    if max(shape) > len(rows):  # counting would take longer than sorting
        order = stable_order(cols, shape[1])
        return order.take(stable_order(rows.take(order), shape[0]))
    _, rows, order = sort_by(cols, shape[1], rows, np.arange(len(rows)))  # the sort by row keeps this order
    return sort_by(rows, shape[0], order)[1]


def sort_by(keys: Array, n_keys: int, *columns: Array) -> tuple[Array, ...]:
    """Counting sort: the columns reordered so that their keys ascend; equal keys keep their order.

        starts_k  = number of keys below k
        place     = starts_k + keys k in earlier blocks + keys k before it in its own block

    keys     (nnz,) integers in 0 … n_keys−1        columns  any arrays of length nnz
    returns  starts (n_keys+1,), then each column reordered

    With keys = column numbers this *is* the transpose of a CSR matrix (Gustavson 1978, algorithm HALFPERM).
    A block is sorted in the cache; then every run of equal keys goes to its place in one piece.
    """
    size = max(SORTED, 4 * n_keys)  # a block has several entries for each key, or counting would cost more
    blocks = [slice(begin, begin + size) for begin in range(0, len(keys), size)]
    counts = np.zeros((len(blocks), n_keys), np.int64)
    for count, block in zip(counts, blocks, strict=True):
        count += np.bincount(keys[block], minlength=n_keys)
    starts = np.zeros(n_keys + 1, np.int64)
    np.cumsum(counts.sum(axis=0), out=starts[1:])
    if len(blocks) <= 1:
        order = stable_order(keys, n_keys)
        return starts, *(column.take(order) for column in columns)
    shift = starts[:-1] + counts.cumsum(axis=0) - counts.cumsum(axis=1)  # place − position
    results = tuple(np.empty_like(column) for column in columns)
    for count, shift_of_key, block in zip(counts, shift, blocks, strict=True):
        order = stable_order(keys[block], n_keys)
        place = np.repeat(shift_of_key, count)
        place += np.arange(len(place))
        for column, result in zip(columns, results, strict=True):
            result[place] = column[block].take(order)
    return starts, *results


def rows_by_length(indptr: Array) -> tuple[Array, list[tuple[int, int, int]]]:
    """An order of the rows in which equally long rows stand together, and its groups (length, first, last).

    A group is a dense (last − first, length) block of entries. There are at most √(2·nnz) different lengths
    above zero, because their sum is at most nnz.
    """
    lengths = np.diff(indptr)
    longest = int(lengths.max(initial=0))
    order = stable_order(lengths, longest + 1)
    lengths = lengths[order]
    edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    return order, [(int(lengths[i]), i, j) for i, j in pairwise(edges) if i < j]
