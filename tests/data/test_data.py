"""Corpora and windows: what is read, what is refused, and that batches depend on seed and step alone."""

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


def test_a_folder_is_read_in_order_of_names_without_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in (("b.txt", "two"), ("a.md", "one"), ("sub/c.txt", "three"), (".hidden", "no")):
        (tmp_path / name).write_text(text)
    assert corpora.load(str(tmp_path)).text == "one\n\ntwo\n\nthree"


def test_windows_line_ends_and_any_script_survive(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes("één\r\n春𝒳\n".encode() * 30)
    split = corpora.load_split((str(file),), 4)
    assert np.concatenate([split.train, split.val]).tobytes() == file.read_bytes()
    with pytest.raises(corpora.CorpusError, match="needs at least"):
        corpora.load_split((str(file),), 4000)
