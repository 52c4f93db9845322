"""COO and CSR: what they store, what they refuse, and that they agree with dense arrays and with SciPy."""

import dataclasses
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sparse.conftest import DTYPES, canonical, close, messy, random_dense
from tinymoe.sparse import COO, CSR, sparse_normal
from tinymoe.sparse.sorting import sort_by, sorting_order
from tinymoe.sparse.structure import entries_of, row_blocks

coo: Any = COO  # lists do as well as arrays, and below some are wrong on purpose: nothing for mypy to check
csr: Any = CSR
EXAMPLE = np.array([[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 7], [0, 0, 0, 0]])


def test_the_documents_example_is_two_triples():
    """《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6.1: 5 at (1, 1) and 7 at (2, 3)."""
    a = COO.from_dense(EXAMPLE)
    assert a.to_triples() == [(1, 1, 5), (2, 3, 7)]
    assert a.to_csr().indptr.tolist() == [0, 0, 1, 2, 2]
    assert (COO.from_triples([(2, 3, 7), (1, 1, 5)], (4, 4)).to_dense() == EXAMPLE).all()


@pytest.mark.parametrize("origin", [0, 1])
def test_the_documents_triples_describe_another_matrix(origin):
    """Same document, §6.2: (0,1,5) (1,2,7) (2,3,7) has three entries, counted from 0 or from 1."""
    triples = [(i - origin, j - origin, v) for i, j, v in [(0, 1, 5), (1, 2, 7), (2, 3, 7)]]
    if origin == 1:
        with pytest.raises(ValueError, match="rows contain -1"):
            COO.from_triples(triples, (4, 4))
    else:
        printed = COO.from_triples(triples, (4, 4))
        assert printed.nnz == 3 and not np.array_equal(printed.to_dense(), EXAMPLE)


@pytest.mark.parametrize("kind", [COO, CSR])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (3, 7), (40, 30)])
def test_round_trips(kind, dtype, shape):
    dense = random_dense(np.random.default_rng(1), shape, dtype=dtype)
    a = canonical(kind.from_dense(dense))
    assert a.dtype == dtype and a.shape == shape and a.nnz == np.count_nonzero(dense)
    for back in (
        a, a.to_csr(), a.to_coo(), a.T.T, kind.from_scipy(a.to_scipy()),
        kind.from_triples(a.to_triples(), shape, dtype),
    ):  # fmt: skip
        canonical(back)
        assert back.dtype == dtype and np.array_equal(back.to_dense(), dense)
    assert np.array_equal(a.T.to_dense(), dense.T)
    assert np.array_equal(a.diagonal(), np.diagonal(dense))


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_messy_scipy_matrices_become_canonical(index):
    for seed in range(1000):
        matrix = messy(seed, index)
        for kind in (COO, CSR):
            a = canonical(kind.from_scipy(matrix))
            assert close(a, matrix.toarray()) and np.all(a.data != 0)
        direct = CSR(matrix.indptr, matrix.indices, matrix.data, matrix.shape)
        assert close(canonical(direct), matrix.toarray())
        assert CSR.from_scipy(matrix, keep_zeros=True).nnz >= a.nnz


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(DTYPES), st.sampled_from([COO, CSR]))
def test_arithmetic_agrees_with_dense(seed, dtype, kind):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(0, 9, 2))
    x, y = (random_dense(rng, shape, dtype=dtype) for _ in range(2))
    a, b = kind.from_dense(x), kind.from_dense(y)
    for ours, theirs in [
        (a + b, x + y),
        (a - b, x - y),
        (a * b, x * y),
        (a * y, x * y),
        (3 * a, 3 * x),
        (-a, -x),
    ]:
        assert close(canonical(ours), theirs) and ours.dtype == theirs.dtype and np.all(ours.data != 0)
    assert close(a / 4, x / 4) and (a - a).nnz == 0 and (a * 0).nnz == 0


def test_rows():
    dense = random_dense(np.random.default_rng(2), (9, 5))
    a = CSR.from_dense(dense)
    choices: list[Any] = [
        slice(None),
        slice(2, 5),
        slice(5, 2),
        slice(-3, None),
        slice(None, None, -2),
        [3, 1, 1],
        [],
        np.array([-1]),
    ]
    for rows in choices:
        index = np.array(rows, dtype=int) if isinstance(rows, list) else rows
        assert np.array_equal(canonical(a[index]).to_dense(), dense[index])
    assert np.shares_memory(a[2:5].data, a.data)
    columns, values = a.row(-1)
    assert np.array_equal(dense[-1, columns], values) and len(values) == np.count_nonzero(dense[-1])
    for wrong in (1, (1, 2), "x"):
        with pytest.raises(TypeError, match="slice or a list of rows"):
            a[wrong]  # type: ignore[index]


