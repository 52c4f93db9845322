"""Is a hand-written backward right? Compare it with slopes measured on the forward.

    from tinymoe.gradcheck import check_gradients
    print(check_gradients(my_op, x, w))

`my_op(x, w)` returns `y, backward`. For random dy and a random direction v of one input, the slope of f = Σ dy·y along
v is measured and must equal Σ dx·v over what `backward(dy)` returned. Two ways to measure it:

    central    (4 s(ε) − s(2ε)) / 3,  s(ε) = (f(x+εv) − f(x−εv)) / 2ε     central differences, error O(ε⁴)
    complex    Im f(x + ihv) / h     no subtraction, so no rounding error of its own (Squire & Trapp 1998)
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..types import Array
from .slopes import STEP, MarginError, Slope, floats_of

__all__ = ["TOLERANCE", "InputReport", "MarginError", "Report", "check_gradients"]

TOLERANCE = 1e-7


@dataclass
class InputReport:
    """What was found for one input."""

    name: str
    shape: tuple[int, ...]
    error: float = 0.0  # worst relative error over the directions
    wrong_at: tuple[int, ...] | None = None  # the index where backward is furthest off, if it is wrong
    expected: float = 0.0  # the measured slope there
    found: float = 0.0  # what backward returned there


@dataclass
class Report:
    """The outcome of a check; `print` it. `ok` is the verdict, `error` the worst relative error over all inputs."""

    title: str
    tolerance: float
    inputs: list[InputReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # broken rules, in words

    @property
    def error(self) -> float:
        return max((i.error for i in self.inputs), default=0.0)

    @property
    def ok(self) -> bool:
        return not self.problems and self.error <= self.tolerance

    def __str__(self) -> str:
        width = max([len(i.name) for i in self.inputs], default=0)
        lines = [f"{self.title}: {'ok' if self.ok else 'WRONG'}"]
        for i in self.inputs:
            verdict = "ok" if i.error <= self.tolerance else "WRONG"
            if i.wrong_at is not None:
                verdict += f"  at {list(i.wrong_at)}: expected {i.expected:.6g}, found {i.found:.6g}"
            lines.append(f"  d{i.name:<{width}}  {i.shape!s:<14} relative error {i.error:.1e}  {verdict}")
        return "\n".join(lines + [f"  problem: {p}" for p in self.problems])


def check_gradients(
    function: Callable[..., Any],
    *inputs: Any,
    method: str = "central",
    directions: int = 3,
    step: float | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    names: Sequence[str] | None = None,
    **options: Any,
) -> Report:
    """Check `y, backward = function(*inputs, **options)` in float64 and report on every float input.

    Beside the slopes it checks what makes a backward usable: one gradient per float input with its shape, nothing
    that was passed in written to, the same result when called again, linear in dy.

    inputs      float arrays are differentiated, everything else is passed on
    method      `central`, or `complex` where the function is analytic (no abs, max or comparison on the complex value)
    directions  how many random directions per input
    step        ε or h, in place of the default
    names       of the inputs, by default those of the signature

    Raises MarginError when, within a tenth of the step, an integer array in y changes (chosen experts, counts), or the
    slope does (a kink) and the gradient disagrees, or when rounding hides the slope: choose another input; such a sample
    proves nothing. Raises ValueError for a method, number of directions, tolerance or names that make no sense.
    """
    _check_arguments(method, directions, tolerance)
    args = [a.astype(np.float64) if _is_float(a) else a for a in inputs]
    places = [i for i, a in enumerate(args) if _is_float(a)]
    labels = _labels(function, len(args), names)
    report = Report(f"{getattr(function, '__name__', 'function')} ({method} differences)", tolerance)
    rng = np.random.default_rng(seed)
    frozen_options = {name: _frozen(value) for name, value in options.items()}

    def outputs(*values: Any) -> tuple[Any, Any]:
        result = function(*map(_frozen, values), **frozen_options)
        if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
            raise _BrokenRule("the function must return two things: y, backward")
        return result

    try:
        y, backward = outputs(*args)
        floats = floats_of(y)
        if not places or not floats:
            raise _BrokenRule(f"there is no float array among the {'outputs' if places else 'inputs'} to differentiate")
        if any(np.isnan(f).any() for f in floats):
            raise _BrokenRule("the output has NaN in it; use another input")
        before = [np.array(f) for f in floats]
        dys = [_frozen(np.asarray(rng.standard_normal(np.shape(f)))) for f in floats]
        gradients = backward(*dys)
        _check_form(gradients, [(labels[i], args[i]) for i in places])
    except _BrokenRule as error:
        report.problems.append(str(error))
        return report
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        report.problems.append("an array that was passed in is written to; work on a copy")
        return report

    for i, g in zip(places, gradients, strict=True):
        slope = Slope(outputs, args, i, dys, y, method, step or STEP[method], float(np.linalg.norm(g)), tolerance)
        report.inputs.append(_compare(slope, g, InputReport(labels[i], args[i].shape), directions, report, rng))

    report.problems += _behaviour_problems(backward, dys, gradients, floats, before, rng)
    return report


def _check_arguments(method: str, directions: int, tolerance: float) -> None:
    if method not in STEP or directions < 1 or not 0 < tolerance < 1:
        raise ValueError(
            f"method is {method!r}, directions {directions} and tolerance {tolerance}; allowed are 'central' or "
            "'complex', at least 1, and between 0 and 1"
        )


def _compare(
    slope: Slope, gradient: Array, entry: InputReport, directions: int, report: Report, rng: np.random.Generator
) -> InputReport:
    """Fill in what the slopes along random directions say of a gradient; raises MarginError where they can't tell."""
    for _ in range(directions):
        entry.error = max(entry.error, slope.error(rng.standard_normal(entry.shape), gradient))
    if entry.error > report.tolerance:
        entry.wrong_at, entry.expected, entry.found = _worst_element(slope, gradient, rng)
        if slope.bent:
            raise MarginError(
                f"{report.title}: there is a jump or a kink within the step along {entry.name}; "
                "use another input or a smaller step"
            )
    elif slope.unsure:
        raise MarginError(
            f"{report.title}: beside the size of the outputs the slope along {entry.name} is too small to tell "
            "right from wrong; use another input"
        )
    return entry


