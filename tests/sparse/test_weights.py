"""Sparse weights made from dense ones, and matrices in files."""

import io
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sparse.conftest import canonical, random_dense
from tinymoe.sparse import (
    COO,
    CSR,
    load_npz,
    magnitude_mask,
    prune,
    prune_global,
    prune_n_m,
    save_npz,
    sparse_plus_low_rank,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.floats(0, 1, exclude_max=True), st.booleans())
def test_pruning_keeps_exactly_the_largest(seed, sparsity, ties):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(0, 8, 2))
    w = rng.integers(-2, 3, shape).astype(float) if ties else rng.standard_normal(shape)
    mask = magnitude_mask(w, sparsity)
    kept = w.size - round(sparsity * w.size)
    order = sorted(range(w.size), key=lambda i: (-abs(w.flat[i]), i))  # the definition, ties to the earlier
    assert set(np.flatnonzero(mask)) == set(order[:kept])
    a = canonical(prune(w, sparsity))
    assert a.nnz == kept and np.array_equal(a.to_dense(), w * mask)


def test_the_documents_pruning_loses_the_columns():
    """《…通过稀疏MoE扩展视觉语言模型》 §3.3 keeps only the values of a row: two matrices, one result."""
    x, y = np.array([[0, 5, 0]]), np.array([[0, 0, 5]])
    printed = [[[v for v in row if v != 0] for row in w.tolist()] for w in (x, y)]
    assert printed[0] == printed[1] == [[5]]
    assert prune(x, 2 / 3).to_triples() == [(0, 1, 5)] and prune(y, 2 / 3).to_triples() == [(0, 2, 5)]


def test_pruning_special_values():
    assert magnitude_mask(np.array([1.0, np.nan, 3.0]), 0.67).tolist() == [False, True, False]
    assert magnitude_mask(np.array([-128, 127, 3], np.int8), 0.67).tolist() == [True, False, False]
    assert magnitude_mask(np.array([3 + 4j, 4.5, 0]), 0.67).tolist() == [True, False, False]


def test_global_pruning():
    small, large = np.array([0.1, 0.2, 0.3]), np.array([[1.0, 2.0], [0.3, 4.0]])
    first, second = prune_global([small, large], 3 / 7)
    assert first.tolist() == [False, False, True] and second.tolist() == [[True, True], [False, True]]
    assert prune_global([], 0.5) == []


def test_n_m_pruning():
    w = np.array([[1, -4, 2, 3, 5, 5, 5, 5, 9, 1, 2.0]])
    assert prune_n_m(w, 2, 4).astype(int).tolist() == [[0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1]]
    assert np.array_equal(prune_n_m(w.T, 2, 4, axis=0), prune_n_m(w, 2, 4).T)
    x = np.random.default_rng(0).standard_normal((3, 8, 5))
    mask = prune_n_m(x, 1, 4, axis=1)
    assert (mask.reshape(3, 2, 4, 5).sum(2) == 1).all()
    assert np.array_equal(np.abs(x).reshape(3, 2, 4, 5).max(2), np.abs(x * mask).reshape(3, 2, 4, 5).max(2))
    assert prune_n_m(w, 4, 4).all() and prune_n_m(np.zeros((0, 4)), 2, 4).shape == (0, 4)
    for n, m in [(3, 2), (0, 4), (-1, 4)]:
        with pytest.raises(ValueError, match="1 ≤ N ≤ M"):
            prune_n_m(w, n, m)


@pytest.mark.parametrize("sparsity", [1, 1.5, -0.1, np.nan])
def test_sparsity_outside_its_range(sparsity):
    for call in (lambda: prune(np.eye(2), sparsity), lambda: prune_global([np.eye(2)], sparsity)):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            call()


def test_a_sum_of_sparse_and_low_rank_is_found_again():
    rng = np.random.default_rng(0)
    spikes = 10 * random_dense(rng, (40, 30), 0.05)
    low_rank = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))
    found = sparse_plus_low_rank(spikes + low_rank, rank=2, sparsity=0.93, iterations=200)
    assert found.errors[-1] < 1e-6 and np.linalg.matrix_rank(found.left @ found.right) == 2
    np.testing.assert_allclose(found.to_dense(), spikes + low_rank, atol=1e-4)
    assert found.sparse.nnz == 1200 - round(0.93 * 1200) and found.nbytes < 1200 * 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("rank, sparsity", [(0, 0.5), (3, 0.9), (6, 0.0), (2, 0.99)])
