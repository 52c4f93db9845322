"""What a run is trained on: batches for each step, and batches to validate on.

source.batch(step, size)      depends on no earlier batch, so that a resumed run goes on as it would have
source.evaluation(limit)      the validation batches; all, or about `limit` windows or pictures of them
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..errors import check_options, option
from ..types import Array
from . import corpora, pictures
from .windows import Batch, TrainingWindows, evaluation_batches

TASKS = ("text", "caption")
PICTURES = {  # height, width and channels
    "shapes": (20, 20, 3),
    "two-shapes": (20, 20, 3),
    "glyphs": (20, 20, 1),
    "digits": (8, 8, 1),
}


@dataclass(frozen=True)
class Data:
    """What to train on. Raises ValueError for a corpus without a name, and for numbers out of bounds."""

    task: str = option("text", "what to learn: to write text, or to say what a picture shows", "run", choices=TASKS)
    corpus: tuple[str, ...] = option(
        ("pydoc",),
        "what to train on: pydoc (the standard library's documentation), toy (generated, entropy known), "
        "docstrings:PACKAGE, or a UTF-8 text file or folder; repeat the flag to join several",
        "run",
        metavar="TEXT",
    )
    pictures: str = option("shapes", "what pictures to caption", "pictures", choices=tuple(PICTURES))
    image_shift: int = option(0, "move pictures by up to so many pixels, at random, in training", "pictures", least=0)
    word_drop: float = option(
        0.0, "share of the words hidden from the model in training", "pictures", least=0.0, below=1.0
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.corpus or not all(name.strip() and "\0" not in name for name in self.corpus):
            raise ValueError("a corpus has no name; give --corpus pydoc, toy, docstrings:PACKAGE, a file or a folder")


class TextSource:
    """Windows of a text; see `data.windows`."""

    def __init__(self, data: Data, context: int, seed: int) -> None:
        split = corpora.load_split(data.corpus, context, seed)
        self.name, self.sha256, self.entropy, self.val = split.name, split.sha256, split.entropy, split.val
        self.windows = TrainingWindows(split.train, context, seed)
        self.context = context
        self.size = f"{len(split.train):,} bytes to train on, {len(split.val):,} to validate"

    def batch(self, step: int, size: int) -> Batch:
        return self.windows.batch(step, size)

    def evaluation(self, limit: int = 0) -> Iterator[Batch]:
        return evaluation_batches(self.val, self.context, max(1024 // self.context, 1), limit)


class CaptionSource:
    """Pictures and what is said about them; `unseen` says what `split.held_out` shows."""

    def __init__(self, data: Data, seed: int) -> None:
        self.split = load_pictures(data.pictures, seed)
        parts = self.split.train, self.split.val, self.split.held_out
        self.longest = self.context = max(len(c.encode()) + 1 for part in parts for c in part.captions)
        self.encoded = [pictures.encode_captions(part.captions, self.longest) for part in parts]
        self.name, self.entropy = data.pictures, None
        self.unseen = "more new pictures" if data.pictures == "digits" else "combinations never seen"
        content = [a for part, text in zip(parts, self.encoded, strict=True) for a in (part.images, text.ids)]
        self.sha256 = hashlib.sha256(b"".join(a.tobytes() for a in content)).hexdigest()
        self.seed, self.word_drop, self.shift = seed, data.word_drop, data.image_shift
        self.size = f"{len(parts[0]):,} pictures to train on, {len(parts[1])} and {len(parts[2])} to validate"

    def batch(self, step: int, size: int) -> Batch:
        """Pictures in random order, all of them once an epoch; words of what the model reads are dropped at random."""
        count = len(self.split.train)
        places = [divmod(i, count) for i in range((step - 1) * size, step * size)]
        orders = {e: np.random.default_rng([self.seed, e]).permutation(count) for e in dict(places)}
        rows = np.array([orders[epoch][i] for epoch, i in places])
        batch, rng = _batch(self.encoded[0], self.split.train, rows), np.random.default_rng([self.seed, 1, step])
        if self.word_drop:
            batch = replace(batch, ids=drop_words(batch.ids, self.word_drop, rng))
        return batch if not self.shift else replace(batch, images=moved(batch.images, self.shift, rng))

    def evaluation(self, limit: int = 0) -> Iterator[Batch]:
        rows = np.arange(len(self.split.val))
        if 0 < limit < len(rows):
            rows = rows[:limit]
        for group in np.array_split(rows, -(-len(rows) // 50)):
            yield _batch(self.encoded[1], self.split.val, group)


def new_source(data: Data, context: int, seed: int) -> TextSource | CaptionSource:
    """Raises UserError for a text or pictures that can't be had; `context` is the length of windows of text."""
    return TextSource(data, context, seed) if data.task == "text" else CaptionSource(data, seed)


def load_pictures(name: str, seed: int) -> pictures.PictureSplit:
    """The pictures that `--pictures` names."""
    if name in ("shapes", "two-shapes"):
        return pictures.shapes(seed, objects=1 if name == "shapes" else 2)
    return pictures.glyphs(seed) if name == "glyphs" else pictures.digits(seed)


def drop_words(ids: Array, rate: float, rng: np.random.Generator) -> Array:
    """Replace whole words of ids (B, T), with the spaces before them, by zeros: the model can't lean on what it said."""
    space = ids == ord(" ")
    word = space.cumsum(1)
    dropped = np.take_along_axis(rng.random(ids.shape) < rate, word, 1)
    return np.where(dropped & (ids != pictures.BEGIN), 0, ids)


def moved(images: Array | None, most: int, rng: np.random.Generator) -> Array:
    """Each picture (B, H, W, C) moved by up to `most` pixels either way; what comes in from outside is black."""
    assert images is not None
    batch, height, width, _ = images.shape
    framed = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    rows = rng.integers(0, 2 * most + 1, (batch, 1)) + np.arange(height)
    columns = rng.integers(0, 2 * most + 1, (batch, 1)) + np.arange(width)
    return framed[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _batch(encoded: pictures.CaptionBatch, shown: pictures.Pictures, rows: Array) -> Batch:
    return Batch(encoded.ids[rows], encoded.targets[rows], encoded.mask[rows], shown.images[rows])
