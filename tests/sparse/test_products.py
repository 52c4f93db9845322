"""Every product against SciPy, against the loops, and within its memory."""

import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sparse.conftest import DTYPES, canonical, close, messy, random_dense
from tinymoe.sparse import (
    COO,
    CSR,
    blocks,
    csr_csr_matmul,
    csr_matmul,
    csr_matmul_loop,
    csr_matvec,
    dense_csr_matmul,
    dense_csr_matmul_loop,
    matmul_loop,
    matmul_triples,
    products,
    sampled_matmul,
    sampled_matmul_loop,
    sparse_normal,
)


def documents_loop(a, b):
    """《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6.3, as printed."""
    result = [[0] * len(b[0]) for _ in range(len(a))]
    for i, k, v in a:
        for j in range(len(b[0])):
            for _m, n, w in b:
                if k == n:
                    result[i][j] += v * w
    return result


def test_the_documents_loop_is_wrong():
    """It takes the 3 of a triple for the number of columns, and tests B's column where it needs B's row."""
    a = [(0, 0, 2), (1, 1, 3)]
    b = [(0, 1, 5), (1, 0, 7)]
    right = COO.from_triples(a, (2, 2)) @ COO.from_triples(b, (2, 2))
    assert right.to_dense().tolist() == [[0, 10], [21, 0]]
    assert right.to_triples() == matmul_loop(a, b) == matmul_triples(a, b)
    assert documents_loop(a, b) == [[14, 14, 14], [15, 15, 15]]  # three columns, all alike, of a 2×2 product
    with pytest.raises(IndexError):  # and it reserves a row for every entry, not for every row
        documents_loop([(1, 1, 5)], b)


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_products_equal_scipys(index):
    """A thousand messy matrices for each index type through every product."""
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        theirs, ours = messy(seed, index), CSR.from_scipy(messy(seed, index))
        n_rows, n_cols = ours.shape
        x, left = rng.standard_normal((n_cols, 3)), rng.standard_normal((4, n_rows))
        other = scipy.sparse.random_array((n_cols, 6), density=rng.random(), rng=rng, format="csr")
        dense = theirs.toarray()
        assert close(ours @ x, dense @ x) and close(ours @ x[:, 0], theirs @ x[:, 0])
        assert close(left @ ours, left @ dense) and close(left[0] @ ours, left[0] @ dense)
        assert close(canonical(ours @ CSR.from_scipy(other)), dense @ other.toarray())
        assert close(ours.T @ left.T, dense.T @ left.T)
        u, v = rng.standard_normal((n_rows, 4)), rng.standard_normal((4, n_cols))
        assert close(ours.sampled_matmul(u, v), (u @ v) * (ours.to_dense() != 0))
        assert close(ours * ours.sampled_matmul(u, v), ours * (u @ v))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.floats(0, 1))
def test_dtypes_shapes_and_densities(seed, left, right, density):
    """Result dtypes are NumPy's: float32 stays float32. Empty rows, columns and matrices are included."""
    rng = np.random.default_rng(seed)
    n, k, m = (int(size) for size in rng.integers(0, 9, 3))
    x, y = random_dense(rng, (n, k), density, left), random_dense(rng, (k, m), density, right)
    a, b = CSR.from_dense(x), CSR.from_dense(y)
    want = x @ y
    tolerance = 1e-5 if np.dtype(want.dtype).itemsize in (4, 8) and want.dtype.kind in "fc" else 1e-12
    pairs = [(a @ y, want), (x @ b, want), ((a @ b).to_dense(), want), (a.to_coo() @ b, want)]
    for ours, theirs in [
        *pairs,
        (a @ y[:, :1], x @ y[:, :1]),
        (a @ np.ones(k, right), x @ np.ones(k, right)),
    ]:
        ours = ours.to_dense() if hasattr(ours, "to_dense") else ours
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * 10)