def test_the_error_of_a_decomposition_only_falls(rank, sparsity, dtype):
    w = random_dense(np.random.default_rng(1), (9, 6), 1.0, dtype)
    found = sparse_plus_low_rank(w, rank, sparsity, iterations=30)
    assert 1 <= len(found.errors) <= 30 and (np.diff(found.errors) < 0).all()
    assert found.left.shape == (9, rank) and found.right.shape == (rank, 6) and found.left.dtype == dtype
    error = np.linalg.norm(w - found.to_dense()) / np.linalg.norm(w)
    assert error == pytest.approx(found.errors[-1], abs=1e-6)
    best = np.linalg.norm(w * ~magnitude_mask(w, sparsity)) / np.linalg.norm(w)
    assert rank > 0 or found.errors[-1] == pytest.approx(best, abs=1e-6)  # without a low-rank part: pruning


def test_decomposition_of_zero_and_bad_input():
    assert sparse_plus_low_rank(np.zeros((3, 2)), 1, 0.5).errors == [0.0]
    w = np.eye(3)
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((w, 4, 0.5), "rank is 4"),
        ((w, -1, 0.5), "rank is -1"),
        ((w, 1, 1.0), "sparsity is 1.0"),
        ((w, 1, 0.5, 0), "iterations is 0"),
        ((w * np.nan, 1, 0.5), "finite floats"),
        ((w.astype(int), 1, 0.5), "finite floats"),
        ((w[0], 1, 0.5), "finite floats"),
    ]
    for args, message in cases:
        with pytest.raises(ValueError, match=message):
            sparse_plus_low_rank(*args)


@pytest.mark.parametrize("kind", [COO, CSR])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (6, 5)])
def test_files_in_both_directions(kind, compressed, shape, tmp_path):
    dense = random_dense(np.random.default_rng(0), shape, dtype=np.float32)
    a = kind.from_dense(dense)
    save_npz(tmp_path / "ours.npz", a, compressed)
    theirs = scipy.sparse.load_npz(tmp_path / "ours.npz")
    assert theirs.format == kind.__name__.lower() and np.array_equal(theirs.toarray(), dense)
    for make in (f"{theirs.format}_array", f"{theirs.format}_matrix", "csc_array"):
        scipy.sparse.save_npz(tmp_path / "theirs.npz", getattr(scipy.sparse, make)(dense), compressed)
        back = canonical(load_npz(tmp_path / "theirs.npz"))
        assert np.array_equal(back.to_dense(), dense) and back.dtype == np.float32
    stream = io.BytesIO()
    save_npz(stream, a)
    stream.seek(0)
    assert isinstance(load_npz(stream), kind)


def test_files_that_are_not_what_they_say(tmp_path):
    path = tmp_path / "a.npz"
    save_npz(path, CSR.from_dense(random_dense(np.random.default_rng(0), (50, 50))))
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    damaged = [whole[:n] for n in (0, 3, 40, len(whole) // 2, len(whole) - 5)]
    for _ in range(60):
        bytes_ = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            bytes_[place] = rng.integers(256)
        damaged.append(bytes(bytes_))
    good = CSR.from_dense(random_dense(np.random.default_rng(0), (50, 50))).to_dense()
    for content in [*damaged, b"not a zip", b"\x80\x04]\x94."]:
        path.write_bytes(content)
        try:
            assert np.array_equal(load_npz(path).to_dense(), good)  # the change fell where nothing is read
        except ValueError as error:
            assert str(error).startswith(f"{path} is not a readable sparse matrix file: ")
    arrays = {
        "format": np.array(b"csr"),
        "shape": np.array([2, 2]),
        "data": np.ones(1),
        "indices": np.zeros(1, int),
    }
    for change, message in [
        ({}, "lacks the array 'indptr'"),
        ({"format": np.array(b"bsr")}, "format is 'bsr'; save it as csr, csc or coo"),
        ({"indptr": np.array([0, 2, 1])}, "must never decrease"),
        ({"indptr": np.array([0, 1, 1]), "shape": np.array(4)}, "not a readable"),
        ({"indptr": np.array([0, 1, 1]), "data": np.array([object()])}, "allow_pickle=False"),
    ]:
        np.savez(path, **(arrays | change), allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            load_npz(path)
    with pytest.raises(FileNotFoundError):
        load_npz(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match="a COO or a CSR"):
        save_npz(path, np.eye(2))  # type: ignore[arg-type]
