"""Training is float32: gradients in that type against those in float64, of the same numbers.

The bound comes from rounding. Each step of a float32 computation is off by a relative ε/2 at most, ε = 2⁻²³, of its
result, which can be as large as dy where a gradient is a difference. What errors of that size do to a gradient further on
is measured, in float64, by moving every input by a relative ±ε. The error may be a few times the sum of both, since
there are more steps than inputs.
"""

import numpy as np
import pytest

from tests.conftest import is_float
from tests.ops.test_ops import float_outputs
from tinymoe.check.trials import operations

CASES = list(operations(np.random.default_rng(0)))
EPSILON = float(np.finfo(np.float32).eps)
STEPS = 16  # roundings in a row, and the length of the sums, of these small cases


def moved(value, rng, by):
    """Rounded to float32, in float64, and with each number moved by a relative ±`by`."""
    if not is_float(value):
        return value
    single = value.astype(np.float32).astype(np.float64)
    return single * (1 + by * rng.choice([-1.0, 1.0], single.shape))


def gradients(case, inputs, dtype, rng, by=0.0):
    given = [v.astype(dtype) if is_float(v) else v for v in inputs]
    y, backward = case.operation(*given, **case.options)
    draw = np.random.default_rng(1)
    dys = [moved(np.asarray(draw.standard_normal(np.shape(f))), rng, by).astype(f.dtype)[()] for f in float_outputs(y)]
    return backward(*dys), max((np.abs(dy).max(initial=0) for dy in dys), default=0.0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_gradients_are_those_of_float64_but_for_rounding(case):
    rng = np.random.default_rng(2)
    inputs = [moved(v, rng, 0) for v in case.inputs]
    single, _ = gradients(case, inputs, np.float32, rng)
    double, largest_dy = gradients(case, inputs, np.float64, rng)
    shaken = [[moved(v, rng, EPSILON) for v in inputs] for _ in range(4)]
    near = [gradients(case, some, np.float64, rng, by=EPSILON)[0] for some in shaken]
    for i, (s, d) in enumerate(zip(single, double, strict=True)):
        if d.size:
            effect = max(np.abs(n[i] - d).max() for n in near) + EPSILON * max(np.abs(d).max(), largest_dy)
            worst = np.abs(s.astype(np.float64) - d).max()
            assert worst <= STEPS * effect, f"gradient {i}: off by {worst:.2g}, rounding explains {effect:.2g}"
