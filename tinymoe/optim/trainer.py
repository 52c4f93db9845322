"""One step of training: a batch in, better parameters out.

The batch is cut into shards. Each member of the team computes loss and gradient of its shards; then each adds up all
gradients for its part of the parameters, and after clipping updates that part. Every sum has a fixed order, so the same
settings give the same numbers to the last bit.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..data.windows import Batch
from ..models.config import LanguageConfig
from ..models.initialise import skeleton
from ..models.language import forward, loss
from ..models.parameters import Language
from ..models.routers import Choice
from ..ops import metrics
from ..runs.settings import Settings
from ..runs.state import NotFinite, State
from ..tree import named, with_leaves
from . import sparsify
from . import updates as optim
from .team import Team

Array = np.ndarray

EVALUATION_WINDOWS = 400  # per evaluation along the way; the last one takes the whole validation text


@dataclass(frozen=True)
class StepReport:
    loss: float  # cross-entropy, nats per token
    balance: float  # sum of the balancing losses, mean over layers
    norm: float  # of the gradient, before clipping
    layers: tuple["LayerReport | None", ...]  # None for a layer without a router


class LayerReport(NamedTuple):
    counts: Array  # (E,) assignments asked of each expert
    dropped: float  # share of them that found no room
    entropy: float  # of the softmax of the logits, mean over tokens, over ln E; NaN where there are none


class Trainer:
    """Trains a state in place. From `__enter__` to `__exit__` a team of processes is at work."""

    def __init__(self, state: State, settings: Settings) -> None:
        self.state, self.settings = state, settings

    def __enter__(self) -> "Trainer":
        state, size = self.state, self.settings.workers
        params = named(state.params)
        arrays = {f"params.{name}": p for name, p in params.items()}
        arrays |= {f"{slot}.{name}": a for name, slots in state.slots.items() for slot, a in slots.items()}
        arrays |= {
            f"gradient.{member}.{name}": np.zeros_like(p) for member in range(size) for name, p in params.items()
        }
        self.team = Team(size, arrays)
        state.params = _params(self.team.arrays, self.settings.model)
        state.slots = {name: _slots(self.team.arrays, name, slots) for name, slots in state.slots.items()}
        self.groups = _even_groups(params, size)
        return self

    def __exit__(self, *_: object) -> None:
        self.team.__exit__()

    def step(self, batch: Batch) -> StepReport:
        """One optimiser step. Raises NotFinite, with the state as it was, when loss or gradient is not finite."""
        settings, step = self.settings, self.state.step + 1
        members = range(self.team.size)
        jobs = [ShardJobs(member, [], settings, step, batch.predicted) for member in members]
        for number, rows in enumerate(np.array_split(np.arange(len(batch.ids)), self.team.size * settings.accumulate)):
            if len(rows):
                jobs[number % self.team.size].shards.append((number, batch.take(rows)))
        if "global" in settings.balancing.losses:
            shares = _shares([counts for found in self.team.run(shard_counts, jobs) for counts in found])
            jobs = [job._replace(shares=shares) for job in jobs]
        shards = [shard for found in self.team.run(shard_gradients, jobs) for shard in found]
        norm = math.hypot(*self.team.run(add_gradients, [(group, self.team.size) for group in self.groups]))
        report = StepReport(
            sum(shard.share * shard.loss for shard in shards),
            sum(shard.share * shard.balance for shard in shards),
            norm,
            tuple(_of_batch([(shard.share, shard.layers[i]) for shard in shards]) for i in range(settings.layers)),
        )
        if not (math.isfinite(report.loss) and math.isfinite(norm)):
            raise NotFinite(f"the loss is {report.loss:.3g} and the norm of the gradient {norm:.3g} at step {step}")
        final = settings.final_lr * settings.lr
        options = {
            "lr": optim.learning_rate(step, settings.lr, settings.warmup, settings.decay_steps, final),
            "step": step,
            "beta1": settings.beta1,
            "beta2": settings.beta2,
        }
        factor = optim.clip_factor(norm, settings.clip)
        self.team.run(update, [UpdateJob(group, settings, factor, options) for group in self.groups])
        if "bias" in settings.balance:
            for block, layer in zip(self.state.params.blocks, report.layers, strict=True):
                if layer is not None and block.mixture.router is not None:
                    bias = block.mixture.router.bias
                    bias[...] = ops.bias_update(bias, layer.counts, settings.bias_rate)  # type: ignore[index]
        if settings.sparsity != "none":
            arrays, params = self.team.arrays, named(self.state.params)
            weights = {name: params[name] for name in sparsify.chosen(params)}
            gradients = {name: arrays[f"gradient.0.{name}"] for name in weights}
            sparsify.revise(weights, gradients, self.state.slots, settings, step)
        self.state.step = step
        return report

    def evaluate(self, evaluation: Iterable[Batch]) -> tuple[float, int]:
        """Mean cross-entropy in nats per token over some batches, and the number of tokens predicted."""
        batches = list(evaluation)
        shares = [(self.settings.model, batches[member :: self.team.size]) for member in range(self.team.size)]
        totals = [pair for found in self.team.run(total_losses, shares) for pair in found]
        count = sum(n for _, n in totals)
        return math.fsum(total for total, _ in totals) / count, count


class ShardJobs(NamedTuple):
    member: int
    shards: list[tuple[int, Batch]]  # with their number in the batch
    settings: Settings
    step: int
    tokens: int  # predicted in the whole batch
    shares: list[Array | None] | None = None  # (E,) of the whole batch's tokens, by layer


class ShardReport(NamedTuple):
    share: float  # of the batch
    loss: float
    balance: float
    layers: tuple[LayerReport | None, ...]


class UpdateJob(NamedTuple):
    names: list[str]
    settings: Settings
    factor: float  # of the gradient, for clipping
    options: dict[str, Any]  # of the optimiser


def shard_gradients(arrays: dict[str, Array], job: ShardJobs) -> list[ShardReport]:
    """Leave in gradient.<member> what these shards contribute to the gradient of the batch; report each."""
    settings, config = job.settings, job.settings.model
    params = _params(arrays, config)
    gradient = {name: arrays[f"gradient.{job.member}.{name}"] for name in named(params)}
    if not job.shards:
        for g in gradient.values():
            g.fill(0)
    reports = []
    for place, (number, shard) in enumerate(job.shards):
        share = shard.predicted / max(job.tokens, 1)
        noise = _noise(job, number)
        with np.errstate(over="ignore", invalid="ignore"):  # `step` looks for it and says so in one sentence
            options = {"mask": shard.mask, "images": shard.images, "shares": job.shares}
            (_, parts), backward = loss(params, config, shard.ids, shard.targets, settings.balancing, noise, **options)
            for name, g in named(backward(share)).items():
                np.add(gradient[name] if place else 0, g, out=gradient[name])
            layers = tuple(None if r is None else layer_report(r) for r in parts.routed)
        reports.append(ShardReport(share, float(parts.cross_entropy), float(parts.balance), layers))
    return reports


def shard_counts(arrays: dict[str, Array], job: ShardJobs) -> list[list[Array | None]]:
    """For each shard and layer the assignments asked of each expert: a forward pass with the noise of the real one."""
    config = job.settings.model
    params, found = _params(arrays, config), []
    for number, shard in job.shards:
        with np.errstate(over="ignore", invalid="ignore"):
            options = {"mask": shard.mask, "images": shard.images}
            (_, _, routed), _ = forward(params, config, shard.ids, _noise(job, number), **options)
        found.append([None if r is None else r.counts for r in routed])
    return found


def _noise(job: ShardJobs, number: int) -> np.random.Generator:
    """What draws noise and dropout for one shard of one step."""
    return np.random.default_rng([job.settings.seed, job.step, number])


def _shares(shards: list[list[Array | None]]) -> list[Array | None]:
    """Counts of all shards → each expert's share of the assignments, by layer."""
    totals = [None if layer[0] is None else np.sum(layer, axis=0) for layer in zip(*shards, strict=True)]
    return [None if total is None else total / max(total.sum(), 1) for total in totals]


