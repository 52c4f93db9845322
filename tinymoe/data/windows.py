"""From a long row of tokens to batches of windows: a window's targets are its tokens shifted by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..types import Array


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts of one length, with what is known about them."""

    ids: Array  # (B, T) int
    targets: Array | None = None  # (B, T) int, the token that follows each; −100 where there is none to predict
    mask: Array | None = (
        None  # (B, T) bool, False for padding, which stands at the end and has no target; None without any
    )
    images: Array | None = None  # (B, H, W, C) what the texts are about

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Array) -> "Batch":
        """Some of the sequences."""
        ids, targets, mask, images = (
            None if part is None else part[rows] for part in (self.ids, self.targets, self.mask, self.images)
        )
        assert ids is not None
        return Batch(ids, targets, mask, images)

    @property
    def predicted(self) -> int:
        """How many targets there are."""
        return 0 if self.targets is None else int((self.targets != -100).sum())


def cut(tokens: Array, starts: Array, length: int) -> Batch:
    """Windows of T = `length` tokens that begin at `starts` (B,)."""
    window = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    return Batch(window[:, :-1], window[:, 1:])


class TrainingWindows:
    """Batches that depend on no earlier one, so a resumed run goes on with the batch that was due.

    The text is cut into windows that don't overlap, beginning at a random first token, and these are visited in
    random order. After the last, an epoch is over and the text is cut anew: every token is seen about once an epoch.
    """

    def __init__(self, tokens: Array, length: int, seed: int) -> None:
        self.tokens, self.length, self.seed = tokens, length, seed
        self.per_epoch = max((len(tokens) - length) // length, 1)
        self._starts = lru_cache(maxsize=2)(self._new_epoch)

    def _new_epoch(self, epoch: int) -> Array:
        rng = np.random.default_rng([self.seed, epoch])
        spare = len(self.tokens) - 1 - self.length * self.per_epoch
        return rng.integers(min(spare, self.length - 1) + 1) + self.length * rng.permutation(self.per_epoch)

    def batch(self, step: int, size: int) -> Batch:
        """The `size` windows of training step `step`, counted from 1."""
        places = [divmod(index, self.per_epoch) for index in range((step - 1) * size, step * size)]
        return cut(self.tokens, np.array([self._starts(epoch)[i] for epoch, i in places]), self.length)


def evaluation_batches(tokens: Array, length: int, size: int, limit: int = 0) -> Iterator[Batch]:
    """Windows side by side over the whole text, or `limit` of them, evenly spread; the same at every call."""
    starts = np.arange(0, len(tokens) - length, length)
    if 0 < limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(int)]
    for i in range(0, len(starts), size):
        yield cut(tokens, starts[i : i + size], length)