def test_frozen():
    data = np.ones(2)
    a = coo([0, 1], [1, 0], data, (2, 2))
    data[0] = 9  # the caller's array is the caller's own
    assert a.data.tolist() == [1, 1]
    with pytest.raises(ValueError, match="read-only"):
        a.data[0] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.shape = (3, 3)
    view = np.ones(2)
    readonly = view[:]
    readonly.flags.writeable = False
    a = a.with_data(readonly)
    view[0] = 9  # a read-only view of a writeable array is no protection: it was copied
    assert a.data.tolist() == [1, 1]


@pytest.mark.parametrize("kind, file", [(COO, "coo"), (CSR, "csr")])
def test_pickles_of_now_and_of_before(kind, file):
    """Once each format had a file of its own, and a pickle names the file: in this protocol as plain text."""
    a = kind.from_dense(EXAMPLE)
    now = pickle.dumps(a, protocol=2)
    before = now.replace(b"tinymoe.sparse.formats", b"tinymoe.sparse." + file.encode())
    assert before != now
    for pickled in (now, before):
        b = pickle.loads(pickled)
        assert type(b) is kind and b.dtype == a.dtype and b.shape == a.shape
        assert all(np.array_equal(x, y) for x, y in zip(b.to_csr().arrays, a.to_csr().arrays, strict=True))


def test_nan_zero_and_infinity():
    a = CSR.from_dense(np.array([[np.nan, 0.0], [-0.0, np.inf]]))
    assert a.nnz == 2 and np.isnan(a.data[0])
    with np.errstate(invalid="ignore"):
        assert np.isnan((a + a).data[0]) and (a - a).nnz == 2  # inf − inf is NaN, not zero
    assert csr([0, 1], [0], [0.0], (1, 1), keep_zeros=True).nnz == 1
    assert csr([0, 1], [0], [0.0], (1, 1)).nnz == 0
    assert a.with_data(np.zeros(2)).nnz == 2


def test_large_shapes_use_wide_indices():
    huge = 2**40
    a = coo([1, 0, 1], [huge - 1, 3, huge - 1], [1.0, 2.0, 3.0], (2, huge))
    assert a.rows.dtype == np.int64 and a.to_triples() == [(0, 3, 2.0), (1, huge - 1, 4.0)]
    assert a.to_csr().to_coo().to_triples() == a.to_triples() and a.T.nnz == 2
    square = coo([huge - 1, 0], [0, huge - 1], [1.0, 2.0], (huge, huge))  # places no longer fit one word
    assert square.to_triples() == [(0, huge - 1, 2.0), (huge - 1, 0, 1.0)]
    assert coo([], [], [], (2, 3)).rows.dtype == np.int32


