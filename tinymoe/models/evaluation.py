"""How well a model predicts, without the noise and the capacity of training, as trainer, recipes and commands ask."""

import math
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..data.windows import Batch
from ..types import Array
from .config import LanguageConfig
from .language import next_token, read_on
from .parameters import Language


class Score(NamedTuple):
    """What was found on a batch."""

    loss: float  # sum of the cross-entropies, nats
    right: int  # tokens that the model thought the most likely
    tokens: int  # predicted
    seconds: float  # in the forward pass
    counts: tuple[Array | None, ...]  # by layer (E,), assignments of each expert; None where there is no router


class Measured(NamedTuple):
    """The same over several batches."""

    loss: float  # nats per token
    accuracy: float  # share of tokens that the model thought the most likely
    tokens: int
    seconds: float
    counts: tuple[Array | None, ...]


def score(params: Language, config: LanguageConfig, batch: Batch, states: Any = None) -> tuple[Score, Any]:
    """Let the model predict every target of a batch; `states` as in `read_on`, which returns those after it too.

    A model that has diverged has a loss, too: inf or nan.
    """
    assert batch.targets is not None
    with np.errstate(over="ignore", invalid="ignore"):
        began = time.perf_counter()
        (logits, _, routed, after), _ = read_on(params, config, batch, states)
        seconds = time.perf_counter() - began
        mean, _ = next_token(logits, batch)
    right = int((logits.argmax(1) == batch.targets.reshape(-1)).sum())
    counts = tuple(None if choice is None else choice.counts for choice in routed)
    return Score(float(mean) * batch.predicted, right, batch.predicted, seconds, counts), after


def measure(params: Language, config: LanguageConfig, batches: Iterable[Batch]) -> Measured:
    """Let the model predict every target of at least one batch."""
    return together([score(params, config, batch)[0] for batch in batches])


def together(scores: list[Score]) -> Measured:
    """One measurement from those of at least one batch."""
    losses, right, tokens, seconds, counts = zip(*scores, strict=True)
    by_layer = tuple(None if layer[0] is None else np.sum(layer, axis=0) for layer in zip(*counts, strict=True))
    return Measured(math.fsum(losses) / sum(tokens), sum(right) / sum(tokens), sum(tokens), sum(seconds), by_layer)
