"""The training command as its users meet it: results, resuming, stopping, and every kind of bad input."""

import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SMALL, assert_same_run, records, run, weights
from tinymoe import errors, generate
from tinymoe.data.corpora import CorpusError
from tinymoe.data.sources import TextSource
from tinymoe.errors import UserError
from tinymoe.runs.state import load_model, load_state, new_trainer
from tinymoe.train import __main__ as train
from tinymoe.train import arguments


def command(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", *map(str, args)], capture_output=True, text=True, encoding="utf-8", **options
    )


def without_time(folder):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records(folder)]


def test_a_run_leaves_everything_it_promises(text, tmp_path, capsys):
    assert run(text, tmp_path / "a", "--steps", 30) == 0
    printed = capsys.readouterr().out
    for part in ("sha256", "parameters", "validation", "tokens/s", "left", "expert load", "next: "):
        assert part in printed
    names = {f.name for f in (tmp_path / "a").iterdir()}
    assert names == {
        "config.toml",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "model.safetensors",
        "loss.png",
        "experts.png",
        "sample.txt",
    }
    settings = tomllib.loads((tmp_path / "a/config.toml").read_text())
    assert (settings["steps"], settings["dense_layers"], settings["width"]) == (30, [0], 16)
    found = records(tmp_path / "a")
    training = [r for r in found if r["split"] == "train"]
    validation = [r for r in found if r["split"] == "val"]
    assert [r["step"] for r in training] == list(range(1, 31))
    assert [r["step"] for r in validation] == [10, 20, 30]
    assert training[-1]["tokens"] == 30 * 5 * 16
    assert training[-1]["loss"] < training[0]["loss"] - 0.5
    assert training[0]["loss"] == pytest.approx(np.log(256), abs=0.2)
    assert training[0]["load"][0] is None  # the dense layer
    assert sum(training[0]["load"][1]) == pytest.approx(1, abs=1e-3)
    bytes_held_out = len(text.read_bytes()) // 10
    assert bytes_held_out - 17 <= validation[-1]["predicted"] <= bytes_held_out


