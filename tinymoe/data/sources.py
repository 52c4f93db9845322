"""What a run is trained on: batches for each step, and batches to validate on.

source.batch(step, size)      a function of the seed and the step alone, so that a resumed run goes on as it would have
source.evaluation(limit)      the validation batches; all, or about `limit` windows or pictures of them
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from ..runs.settings import Settings
from . import corpora
from .pictures import images
from .windows import Batch, TrainingWindows, evaluation_batches

Array = np.ndarray


class TextSource:
    """Windows of a text; see `data.windows`."""

    def __init__(self, settings: Settings) -> None:
        split = corpora.load_split(settings.corpus, settings.context, settings.seed)
        self.name, self.sha256, self.entropy, self.val = split.name, split.sha256, split.entropy, split.val
        self.windows = TrainingWindows(split.train, settings.context, settings.seed)
        self.context = settings.context
        self.size = f"{len(split.train):,} bytes to train on, {len(split.val):,} to validate"

    def batch(self, step: int, size: int) -> Batch:
        return self.windows.batch(step, size)

    def evaluation(self, limit: int = 0) -> Iterator[Batch]:
        return evaluation_batches(self.val, self.context, max(1024 // self.context, 1), limit)


class CaptionSource:
    """Pictures and what is said about them. `split.held_out` shows combinations that training never does."""

    def __init__(self, settings: Settings) -> None:
        self.split = load_pictures(settings.pictures, settings.seed)
        parts = self.split.train, self.split.val, self.split.held_out
        self.longest = self.context = max(len(c.encode()) + 1 for part in parts for c in part.captions)
        self.encoded = [images.encode_captions(part.captions, self.longest) for part in parts]
        self.name, self.entropy = settings.pictures, None
        content = [a for part, text in zip(parts, self.encoded, strict=True) for a in (part.images, text.ids)]
        self.sha256 = hashlib.sha256(b"".join(a.tobytes() for a in content)).hexdigest()
        self.seed, self.word_drop, self.shift = settings.seed, settings.word_drop, settings.image_shift
        self.size = f"{len(parts[0]):,} pictures to train on, {len(parts[1])} and {len(parts[2])} to validate"

    def batch(self, step: int, size: int) -> Batch:
        """Pictures in random order, all of them once an epoch; words of what the model reads are dropped at random."""
        count = len(self.split.train)
        places = [divmod(i, count) for i in range((step - 1) * size, step * size)]
        orders = {e: np.random.default_rng([self.seed, e]).permutation(count) for e in dict(places)}
        rows = np.array([orders[epoch][i] for epoch, i in places])
        batch, rng = _batch(self.encoded[0], self.split.train, rows), np.random.default_rng([self.seed, 1, step])
        if self.word_drop:
            batch = batch._replace(ids=drop_words(batch.ids, self.word_drop, rng))
        return batch if not self.shift else batch._replace(images=moved(batch.images, self.shift, rng))

    def evaluation(self, limit: int = 0) -> Iterator[Batch]:
        rows = np.arange(len(self.split.val))
        if 0 < limit < len(rows):
            rows = rows[:limit]
        for group in np.array_split(rows, -(-len(rows) // 50)):
            yield _batch(self.encoded[1], self.split.val, group)


def new_source(settings: Settings) -> TextSource | CaptionSource:
    """Raises UserError for a text or pictures that can't be had."""
    return TextSource(settings) if settings.task == "text" else CaptionSource(settings)


def load_pictures(name: str, seed: int) -> images.PictureSplit:
    """The pictures that `--pictures` names."""
    if name in ("shapes", "two-shapes"):
        return images.shapes(seed, objects=1 if name == "shapes" else 2)
    return images.glyphs(seed) if name == "glyphs" else images.digits(seed)


def drop_words(ids: Array, rate: float, rng: np.random.Generator) -> Array:
    """Replace whole words of ids (B, T), with the spaces before them, by zeros: the model can't lean on what it said."""
    space = ids == ord(" ")
    word = space.cumsum(1)
    dropped = np.take_along_axis(rng.random(ids.shape) < rate, word, 1)
    return np.where(dropped & (ids != images.BEGIN), 0, ids)


def moved(pictures: Array | None, most: int, rng: np.random.Generator) -> Array:
    """Each picture (B, H, W, C) moved by up to `most` pixels either way; what comes in from outside is black."""
    assert pictures is not None
    batch, height, width, _ = pictures.shape
    framed = np.pad(pictures, ((0, 0), (most, most), (most, most), (0, 0)))
    rows = rng.integers(0, 2 * most + 1, (batch, 1)) + np.arange(height)
    columns = rng.integers(0, 2 * most + 1, (batch, 1)) + np.arange(width)
    return framed[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _batch(encoded: images.CaptionBatch, pictures: images.Pictures, rows: Array) -> Batch:
    return Batch(encoded.ids[rows], encoded.targets[rows], encoded.mask[rows], pictures.images[rows])
