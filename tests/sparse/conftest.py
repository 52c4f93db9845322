"""What the tests of sparse matrices share."""

import numpy as np
import scipy.sparse

DTYPES = [np.int8, np.int32, np.uint16, np.float32, np.float64, np.complex64, np.complex128]


def random_dense(rng, shape, density=0.3, dtype=np.float64):
    kind = np.dtype(dtype).kind
    values = rng.integers(1, 5, shape) if kind in "iu" else rng.standard_normal(shape)
    if kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return np.where(rng.random(shape) < density, values, 0).astype(dtype)


def canonical(a):
    """The invariants, read off the arrays."""
    coo = a.to_coo()
    key = coo.rows.astype(object) * a.shape[1] + coo.cols
    ends = a.to_csr().indptr[[0, -1]].tolist()
    assert ends == [0, a.nnz] and all(key[1:] > key[:-1]) and len(coo.rows) == len(coo.cols) == len(coo.data)
    assert not any(array.flags.writeable for array in vars(a).values() if isinstance(array, np.ndarray))
    return a


def messy(seed, index):
    """A SciPy CSR matrix with unsorted indices, duplicates and explicit zeros, made behind its back."""
    rng = np.random.default_rng(seed)
    n_rows, n_cols = (int(n) for n in rng.integers(0, 12, 2))
    nnz = int(rng.integers(0, 40)) if n_rows and n_cols else 0
    rows = np.sort(rng.integers(0, max(n_rows, 1), nnz))
    data = rng.standard_normal(nnz) * (rng.random(nnz) < 0.8)
    indptr = np.searchsorted(rows, np.arange(n_rows + 1)).astype(index)
    matrix = scipy.sparse.csr_array((n_rows, n_cols))
    matrix.indptr, matrix.data = indptr, data
    matrix.indices = rng.integers(0, max(n_cols, 1), nnz).astype(index)
    return matrix


def close(ours, theirs):
    """Equal to 1e-13 of the largest magnitude, which is what the order of a sum can change."""
    ours, theirs = (a.to_dense() if hasattr(a, "to_dense") else np.asarray(a) for a in (ours, theirs))
    scale = max(np.abs(theirs).max(initial=0), 1.0)
    return ours.shape == theirs.shape and np.abs(ours - theirs).max(initial=0) <= 1e-13 * scale
