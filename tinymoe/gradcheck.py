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

Array = np.ndarray

TOLERANCE = 1e-7
STEP = {"central": 3e-5, "complex": 1e-20}  # ε (times the input's root mean square where that is below 1) and h
FLOOR = {"central": 1e-3, "complex": 1e-9}  # slopes below this share of Σ|dy·y| drown in rounding


class MarginError(ValueError):
    """So close to a jump or a kink (a gate that picks another expert) that there is no slope to measure."""


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
    slope does (a kink) and the gradient disagrees: choose another input; such a sample proves nothing.
    """
    args = [a.astype(np.float64) if _is_float(a) else a for a in inputs]
    places = [i for i, a in enumerate(args) if _is_float(a)]
    labels = names or _names(function, len(args))
    report = Report(f"{getattr(function, '__name__', 'function')} ({method} differences)", tolerance)
    rng = np.random.default_rng(seed)

    def outputs(*values: Any) -> tuple[Any, Any]:
        return function(*(_frozen(v) if _is_float(v) else v for v in values), **options)

    try:
        y, backward = outputs(*args)
        floats = _floats(y)
        before = [np.array(f) for f in floats]
        dys = [_frozen(np.asarray(rng.standard_normal(np.shape(f)))) for f in floats]
        gradients = backward(*dys)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        report.problems.append("an array that was passed in is written to; work on a copy")
        return report
    report.problems += _shape_problems(gradients, [(labels[i], args[i]) for i in places])
    if report.problems:
        return report

    size = sum(float(np.abs(dy * f).sum()) for dy, f in zip(dys, before, strict=True))
    floor = FLOOR[method] * size
    for i, g in zip(places, gradients, strict=True):
        slope = _Slope(outputs, args, i, dys, y, method, step or STEP[method])
        entry = InputReport(labels[i], args[i].shape)
        for _ in range(directions):
            v = rng.standard_normal(args[i].shape)
            measured, claimed = slope(v), float((g * v).sum())
            scale = max(abs(measured), abs(claimed), float(np.linalg.norm(g)), floor, np.finfo(float).tiny)
            off = abs(measured - claimed) / scale
            entry.error = max(entry.error, off if np.isfinite(off) else np.inf)
        if entry.error > tolerance:
            entry.wrong_at, entry.expected, entry.found = _worst_element(slope, g, rng)
            if slope.bent:
                raise MarginError(
                    f"{report.title}: there is a jump or a kink within the step along {labels[i]}; "
                    "use another input or a smaller step"
                )
        report.inputs.append(entry)

    report.problems += _behaviour_problems(backward, dys, gradients, floats, before, rng)
    return report


class _Slope:
    """The measured slope of Σ dy·y along a direction of one input."""

    def __init__(
        self, function: Any, args: list[Any], place: int, dys: list[Array], y: Any, method: str, step: float
    ) -> None:
        self.function, self.args, self.place, self.dys, self.step = function, args, place, dys, step
        self.measure = {"central": self.central, "complex": self.complex}[method]
        self.choices = _integers(y)
        self.middle = self.value(0)
        self.size = min(float(np.sqrt(np.square(args[place]).sum() / max(args[place].size, 1))), 1.0) or 1.0
        self.bent = False

    def __call__(self, v: Array) -> float:
        return self.measure(v)

    def value(self, change: Any) -> Any:
        args = list(self.args)
        args[self.place] = args[self.place] + change
        y, _ = self.function(*args)
        if any(not np.array_equal(a, b) for a, b in zip(self.choices, _integers(y), strict=True)):
            raise MarginError(
                f"a choice in the output changes when input {self.place} moves by {self.step:g} of its "
                "size, so there is no slope to compare with; use another input or a smaller step"
            )
        return sum((dy * f).sum() for dy, f in zip(self.dys, _floats(y), strict=True))

    def central(self, v: Array) -> float:
        slope, smooth = self.differences(v, self.step * self.size)
        if not smooth:  # nearer, before giving up
            slope, smooth = self.differences(v, self.step * self.size / 10, last=True)
            self.bent |= not smooth
        return slope

    def differences(self, v: Array, step: float, last: bool = False) -> tuple[float, bool]:
        """The slope, and whether the function looks smooth within the step."""
        try:
            right2, right, left, left2 = (self.value(c * step * v) for c in (2, 1, -1, -2))
        except MarginError:
            if last:
                raise
            return 0.0, False
        near, far = (right - left) / (2 * step), (right2 - left2) / (4 * step)
        slope = float((4 * near - far) / 3)
        scale = max(abs(slope), 1e-3 * abs(self.middle))
        bend = abs(right - 2 * self.middle + left) / step  # O(step) where smooth, O(1) at a kink
        return slope, bool(abs(near - far) <= 1e-5 * scale and bend <= 1e-2 * scale)  # the former O(step²)

    def complex(self, v: Array) -> float:
        return float(np.imag(self.value(1j * self.step * v)) / self.step)


def _worst_element(
    slope: _Slope, gradient: Array, rng: np.random.Generator, most: int = 400
) -> tuple[tuple[int, ...], float, float]:
    """The index where the gradient is furthest from the measured slope, among at most `most` elements."""
    candidates = rng.permutation(gradient.size)[:most]
    measured = np.empty(len(candidates))
    for row, flat in enumerate(candidates):
        unit = np.zeros(gradient.size)
        unit[flat] = 1
        measured[row] = slope(unit.reshape(gradient.shape))
    claimed = gradient.reshape(-1)[candidates]
    off = np.abs(measured - claimed)
    worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
    index = tuple(int(i) for i in np.unravel_index(candidates[worst], gradient.shape))
    return index, float(measured[worst]), float(claimed[worst])


def _shape_problems(gradients: Any, inputs: list[tuple[str, Array]]) -> list[str]:
    if not isinstance(gradients, tuple) or len(gradients) != len(inputs):
        count = f"{len(gradients)} gradients" if isinstance(gradients, tuple) else type(gradients).__name__
        wanted = ", ".join("d" + name for name, _ in inputs)
        return [f"backward returned {count}; it must return a tuple ({wanted})"]
    return [
        f"d{name} has shape {np.shape(g)}, {name} has {a.shape}"
        for g, (name, a) in zip(gradients, inputs, strict=True)
        if np.shape(g) != a.shape
    ]


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


def _names(function: Callable[..., Any], count: int) -> list[str]:
    parameters = list(inspect.signature(function).parameters)[:count]
    return parameters + [f"input {i}" for i in range(len(parameters), count)]


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def _frozen(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _floats(y: Any) -> list[Any]:
    """The differentiable outputs: y itself, or the float arrays in a plain tuple; records are information."""
    parts = y if type(y) is tuple else (y,)
    return [
        p
        for p in parts
        if isinstance(p, np.ndarray | np.inexact | float) and not np.issubdtype(np.asarray(p).dtype, np.integer)
    ]


def _integers(y: Any) -> list[Array]:
    """All integer arrays in y, records included."""
    if isinstance(y, tuple):
        return [a for part in y for a in _integers(part)]
    return [y] if isinstance(y, np.ndarray) and np.issubdtype(y.dtype, np.integer) else []