BAD = [
    (lambda: coo([0, -1], [0, 0], [1, 1], (2, 2)), "rows contain -1: each must be at least 0 and below 2"),
    (lambda: coo([0], [2], [1], (2, 2)), "cols contain 2"),
    (lambda: coo([0], [0, 1], [1], (2, 2)), "1 rows, 2 cols and 1 values"),
    (lambda: coo([0.5], [0], [1], (2, 2)), "integers along one axis"),
    (lambda: coo([0], [0], [True], (2, 2)), "values have dtype bool"),
    (lambda: coo([0], [0], ["a"], (2, 2)), "values have dtype <U1"),
    (lambda: coo([0], [0], [[1]], (2, 2)), "one axis is needed"),
    (lambda: coo([], [], [], (2, -1)), "neither axis may be negative"),
    (lambda: coo([], [], [], (2,)), "two integers"),
    (lambda: coo([], [], [], (2.5, 1)), "two integers"),
    (lambda: csr([0, 1], [0], [1], (2, 2)), "3 integers, one more than there are rows"),
    (lambda: csr([0, 2, 1], [0], [1], (2, 2)), "must never decrease"),
    (lambda: csr([1, 1, 1], [0], [1], (2, 2)), "begin at 0"),
    (lambda: csr([0, 1, 2], [0], [1], (2, 2)), "end at 1"),
    (lambda: csr([0, 1, 1], [5], [1], (2, 2)), "indices contain 5"),
    (lambda: csr([0, 1, 1], [0], [1, 2], (2, 2)), "1 indices and 2 values"),
    (lambda: CSR.from_dense(np.zeros(3)), "two axes"),
    (lambda: CSR.from_dense(np.eye(3), where=np.eye(3)), "it must be bool"),
    (lambda: CSR.identity(3).with_data([1.0]), r"takes numbers \(3,\)"),
    (lambda: CSR.identity(3) + CSR.identity(4), "one shape"),
    (lambda: CSR.identity(3) - COO.identity(4), "one shape"),
    (lambda: CSR.identity(3) * CSR.identity(4), "one shape"),
    (lambda: CSR.identity(3) * np.ones(3), "a number or have A's shape"),
    (lambda: CSR.identity(-1), "neither axis"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_adding_a_number_is_refused():
    with pytest.raises(TypeError):
        CSR.identity(2) + 1


def test_sizes_repr_and_picture():
    a = CSR.from_dense(EXAMPLE)
    assert (a.nnz, a.density, a.nbytes) == (2, 0.125, 5 * 4 + 2 * 4 + 2 * 8)
    assert repr(a) == "<CSR 4×4 int64, 2 entries, density 0.125, 44 bytes, 0.344 of dense>"
    assert a.picture() == "· · · ·\n· 5 · ·\n· · · 7\n· · · ·"
    big = CSR.from_dense(np.triu(np.ones((100, 100)))).picture().splitlines()
    assert len(big) == 24 and {len(line) for line in big} == {50}
    assert big[0][-2] == "@" and big[-1][1] == " "  # full above the diagonal, blank below
    assert CSR.from_dense(np.zeros((0, 50))).picture() == ""


def test_diagonal_and_identity():
    x = np.arange(12.0).reshape(3, 4)
    assert np.array_equal(CSR.identity(3) @ x, x) and CSR.identity(3, np.float32).dtype == np.float32
    assert np.array_equal(COO.from_diagonal([1.0, 2.0]).to_dense(), np.diag([1.0, 2.0]))


@pytest.mark.parametrize("n_keys, nnz", [(1, 0), (3, 10), (5, 3_000_000), (40_000, 1_200_000), (70_000, 1_100_000)])
def test_counting_sort_in_blocks(n_keys, nnz):
    keys = np.random.default_rng(0).integers(0, n_keys, nnz).astype(np.int32)
    starts, order = sort_by(keys, n_keys, np.arange(nnz, dtype=np.int32))
    assert np.array_equal(order, np.argsort(keys, kind="stable"))
    assert np.array_equal(np.diff(starts), np.bincount(keys, minlength=n_keys))


def test_index_arithmetic():
    indptr = np.array([0, 0, 5, 6, 6, 9, 9])
    assert entries_of(indptr, np.array([4, 1, 0])).tolist() == [6, 7, 8, 0, 1, 2, 3, 4]
    for limit in (1, 2, 4, 100):
        blocks = list(row_blocks(indptr, limit))
        assert blocks[0][0] == 0 and blocks[-1][1] == 6
        assert all(end == begin for (_, end), (begin, _) in pairwise(blocks))
    assert sorting_order(np.array([1, 0, 1]), np.array([0, 0, 0]), (2, 1)).tolist() == [1, 0, 2]


def test_sparse_normal_keeps_the_output_variance():
    """Var(A x) = n · std² whatever the density."""
    rng = np.random.default_rng(0)
    for density in (0.02, 0.2, 1.0):
        a = sparse_normal(rng, (400, 500), density, std=0.5)
        assert a.nnz == round(density * 400 * 500) and a.dtype == np.float32
        x = rng.standard_normal((500, 60))
        assert (a @ x).var() == pytest.approx(500 * 0.25, rel=0.06)
    one, other = (sparse_normal(np.random.default_rng(7), (5, 6), 0.5, 1.0).to_dense() for _ in range(2))
    assert np.array_equal(one, other) and sparse_normal(rng, (0, 4), 0.5, 1.0).shape == (0, 4)
    for density in (0, 1.5, -1, np.nan):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            sparse_normal(rng, (2, 2), density, 1.0)
