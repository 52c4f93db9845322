"""The studies, with runs of seconds."""

import pytest

from tests.conftest import SMALL
from tinymoe import study
from tinymoe.errors import UserError

TINY = [*SMALL[: SMALL.index("--dense-layers")], "--workers", "1"]


def lines(capsys, *args):
    study.main([*args, "--steps", "10", *TINY])
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]


def test_collapse_measures_load_and_specialisation(tmp_path, capsys):
    given = ["collapse", "--out", str(tmp_path), "--corpus", "toy", "--only", "nothing", "sigmoid, bias"]
    heads, _, *rows = lines(capsys, *given)
    assert [row[0] for row in rows] == ["nothing", "sigmoid, bias"]
    assert all(len(row) == len(heads) for row in rows)
    assert all(float(row[2]) >= 0 and 0 <= float(row[3]) <= 1 and row[4].endswith("%") for row in rows)
    assert (tmp_path / "collapse" / "toy" / "collapse.png").exists()
    assert lines(capsys, *given)[2:] == rows  # read, not trained again


def test_accounting_counts_parameters_operations_and_time(tmp_path, capsys):
    given = ["accounting", "--out", str(tmp_path), "--corpus", "toy"]
    _, _, sparse, _, *_ = lines(capsys, *given, "--only", "mixture, 2 of 8 experts", "mixture of all experts")
    total, active = (int(cell.replace(",", "")) for cell in sparse[2:4])
    assert active < total
    assert (tmp_path / "accounting" / "toy" / "accounting.png").exists()


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="'prayer' is not a row"):
        study.main(["collapse", "--out", str(tmp_path), "--only", "prayer"])
    study.main(["collapse", "--out", str(tmp_path), "--steps", "10", "--only", "nothing", *TINY])
    with pytest.raises(UserError, match="other flags"):
        study.main(["collapse", "--out", str(tmp_path), "--steps", "11", "--only", "nothing", *TINY])
    with pytest.raises(UserError, match="at least 10"):
        study.main(["collapse", "--steps", "3"])
    with pytest.raises(UserError, match="layers"):
        study.main(["collapse", "--out", str(tmp_path / "b"), "--steps", "10", "--only", "nothing", "--layers", "0"])
