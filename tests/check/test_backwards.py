"""The search for functions that carry gradients back: what it finds in a source, and that each of them is checked."""

import shutil
from collections import Counter, defaultdict
from time import perf_counter

import numpy as np
import pytest

from tests.check.planting import spoil
from tinymoe.check import backwards
from tinymoe.check.backwards import in_source, written
from tinymoe.check.trials import GROUPS
from tinymoe.gradcheck.slopes import floats_of

TOY = """def triple(x):
    def backward(dy):
        return (3 * dy,)

    return 3 * x, backward
"""
FORMS = """
def in_a_branch(x):
    if x > 0:
        def back(g):  # found
            return (g,)
    else:
        back = lambda g: (-g,)
    return x, back

def without_a_name(x):
    return x, None, lambda g: (g,)  # found

def one_of_two(x):
    def back(g):  # found
        return (g,)
    return x, back if x else lambda g: (0 * g,)  # found

def one_of_two_tuples(x):
    def back(g):  # found
        return (g,)
    return (x, back) if x else (0, lambda g: (0 * g,))  # found

def outer(x):
    def op(y):
        def back(g):  # found
            return (g,)
        return y, back
    return op

half = lambda x: (x / 2, lambda g: (g / 2,))  # found
backs = [lambda dy: dy]  # found

def relu_backward(g, x):  # found
    return g * (x > 0)

class Relu:
    @staticmethod  # found
    def backward(g):
        return g

def measured(x):
    def size(a):
        return len(a)
    return x, size(x)

def nothing():
    return ()
"""


def test_the_forms_of_a_backward():
    marked = [number for number, line in enumerate(FORMS.splitlines(), 1) if line.endswith("# found")]
    found = in_source(FORMS)
    assert [line for line, _ in found] == marked
    assert {"in_a_branch.back", "without_a_name.lambda", "outer.op.back", "Relu.backward"} <= {
        name for _, name in found
    }


def test_what_is_left_out_is_there_and_nothing_else_is():
    (folder,) = backwards.LEFT_OUT
    exhibits = [file for file in sorted((backwards.PACKAGE / folder).glob("*.py")) if in_source(file.read_text())]
    assert exhibits
    assert not {b.file for b in written()} & {f"{folder}/{file.name}" for file in exhibits}
    assert {"ops", "models", "systems", "estimator", "documents", "golden", "recipes"} <= {
        b.file.split("/")[0] for b in written()
    }


def test_no_two_begin_in_one_line():
    """A line is all by which one that ran is told from others."""
    assert max(Counter(b.place for b in written()).values()) == 1


# --- each of them counts -----------------------------------------------------------------------------------------------


def drawn(group):
    return list(group.trials(np.random.default_rng(0)))


def gradients(trial):
    y, backward = trial.operation(*trial.inputs, **trial.options)
    rng = np.random.default_rng(1)
    return backward(*(np.asarray(rng.standard_normal(np.shape(f))) for f in floats_of(y)))


@pytest.fixture(scope="module")
def runners():
    """For each place (seconds, group, number) of the trials in which it runs, the fastest first."""
    found = defaultdict(list)
    for group in GROUPS:
        for number, trial in enumerate(drawn(group)):
            start = perf_counter()
            gradients(trial)
            seconds = perf_counter() - start
            for place in trial.places():
                found[place].append((seconds, group, number))
    return {place: sorted(trials, key=lambda t: t[0]) for place, trials in found.items()}


def test_a_new_operation_in_the_package_is_noticed(runners, tmp_path, monkeypatch):
    copy = shutil.copytree(backwards.PACKAGE, tmp_path / "tinymoe", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "ops" / "toy.py").write_text(TOY)
    monkeypatch.setattr(backwards, "PACKAGE", copy)
    assert [str(b) for b in written() if b.place not in runners] == ["tinymoe/ops/toy.py:2 triple.backward"]


@pytest.mark.parametrize("backward", written(), ids=str)
def test_an_error_in_any_backward_changes_a_gradient_that_is_checked(backward, runners, monkeypatch):
    """To run is not enough: what it returns must reach a gradient that is compared, by more than the tolerance."""
    assert backward.place in runners, "no trial runs it"
    for _, group, number in runners[backward.place]:
        right = gradients(drawn(group)[number])
        with monkeypatch.context() as patch:
            spoil(patch, backward)
            wrong = gradients(drawn(group)[number])
        for a, b in zip(right, wrong, strict=True):
            if np.linalg.norm(a - b) > 1e-5 * np.linalg.norm(a):
                return
    pytest.fail("no gradient that is checked depends on it")