class _BrokenRule(Exception):
    """What is wrong with the form of a function or of its gradients, in words."""


def _worst_element(
    slope: Slope, gradient: Array, rng: np.random.Generator, most: int = 400
) -> tuple[tuple[int, ...], float, float]:
    """The index where the gradient is furthest from the measured slope, among at most `most` elements."""
    candidates = rng.permutation(gradient.size)[:most]
    measured = np.empty(len(candidates))
    for row, flat in enumerate(candidates):
        unit = np.zeros(gradient.size)
        unit[flat] = 1
        measured[row] = slope.measure(unit.reshape(gradient.shape))[0]
    claimed = np.asarray(gradient).reshape(-1)[candidates]
    off = np.abs(measured - claimed)
    worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
    index = tuple(int(i) for i in np.unravel_index(candidates[worst], gradient.shape))
    return index, float(measured[worst]), float(claimed[worst])


def _check_form(gradients: Any, inputs: list[tuple[str, Array]]) -> None:
    """Raises _BrokenRule unless there is one float64 array for each input, of its shape."""
    if not isinstance(gradients, tuple) or len(gradients) != len(inputs):
        count = f"{len(gradients)} gradients" if isinstance(gradients, tuple) else f"one {type(gradients).__name__}"
        wanted = ", ".join("d" + name for name, _ in inputs)
        raise _BrokenRule(f"backward returned {count}; it must return a tuple ({wanted}{',' * (len(inputs) == 1)})")
    for g, (name, a) in zip(gradients, inputs, strict=True):
        if type(g) is not np.ndarray and not isinstance(g, np.inexact):
            raise _BrokenRule(f"d{name} is a {type(g).__name__}; it must be an array of floats")
        if g.dtype != np.float64:
            raise _BrokenRule(f"d{name} is {g.dtype}, {name} is float64; a gradient has the dtype of its input")
        if g.shape != a.shape:
            raise _BrokenRule(f"d{name} has shape {g.shape}, {name} has {a.shape}")


def _behaviour_problems(
    backward: Any,
    dys: list[Array],
    gradients: Sequence[Array],
    floats: list[Array],
    before: list[Array],
    rng: np.random.Generator,
) -> list[str]:
    try:
        again = backward(*dys)
        others = [_frozen(np.asarray(rng.standard_normal(dy.shape))) for dy in dys]
        mixed = backward(*(_frozen(np.asarray(2 * u - 3 * v)) for u, v in zip(dys, others, strict=True)))
        second = backward(*others)
    except RuntimeError as error:  # a model that frees its activations says so
        return [] if "freed" in str(error) else [f"backward can't be called again: {error}"]
    problems = []
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(gradients, again, strict=True)):
        problems.append("backward returns something else when it is called again; it must not change what it keeps")
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(floats, before, strict=True)):
        problems.append("backward changes y, which belongs to the caller")
    for g, h, m in zip(gradients, second, mixed, strict=True):
        scale = max(float(np.abs(g).max(initial=0)), float(np.abs(h).max(initial=0)), 1e-300)
        if not np.abs(2 * g - 3 * h - m).max(initial=0) <= 1e-9 * scale:
            problems.append("backward is not linear in dy")
            break
    return problems


def _labels(function: Callable[..., Any], count: int, names: Sequence[str] | None) -> list[str]:
    """Names of the inputs: those given, or those of the signature."""
    parameters = list(inspect.signature(function).parameters)[:count] if names is None else list(names)
    if names is not None and len(parameters) < count:
        raise ValueError(f"{len(parameters)} names for {count} inputs; give one for each")
    return parameters + [f"input {i}" for i in range(len(parameters), count)]


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def _frozen(value: Any) -> Any:
    """An array as a view that can't be written to; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    view = value.view()
    view.flags.writeable = False
    return view
