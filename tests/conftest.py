"""What several tests share."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinymoe.golden import __main__ as golden
from tinymoe.runs.checkpoint import load_arrays
from tinymoe.train import __main__ as train
from tinymoe.tree import tree_map

ROOT = Path(__file__).parents[1]  # of the project: README.md, docs/, lessons/


def is_float(value):
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def shaken(params, rng, by):
    """With a random number, `by` its standard deviation, added to each: 0 and 1, where many start, would hide mistakes."""
    return tree_map(lambda a: (a + by * rng.standard_normal(a.shape)).astype(a.dtype), params)


# --- runs of the training command --------------------------------------------------------------------------------------

SMALL = (
    "--layers 2 --width 16 --heads 2 --kv-heads 1 --experts 4 --expert-width 8 --context 16 --batch-size 5 "
    "--warmup 5 --sample-tokens 20 --eval-every 10 --checkpoint-every 10 --dense-layers 0 --dropout 0.1 --workers 1"
).split()


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of prose with characters of one to four bytes."""
    rng = random.Random(0)
    words = "the cat saw a dog und 春眠不觉晓 𝒳 ran över naïve hills; again, quietly.".split()
    file = tmp_path_factory.mktemp("corpus") / "prose.txt"
    file.write_text(" ".join(rng.choice(words) for _ in range(4000)), encoding="utf-8")
    return file


def run(text, out, *more):
    return train.main(["--corpus", str(text), "--out", str(out), *SMALL, *map(str, more)])


def started(text, out, *more, **options):
    """The training command as a process of its own."""
    flags = ["--corpus", text, "--out", out, *SMALL, *more]
    return subprocess.Popen([sys.executable, "-m", "tinymoe.train", *map(str, flags)], **options)


def wait_for_steps(folder, process):
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.stat().st_size < 2000:
        assert process.poll() is None
        time.sleep(0.01)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_arrays(folder / "model.safetensors")[0]


def assert_same_run(a, b):
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    first, second = (load_arrays(f / "checkpoint.safetensors")[0] for f in (a, b))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# --- the pack for authors of kernels ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def files():
    """Its files: name to bytes."""
    return dict(golden.pack(0))


@pytest.fixture(scope="session")
def manifest(files):
    return json.loads(files[golden.MANIFEST])