def pairs_of_twins(rng, dense, width, dtype):
    """(fast, slow, what NumPy gives for the dense matrix) of every product of plain arrays."""
    (n_rows, n_cols), a = dense.shape, CSR.from_dense(dense)
    x, left = random_dense(rng, (n_cols, width), 0.8, dtype), random_dense(rng, (width, n_rows), 0.8, dtype)
    pattern, p = a.arrays[:2], a.to_coo()
    yield csr_matmul(*a.arrays, x), csr_matmul_loop(*a.arrays, x), dense @ x
    yield csr_matvec(*a.arrays, x[:, 0]), csr_matmul_loop(*a.arrays, x[:, 0]), dense @ x[:, 0]
    yield dense_csr_matmul(left, *a.arrays, n_cols), dense_csr_matmul_loop(left, *a.arrays, n_cols), left @ dense
    yield (
        dense_csr_matmul(left[0], *a.arrays, n_cols),
        dense_csr_matmul_loop(left[0], *a.arrays, n_cols),
        left[0] @ dense,
    )
    yield (
        sampled_matmul(*pattern, left.T, x.T),
        sampled_matmul_loop(*pattern, left.T, x.T),
        (left.T @ x.T)[p.rows, p.cols],
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.floats(0, 1))
def test_the_fast_forms_equal_the_loops(seed, dtype, other, density):
    """And the loops the dense product; integers without rounding."""
    rng = np.random.default_rng(seed)
    dense = random_dense(rng, tuple(rng.integers(0, 7, 2)), density, dtype)  # at most 6 · 4 · 4, which int8 holds
    for fast, slow, want in pairs_of_twins(rng, dense, int(rng.integers(1, 7)), other):
        assert fast.shape == slow.shape == want.shape and fast.dtype == slow.dtype == want.dtype
        tolerance = 0 if want.dtype.kind in "iu" else 1e-13 if want.dtype.char in "dD" else 1e-5
        np.testing.assert_allclose(slow, want, rtol=tolerance, atol=10 * tolerance)
        np.testing.assert_allclose(fast, slow, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("density", [0.06, 0.4])
@pytest.mark.parametrize("numbers", [4, 50, 10**6])
def test_the_fast_forms_equal_the_loops_in_small_blocks(numbers, density, monkeypatch):
    """A few numbers at a time, so that blocks and buffers end within the matrix and within rows of one length."""
    monkeypatch.setattr(blocks, "GATHERED", numbers)
    monkeypatch.setattr(products, "BLOCK", numbers)
    monkeypatch.setattr(products, "filled_in", partial(blocks.filled_in, cells=numbers))
    rng = np.random.default_rng(10)
    dense = random_dense(rng, (60, 40), density)
    dense[rng.random(60) < 0.2] = 0
    for fast, slow, want in pairs_of_twins(rng, dense, 5, np.float64):
        assert close(fast, slow) and close(slow, want)


def test_sums_that_cancel_are_not_stored():
    for dtype in (np.int64, np.float64):
        product = CSR.from_dense(np.array([[1, 1]], dtype)) @ CSR.from_dense(np.array([[1, 2], [-1, 2]], dtype))
        assert product.to_triples() == [(0, 1, 4)]
    assert matmul_loop([(0, 0, 1), (0, 1, 1)], [(0, 0, 1), (1, 0, -1)]) == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_the_loops_agree(seed):
    rng = np.random.default_rng(seed)
    x, y = random_dense(rng, (5, 4), dtype=np.int64), random_dense(rng, (4, 6), dtype=np.int64)
    a, b = COO.from_dense(x), COO.from_dense(y)
    product = a @ b
    assert isinstance(product, COO) and isinstance(a.to_csr() @ b, CSR)
    assert product.to_triples() == matmul_loop(a.to_triples(), b.to_triples())
    assert product.to_triples() == matmul_triples(a.to_triples(), b.to_triples())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("density", [0.001, 0.02, 0.3])
def test_the_fast_ways_agree_with_scipy_at_size(density, dtype):
    """Large enough for blocks of rows, groups of lengths, and the way through BLAS."""
    rng = np.random.default_rng(3)
    ours = sparse_normal(rng, (900, 1100), density, 1.0, dtype)
    ours = ours.with_data(ours.data + dtype(0.5j)) if dtype == np.complex64 else ours
    theirs, x = ours.to_scipy(), rng.standard_normal((1100, 40)).astype(np.float32)
    other = sparse_normal(rng, (1100, 300), density, 1.0, np.float32)
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-3}
    np.testing.assert_allclose(ours @ x, theirs @ x, **tolerance)
    np.testing.assert_allclose(ours @ x[:, 0], theirs @ x[:, 0], **tolerance)
    np.testing.assert_allclose(x.T[:, :900] @ ours, x.T[:, :900] @ theirs, **tolerance)
    np.testing.assert_allclose((ours @ other).to_dense(), (theirs @ other.to_scipy()).toarray(), **tolerance)
    left, right = rng.standard_normal((900, 17)), rng.standard_normal((17, 1100))
    sampled = sampled_matmul(ours.indptr, ours.indices, left, right)
    np.testing.assert_allclose(sampled, (left @ right)[ours.to_dense() != 0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("density", [0.05, 0.6])
def test_what_is_not_stored_is_not_multiplied(density):
    """0 · ∞ is NaN: a route that fills in zeros must not let ∞ or NaN out of the rows that name them."""
    rng = np.random.default_rng(4)
    a = CSR.from_dense(random_dense(rng, (200, 20), density))
    x = rng.standard_normal((20, 3))
    x[7] = np.inf, np.nan, 1.0
    names_7 = a.to_dense()[:, 7] != 0
    assert 0 < names_7.sum() < 200
    for product in (a @ x, (x.T @ a.T).T, (a @ CSR.from_dense(x)).to_dense()):
        assert np.array_equal(~np.isfinite(product).all(1), names_7)
    assert np.isfinite(a.with_data(np.full(a.nnz, np.nan)).data).sum() == 0


def test_a_dense_result_route_agrees_with_the_sorted_route():
    rng = np.random.default_rng(5)
    a, b = (sparse_normal(rng, (600, 600), density, 1.0, np.float64) for density in (0.3, 0.3))
    fast = a @ b
    assert close(canonical(fast), a.to_dense() @ b.to_dense())
    assert csr_csr_matmul(
        (a.indptr, a.indices, a.data.astype(np.int64)), (b.indptr, b.indices, b.data.astype(np.int64)), 600
    )[2].dtype == np.int64  # fmt: skip


def test_transpose_plan_carries_new_values():
    """What a backward pass needs: the pattern's transpose once, then values in its order."""
    rng = np.random.default_rng(6)
    a = CSR.from_dense(random_dense(rng, (7, 5)))
    plan = a.transpose_plan()
    for _ in range(2):
        a = a.with_data(rng.standard_normal(a.nnz))
        y = rng.standard_normal((7, 3))
        assert close(csr_matmul(plan.indptr, plan.indices, a.data[plan.order], y, 7), a.to_dense().T @ y)


def test_dispatch_and_combine():
    """Routing as a matrix: dispatch copies token rows to slots, its transpose adds them back."""
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, 10, 24)
    x = rng.standard_normal((10, 6)).astype(np.float32)
    for gate in (np.ones(24, np.float32), rng.random(24).astype(np.float32)):
        dispatch = CSR(np.arange(25), tokens, gate, (24, 10))
        assert np.array_equal(dispatch @ x, gate[:, None] * x[tokens])
        combined = np.zeros((10, 6), np.float32)
        np.add.at(combined, tokens, gate[:, None] * (y := (dispatch @ x)))
        np.testing.assert_allclose(dispatch.T @ y, combined, rtol=1e-5)


@pytest.mark.parametrize("density", [0.002, 0.05, 0.4])
def test_results_repeat_bit_for_bit_and_inputs_stay(density):
    rng = np.random.default_rng(8)
    a = sparse_normal(rng, (500, 400), density, 1.0)
    x = rng.standard_normal((400, 33)).astype(np.float32)
    x.flags.writeable = False
    for product in (lambda: a @ x, lambda: a @ x[:, 0], lambda: x.T @ a.T, lambda: (a @ a.T).data):
        assert np.array_equal(product(), product())


MISMATCHES = [
    lambda a: a @ np.ones(4),
    lambda a: a @ np.ones((4, 2)),
    lambda a: np.ones(5) @ a,
    lambda a: np.ones((2, 5)) @ a,
    lambda a: a @ np.ones((5, 2, 2)),
    lambda a: np.ones((2, 2, 4)) @ a,
    lambda a: a @ 3,
    lambda a: a @ a,
    lambda a: a @ COO.identity(4),
    lambda a: a @ np.array(["x"] * 5),
    lambda a: a.sampled_matmul(np.ones((4, 2)), np.ones((3, 5))),
    lambda a: a.sampled_matmul(np.ones((3, 2)), np.ones((2, 5))),
    lambda a: sampled_matmul(a.indptr, a.indices, np.ones((3, 2)), np.ones((2, 5))),
    lambda a: csr_matvec(a.indptr, a.indices, a.data, np.ones(4), 5),
    lambda a: csr_matmul(a.indptr, a.indices, a.data, np.ones((6, 2)), 5),
    lambda a: dense_csr_matmul(np.ones((2, 5)), a.indptr, a.indices, a.data, 5),
]


@pytest.mark.parametrize("product", MISMATCHES, ids=range(len(MISMATCHES)))
def test_mismatched_shapes_are_refused(product):
    with pytest.raises(ValueError) as error:
        product(CSR.from_dense(np.eye(4, 5)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


PRODUCTS = {
    "matvec": lambda a, x: a @ x[:, 0],
    "matmul": lambda a, x: a @ x,
    "rmatmul": lambda a, x: x.T @ a,
    "sparse": lambda a, x: a @ a,
    "sampled": lambda a, x: a.sampled_matmul(x, x.T),
    "transpose": lambda a, x: a.T,
    "sum": lambda a, x: a + a,
}


@pytest.mark.parametrize("density", [0.002, 0.03, 0.3, "60 a row"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_peak_memory(name, density):
    """At most three times the bytes of inputs plus output, and two megabytes of blocks in the cache."""
    rng = np.random.default_rng(9)
    if density == "60 a row":  # rows of one length are one group: it must be taken in steps
        a = CSR(
            np.arange(2001) * 60,
            np.tile(np.arange(60) * 33, 2000),
            np.ones(120_000, np.float32),
            (2000, 2000),
        )
    else:
        a = sparse_normal(rng, (2000, 2000), density, 1.0)
    x = rng.standard_normal((2000, 64)).astype(np.float32)
    tracemalloc.start()
    result = PRODUCTS[name](a, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = a.nbytes + (x.nbytes if name not in ("sparse", "transpose", "sum") else 0)
    assert held + peak <= 3 * (held + result.nbytes) + (2 << 20)
