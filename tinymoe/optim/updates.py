"""Optimisers: functions that change parameters in place, given gradients and a state of the same shape.

Every update is elementwise, so leaves can be updated in any order and on any thread with the same result to the bit.
Long arrays are worked on in chunks that stay in the cache, since AdamW passes over its data a dozen times.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..types import Array

Slots = dict[str, Array]  # what an optimiser remembers about one leaf

CHUNK = 1 << 15  # elements; five such float32 arrays are 640 kB


def sgd(
    parameter: Array,
    gradient: Array,
    slots: Slots,
    *,
    lr: float,
    beta1: float = 0.9,
    weight_decay: float = 0.0,
    **_: Any,
) -> None:
    """Stochastic gradient descent (随机梯度下降) with momentum β₁ and decoupled weight decay, in place.

        v ← β₁v + g        θ ← θ − lr (v + weight_decay·θ)

    slots: `velocity`, zeros at the start.
    Source: Polyak 1964; the untitled document on sparse experts as a new view of the LLM calls SGD 稀疏梯度下降
    ("sparse"), §4; the S stands for stochastic.
    """
    for θ, g, v in _chunks(parameter, gradient, slots["velocity"]):
        v *= beta1
        v += g
        step = v + weight_decay * θ
        step *= lr
        θ -= step


def adamw(
    parameter: Array,
    gradient: Array,
    slots: Slots,
    *,
    lr: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    **_: Any,
) -> None:
    """Adam with decoupled weight decay, in place.

        m ← β₁m + (1−β₁)g        v ← β₂v + (1−β₂)g²
        θ ← θ − lr ( m̂ / (√v̂ + eps) + weight_decay·θ ),    m̂ = m/(1−β₁ᵗ),  v̂ = v/(1−β₂ᵗ),  t = `step`, from 1

    An expert without tokens has zero gradients; its moments decay and it still moves a little: this is plain Adam.
    slots: `mean` and `square`, zeros at the start.
    Source: Loshchilov & Hutter 2019, algorithm 2; Kingma & Ba 2015.
    """
    rate = lr / (1 - beta1**step)
    root = 1 / math.sqrt(1 - beta2**step)
    for θ, g, m, v in _chunks(parameter, gradient, slots["mean"], slots["square"]):
        m *= beta1
        work = g * (1 - beta1)
        m += work
        np.multiply(g, g, out=work)
        work *= 1 - beta2
        v *= beta2
        v += work
        np.sqrt(v, out=work)
        work *= root
        work += eps
        np.divide(m, work, out=work)
        work *= rate
        if weight_decay:
            θ *= 1 - lr * weight_decay
        θ -= work


def lazy(update: Any) -> Any:
    """The same update, only for the rows (along the first axis) whose gradient is not all zero.

    The rows of an untied embedding that a batch does not contain, and experts without tokens, keep weights and moments
    to the bit, without decay: the document's Δw_i = 0 for i ∉ A. For SGD without momentum and decay that is the dense
    update; for Adam it is not: there a row's moments decay, and move it, in every step.

    Source: the untitled document on the 稀疏门控 (sparse gate), §4; torch.optim.SparseAdam for the name's meaning.
    """

    def lazy_update(parameter: Array, gradient: Array, slots: Slots, **options: Any) -> None:
        used = gradient.reshape(len(gradient), -1).any(1)
        edges = np.flatnonzero(np.diff(used, prepend=False, append=False)).reshape(-1, 2)
        for first, last in edges.tolist():  # each run of used rows
            rows = slice(first, last)
            update(parameter[rows], gradient[rows], {name: slot[rows] for name, slot in slots.items()}, **options)

    return lazy_update


OPTIMIZERS: dict[str, Any] = {"adamw": adamw, "sgd": sgd}
SLOTS = {"adamw": ("mean", "square"), "sgd": ("velocity",)}


def new_slots(optimizer: str, parameter: Array) -> Slots:
    """The state of one leaf before the first step."""
    return {slot: np.zeros_like(parameter) for slot in SLOTS[optimizer]}


def learning_rate(step: int, peak: float, warmup: int, decay_steps: int, floor: float) -> float:
    """Linear warm-up, then half a cosine down to the floor.

        step ≤ warmup:        peak · step / warmup
        up to decay_steps:    floor + (peak − floor) · ½ (1 + cos(π (step − warmup) / (decay_steps − warmup)))
        later:                floor

    `step` counts from 1. Source: Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    if step <= warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(decay_steps - warmup, 1), 1.0)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def global_norm(gradients: Iterable[Array]) -> float:
    """√(Σ g²) over all elements of all arrays."""
    return math.sqrt(sum(float(np.vdot(g, g)) for g in gradients))


def clip_factor(norm: float, limit: float) -> float:
    """What to multiply gradients with so that their global norm is at most `limit`; 1 when it is, or when limit is 0.

    Source: Pascanu, Mikolov & Bengio 2013, algorithm 1.
    """
    return limit / norm if 0 < limit < norm else 1.0


def _chunks(*arrays: Array) -> Iterator[list[Array]]:
    """Views of CHUNK elements into each of several C-contiguous arrays of one size."""
    flat = [a.reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, CHUNK):
        yield [a[start : start + CHUNK] for a in flat]
