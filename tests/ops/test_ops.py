"""Every operation, every case: the gradient is right, and the rules that make `y, backward = op(…)` safe hold."""

import ast
import inspect
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import is_float
from tinymoe import ops
from tinymoe.check.trials import operations
from tinymoe.gradcheck import MarginError, check_gradients

CASES = list(operations(np.random.default_rng(0)))
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def float_outputs(y):
    parts = y if type(y) is tuple else (y,)
    return [p for p in parts if isinstance(p, np.inexact) or is_float(p)]


def frozen(value):
    if is_float(value):
        value = value.copy()
        value.flags.writeable = False
    return value


def test_every_operation_has_cases_with_and_without_rows():
    by_operation = {op: [c for c in CASES if c.operation is op] for op in ops.OPERATIONS}
    assert [op.__name__ for op, found in by_operation.items() if len(found) < 2] == []


def functions():
    """Those at the top of the files of `ops`."""
    for file in sorted((Path(ops.__file__).parent).glob("*.py")):
        yield from (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))


def test_an_operation_is_what_returns_a_backward():
    """By the text of the files, whatever their signatures say, through which `ops` finds them."""

    def hands_on(function, known):  # `return …, backward`, or what a known one returns
        value = function.body[-1].value if isinstance(function.body[-1], ast.Return) else None
        last = value.elts[-1] if isinstance(value, ast.Tuple) else getattr(value, "func", None)
        return isinstance(last, ast.Name) and last.id in known

    names, more = set(), {"backward"}
    while more:
        names |= more
        more = {f.name for f in functions() if hands_on(f, names)} - names
    public = {name for name in names if not name.startswith("_")} - {"backward"}
    assert sorted(public) == sorted(op.__name__ for op in ops.OPERATIONS)
    assert all(getattr(ops, op.__name__) is op and op.__name__ in ops.__all__ for op in ops.OPERATIONS)


@every_case
def test_gradient_by_central_differences(case):
    for seed in (0, 1000, 2000):  # a sample too close to a jump is refused; then another of the same kind is taken
        again = next(c for c in operations(np.random.default_rng(seed)) if str(c) == str(case)) if seed else case
        with suppress(MarginError):
            report = check_gradients(again.operation, *again.inputs, **again.options)
            assert report.ok, report
            return
    pytest.fail("three samples in a row were refused")


@pytest.mark.parametrize("case", [c for c in CASES if c.analytic], ids=str)
def test_gradient_by_complex_step(case):
    report = check_gradients(case.operation, *case.inputs, method="complex", tolerance=1e-12, **case.options)
    assert report.ok, report


@every_case
def test_nothing_passed_in_is_written_to_and_backward_can_be_repeated(case):
    y, backward = case.operation(*map(frozen, case.inputs), **case.options)
    dys = [
        frozen(np.asarray(np.random.default_rng(i).standard_normal(np.shape(f))))
        for i, f in enumerate(float_outputs(y))
    ]
    copies = [np.array(f) for f in float_outputs(y)]
    first = [g.copy() for g in backward(*dys)]
    for again, g in zip(backward(*dys), first, strict=True):
        np.testing.assert_array_equal(again, g)
    for f, copy in zip(float_outputs(y), copies, strict=True):
        np.testing.assert_array_equal(f, copy)


@every_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_gradient_per_float_input_of_its_shape_and_dtype(case, dtype):
    inputs = [v.astype(dtype) if is_float(v) else v for v in case.inputs]
    y, backward = case.operation(*inputs, **case.options)
    outputs = float_outputs(y)
    assert case.operation is ops.cast or all(f.dtype == dtype for f in outputs)
    gradients = backward(*(np.ones(f.shape, f.dtype)[()] for f in outputs))
    assert type(gradients) is tuple
    assert [(g.shape, g.dtype) for g in gradients] == [(v.shape, v.dtype) for v in inputs if is_float(v)]


@every_case
def test_float32_agrees_with_float64(case):
    """No float32 step loses more than rounding, so a formula that cancels or overflows early shows."""
    (y64, _), (y32, _) = (
        case.operation(*(v.astype(d) if is_float(v) else v for v in case.inputs), **case.options)
        for d in (np.float64, np.float32)
    )
    for a, b in zip(float_outputs(y64), float_outputs(y32), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5)


def test_docstrings_state_the_shapes_that_arrays_have():
    """Lines such as `x  (N, D)` are bound to real arrays: one letter, one length, within a case."""
    checked = 0
    for case in CASES:
        names = list(inspect.signature(case.operation).parameters)
        y, _ = case.operation(*case.inputs, **case.options)
        found = dict(zip(names, case.inputs, strict=False)) | case.options
        text = inspect.getdoc(case.operation)
        assert text
        stated = re.findall(r"^    (\w+) +\(([^)]*)\)", text.replace("\n", "\n    "), re.M)
        outputs = [name for name, _ in stated if name not in names]
        found |= dict(zip(outputs, y if type(y) is tuple else (y,), strict=False))
        letters: dict[str, int] = {}
        for name, shape in stated:
            if name not in found or found[name] is None or shape == "...":
                continue
            axes = [axis.strip() for axis in shape.split(",") if axis.strip()]
            actual = np.shape(found[name])
            assert len(axes) == len(actual), f"{case}: {name} is said to be ({shape}) and is {actual}"
            for axis, length in zip(axes, actual, strict=True):
                assert letters.setdefault(axis, length) == length, f"{case}: {name} ({shape}) {actual} {letters}"
                checked += 1
    assert checked > 500


def functions_with_backward():
    for node in functions():
        if any(isinstance(n, ast.FunctionDef) and n.name == "backward" for n in node.body):
            yield pytest.param(node, id=node.name)


def late_bindings(function):
    """Names that `backward` reads and that are bound more than once, or in a loop."""
    backward = next(n for n in function.body if isinstance(n, ast.FunctionDef) and n.name == "backward")
    read = {n.id for n in ast.walk(backward) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    own = {n.id for n in ast.walk(backward) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound = []

    def visit(node, in_loop):
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ListComp | ast.GeneratorExp):
            return
        loop = in_loop or isinstance(node, ast.For | ast.While)
        if isinstance(node, ast.AugAssign):  # in place, on an array of this call; fine before backward exists
            return visit(node.value, loop)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.extend([node.id] * (2 if loop else 1))
        for child in ast.iter_child_nodes(node):
            visit(child, loop)

    for statement in function.body:
        visit(statement, False)
    return {name for name in read - own if bound.count(name) > 1}


@pytest.mark.parametrize("function", list(functions_with_backward()))
def test_backward_reads_only_names_bound_once_and_comes_last(function):
    assert not late_bindings(function)
    nested = [n.name for n in function.body if isinstance(n, ast.FunctionDef)]
    assert nested[-1] == "backward"
    last = function.body[-1]
    assert isinstance(last, ast.Return) and isinstance(last.value, ast.Tuple)
    assert ast.unparse(last.value.elts[-1]) == "backward"


@pytest.mark.parametrize("body", ["w = x\n    w = 2 * x", "for w in x:\n        pass"])
def test_the_search_for_late_bindings_finds_them(body):
    source = f"def op(x):\n    {body}\n    def backward(dy):\n        return dy * w,\n    return x, backward"
    assert late_bindings(ast.parse(source).body[0]) == {"w"}
