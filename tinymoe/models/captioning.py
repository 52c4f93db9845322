"""Captions by a trained model, how many are exactly right, and how evenly its experts are used by pictures and text."""

import numpy as np

from ..data.pictures import BEGIN, END, Pictures, decode_caption
from ..data.windows import Batch
from ..ops import metrics
from ..types import Array
from .config import LanguageConfig
from .language import forward
from .parameters import Language


def write_captions(params: Language, config: LanguageConfig, pictures: Array, longest: int) -> list[str]:
    """A caption of each picture (B, H, W, C), of each next byte the most likely, up to its end or `longest` bytes."""
    ids = np.full((len(pictures), 1), BEGIN, np.int64)
    for _ in range(longest):
        (logits, _, _), _ = forward(params, config, Batch(ids, images=pictures))
        following = logits.reshape(*ids.shape, -1)[:, -1].argmax(1)
        ids = np.concatenate([ids, following[:, None]], 1)
        if (ids == END).any(1).all():
            break
    return [decode_caption(row) for row in ids]


def exact(params: Language, config: LanguageConfig, pictures: Pictures, longest: int, at_once: int = 100) -> float:
    """The share of pictures whose caption is right to the last letter."""
    right = 0
    for rows in np.array_split(np.arange(len(pictures)), max(-(-len(pictures) // at_once), 1)):
        part = pictures.take(rows)
        written = write_captions(params, config, part.images, longest)
        right += sum(one == other for one, other in zip(written, part.captions, strict=True))
    return right / max(len(pictures), 1)


def balance_by_modality(params: Language, config: LanguageConfig, batch: Batch) -> list[metrics.GroupBalance | None]:
    """By layer, how evenly the rows of pictures, and those of text, use the experts; None without a router.

    All rows together can look even while one kind has collapsed on an expert.
    """
    (_, _, routed), _ = forward(params, config, batch)
    rows = routed_rows(config, batch.ids.shape[1])
    kinds = np.tile(np.repeat([0, 1], rows), len(batch.ids))
    found: list[metrics.GroupBalance | None] = []
    for choice in routed:
        if choice is None:
            found.append(None)
            continue
        counts = metrics.joint_counts(choice.indices, kinds, config.experts, 2, kept=choice.kept)
        found.append(metrics.per_group_balance(counts))
    return found


def routed_rows(config: LanguageConfig, length: int) -> tuple[int, int]:
    """How many rows of pictures and of text a router sees for each caption of this length."""
    prefix = config.vision is not None and config.vision.fusion == "prefix"
    return (config.vision.rows if prefix and config.vision else 0), length
