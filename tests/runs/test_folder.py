"""The folder of a run: one process at a time, and after a kill at any moment a command that goes on."""

import os
import subprocess
import sys

import pytest

from tests.conftest import SMALL, run, started, wait_for_steps
from tinymoe.errors import UserError
from tinymoe.recipes import __main__ as recipes
from tinymoe.runs.folder import locked
from tinymoe.runs.state import load_state
from tinymoe.train import __main__ as train

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, pipes, signals and locks of POSIX")


def test_a_kill_before_the_first_file_leaves_a_folder_to_begin_in(text, tmp_path):
    for name in (".config.toml.partial", ".config.toml.0123abcd.partial"):
        out = tmp_path / name[-12:]
        out.mkdir()
        (out / name).write_text("preset = ")
        assert run(text, out, "--steps", 2) == 0
        assert not (out / name).exists()


def test_what_kills_have_left_is_removed_by_the_next_command(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 2)
    for name in (".checkpoint.safetensors.0123abcd.partial", ".metrics.jsonl.0123abcd.partial"):
        (tmp_path / "a" / name).write_text("half")
    (tmp_path / "a" / ".notes.partial").write_text("mine")
    train.main(["--resume", str(tmp_path / "a"), "--steps", "3"])
    assert [f.name for f in (tmp_path / "a").iterdir() if f.name.endswith(".partial")] == [".notes.partial"]


def test_a_run_being_overwritten_is_a_run_at_each_moment(text, tmp_path, monkeypatch):
    run(text, tmp_path / "a", "--steps", 2)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr("tinymoe.runs.folder.write_config", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            run(text, tmp_path / "a", "--steps", 3, "--overwrite")
    assert run(text, tmp_path / "a", "--steps", 3, "--overwrite") == 0


def test_a_link_or_a_folder_in_place_of_a_runs_file_is_refused(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 2)
    (tmp_path / "a" / "loss.png").rename(tmp_path / "mine.png")
    (tmp_path / "a" / "loss.png").symlink_to(tmp_path / "mine.png")
    for command in (
        ["--resume", tmp_path / "a", "--steps", 4],
        ["--out", tmp_path / "a", "--corpus", text, "--overwrite"],
    ):
        with pytest.raises(UserError, match=r"loss\.png is not a file itself"):
            train.main(list(map(str, command)))


def test_a_folder_in_use_is_refused_until_its_process_ends(text, tmp_path):
    out = tmp_path / "a"
    process = started(text, out, "--steps", 5000, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_steps(out, process)
        for command in (["--resume", out], ["--out", out, "--corpus", text, "--overwrite"]):
            with pytest.raises(UserError, match="another process is at work in"):
                train.main(list(map(str, command)))
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert run(text, out, "--overwrite", "--steps", 2) == 0


def test_a_disk_that_fills_up_is_said_of_the_file_and_leaves_the_last_checkpoint(text, tmp_path):
    """A limit on the size of files stands for it; metrics.jsonl is the first to reach it."""
    resource = pytest.importorskip("resource")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (160_000, 160_000))  # a checkpoint has fewer bytes

    process = started(text, tmp_path / "a", "--steps", 5000, stderr=subprocess.PIPE, preexec_fn=limited)
    _, complaint = process.communicate()
    assert process.returncode == 2
    assert complaint.decode().endswith(f"error: {tmp_path / 'a/metrics.jsonl'}: File too large; choose another place\n")
    state, _, _ = load_state(tmp_path / "a")
    assert state.step > 0
    assert train.main(["--resume", str(tmp_path / "a"), "--steps", str(state.step + 1)]) == 0


def test_a_lock_ends_with_its_block_and_a_missing_folder_has_none(tmp_path):
    for _ in range(2):
        with locked(tmp_path), pytest.raises(UserError, match="another process"), locked(tmp_path):
            pass
    with locked(tmp_path / "nowhere"):
        pass


@pytest.mark.parametrize(("key", "value"), [("steps", 30), ("eval_every", 5), ("checkpoint_every", 7)])
def test_what_a_resumed_run_may_set_anew_is_taken_from_its_config(text, tmp_path, key, value):
    run(text, tmp_path / "a", "--steps", 20)
    config = tmp_path / "a" / "config.toml"
    lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines))
    assert train.main(["--resume", str(tmp_path / "a"), *(() if key == "steps" else ("--steps", "30"))]) == 0
    assert f"{key} = {value}\n" in config.read_text()
    state, settings, _ = load_state(tmp_path / "a")
    assert (state.step, settings.flat()[key]) == (30, value)


def test_a_config_edited_to_fewer_steps_than_are_done_is_refused(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 20)
    config = tmp_path / "a" / "config.toml"
    config.write_text(config.read_text().replace("steps = 20\n", "steps = 10\n", 1))
    with pytest.raises(UserError, match="already done 20 steps"):
        train.main(["--resume", str(tmp_path / "a")])


@pytest.mark.parametrize("sizes", [["--experts", "99999999999999999999"], ["--expert-width", "99999999999999999999"]])
def test_sizes_beyond_all_memory_are_one_sentence(text, tmp_path, sizes):
    with pytest.raises(UserError, match="choose smaller ones"):
        train.main(["--corpus", str(text), "--out", str(tmp_path / "a"), *SMALL, *sizes])
    with pytest.raises(UserError, match="choose smaller ones"):
        recipes.main(["distill", "--corpus", str(text), "--out", str(tmp_path / "a"), *sizes])
    assert not (tmp_path / "a").exists()
