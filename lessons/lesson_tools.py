"""What every lesson imports: a checker for exercises, and figures that read well, in grey too.

    check_exercise(name, function, *inputs, like=reference)     prints [todo], [ok] or [wrong] and where; never raises
    new_figure(rows, columns)                                   a figure and its axes, in the style of the lessons
    show(figure)                                                puts it under the cell

A reading order: `check_exercise`, then `verdict`, then the helpers below it.
"""

import io
import traceback
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from IPython.display import Image, display
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from tinymoe.gradcheck import InputReport, check_gradients

__all__ = ["check_exercise", "new_figure", "show"]

threadpool_limits(1)  # of BLAS: the products of lessons are small, and two threads would wait for each other

STYLE: Any = {
    "axes.prop_cycle": cycler(color=["#000000", "#b2182b", "#4393c3", "#8c8c8c"], linestyle=["-", "--", "-.", ":"]),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "0.9",
    "font.size": 10,
    "lines.linewidth": 1.6,
}


def check_exercise(
    name: Any,
    function: Any,
    *inputs: Any,
    like: Any,
    gradients: bool = True,
    method: str = "central",
    tolerance: float = 1e-7,
    **options: Any,
) -> None:
    """Print one line on the learner's function: [todo], [ok], or [wrong] and where. Never raises.

    inputs     what `function` and `like` are called with; each call gets its own copies of arrays
    like       the reference: returns what `function` should; its backward is not used
    gradients  both return `y, backward`: y is compared, then backward with slopes measured on the learner's own forward.
               False: both return values, which are compared
    method     `central`, or `complex` to demand an operation that the complex step can differentiate
    tolerance  relative to the largest number of a result, or of a gradient
    options    passed on to both functions by name
    """
    try:
        mark, text = verdict(function, inputs, like, gradients, method, tolerance, options)
    except NotImplementedError:
        mark, text = "todo", ""
    except Exception as error:  # whatever a learner's code does
        unfinished = isinstance(error, TypeError) and "ellipsis" in str(error)  # it computes with a `...` of the stub
        mark, text = ("todo", "") if unfinished else ("wrong", f"{described(error)}{place(error, function)}")
    print(f"{f'[{mark}]':7} exercise {name}" + (f": {text}" if text else ""))


def verdict(
    function: Any, inputs: Any, like: Any, gradients: bool, method: str, tolerance: float, options: dict[str, Any]
) -> tuple[str, str]:
    """(mark, what is wrong). A result that is, or contains, None or `...` is still to do."""
    result, expected = function(*copies(inputs), **options), like(*copies(inputs), **options)
    if unfinished(result):
        return "todo", ""
    if not gradients:
        problem = difference("the result", result, expected, tolerance)
        return ("wrong", problem) if problem else ("ok", "")
    if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
        return "wrong", "the function must return two things: y, backward"
    if problem := difference("y", result[0], expected[0], tolerance):
        return "wrong", problem
    if unfinished(result[1](*(np.ones_like(part) for part in floats(result[0])))):
        return "todo", "y is right; now backward"
    report = check_gradients(function, *copies(inputs), method=method, tolerance=tolerance, **options)
    wrong = [entry for entry in report.inputs if not entry.error <= tolerance]
    problems = [gradient_problem(entry) for entry in wrong] + report.problems
    return ("wrong", "; ".join(problems)) if problems else ("ok", "")


def gradient_problem(entry: InputReport) -> str:
    place = f" at {list(entry.wrong_at)}" if entry.wrong_at else ""  # a number has no index
    return f"d{entry.name}{place}: the measured slope is {entry.expected:.6g}, backward says {entry.found:.6g}"


def difference(name: str, found: Any, expected: Any, tolerance: float) -> str:
    """Where the first difference between two results is, in words; empty if there is none."""
    if isinstance(expected, tuple):
        if not isinstance(found, tuple) or len(found) != len(expected):
            count = len(found) if isinstance(found, tuple) else 1
            return f"{name} must have {len(expected)} parts, not {count}"
        pairs = enumerate(zip(found, expected, strict=True))
        return next(filter(None, (difference(f"{name}[{i}]", f, e, tolerance) for i, (f, e) in pairs)), "")
    if isinstance(found, tuple):
        return f"{name} must be one value, not {len(found)} parts"
    a, b = np.asarray(found), np.asarray(expected)
    if a.dtype.kind not in "biufc" or b.dtype.kind not in "biufc":  # not numbers
        return "" if found == expected else f"{name} is {found!r}; expected {expected!r}"
    if a.shape != b.shape:
        return f"{name} has shape {a.shape}; expected {b.shape}"
    limit = 0 if b.dtype.kind in "biu" else tolerance * float(np.abs(b[np.isfinite(b)]).max(initial=1e-300))
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        differs = ~((a == b) | (np.abs(np.subtract(a, b, dtype=np.result_type(a, b, float))) <= limit))
    differs &= ~(np.isnan(a) & np.isnan(b))
    if not differs.any():
        return ""
    index = tuple(np.argwhere(differs)[0].tolist())
    at = f" at {list(index)}" if index else ""
    digits = 6 if f"{a[index]:.6g}" != f"{b[index]:.6g}" else 15
    return f"{name}{at} is {a[index]:.{digits}g}; expected {b[index]:.{digits}g}"


def unfinished(value: Any) -> bool:
    """Whether a result is, or has in it, the None or `...` of a stub."""
    if isinstance(value, tuple | list):
        return any(map(unfinished, value))
    return value is None or value is ...


def floats(y: Any) -> list[np.ndarray]:
    parts = [np.asarray(part) for part in (y if type(y) is tuple else (y,))]
    return [part for part in parts if np.issubdtype(part.dtype, np.inexact)]


def copies(inputs: Any) -> list[Any]:
    return [value.copy() if isinstance(value, np.ndarray) else value for value in inputs]


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def place(error: Exception, function: Any) -> str:
    """The line of the learner's cell that raised, if it was one."""
    cell = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == cell]
    return f" (line {lines[-1]} of the cell)" if lines else ""


def new_figure(rows: int = 1, columns: int = 1, height: float = 3.2, **options: Any) -> Any:
    """(figure, axes): one axes, or an array of them if there are several. `options` go to `Figure.subplots`.

    Lines differ in colour, darkness and dashes, so that no reader and no printer needs the colour. No pyplot: nothing
    is shared between cells.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def show(figure: Figure, alt: str) -> None:
    """Put the figure under the cell. `alt` says in a sentence what is to be seen, for those who can't see it.

    Raises ValueError if an axis with numbers on it has no label.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks = axis.get_tick_params()
            numbered = ticks.get("labelbottom", True) and ticks.get("labelleft", True) and len(axis.get_ticklocs())
            if axes.axison and numbered and not axis.get_label_text():
                raise ValueError(f"the {axis.axis_name} axis has numbers and no label; name the quantity and its unit")
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})  # the same bytes every time
    display(Image(buffer.getvalue(), alt=alt))