def layer_report(routed: Choice) -> LayerReport:
    """What a layer's router did, in numbers."""
    asked = routed.counts.sum()
    dropped = 0.0 if routed.kept is None or asked == 0 else 1 - routed.kept.sum() / asked
    entropy = math.nan
    if routed.logits is not None and np.isfinite(routed.logits).all():
        p, _ = ops.softmax(routed.logits)
        entropy = metrics.router_entropy(p, mask=routed.real) / max(math.log(p.shape[1]), 1e-9)
    return LayerReport(routed.counts, float(dropped), entropy)


def _of_batch(shards: list[tuple[float, LayerReport | None]]) -> LayerReport | None:
    """The report of a layer for the whole batch, from those for its shards and their shares of the tokens."""
    present = [(share, report) for share, report in shards if report is not None]
    if not present:
        return None
    dropped, entropy = (sum(share * getattr(r, name) for share, r in present) for name in ("dropped", "entropy"))
    return LayerReport(np.sum([r.counts for _, r in present], axis=0), dropped, entropy)


def add_gradients(arrays: dict[str, Array], job: tuple[list[str], int]) -> float:
    """Add the members' gradients up in gradient.0, for some of the parameters; returns the norm of that part."""
    names, size = job
    with np.errstate(over="ignore", invalid="ignore"):
        for name in names:
            for member in range(1, size):
                arrays[f"gradient.0.{name}"] += arrays[f"gradient.{member}.{name}"]
        return optim.global_norm(arrays[f"gradient.0.{name}"] for name in names)


