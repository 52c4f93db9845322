"""The command: what it prints, what it notices, and how it ends."""

from types import ModuleType

import numpy as np
import pytest

from tests.check.planting import plant
from tinymoe.check import __main__ as check
from tinymoe.check import backwards
from tinymoe.check.trial import Trial, carried_out
from tinymoe.check.trials import GROUPS, Group, golden
from tinymoe.documents import fit, sparse_gate
from tinymoe.errors import UserError
from tinymoe.estimator import network
from tinymoe.golden import solve
from tinymoe.ops import relu
from tinymoe.systems import dispatchers

TOY = """import numpy as np


def triple(x):
    y = 3 * x

    def backward(dy):
        return (3 * dy,)

    return y, backward
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package that holds one operation; its module."""
    file = tmp_path / "package" / "ops" / "toy.py"
    file.parent.mkdir(parents=True)
    file.write_text(TOY)
    monkeypatch.setattr(backwards, "PACKAGE", tmp_path / "package")
    module = ModuleType("toy")
    module.__file__ = str(file)
    exec(compile(TOY, file, "exec"), module.__dict__)
    return module


def of(*operations):
    """A group with a trial of each."""
    return Group("toys", lambda rng: iter([Trial("matrix", op, (rng.standard_normal((2, 3)),)) for op in operations]))


def slightly_wrong(x):
    def backward(dy):
        return ((1 - np.tanh(x) ** 2) * dy * (1 + 1e-6),)

    return np.tanh(x), backward


def not_in_form(x):
    return x, lambda g: g


def test_all_that_is_found_and_right_ends_well(toy, monkeypatch, capsys):
    monkeypatch.setattr(check, "GROUPS", (of(toy.triple),))
    assert check.main([]) == 0
    printed = capsys.readouterr().out
    assert "triple                      1  " in printed
    assert "left out: tinymoe/systems/museum, because it keeps wrong ones on purpose" in printed
    last = printed.splitlines()[-1]
    assert last.startswith("1 backward functions found, all checked; worst of all ")
    assert last.endswith(", allowed 1e-07")


def test_an_operation_without_a_trial_is_named_and_ends_the_command_with_1(toy, monkeypatch, capsys):
    monkeypatch.setattr(check, "GROUPS", (of(relu),))
    assert check.main(["--seed", "3"]) == 1
    printed = capsys.readouterr().out
    assert "not checked: tinymoe/ops/toy.py:7 triple.backward" in printed
    assert "1 backward functions found, 1 not checked; worst of all " in printed
    assert "WRONG" not in printed


def test_one_that_is_wrong_does_not_count_as_checked(toy, monkeypatch, capsys):
    plant(monkeypatch, toy, "(3 * dy,)", "(-3 * dy,)")
    monkeypatch.setattr(check, "GROUPS", (of(toy.triple),))
    assert check.main([]) == 1
    printed, complaint = capsys.readouterr()
    assert "not checked: tinymoe/ops/toy.py:7 triple.backward" in printed
    assert "2.0e+00  WRONG" in printed
    assert "triple: matrix" in complaint


@pytest.mark.parametrize(("operation", "shown"), [(slightly_wrong, "1.0e-06  WRONG"), (not_in_form, "inf  WRONG")])
@pytest.mark.parametrize("by_input", [False, True])
def test_an_error_above_the_tolerance_or_a_broken_rule_ends_the_command_with_1(
    operation, shown, by_input, toy, monkeypatch, capsys
):
    monkeypatch.setattr(check, "GROUPS", (of(toy.triple)._replace(by_input=by_input), of(operation)))
    assert check.main([]) == 1
    printed, complaint = capsys.readouterr()
    assert printed.count("  WRONG") == 2  # in its line, and in the last
    assert shown in printed
    assert f"{operation.__name__}: matrix" in complaint


def few_tokens(rng):
    return (trial for trial in golden.trials(rng) if trial.name == "few_tokens")


GROUP = {group.title: group for group in GROUPS}
GROUP["golden pack"] = Group(
    "golden pack", few_tokens
)  # all would take a minute: where something is wrong, much is measured
BUGS = [
    (dispatchers, "expert_back(weights[n, j] * dy", "expert_back(-weights[n, j] * dy", "dispatchers", "loop_dispatch"),
    (network, "mixture_back(dloss)", "mixture_back(-dloss)", "estimator", "  up"),
    (sparse_gate, "dscores_gate + dscores_balance", "dscores_gate - dscores_balance", "document's model", "  keys"),
    (fit, "return dy, -dy", "return dy, dy", "documents", "mean_squared_error"),
    (solve, "from_gate + sum(of_losses)", "from_gate - sum(of_losses)", "golden pack", "objective"),
]


@pytest.mark.parametrize(("module", "right", "wrong", "title", "line"), BUGS, ids=[bug[3] for bug in BUGS])
def test_a_wrong_sign_is_noticed(module, right, wrong, title, line, monkeypatch, capsys):
    plant(monkeypatch, module, right, wrong)
    monkeypatch.setattr(check, "GROUPS", (GROUP[title],))
    assert check.main([]) == 1
    said = [text for text in capsys.readouterr().out.splitlines() if text.endswith("WRONG")]
    assert any(text.startswith(line) or text.split()[0] == line for text in said)


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
