"""How steep a function is, measured on its values: the numbers that a hand-written gradient is compared with."""

from typing import Any

import numpy as np

from ..types import Array

STEP = {"central": 3e-5, "complex": 1e-20}  # ε (times the input's root mean square where that is below 1) and h


class MarginError(ValueError):
    """So close to a jump or a kink (a gate that picks another expert) that there is no slope to measure."""


class Slope:
    """The measured slope of Σ dy·y along a direction of one input, and how it compares with a gradient."""

    def __init__(
        self,
        function: Any,
        args: list[Any],
        place: int,
        dys: list[Array],
        y: Any,
        method: str,
        step: float,
        norm: float,
        tolerance: float,
    ) -> None:
        self.function, self.args, self.place, self.dys, self.norm, self.tolerance = (
            function,
            args,
            place,
            dys,
            norm,
            tolerance,
        )
        self.measure = {"central": self.central, "complex": self.complex}[method]
        self.choices, self.middle = integers_of(y), floats_of(y)
        x = args[place]
        self.step = step * (min(float(np.sqrt(np.square(x).sum() / max(x.size, 1))), 1.0) or 1.0)
        self.bent = self.unsure = False

    def error(self, v: Array, gradient: Array) -> float:
        """The relative error of the gradient along v. Where rounding hides it, 0, and `unsure` is set."""
        measured, noise, v = self.measure(v)
        claimed = float((gradient * v).sum())
        off = abs(measured - claimed)
        if not np.isfinite(off):
            return np.inf
        size = max(abs(measured), abs(claimed), self.norm)
        if size == 0 or (off <= noise and off > self.tolerance * size):
            self.unsure |= size > 0
            return 0.0
        return off / size

    def outputs(self, change: Any) -> list[Any]:
        args = list(self.args)
        args[self.place] = args[self.place] + change
        y, _ = self.function(*args)
        if any(not np.array_equal(a, b) for a, b in zip(self.choices, integers_of(y), strict=True)):
            raise MarginError(
                f"a choice in the output changes when input {self.place} moves by {self.step:g}, so there is no slope "
                "to compare with; use another input or a smaller step"
            )
        return floats_of(y)

    def central(self, v: Array) -> tuple[float, float, Array]:
        """(slope along a direction, its rounding error, that direction): v, rounded so that x + εv is exact."""
        for step, last in ((self.step, False), (self.step / 10, True)):  # nearer, before giving up
            try:
                slope, noise, rounded, smooth = self.differences(v, step)
            except MarginError:
                if last:
                    raise
                continue
            if smooth or last:
                self.bent |= not smooth
                return slope, noise, rounded
        raise AssertionError

    def differences(self, v: Array, step: float) -> tuple[float, float, Array, bool]:
        """(slope, rounding error, rounded direction, whether the function looks smooth within the step)."""
        x = self.args[self.place]
        rounded = ((x + step * v) - x) / step
        if np.abs(rounded - v).max(initial=0) > 1e-3:
            raise MarginError(f"input {self.place} is too large for a step of {step:g}; use smaller values")
        right2, right, left, left2 = (self.outputs(c * step * rounded) for c in (2, 1, -1, -2))
        near, far = self.total(right, left) / (2 * step), self.total(right2, left2) / (4 * step)
        slope = (4 * near - far) / 3
        scale = max(abs(slope), self.norm)
        near_bend = abs(self.total(right, self.middle) - self.total(self.middle, left)) / step
        far_bend = abs(self.total(right2, self.middle) - self.total(self.middle, left2)) / step
        kink = near_bend > 1e-2 * scale and far_bend < 3 * near_bend  # 4 times as much where smooth, twice at a kink
        moved = sum(
            float(np.abs(dy * np.where(f2 == f1, 0, f0)).sum() + np.abs(dy * _change(f2, f1)).sum())
            for dy, f2, f1, f0 in zip(self.dys, right, left, self.middle, strict=True)
        )
        noise = 4e-16 / step * moved
        return slope, noise, rounded, bool(abs(near - far) <= 1e-5 * scale + noise and not kink)

    def total(self, right: list[Any], left: list[Any]) -> float:
        """Σ dy (right − left), subtracted element by element: outputs that don't depend on the input drop out."""
        return float(sum((dy * _change(r, f)).sum() for dy, r, f in zip(self.dys, right, left, strict=True)))

    def complex(self, v: Array) -> tuple[float, float, Array]:
        parts = [dy * np.imag(f) / self.step for dy, f in zip(self.dys, self.outputs(1j * self.step * v), strict=True)]
        slope, noise = float(sum(p.sum() for p in parts)), 1e-14 * sum(float(np.abs(p).sum()) for p in parts)
        if slope == 0:
            step, self.step = self.step, STEP["central"]
            by_differences, rounding, _ = self.central(v)
            self.step = step
            if abs(by_differences) > rounding:
                raise MarginError(
                    "the function loses the imaginary part, so the complex step sees nothing; use 'central'"
                )
        return slope, noise, v


def _change(right: Any, left: Any) -> Any:
    """right − left, and 0 where both are the same infinity."""
    same = right == left
    return np.where(same, 0.0, np.where(same, 0.0, right) - np.where(same, 0.0, left))


def floats_of(y: Any) -> list[Any]:
    """The differentiable outputs: y itself, or the float arrays in a plain tuple; records are information."""
    parts = y if type(y) is tuple else (y,)
    found = [np.asarray(p) for p in parts if isinstance(p, np.ndarray | np.inexact | float)]
    return [p for p in found if np.issubdtype(p.dtype, np.inexact)]


def integers_of(y: Any) -> list[Array]:
    """All integer arrays in y, records included."""
    if isinstance(y, tuple):
        return [a for part in y for a in integers_of(part)]
    return [y] if isinstance(y, np.ndarray) and np.issubdtype(y.dtype, np.integer) else []
