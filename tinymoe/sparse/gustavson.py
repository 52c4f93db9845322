"""Sparse times sparse: three ways to write C = A B, from the one a child can read to the fast one.

    C_ij = Σ_k a_ik b_kj            only the pairs (a_ik, b_kj) that are both stored count

Source: F. G. Gustavson, "Two fast algorithms for sparse matrices: multiplication and permuted transposition",
ACM TOMS 4(3), 1978: row i of C is the sum of the rows of B that row i of A names.
"""

from collections.abc import Iterable

import numpy as np

from ..types import Array
from .blocks import dense_pays, density, filled_in
from .structure import entries_of, row_blocks
from .sums import assemble, canonical_rows

PRODUCTS = 1 << 14  # products a_ik b_kj made, sorted and summed at a time
CELLS = 16  # sorting one of them costs as much as looking through so many cells (measured)
PAIR_COST = 1000  # one such product costs as much as so many multiplications inside BLAS (measured)

Triple = tuple[int, int, complex]


def matmul_triples(a: Iterable[Triple], b: Iterable[Triple]) -> list[Triple]:
    """The definition: every pair of entries whose inner indices agree adds one product to one place.

    a, b, and the result are triples (row, column, value). nnz(A) · nnz(B) steps.
    """
    b = list(b)
    total: dict[tuple[int, int], complex] = {}
    for i, k, v in a:
        for m, j, w in b:
            if k == m:
                total[i, j] = total.get((i, j), 0) + v * w
    return [(i, j, value) for (i, j), value in sorted(total.items()) if value != 0]


def matmul_loop(a: Iterable[Triple], b: Iterable[Triple]) -> list[Triple]:
    """Gustavson's loop: the same sum without searching, because the entries of B are kept by row.

    One step for every product that exists, and none for those that do not.
    """
    row_of_b: dict[int, list[tuple[int, complex]]] = {}
    for k, j, w in b:
        row_of_b.setdefault(k, []).append((j, w))
    total: dict[tuple[int, int], complex] = {}
    for i, k, v in a:
        for j, w in row_of_b.get(k, []):
            total[i, j] = total.get((i, j), 0) + v * w
    return [(i, j, value) for (i, j), value in sorted(total.items()) if value != 0]


def csr_csr_matmul(
    a: tuple[Array, Array, Array], b: tuple[Array, Array, Array], n_cols: int
) -> tuple[Array, Array, Array]:
    """Gustavson's product for arrays: the loop's products are made together, sorted by place, and summed.

    a, b     (indptr, indices, data) of A (n_rows, n_mid) and B (n_mid, n_cols)
    returns  (indptr, indices, data) of C, without the places where the sum is zero

    When there are so many products that C fills up, rows are filled in and multiplied by BLAS instead.
    """
    (a_ptr, a_indices, a_data), (b_ptr, b_indices, b_data) = a, b
    n_rows, n_mid = len(a_ptr) - 1, len(b_ptr) - 1
    dtype = np.result_type(a_data, b_data)
    a_data, b_data = a_data.astype(dtype, copy=False), b_data.astype(dtype, copy=False)
    work: Array = np.zeros(len(a_indices) + 1, np.int64)  # products made by the entries of A before each
    np.cumsum(np.diff(b_ptr).take(a_indices), out=work[1:])
    work = work[a_ptr]  # … and by the rows of A before each
    many = int(work[-1]) * PAIR_COST > n_rows * n_mid * n_cols
    if many and density(b_ptr, n_cols) > 1 / 20 and dense_pays(1.0, a_data, b_data):
        parts = _dense_blocks((a_ptr, a_indices, a_data), (b_ptr, b_indices, b_data), n_cols)
    else:
        a, b = (a_ptr, a_indices, a_data), (b_ptr, b_indices, b_data)
        parts = [_products_of_rows(first, last, a, b, n_cols) for first, last in row_blocks(work, PRODUCTS)]
    return assemble(parts, n_rows, n_cols, dtype)


def _products_of_rows(
    first: int, last: int, a: tuple[Array, Array, Array], b: tuple[Array, Array, Array], n_cols: int
) -> tuple[Array, Array, Array]:
    """Rows first … last−1 of C as (entries per row, column indices, values)."""
    (a_ptr, a_indices, a_data), (b_ptr, b_indices, b_data) = a, b
    entries = slice(int(a_ptr[first]), int(a_ptr[last]))
    k = a_indices[entries]
    count = b_ptr.take(k + 1) - b_ptr.take(k)  # every entry a_ik meets the whole row k of B
    of_b = entries_of(b_ptr, k)
    row = np.repeat(np.arange(last - first), np.diff(a_ptr[first : last + 1]))
    row, col = np.repeat(row, count), b_indices.take(of_b)
    value = np.repeat(a_data[entries], count)
    value *= b_data.take(of_b)
    cells = (last - first) * n_cols
    if value.dtype.char not in "fd" or len(value) * CELLS < cells:
        return canonical_rows(row, col, value, last - first, n_cols)
    total = np.bincount(row * n_cols + col, value, cells).astype(value.dtype)  # one sum for each place of these rows
    place = np.flatnonzero(total)
    lengths = np.diff(np.searchsorted(place, np.arange(last - first + 1) * n_cols))
    col = place - np.repeat(np.arange(last - first) * n_cols, lengths)
    return lengths, col, total.take(place)


def _dense_blocks(
    a: tuple[Array, Array, Array], b: tuple[Array, Array, Array], n_cols: int
) -> list[tuple[Array, Array, Array]]:
    """The parts of C made by BLAS: rows of A filled in, a few at a time, times B filled in."""
    n_mid = len(b[0]) - 1
    (_, dense_b), *_ = filled_in(*b, n_cols, cells=n_mid * n_cols)
    columns, parts = np.arange(n_cols, dtype=a[1].dtype), []
    for _, block in filled_in(*a, n_mid, cells=dense_b.size // 8):
        product = block @ dense_b
        stored = product != 0
        cols = np.broadcast_to(columns, product.shape)[stored]
        parts.append((np.count_nonzero(stored, axis=1), cols, product[stored]))
    return parts
