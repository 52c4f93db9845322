"""Sparse initialisation: most weights are zero from the start, and the output varies as if they were not.

    w = 0 in all but a share ρ (density) of the places, else normal with deviation std / √ρ
    Var(Σ_j w_ij x_j) = n · ρ · (std² / ρ) · E[x²] = n · std² · E[x²]        as for a dense matrix

Source: the rule of Glorot & Bengio 2010, applied to the expected number of non-zero weights of an output
(Evci et al. 2022 use the exact number of each output).
"""

from typing import Any

import numpy as np

from .checks import check_shape
from .formats import CSR


def sparse_normal(
    rng: np.random.Generator, shape: tuple[int, int], density: float, std: float, dtype: Any = np.float32
) -> CSR:
    """Exactly round(density · size) normal weights of deviation std / √density at places drawn at random."""
    n_rows, n_cols = check_shape(shape)
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}: the share of stored weights must be above 0 and at most 1.")
    size = n_rows * n_cols
    count = round(density * size)
    places = np.sort(rng.choice(size, count, replace=False, shuffle=False)) if count else np.zeros(0, np.int64)
    values = (rng.standard_normal(count) * (std / np.sqrt(density))).astype(dtype)
    rows, cols = np.divmod(places, max(n_cols, 1))
    return CSR.from_coordinates(rows, cols, values, (n_rows, n_cols), keep_zeros=True)
