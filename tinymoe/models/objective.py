"""What training a language model minimises, and what it reports of a batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..data.windows import Batch
from ..ops import metrics
from ..optim.objective import Objective
from ..tree import with_values
from ..types import Array
from .balancing import SWITCH, Balancing
from .config import LanguageConfig
from .evaluation import score
from .initialise import skeleton
from .language import forward, loss, next_token
from .parameters import Language
from .routers import Choice


class LayerReport(NamedTuple):
    """What a layer's router did, in numbers."""

    counts: Array  # (E,) assignments asked of each expert
    dropped: float  # share of them that found no room
    entropy: float  # of the softmax of the logits, mean over tokens, over ln E; NaN where there are none


class Routed(NamedTuple):
    """What the routers did on a batch."""

    balance: float  # sum of the balancing losses, mean over layers
    layers: tuple[LayerReport | None, ...]  # None for a layer without a router


@dataclass(frozen=True)
class LanguageObjective(Objective):
    """The loss of `models.language`: cross-entropy, or another loss of the logits, plus the balancing losses.

    bias_rate  how far an expert's bias moves in a step towards an even load; 0 for not at all
    """

    config: LanguageConfig
    balancing: Balancing = SWITCH
    bias_rate: float = 0.0
    of_logits: Callable[..., Any] = next_token
    shares: tuple[Array | None, ...] | None = None  # (E,) of the whole batch's tokens, by layer

    def params(self, leaves: dict[str, Array]) -> Language:
        return with_values(_skeleton(self.config), leaves)

    def __call__(self, params: Language, batch: Batch, rng: np.random.Generator) -> tuple[tuple[Any, Routed], Any]:
        (_, parts), backward = loss(
            params, self.config, batch, self.balancing, rng, shares=self.shares, of_logits=self.of_logits
        )
        layers = tuple(None if choice is None else layer_report(choice) for choice in parts.routed)
        return (parts.cross_entropy, Routed(float(parts.balance), layers)), backward

    def score(self, params: Language, batch: Batch) -> tuple[float, int]:
        found, _ = score(params, self.config, batch)
        return found.loss, found.tokens

    @property
    def asks_first(self) -> bool:  # type: ignore[override]
        """The global balance goes by the load of the whole batch."""
        return "global" in self.balancing.losses

    def survey(self, params: Language, batch: Batch, rng: np.random.Generator) -> list[Array | None]:
        """By layer the assignments asked of each expert."""
        (_, _, routed), _ = forward(params, self.config, batch, rng)
        return [None if choice is None else choice.counts for choice in routed]

    def informed(self, surveys: Sequence[list[Array | None]]) -> "LanguageObjective":
        totals = [None if layer[0] is None else np.sum(layer, axis=0) for layer in zip(*surveys, strict=True)]
        shares = tuple(None if total is None else total / max(total.sum(), 1) for total in totals)
        return replace(self, shares=shares)

    def merged(self, reports: Sequence[tuple[float, Routed]]) -> Routed:
        layers = zip(*([(share, layer) for layer in report.layers] for share, report in reports), strict=True)
        return Routed(sum(share * report.balance for share, report in reports), tuple(map(_of_batch, layers)))

    def after(self, params: Language, report: Routed) -> None:
        """Move the biases of routers by the load."""
        if not self.bias_rate:
            return
        for block, layer in zip(params.blocks, report.layers, strict=True):
            if layer is not None and block.mixture.router is not None:
                bias = block.mixture.router.bias
                bias[...] = ops.bias_update(bias, layer.counts, self.bias_rate)  # type: ignore[index]


@lru_cache(maxsize=4)
def _skeleton(config: LanguageConfig) -> Language:
    return skeleton(config)


def layer_report(routed: Choice) -> LayerReport:
    """What a router's choice comes to."""
    asked = routed.counts.sum()
    dropped = 1 - routed.kept.sum() / asked if asked else 0.0
    entropy = math.nan
    if routed.logits is not None and np.isfinite(routed.logits).all():
        p, _ = ops.softmax(routed.logits)
        entropy = metrics.router_entropy(p, mask=routed.real) / max(math.log(p.shape[1]), 1e-9)
    return LayerReport(routed.counts, float(dropped), entropy)


def _of_batch(shards: Sequence[tuple[float, LayerReport | None]]) -> LayerReport | None:
    """The report of a layer for the whole batch, from those for its shards and their shares of it."""
    present = [(share, report) for share, report in shards if report is not None]
    if not present:
        return None
    dropped, entropy = (sum(share * getattr(r, name) for share, r in present) for name in ("dropped", "entropy"))
    return LayerReport(np.sum([r.counts for _, r in present], axis=0), dropped, entropy)
