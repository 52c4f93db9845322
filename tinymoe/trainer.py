"""The training loop: batches in, better parameters out.

One step: cut the batch into shards, compute loss and gradient of each on its own thread, add the gradients up in the
order of the shards, clip, update. Closures are pure and NumPy releases Python's lock inside its loops, so two threads
keep two cores busy; sums have a fixed order, so the same settings give the same numbers to the last bit.
"""

import ctypes
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from . import ops, optim
from .data.windows import Batch, evaluation_batches
from .models.language import forward, loss
from .models.parameters import Language, LanguageConfig
from .settings import Settings
from .state import State
from .tree import named

Array = np.ndarray

EVALUATION_WINDOWS = 128  # per evaluation along the way; the last one takes the whole validation text


class NotFinite(ArithmeticError):
    """The loss or the gradient is no longer a number."""


@dataclass(frozen=True)
class StepReport:
    loss: float  # cross-entropy, nats per token
    balance: float  # load-balance loss, 1 when even
    norm: float  # of the gradient, before clipping
    counts: tuple[Array | None, ...]  # (E,) assignments per expert, by layer; None in a dense layer


@contextmanager
def workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `threads` threads, on each of which BLAS works alone."""
    keep_heap()
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        yield pool


def keep_heap() -> None:
    """Ask glibc to keep freed memory: otherwise every large temporary is mapped, zeroed by the system and unmapped."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in musl
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD


def train_step(state: State, batch: Batch, settings: Settings, pool: ThreadPoolExecutor) -> StepReport:
    """Change the state by one step. Raises NotFinite, with the state as it was, when loss or gradient is not finite."""
    config, tokens = settings.model, batch.ids.size
    parts = min(settings.accumulate * settings.threads, len(batch.ids))
    shards = [
        Batch(*pair)
        for pair in zip(np.array_split(batch.ids, parts), np.array_split(batch.targets, parts), strict=True)
    ]
    step = state.step + 1

    def shard_gradient(number: int) -> tuple[StepReport, float, dict[str, Array]]:
        ids, targets = shards[number]
        share = ids.size / tokens
        rng = np.random.default_rng([settings.seed, step, number]) if config.dropout else None
        with np.errstate(over="ignore", invalid="ignore"):  # reported below, in one sentence
            (_, found), backward = loss(state.params, config, ids, targets, settings.balance, rng)
            gradients = named(backward(share))
        counts = tuple(r.counts if r is not None else None for r in found.routings)
        return StepReport(float(found.cross_entropy), float(found.balance), 0.0, counts), share, gradients

    reports, shares, gradients = [], [], []
    for report, share, gradient in pool.map(shard_gradient, range(parts)):
        reports.append(report)
        shares.append(share)
        gradients.append(gradient)

    leaves = named(state.params)
    groups = _even_groups(leaves, settings.threads)

    def add_up(names: list[str]) -> float:
        for name in names:
            for other in gradients[1:]:
                gradients[0][name] += other[name]
        with np.errstate(over="ignore", invalid="ignore"):
            return optim.global_norm(gradients[0][name] for name in names)

    norm = math.hypot(*pool.map(add_up, groups))
    report = StepReport(
        sum(s * r.loss for s, r in zip(shares, reports, strict=True)),
        sum(s * r.balance for s, r in zip(shares, reports, strict=True)),
        norm,
        tuple(None if c[0] is None else np.sum(c, 0) for c in zip(*(r.counts for r in reports), strict=True)),
    )
    if not (math.isfinite(report.loss) and math.isfinite(norm)):
        raise NotFinite(f"the loss is {report.loss:.3g} and the norm of the gradient {norm:.3g} at step {step}")

    factor = optim.clip_factor(norm, settings.clip)
    lr = optim.learning_rate(step, settings.lr, settings.warmup, settings.decay_steps, settings.final_lr * settings.lr)
    update = optim.OPTIMIZERS[settings.optimizer]

    def apply(names: list[str]) -> None:
        for name in names:
            p, g = leaves[name], gradients[0][name]
            if factor != 1:
                g *= factor
            update(
                p,
                g,
                state.slots[name],
                lr=lr,
                step=step,
                beta1=settings.beta1,
                beta2=settings.beta2,
                weight_decay=settings.weight_decay if p.ndim > 1 else 0.0,
            )

    list(pool.map(apply, groups))
    state.step = step
    return report


def _even_groups(leaves: dict[str, Array], count: int) -> list[list[str]]:
    """Names in `count` groups of about the same number of elements."""
    groups: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(leaves, key=lambda name: -leaves[name].size):
        lightest = sizes.index(min(sizes))
        groups[lightest].append(name)
        sizes[lightest] += leaves[name].size
    return groups


def evaluate(
    params: Language, config: LanguageConfig, tokens: Array, pool: ThreadPoolExecutor, limit: int = 0
) -> tuple[float, int]:
    """Mean cross-entropy in nats per token over text cut into windows, and the number of tokens predicted."""

    def total(batch: Batch) -> tuple[float, int]:
        (logits, _, _), _ = forward(params, config, batch.ids)
        mean, _ = ops.cross_entropy(logits, batch.targets.reshape(-1))
        return float(mean) * batch.ids.size, batch.ids.size

    found = list(pool.map(total, evaluation_batches(tokens, config.context, max(1024 // config.context, 1), limit)))
    count = sum(n for _, n in found)
    return math.fsum(sum_ for sum_, _ in found) / count, count
