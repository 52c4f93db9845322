"""No array that an operation hands out is another one's memory: who writes into one changes that one alone."""

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