def test_the_same_seed_gives_the_same_run_and_another_one_another(text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(text, tmp_path / name, "--steps", 12, "--seed", seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert without_time(tmp_path / "a") == without_time(tmp_path / "b")
    assert np.any(weights(tmp_path / "a")["embedding"] != weights(tmp_path / "c")["embedding"])


@pytest.mark.parametrize(("optimizer", "workers"), [("adamw", 2), ("sgd", 1), ("adamw", 3)])
def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(text, tmp_path, optimizer, workers):
    options = ("--optimizer", optimizer, "--accumulate", 2, "--checkpoint-every", 7, "--workers", workers)
    run(text, tmp_path / "whole", "--steps", 24, *options)
    run(text, tmp_path / "parts", "--steps", 11, *options)
    assert train.main(["--resume", str(tmp_path / "parts"), "--steps", "24"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    whole, parts = ([r for r in without_time(tmp_path / name) if r["split"] == "train"] for name in ("whole", "parts"))
    assert whole == parts


def test_a_run_killed_at_any_instant_resumes(text, tmp_path):
    """SIGKILL in the middle of things, five times; then it goes through and equals an undisturbed run."""
    length = ("--steps", "150", "--checkpoint-every", "20", "--workers", "2")
    run(text, tmp_path / "whole", *length)
    killed, rng = tmp_path / "killed", random.Random(0)
    metrics = killed / "metrics.jsonl"
    for enough in (0, 0, 30, 60, 120):  # records to wait for before the random instant
        args = ["--resume", killed] if killed.exists() else ["--corpus", text, "--out", killed, *SMALL, *length]
        process = subprocess.Popen([sys.executable, "-m", "tinymoe.train", *map(str, args)], stdout=subprocess.DEVNULL)
        while not (killed / "config.toml").exists() or (
            metrics.exists() and metrics.read_bytes().count(b"\n") < enough
        ):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None
        process.kill()
        process.wait()
    assert train.main(["--resume", str(killed)]) == 0
    assert_same_run(tmp_path / "whole", killed)
    steps = [r["step"] for r in records(killed) if r["split"] == "train"]
    assert steps == list(range(1, 151))


def test_a_model_older_than_its_checkpoint_is_made_anew(text, tmp_path):
    """What a kill between the writing of the two files leaves behind, here at the very last step."""
    run(text, tmp_path / "early", "--steps", 10)
    run(text, tmp_path / "run", "--steps", 20)
    model = tmp_path / "run" / "model.safetensors"
    right = model.read_bytes()
    model.write_bytes((tmp_path / "early" / "model.safetensors").read_bytes())
    train.main(["--resume", str(tmp_path / "run")])
    assert model.read_bytes() == right


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_saves_says_so_and_can_be_resumed(text, tmp_path):
    run(text, tmp_path / "whole", "--steps", 300)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tinymoe.train",
            "--corpus",
            str(text),
            "--out",
            str(tmp_path / "parts"),
            *SMALL,
            "--steps",
            "300",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "parts" / "metrics.jsonl"
    while not metrics.exists() or metrics.stat().st_size < 2000:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is saved; go on with" in complaint
    assert "Traceback" not in complaint
    state, _, _ = load_state(tmp_path / "parts")
    assert 0 < state.step < 300
    assert train.main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_diverging_run_stops_with_one_sentence_and_keeps_the_last_checkpoint(text, tmp_path, capsys):
    assert run(text, tmp_path / "a", "--steps", 50, "--lr", 1e30, "--clip", 0, "--warmup", 15) == 1
    complaint = capsys.readouterr().err
    assert "lower --lr" in complaint
    assert complaint.count("error:") == 1
    if (tmp_path / "a/checkpoint.safetensors").exists():
        assert load_state(tmp_path / "a")[0].step % 10 == 0


def test_validation_text_is_never_trained_on(text, tmp_path):
    work = arguments.prepare(["--corpus", str(text), "--out", str(tmp_path / "a"), *SMALL])
    whole = np.frombuffer(text.read_bytes(), np.uint8)
    assert isinstance(work.source, TextSource)
    np.testing.assert_array_equal(np.concatenate([work.source.windows.tokens, work.source.val]), whole)
    assert len(work.source.val) == len(whole) // 10


def test_flags_override_the_file_and_the_file_the_preset(text, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(f'corpus = "{text}"\npreset = "quick"\nkv-heads = 1\nlr = 1\nsteps = 7\n')
    settings = arguments.prepare(["--config", str(file), "--out", str(tmp_path / "a"), "--steps", "9"]).settings
    assert (settings.run.steps, settings.training.lr, settings.model.kv_heads, settings.model.layers) == (9, 1.0, 1, 2)
    again = arguments.prepare(["--config", str(tmp_path / "a/config.toml"), "--out", str(tmp_path / "b")]).settings
    assert again == settings


def test_several_corpora_are_joined_each_with_its_own_validation_tenth(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("z" * 1000)
    work = arguments.prepare(["--corpus", str(text), "--corpus", str(other), "--out", str(tmp_path / "a"), *SMALL])
    assert isinstance(work.source, TextSource)
    assert (work.source.val == ord("z")).sum() == 100


def test_without_out_folders_are_numbered(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "007").mkdir(parents=True)
    assert arguments.prepare(["--corpus", str(text), *SMALL]).folder == Path("runs/008")
    assert arguments.prepare(["--corpus", str(text), *SMALL]).folder == Path("runs/009")


def test_overwrite_replaces_a_run_and_nothing_else(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 10)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    before = weights(tmp_path / "a")["embedding"]
    with pytest.raises(UserError, match=r"--resume .* --overwrite"):
        run(text, tmp_path / "a", "--steps", 10)
    with pytest.raises(UserError, match="no preset"):  # nothing is lost when the new settings are wrong
        run(text, tmp_path / "a", "--overwrite", "--preset", "huge")
    np.testing.assert_array_equal(weights(tmp_path / "a")["embedding"], before)
    run(text, tmp_path / "a", "--steps", 10, "--overwrite", "--seed", 3)
    assert np.any(weights(tmp_path / "a")["embedding"] != before)
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run"):
        run(text, tmp_path / "b", "--overwrite")


def bad(tmp_path):
    files = {
        "empty.txt": b"",
        "blank.txt": b" \n",
        "latin1.txt": "naïve ".encode("latin-1") * 300,
        "binary.bin": b"abc\0" * 300,
        "pictures/a.png": b"\x89PNG\r\n",
        "short.txt": b"too short",
        "unknown.toml": b"stepz = 3",
        "broken.toml": b"steps = ",
        "typed.toml": b'steps = "ten"',
        "used/config.txt": b"x",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus", "{}/missing.txt"], "can't read the corpus"),
        (["--corpus", "{}/empty.txt"], "is empty"),
        (["--corpus", "{}/blank.txt"], "is empty"),
        (["--corpus", "{}/latin1.txt"], "not UTF-8"),
        (["--corpus", "{}/binary.bin"], "is binary"),
        (["--corpus", "{}/short.txt"], "too few|needs at least"),
        (["--corpus", "{}/pictures"], "no file in the folder .* is UTF-8 text"),
        (["--corpus", "{}/pipe"], "is not a regular file"),
        (["--corpus", "/dev/random"], "is not a regular file"),
        (["--corpus", "{}/loop"], "can't read the corpus .*/loop: Too many levels of symbolic links"),
        (["--corpus", "docstrings:no_such_package"], "no package"),
        (["--corpus", "docstrings:"], "no package"),
        (["--top-k", "9", "--experts", "8"], "only 8 experts"),
        (["--width", "129"], "not divisible by"),
        (["--steps", "0"], "--steps is 0"),
        (["--batch-size", "-1"], "--batch-size is -1"),
        (["--lr", "0"], "--lr is 0"),
        (["--lr", "nan"], "--lr is nan"),
        (["--seed", "-1"], "--seed is -1"),
        (["--steps", "many"], "invalid int value"),
        (["--no-such-flag"], "unrecognized arguments"),
        (["--preset", "huge"], "no preset 'huge'"),
        (["--expert-kind", "magic"], "choose one of relu"),
        (["--config", "{}/missing.toml"], "can't read the config"),
        (["--config", "{}/unknown.toml"], "unknown key 'stepz'"),
        (["--config", "{}/broken.toml"], "not valid TOML"),
        (["--config", "{}/typed.toml"], "must be of type int"),
        (["--out", "{}/used"], "is not empty"),
        (["--out", "{}/short.txt"], "can't write to"),
        (["--out", "/proc/tinymoe"], "can't write to"),
        (["--resume", "{}/nowhere"], "not the folder of a run"),
        (["--resume", "{}/nowhere", "--lr", "1"], "with --resume only"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(flags, message, tmp_path, monkeypatch):
    bad(tmp_path)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        train.main([flag.format(tmp_path) for flag in flags])
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_exits_with_2_and_no_traceback(tmp_path):
    done = command("tinymoe.train", "--corpus", "nowhere.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: can't read the corpus")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert issubclass(CorpusError, errors.UserError)


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in (
        "corpus",
        "out",
        "steps",
        "batch-size",
        "context",
        "layers",
        "width",
        "heads",
        "kv-heads",
        "experts",
        "top-k",
        "expert-width",
        "lr",
        "seed",
        "eval-every",
        "preset",
        "config",
        "checkpoint-every",
        "resume",
    ):
        assert f"--{name} " in text


def test_damaged_files_are_noticed(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 10)
    for name, load in (
        ("checkpoint.safetensors", lambda: load_state(tmp_path / "a")),
        ("model.safetensors", lambda: load_model(tmp_path / "a/model.safetensors")),
    ):
        file = tmp_path / "a" / name
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[-5] ^= 1
        for content, message in (
            (bytes(damaged), "checksum"),
            (whole[: len(whole) // 2], "not a whole"),
            (b"", "not a whole"),
            (b"hello", "not a whole"),
        ):
            file.write_bytes(content)
            with pytest.raises(UserError, match=message):
                load()
        rng = np.random.default_rng(0)
        for place in rng.integers(0, len(whole), 60):  # a flipped bit anywhere, header and numbers
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.integers(8)
            file.write_bytes(bytes(damaged))
            with pytest.raises(UserError):
                load()
        file.write_bytes(whole)
        load()


def test_resuming_needs_the_same_text_and_more_steps(text, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    run(copy, tmp_path / "a", "--steps", 10)
    with pytest.raises(UserError, match="already done 10 steps"):
        train.main(["--resume", str(tmp_path / "a"), "--steps", "9"])
    (tmp_path / "a/sample.txt").unlink()  # as if killed just before the end
    assert train.main(["--resume", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a/sample.txt").exists()
    copy.write_bytes(text.read_bytes() + b"!")
    with pytest.raises(UserError, match="is not the text"):
        train.main(["--resume", str(tmp_path / "a"), "--steps", "20"])


def test_generate_streams_the_same_text_for_the_same_seed(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 60)
    first, second, third, greedy = (
        command("tinymoe.generate", tmp_path / "a", "--prompt", "the 春", "--tokens", 60, *more)
        for more in ([], ["--seed", "0"], ["--seed", "1"], ["--temperature", "0"])
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the 春")
    assert first.stdout == second.stdout != third.stdout
    assert greedy.stdout not in (first.stdout, third.stdout)
    assert len(first.stdout.encode()) >= 60


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "--temperature is -1"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--top-p", "0"], "--top-p is 0"),
        (["--top-p", "1.5"], "--top-p is 1.5"),
        (["--tokens", "-3"], "--tokens is -3"),
        (["--prompt", ""], "--prompt is empty"),
        ([], "there is no file"),
    ],
)
def test_generate_refuses_bad_input(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        generate.main([str(tmp_path), *flags])


def test_a_reader_that_leaves_does_not_stop_the_training(text, tmp_path):
    """As in `python -m tinymoe.train | head -1`."""
    flags = ["--corpus", str(text), "--out", str(tmp_path / "a"), *SMALL, "--steps", "60"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tinymoe.train", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    assert load_state(tmp_path / "a")[0].step == 60


def test_a_killed_worker_ends_the_run_with_one_sentence(text, tmp_path, monkeypatch, capsys):
    work = arguments.prepare(["--corpus", str(text), "--out", str(tmp_path / "a"), *SMALL, "--workers", "2"])
    with (
        new_trainer(work.state, work.settings) as trainer,
        pytest.raises(UserError, match="worker process was ended"),
    ):
        for step in range(1, 5):
            trainer.step(work.source.batch(step, 5))
            trainer.team._members[0].kill()


def test_resuming_refuses_folders_that_do_not_fit_together(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 10)
    run(text, tmp_path / "b", "--steps", 10, "--lr", 0.5)
    (tmp_path / "a/checkpoint.safetensors").rename(tmp_path / "a/kept")
    with pytest.raises(UserError, match="has a model but no checkpoint"):
        train.main(["--resume", str(tmp_path / "a"), "--steps", "20"])
    (tmp_path / "a/checkpoint.safetensors").write_bytes((tmp_path / "b/checkpoint.safetensors").read_bytes())
    with pytest.raises(UserError, match="differ in lr"):
        train.main(["--resume", str(tmp_path / "a"), "--steps", "20"])
    (tmp_path / "a/config.toml").write_text("")
    with pytest.raises(UserError, match="incomplete"):
        train.main(["--resume", str(tmp_path / "a"), "--steps", "20"])


def test_damaged_metrics_do_not_stop_a_resumed_run(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 10)
    whole = (tmp_path / "a/metrics.jsonl").read_bytes().splitlines()
    damaged = [
        *whole[:4],
        b"[1, 2]",
        b"\xff{",
        b'{"step": 1}',
        b"",
        b'{"step": "a", "split": "train"}',
        *whole[4:],
        b'{"st',
    ]
    (tmp_path / "a/metrics.jsonl").write_bytes(b"\n".join(damaged))
    assert train.main(["--resume", str(tmp_path / "a"), "--steps", "12"]) == 0
    assert [r["step"] for r in records(tmp_path / "a") if r["split"] == "train"] == list(range(1, 13))


def test_a_model_that_has_diverged_is_not_saved_over_a_good_one(text, tmp_path, capsys):
    flags = ("--lr", 1e8, "--warmup", 0, "--eval-every", 1, "--checkpoint-every", 1, "--steps", 3)
    assert run(text, tmp_path / "a", *flags) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "a/checkpoint.safetensors").exists()
    assert b"NaN" not in (tmp_path / "a/metrics.jsonl").read_bytes()


def test_overwriting_deletes_nothing_when_it_can_not_succeed(text, tmp_path):
    run(text, tmp_path / "a", "--steps", 10)
    (tmp_path / "a/loss.png").unlink()
    (tmp_path / "a/loss.png").mkdir()
    with pytest.raises(UserError, match="is not a file"):
        run(text, tmp_path / "a", "--overwrite")
    assert (tmp_path / "a/checkpoint.safetensors").exists()
