"""The bench runs, states where it runs, and finds the crossover."""

import subprocess
import sys

import pytest

from tinymoe import bench
from tinymoe.errors import UserError


def test_the_bench_prints_ratios_and_draws(capsys, tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench, "medians", lambda calls: [1.0 + i for i, call in enumerate(calls) if call() is not None])
    picture = tmp_path / "crossover.png"
    bench.main(["sparse", "--sizes", "30", "--densities", "0.5", "0.05", "--plot", str(picture)])
    text = capsys.readouterr().out
    for part in ("NumPy", "SciPy", "threads:", "A @ B", "dispatch, gated", "5.000%", "2.00×"):
        assert part in text
    assert picture.stat().st_size > 1000


def test_medians_takes_turns():
    order = []
    bench.medians([lambda: order.append(0), lambda: order.append(1)], seconds=0)
    assert order == [0, 1] * 3


def test_crossover():
    assert bench.crossover([0.01, 0.1], [10, 0.1]) == pytest.approx(10**-1.5)
    assert bench.crossover([0.01, 0.1], [10, 2]) is None and bench.crossover([0.1], []) is None


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SystemExit, match="compares with SciPy, which is not installed"):
        bench.main(["sparse"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: bench"),
        (["sparse", "--sizes", "0"], "sizes must be at least 1"),
        (["sparse", "--densities", "2"], "densities above 0"),
        (["x"], "invalid choice: 'x'"),
        (["sparse", "--plot", "x.bogus"], "can't be drawn; choose one of"),
    ],
)
def test_wrong_arguments(arguments, said):
    with pytest.raises(UserError, match=said):
        bench.main(arguments)


def test_a_reader_that_leaves_ends_the_bench(tmp_path):
    """As in `python -m tinymoe.bench sparse | head -1`."""
    pytest.importorskip("scipy")
    command = [sys.executable, "-m", "tinymoe.bench", "sparse", "--sizes", "30", "--densities", "0.5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")
    process.stderr.close()
