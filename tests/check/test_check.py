"""The command: what it prints, what it notices, and how it ends."""

import numpy as np
import pytest

from tinymoe.check import __main__ as check
from tinymoe.check.trial import Trial, carried_out
from tinymoe.check.trials import Group
from tinymoe.errors import UserError
from tinymoe.ops import relu


def of(*operations):
    """A group with a trial of each."""
    return Group("toys", lambda rng: iter([Trial("matrix", op, (rng.standard_normal((2, 3)),)) for op in operations]))


def slightly_wrong(x):
    def backward(dy):
        return ((1 - np.tanh(x) ** 2) * dy * (1 + 1e-6),)

    return np.tanh(x), backward


def not_in_form(x):
    return x, lambda g: g


def test_what_is_right_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(check, "GROUPS", (of(relu),))
    assert check.main([]) == 0
    printed = capsys.readouterr().out
    assert "relu                        1  " in printed
    assert printed.splitlines()[-1].endswith(", allowed 1e-07")


@pytest.mark.parametrize(("operation", "shown"), [(slightly_wrong, "1.0e-06  WRONG"), (not_in_form, "inf  WRONG")])
@pytest.mark.parametrize("by_input", [False, True])
def test_an_error_above_the_tolerance_or_a_broken_rule_ends_the_command_with_1(
    operation, shown, by_input, monkeypatch, capsys
):
    monkeypatch.setattr(check, "GROUPS", (of(relu)._replace(by_input=by_input), of(operation)))
    assert check.main([]) == 1
    printed, complaint = capsys.readouterr()
    assert printed.count("  WRONG") == 2  # in its line, and in the last
    assert shown in printed
    assert f"{operation.__name__}: matrix" in complaint


def test_a_sample_without_margin_is_refused_and_another_drawn(capsys):
    drawn = []

    def draw(seed):
        drawn.append(seed)
        return Trial("on the kink" if len(drawn) == 1 else "beside it", relu, (np.array([float(len(drawn) - 1)]),))

    outcome = carried_out(draw, 5)
    assert (drawn, outcome.trial.name, outcome.ok) == ([5, 1005], "beside it", True)
    assert "refused a sample and drew another: relu" in capsys.readouterr().err


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="--seed is -1; it must be 0 or more"):
        check.main(["--seed", "-1"])
