"""Corpora and windows: what is read, what is refused, and that batches depend on seed and step alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymoe.data import corpora, toy
from tinymoe.data.windows import TrainingWindows, evaluation_batches


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 200), st.integers(1, 20), st.integers(0, 5), st.integers(1, 7), st.integers(1, 40))
def test_windows_lie_in_the_text_and_targets_follow(n, length, seed, size, step):
    length = min(length, n - 1)
    tokens = np.arange(n)
    batch = TrainingWindows(tokens, length, seed).batch(step, size)
    assert batch.targets is not None
    assert batch.ids.shape == batch.targets.shape == (size, length)
    assert (batch.targets == batch.ids + 1).all()
    assert (np.diff(batch.ids, axis=1) == 1).all()
    assert batch.ids.min() >= 0
    assert batch.targets.max() < n


def test_an_epoch_visits_every_window_once_and_the_next_one_is_cut_anew():
    windows = TrainingWindows(np.arange(1000), 10, seed=3)
    first, second = (np.sort(windows.batch(step, windows.per_epoch).ids[:, 0]) for step in (1, 2))
    assert (np.diff(first) == 10).all()
    assert (np.diff(second) == 10).all()
    assert first[0] != second[0]


def test_a_batch_does_not_depend_on_the_batches_before_it():
    tokens = np.random.default_rng(0).integers(0, 256, 500)
    running = TrainingWindows(tokens, 7, seed=1)
    batches = [running.batch(step, 5) for step in range(1, 60)]
    for step in (59, 1, 30):
        np.testing.assert_array_equal(TrainingWindows(tokens, 7, seed=1).batch(step, 5).ids, batches[step - 1].ids)


@given(st.integers(2, 300), st.integers(1, 30), st.integers(1, 9))
def test_evaluation_predicts_each_token_once(n, length, size):
    length = min(length, n - 1)
    batches = evaluation_batches(np.arange(n), length, size)
    targets = np.concatenate([b.targets.ravel() for b in batches if b.targets is not None])
    np.testing.assert_array_equal(targets, np.arange(1, len(targets) + 1))
    assert n - 1 - len(targets) < length


def test_part_of_an_evaluation_is_spread_over_the_text():
    starts = np.concatenate([b.ids[:, 0] for b in evaluation_batches(np.arange(1001), 10, 4, limit=5)])
    assert starts.tolist() == [0, 240, 490, 740, 990]


def test_pydoc_is_text_about_python_and_falls_back_to_toy_where_it_is_absent(monkeypatch, capsys):
    corpus = corpora.load("pydoc")
    assert "lambda" in corpus.text
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    assert corpora.load("pydoc").name == "toy"
    assert "toy corpus instead" in capsys.readouterr().out


def test_toy_knows_its_entropy_and_follows_the_seed():
    assert corpora.load("toy").entropy == toy.entropy_rate()
    assert corpora.load("toy", 1).text != corpora.load("toy", 2).text


def test_docstrings_are_read_without_running_the_package(tmp_path, monkeypatch):
    package = tmp_path / "quiet"
    package.mkdir()
    (package / "__init__.py").write_text('"""A package."""\n')
    (package / "a.py").write_text('"""Module a."""\nraise SystemExit\ndef f():\n    """Do f.\n\n    Well."""\n')
    (package / "broken.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    assert corpora.load("docstrings:quiet").text == "A package.\n\nModule a.\n\nDo f.\n\nWell."


def test_docstrings_run_nothing_not_even_the_packages_around_a_module(tmp_path):
    """In a process of its own, so that it can be seen that nothing was imported."""
    acts = "import sys\nopen({!r}, 'w').close()\nsys.exit(0)\n".format(str(tmp_path / "it ran"))
    files = {
        "loud/__init__.py": '"""Loud."""\n' + acts,
        "loud/inner/__init__.py": '"""Inner."""\n' + acts,
        "loud/inner/deep.py": f'"""Deep."""\n{acts}def f():\n    r"""Do \\d."""\n\n\ng = "\\d"\n',
        "loud/inner/half.py": '"""Half \\ud800."""',
        "loud/inner/nested.py": "x = " + "-" * 200_000 + "1",
        "loud/inner/native.so": "",
        "loud/inner/folder.py/note.txt": "",
        "spread/part/one.py": '"""One."""\n' + acts,
        "single.py": '"""Single."""\n' + acts,
        "bare/native.abi3.so": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    os.mkfifo(tmp_path / "loud/inner/pipe.py")
    (tmp_path / "loud/inner/.#deep.py").symlink_to("somebody@somewhere")  # as an editor locks a file
    texts = {
        "loud": "Loud.\n\nInner.\n\nDeep.\n\nDo \\d.\n\nHalf .",
        "loud.inner": "Inner.\n\nDeep.\n\nDo \\d.\n\nHalf .",
        "loud.inner.deep": "Deep.\n\nDo \\d.",
        "spread": "One.",  # a package without __init__.py
        "spread.part": "One.",
        "spread.part.one": "One.",
        "single": "Single.",
        "posixpath": corpora.load("docstrings:posixpath").text,  # frozen into Python, and its source is there
    }
    refused = {
        "bare": "has no Python source",
        "bare.native": "has no Python source",
        **dict.fromkeys(["this.x", "single.x", "loud.missing", "loud.inner.deep.f", "sys", "sys.path"], "no package"),
        **dict.fromkeys(["", ".", "loud.", ".loud", "../loud", "loud/inner", "loud\n", "a b", "\udcff"], "no package"),
        "é" * 5000: "no package",
    }
    code = (
        "import json, sys\nfrom tinymoe.data import corpora\nnames = json.load(sys.stdin)\nbefore = set(sys.modules)\n"
        "def found(name):\n    try:\n        return corpora.load('docstrings:' + name).text\n"
        "    except corpora.CorpusError as error:\n        return str(error)\n"
        "answers = [found(name) for name in names]\nprint(json.dumps([answers, sorted(set(sys.modules) - before)]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([*texts, *refused]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        timeout=60,
    )
    answers, imported = json.loads(result.stdout)
    assert answers[: len(texts)] == list(texts.values())
    for (name, reason), answer in zip(refused.items(), answers[len(texts) :], strict=True):
        assert reason in answer, name
    assert not imported
    assert not result.stderr
    assert not (tmp_path / "it ran").exists()


def test_a_folder_is_read_in_order_of_names_without_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in (("b.txt", "two"), ("a.md", "one"), ("sub/c.txt", "three"), (".hidden", "no")):
        (tmp_path / name).write_text(text)
    assert corpora.load(str(tmp_path)).text == "one\n\ntwo\n\nthree"


def test_what_is_no_text_in_a_folder_is_passed_over_and_named(tmp_path, capsys):
    (tmp_path / "__pycache__").mkdir()
    for i in range(6):
        (tmp_path / f"__pycache__/{i}.pyc").write_bytes(b"\xcb\r\r\n\0")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "zero.txt").write_bytes(b"a\0b")
    assert corpora.load(str(tmp_path)).text == "one"
    places = ", ".join(repr(f"__pycache__/{i}.pyc") for i in range(5))
    assert (
        f"passed over 7 files that are not UTF-8 text in {tmp_path}: {places} and 2 more\n" == capsys.readouterr().out
    )
    (tmp_path / "a.txt").unlink()
    with pytest.raises(corpora.CorpusError, match=r"no file in the folder .* is UTF-8 text"):
        corpora.load(str(tmp_path))
    with pytest.raises(corpora.CorpusError, match=r"zero.txt is binary \(it has a zero byte at 1\)"):
        corpora.load(str(tmp_path / "zero.txt"))


def test_only_regular_files_are_opened(tmp_path, capsys):
    """A pipe would block, /dev/random has no end; a symlink that leads to itself leads nowhere."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "other name").symlink_to("a.txt")
    for name in (str(tmp_path / "pipe"), "/dev/random", "/dev/null"):
        with pytest.raises(corpora.CorpusError, match=f"{name} is not a regular file"):
            corpora.load(corpora.absolute(name))
    with pytest.raises(corpora.CorpusError, match="loop: Too many levels of symbolic links"):
        corpora.load(corpora.absolute(str(tmp_path / "loop")))
    (tmp_path / "a.txt").write_text("one")
    assert corpora.load(str(tmp_path)).text == "one\n\none"
    assert "passed over 1 file that is not UTF-8 text" in capsys.readouterr().out


def test_windows_line_ends_and_any_script_survive(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes("één\r\n春𝒳\n".encode() * 30)
    split = corpora.load_split((str(file),), 4)
    assert np.concatenate([split.train, split.val]).tobytes() == file.read_bytes()
    with pytest.raises(corpora.CorpusError, match="needs at least"):
        corpora.load_split((str(file),), 4000)
