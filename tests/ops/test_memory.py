"""No array that an operation hands out is another one's memory: who writes into one changes that one alone.

What the backward reads later is read-only, so that nobody writes into it without an error.
"""

from itertools import combinations

import numpy as np
import pytest

from tests.conftest import is_float
from tests.ops.test_ops import float_outputs
from tinymoe.check.trials import operations

CASES = list(operations(np.random.default_rng(0)))
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def assert_apart(arrays, others=()):
    """`arrays` share no memory with each other, nor with `others`; both by name."""
    pairs = [*combinations(arrays.items(), 2), *((a, b) for a in arrays.items() for b in others.items())]
    assert [f"{m} and {n}" for (m, a), (n, b) in pairs if np.shares_memory(a, b)] == []


@every_case
def test_no_gradient_shares_memory_with_anything(case):
    y, backward = case.operation(*case.inputs, **case.options)
    outputs = float_outputs(y)
    dys = [np.asarray(np.random.default_rng(i).standard_normal(np.shape(f))) for i, f in enumerate(outputs)]
    gradients = backward(*dys)
    assert_apart(
        {f"gradient {i}": g for i, g in enumerate(gradients)},
        {f"dy {i}": a for i, a in enumerate(dys)}
        | {f"y {i}": np.asarray(a) for i, a in enumerate(outputs)}
        | {f"input {i}": v for i, v in enumerate(case.inputs) if is_float(v)}
        | {f"gradient {i}, the second time": g for i, g in enumerate(backward(*dys))},
    )


@every_case
def test_y_shares_no_memory_with_what_was_passed_in(case):
    y, _ = case.operation(*case.inputs, **case.options)
    inputs = {f"input {i}": v for i, v in enumerate(case.inputs) if isinstance(v, np.ndarray)}
    for i, a in enumerate(float_outputs(y)):
        assert_apart({f"y {i}": np.asarray(a)}, inputs)


def arrays_of(value):
    if isinstance(value, np.ndarray):
        return [value]
    return [a for part in value for a in arrays_of(part)] if isinstance(value, tuple) else []


@every_case
def test_who_writes_into_y_cannot_change_a_gradient(case):
    y, backward = case.operation(*case.inputs, **case.options)
    dys = [np.random.default_rng(i).standard_normal(np.shape(f)) for i, f in enumerate(float_outputs(y))]
    before = [g.copy() for g in backward(*dys)]
    for a in arrays_of(y):
        if a.flags.writeable:
            a[...] = ~a if a.dtype == bool else a[::-1] if a.dtype.kind in "iu" else 2 * a + 1
    for now, g in zip(backward(*dys), before, strict=True):
        np.testing.assert_array_equal(now, g)


@every_case
def test_a_gradient_may_be_written_into(case):
    y, backward = case.operation(*case.inputs, **case.options)
    dys = [np.ones(np.shape(f)) for f in float_outputs(y)]
    assert all(g.flags.writeable for g in backward(*dys) if isinstance(g, np.ndarray))