def update(arrays: dict[str, Array], job: UpdateJob) -> None:
    """Let the optimiser change some of the parameters, within the bounds of the recipe for sparse weights."""
    settings = job.settings
    optimizer, slots = optim.OPTIMIZERS[settings.optimizer], optim.SLOTS[settings.optimizer]
    sparse = set(sparsify.chosen(job.names)) if settings.sparsity != "none" else set()
    for name in job.names:
        if name.endswith(".router.bias"):
            continue  # moved by the load, in `step`
        p, g = arrays[f"params.{name}"], arrays[f"gradient.0.{name}"]
        if job.factor != 1:
            g *= job.factor
        if name in sparse:
            sparsify.penalize(p, g, settings)
        apply = optim.lazy(optimizer) if settings.lazy and _by_row(name) else optimizer
        decay = settings.weight_decay if p.ndim > 1 else 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            apply(p, g, _slots(arrays, name, slots), weight_decay=decay, **job.options)
        if name in sparse:
            memory = _slots(arrays, name, [slot for slot in (*slots, "mask") if f"{slot}.{name}" in arrays])
            sparsify.constrain(p, memory, settings, job.options["step"], job.options["lr"])


def _by_row(name: str) -> bool:
    """Whether the first axis of a leaf is one of tokens or of experts, of which a batch may use a part."""
    return name == "embedding" or ".experts." in name


def total_losses(arrays: dict[str, Array], job: tuple[LanguageConfig, list[Batch]]) -> list[tuple[float, int]]:
    """Of each batch the sum of the cross-entropies, and how many tokens it predicts."""
    config, batches = job
    params, totals = _params(arrays, config), []
    for batch in batches:
        with np.errstate(over="ignore", invalid="ignore"):
            (logits, _, _), _ = forward(params, config, batch.ids, mask=batch.mask, images=batch.images)
            mean, _ = ops.cross_entropy(logits, batch.targets.reshape(-1))
        totals.append((float(mean) * batch.predicted, batch.predicted))
    return totals


def _params(arrays: dict[str, Array], config: LanguageConfig) -> Language:
    return with_leaves(
        _template(config), {n.removeprefix("params."): a for n, a in arrays.items() if n.startswith("params.")}
    )


@lru_cache(maxsize=4)
def _template(config: LanguageConfig) -> Language:
    return skeleton(config)


def _slots(arrays: dict[str, Array], name: str, slots: Any) -> optim.Slots:
    return {slot: arrays[f"{slot}.{name}"] for slot in slots}


def _even_groups(leaves: dict[str, Array], count: int) -> list[list[str]]:
    """Names in `count` groups of about the same number of elements."""
    groups: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(leaves, key=lambda name: -leaves[name].size):
        lightest = sizes.index(min(sizes))
        groups[lightest].append(name)
        sizes[lightest] += leaves[name].size
    return groups
