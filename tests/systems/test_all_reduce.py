"""The ring all-reduce: sums, their equality at all workers, bytes, and arrays that W doesn't divide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymoe.systems.all_reduce import ring_all_reduce


def test_the_example_of_the_docstring():
    parts = [np.array([1.0, 2, 3]) * factor for factor in (1, 10, 100)]
    sums, sent = ring_all_reduce(parts)
    assert all((total == [111, 222, 333]).all() for total in sums)
    assert (sent == 4 * 8).all()
    assert (parts[0] == [1, 2, 3]).all()  # nobody's own gradient is written to


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 4), st.integers(0, 99))
def test_every_worker_has_the_same_sum_for_the_bytes_that_are_needed(workers, rows, columns, seed):
    parts = list(np.random.default_rng(seed).standard_normal((workers, rows, columns)))
    sums, sent = ring_all_reduce(parts)
    assert all(np.allclose(total, sum(parts), rtol=1e-12, atol=1e-14) for total in sums)
    assert all((total == sums[0]).all() and total.shape == (rows, columns) for total in sums)
    assert sent.sum() == 2 * (workers - 1) * parts[0].nbytes  # together, whatever the blocks
    assert abs(sent - 2 * (workers - 1) / workers * parts[0].nbytes).max(initial=0) <= 2 * 8


@pytest.mark.parametrize("parts", [[], [np.zeros(2), np.zeros(3)], [np.zeros(2), np.zeros(2, np.float32)]])
def test_parts_that_do_not_fit_are_refused(parts):
    with pytest.raises(ValueError, match="one for each worker is needed, all of one shape and dtype"):
        ring_all_reduce(parts)
