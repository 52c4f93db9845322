"""Captioning, from the command: training, resuming, the report, and what is refused."""

import numpy as np
import pytest

from tests.conftest import assert_same_run
from tinymoe import generate
from tinymoe.data import pictures
from tinymoe.data.sources import CaptionSource, drop_words, moved
from tinymoe.errors import UserError
from tinymoe.evaluate import __main__ as evaluate
from tinymoe.models import captioning
from tinymoe.runs.settings import resolve
from tinymoe.runs.state import load_model
from tinymoe.train import __main__ as train

TINY = "--task caption --layers 1 --width 16 --heads 2 --kv-heads 2 --experts 2 --expert-width 8 --encoder-layers 1".split()
TINY += "--batch-size 6 --eval-every 4 --checkpoint-every 4 --workers 1 --decay-steps 8".split()


@pytest.fixture(scope="module", autouse=True)
def few_pictures():
    """Tens of pictures instead of thousands."""
    original = pictures.shapes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pictures, "shapes", lambda seed, objects=1: original(seed, objects, train=40, val=10, held_out=10)
        )
        yield


@pytest.mark.parametrize("fusion", ["prefix", "additive"])
@pytest.mark.parametrize("accumulate", ["1", "3"])
def test_stopped_and_resumed_equals_uninterrupted(fusion, accumulate, tmp_path):
    flags = [*TINY, "--fusion", fusion, "--accumulate", accumulate, "--router", "noisy"]
    train.main([*flags, "--steps", "8", "--out", str(tmp_path / "whole")])
    train.main([*flags, "--steps", "4", "--out", str(tmp_path / "parts")])
    train.main(["--resume", str(tmp_path / "parts"), "--steps", "8"])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "whole" / "captions.png").stat().st_size > 1000


def test_the_report_tells_seen_from_unseen_and_pictures_from_text(tmp_path, capsys):
    train.main([*TINY, "--steps", "2", "--out", str(tmp_path / "run")])
    capsys.readouterr()
    evaluate.main([str(tmp_path / "run"), "--windows", "4"])
    table = capsys.readouterr().out
    for words in ("combinations never seen", "layer 0, picture rows, MaxVio", "image encoder", "FLOPs", "a second"):
        assert words in table
    with pytest.raises(UserError, match="captions pictures"):
        generate.main([str(tmp_path / "run")])
    with pytest.raises(UserError, match="no use for --corpus"):
        evaluate.main([str(tmp_path / "run"), "--corpus", "toy"])


def test_a_caption_is_written_from_its_picture_alone(tmp_path):
    train.main([*TINY, "--steps", "2", "--out", str(tmp_path / "run")])
    params, config = load_model(tmp_path / "run" / "model.safetensors")
    shown = pictures.shapes(0).val.images
    together = captioning.write_captions(params, config, shown, 12)
    alone = [captioning.write_captions(params, config, shown[i : i + 1], 12)[0] for i in range(len(shown))]
    assert together == alone


def test_batches_follow_the_step_and_visit_every_picture_once_an_epoch():
    settings = resolve({"task": "caption", "word_drop": 0.0})
    source = CaptionSource(settings.data, settings.run.seed)
    seen = np.concatenate([source.batch(step, 8).images for step in range(1, 6)])  # 40 pictures: one epoch
    order = np.lexsort(seen.reshape(40, -1).T), np.lexsort(source.split.train.images.reshape(40, -1).T)
    np.testing.assert_array_equal(seen[order[0]], source.split.train.images[order[1]])
    again = CaptionSource(settings.data, settings.run.seed).batch(3, 8)
    for part, value in vars(source.batch(3, 8)).items():
        np.testing.assert_array_equal(value, getattr(again, part))


def test_dropped_words_are_whole_and_the_beginning_stays():
    ids = pictures.encode_captions(["a red circle at the top"] * 50).ids
    dropped = drop_words(ids, 0.5, np.random.default_rng(0))
    assert (dropped[:, 0] == pictures.BEGIN).all()
    words = {bytes(row[row != 0].tolist()) for row in dropped}
    assert len(words) > 10
    assert all(set(w[1:].decode().split()) <= set("a red circle at the top".split()) for w in words)
    assert 0.3 < (dropped == 0).mean() < 0.7


def test_moved_pictures_keep_what_stays_inside():
    pictures = np.random.default_rng(1).random((30, 4, 5, 2))
    after = moved(pictures, 2, np.random.default_rng(2))
    shifts = set()
    for before, now in zip(pictures, after, strict=True):
        framed = np.pad(before, ((2, 2), (2, 2), (0, 0)))
        fits = [(i, j) for i in range(5) for j in range(5) if (framed[i : i + 4, j : j + 5] == now).all()]
        assert len(fits) == 1
        shifts |= set(fits)
    assert len(shifts) > 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--patch", "3"], "must divide both sides"),
        (["--pictures", "photos"], "choose one of shapes"),
        (["--word-drop", "1"], "below 1"),
        (["--task", "sing"], "choose one of text, caption"),
    ],
)
def test_bad_input(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train.main([*TINY, *flags, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
