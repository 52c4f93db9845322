"""Texts longer than the context: read in chunks, with or without what went before.

    apart        every chunk begins with nothing: what training does
    carried      a recurrent layer hands its state from chunk to chunk
    overlapping  a window of attention moves on by half its length; only its second half, which has context, is predicted

Source: 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §9.5, which splits long texts and leaves it at that.
"""

import numpy as np

from ..data.windows import Batch
from ..types import Array
from .config import LanguageConfig
from .evaluation import score, together
from .parameters import Language


def streams(tokens: Array, chunk: int, count: int) -> tuple[Array, Array]:
    """ids and targets (chunks, B, T): `count` or fewer places in a text, read on from at once, T = `chunk` at a time.

    Raises ValueError when the text is shorter than a chunk and its targets.
    """
    whole = (len(tokens) - 1) // chunk
    if whole < 1:
        raise ValueError(f"the text has {len(tokens)} tokens; a chunk of {chunk} and its targets need {chunk + 1}")
    batch = min(count, whole)
    size = whole // batch * chunk
    ids, targets = (
        tokens[shift : shift + batch * size].astype(np.int64).reshape(batch, -1, chunk).swapaxes(0, 1)
        for shift in (0, 1)
    )
    return ids, targets


def chunk_losses(
    params: Language, config: LanguageConfig, tokens: Array, chunk: int, count: int = 16
) -> dict[str, float]:
    """Nats per token on the same targets: `apart`, and `carried` where the model has a state to carry."""
    ids, targets = streams(tokens, chunk, count)
    found = {}
    for name in ("apart", "carried") if config.recurrent else ("apart",):
        states, scores = None, []
        for chunk_ids, chunk_targets in zip(ids, targets, strict=True):
            found_here, after = score(params, config, Batch(chunk_ids, chunk_targets), states)
            states = after if name == "carried" else None
            scores.append(found_here)
        found[name] = together(scores).loss
    return found


def overlapping_loss(params: Language, config: LanguageConfig, tokens: Array, window: int, count: int = 16) -> float:
    """Nats per token when each is predicted with half a window or more before it.

    The first half window is left out, and at the end what would not fill half of one.
    Raises ValueError when the text is shorter than a window and its targets.
    """
    half = max(window // 2, 1)
    starts = np.arange(0, len(tokens) - window, half)
    if len(starts) == 0:
        raise ValueError(f"the text has {len(tokens)} tokens; a window of {window} and its targets need {window + 1}")
    scores = []
    for group in np.array_split(starts, -(-len(starts) // count)):
        rows = tokens[group[:, None] + np.arange(window + 1)].astype(np.int64)
        targets = rows[:, 1:].copy()
        targets[:, : window - half] = -100
        scores.append(score(params, config, Batch(rows[:, :-1], targets))[0])
    return together(scores).loss
