"""Sparse matrices from first principles: stored, multiplied, and made out of dense weights.

Reading order:
    formats    COO, a matrix as triples: what sparse means; CSR, its rows compressed: the form to compute with
    base       what every format can do: sums, scaling, products, in and out
    products   sparse times dense, and their derivatives' parts, on plain arrays: the loops, then the fast forms
    gustavson  sparse times sparse, from the loop to the fast form
    blocks     how the products use memory: buffers, and when to fill in the zeros
    sums       entries that meet at one place
    structure  the index arithmetic under all of it (a counting sort is a transpose)
    checks     the invariants and their errors
    picture, files
    prune, decompose, initialise    sparse weights: cut, split, drawn

NumPy only; SciPy is imported by `to_scipy` alone.
"""

import sys

from . import formats
from .base import Sparse
from .decompose import SparsePlusLowRank, sparse_plus_low_rank
from .files import load_npz, save_npz
from .formats import COO, CSR
from .gustavson import csr_csr_matmul, matmul_loop, matmul_triples
from .initialise import sparse_normal
from .products import (
    Transpose,
    csr_matmul,
    csr_matmul_loop,
    csr_matvec,
    dense_csr_matmul,
    dense_csr_matmul_loop,
    sampled_matmul,
    sampled_matmul_loop,
    transpose_plan,
)
from .prune import magnitude_mask, prune, prune_global, prune_n_m

__all__ = [
    "COO",
    "CSR",
    "Sparse",
    "SparsePlusLowRank",
    "Transpose",
    "csr_csr_matmul",
    "csr_matmul",
    "csr_matmul_loop",
    "csr_matvec",
    "dense_csr_matmul",
    "dense_csr_matmul_loop",
    "load_npz",
    "magnitude_mask",
    "matmul_loop",
    "matmul_triples",
    "prune",
    "prune_global",
    "prune_n_m",
    "sampled_matmul",
    "sampled_matmul_loop",
    "save_npz",
    "sparse_normal",
    "sparse_plus_low_rank",
    "transpose_plan",
]

# A pickle made when each format had a file of its own looks for its class there.
sys.modules[f"{__name__}.coo"] = sys.modules[f"{__name__}.csr"] = formats
