"""Training while its output is full, closed or gone, and while it is asked to stop."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import SMALL, assert_same_run, records, run, started, wait_for_steps
from tinymoe.runs.state import load_state
from tinymoe.train import __main__ as train

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, pipes, signals and locks of POSIX")


def shell(line, **options):
    """A command line; PYTHON stands for this Python."""
    return subprocess.run(
        ["/bin/sh", "-c", line.replace("PYTHON", sys.executable)], capture_output=True, text=True, **options
    )


@pytest.mark.parametrize(
    ("streams", "status", "said"),
    [
        (">/dev/full", 2, "error: standard output: No space left on device; the work was done"),
        (">&-", 2, "error: standard output: it is closed; the work was done"),
        ("2>/dev/full", 0, ""),
        ("2>&-", 0, ""),
        (">/dev/full 2>/dev/full", 2, ""),
        (">&- 2>&- <&-", 2, ""),
    ],
)
def test_output_that_is_full_or_closed_does_not_end_the_training(text, tmp_path, streams, status, said):
    out, flags = tmp_path / "a", " ".join(SMALL).replace("--workers 1", "--workers 2")
    done = shell(f"PYTHON -m tinymoe.train --corpus '{text}' --out '{out}' {flags} --steps 12 {streams}")
    assert (done.returncode, done.stderr[: len(said)]) == (status, said)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert load_state(out)[0].step == 12
    assert [r["step"] for r in records(out) if r["split"] == "train"] == list(range(1, 13))
    assert (out / "sample.txt").exists()


def test_other_commands_say_that_standard_output_is_full(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 2)
    for line in (f"generate '{tmp_path / 'a'}'", "golden --help", f"golden --out '{tmp_path / 'pack'}'"):
        done = shell(f"PYTHON -m tinymoe.{line} >/dev/full")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("error: standard output: No space left on device")


def test_numbers_are_kept_where_the_table_could_not_be_printed(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 2)
    found = tmp_path / "numbers.json"
    done = shell(
        f"PYTHON -m tinymoe.evaluate '{tmp_path / 'a'}' --corpus '{text}' --windows 2 --json '{found}' >/dev/full"
    )
    assert done.returncode == 2
    assert "the work was done" in done.stderr
    assert json.loads(found.read_text())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closing_terminal_and_a_polite_kill_save(text, tmp_path, number):
    run(text, tmp_path / "whole", "--steps", 300)
    process = started(
        text, tmp_path / "parts", "--steps", 300, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # even where these tests themselves run under nohup
    )  # fmt: skip
    wait_for_steps(tmp_path / "parts", process)
    process.send_signal(number)
    if number == signal.SIGHUP:
        process.send_signal(number)  # as from the kernel and from the shell
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"is saved; go on with" in complaint
    assert 0 < load_state(tmp_path / "parts")[0].step < 300
    assert train.main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_under_nohup_a_closing_terminal_is_nothing(text, tmp_path):
    process = started(
        text, tmp_path / "a", "--steps", 200, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    wait_for_steps(tmp_path / "a", process)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0
    assert load_state(tmp_path / "a")[0].step == 200


def test_a_terminal_that_is_gone_costs_nothing(text, tmp_path):
    """What was a terminal answers with an input/output error once the other side is closed."""
    ours, theirs = os.openpty()
    process = started(text, tmp_path / "a", "--steps", 60, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.read(ours, 10)
    os.close(ours)
    assert process.wait() == 2
    assert load_state(tmp_path / "a")[0].step == 60
