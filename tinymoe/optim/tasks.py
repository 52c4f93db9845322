"""What each member of a team does for a training step, on the arrays that all share.

params.NAME            a leaf of the parameters
gradient.MEMBER.NAME   a member's share of its gradient; that of member 0 becomes the sum
SLOT.NAME              what the optimiser remembers of it
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..tree import roles, values_of
from ..types import Array
from . import sparsify
from .hyperparameters import Training
from .objective import Objective
from .sparsify import Sparsity
from .updates import OPTIMIZERS, SLOTS, Slots, global_norm, lazy


class Leaf(NamedTuple):
    """A leaf and how it is updated."""

    name: str
    decays: bool
    by_row: bool  # its first axis is one of tokens or of experts, of which a batch may use a part
    sparse: bool  # the recipe for sparse weights works on it
    fixed: bool  # no gradient moves it


def leaves(params: Any, sparsity: Sparsity, only: str = "") -> list[Leaf]:
    """How each leaf is updated, by its roles."""
    return [
        Leaf(
            name,
            decays="matrix" in of,
            by_row=bool({"embedding", "expert"} & of),
            sparse=sparsity.on and "sparsifiable" in of,
            fixed="router bias" in of,
        )
        for name, of in roles(params).items()
        if not only or only in of
    ]


class ShardJobs(NamedTuple):
    member: int
    shards: list[tuple[int, Any]]  # with their number in the batch
    objective: Objective
    noise: tuple[int, int]  # seed and step
    predicted: int  # in the whole batch
    names: list[str]  # of the leaves that get a gradient

    def rng(self, number: int) -> np.random.Generator:
        """What draws noise and dropout for one shard of one step."""
        return np.random.default_rng([*self.noise, number])


class ShardReport(NamedTuple):
    share: float  # of the batch
    loss: float
    report: Any


class UpdateJob(NamedTuple):
    leaves: list[Leaf]
    training: Training
    sparsity: Sparsity
    factor: float  # of the gradient, for clipping
    step: int


def shard_gradients(arrays: dict[str, Array], job: ShardJobs) -> list[ShardReport]:
    """Leave in gradient.<member> what these shards contribute to the gradient of the batch; report each."""
    params = job.objective.params(of_params(arrays))
    gradient = {name: arrays[f"gradient.{job.member}.{name}"] for name in job.names}
    if not job.shards:
        for g in gradient.values():
            g.fill(0)
    reports = []
    for place, (number, shard) in enumerate(job.shards):
        share = shard.predicted / max(job.predicted, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # `Trainer.step` looks for it and says so in one sentence
            (loss, report), backward = job.objective(params, shard, job.rng(number))
            found = values_of(backward(share))
            for name, g in gradient.items():
                np.add(g if place else 0, found[name], out=g)
        reports.append(ShardReport(share, float(loss), report))
    return reports


def survey_shards(arrays: dict[str, Array], job: ShardJobs) -> list[Any]:
    """What the objective wants to know of each shard before any gradient."""
    params = job.objective.params(of_params(arrays))
    with np.errstate(over="ignore", invalid="ignore"):
        return [job.objective.survey(params, shard, job.rng(number)) for number, shard in job.shards]


def add_gradients(arrays: dict[str, Array], job: tuple[list[str], int]) -> float:
    """Add the members' gradients up in gradient.0, for some of the leaves; returns the norm of that part."""
    names, size = job
    with np.errstate(over="ignore", invalid="ignore"):
        for name in names:
            for member in range(1, size):
                arrays[f"gradient.0.{name}"] += arrays[f"gradient.{member}.{name}"]
        return global_norm(arrays[f"gradient.0.{name}"] for name in names)


def update_leaves(arrays: dict[str, Array], job: UpdateJob) -> None:
    """Let the optimiser change some of the leaves, within the bounds of the recipe for sparse weights."""
    training, sparsity = job.training, job.sparsity
    lr, beta2 = training.rate(job.step), training.beta2
    dense, slots = OPTIMIZERS[training.optimizer], SLOTS[training.optimizer]
    options = {"lr": lr, "step": job.step, "beta1": training.beta1, "beta2": beta2}
    for leaf in job.leaves:
        if leaf.fixed:
            continue
        p, g = arrays[f"params.{leaf.name}"], arrays[f"gradient.0.{leaf.name}"]
        if job.factor != 1:
            g *= job.factor
        if leaf.sparse:
            sparsify.penalize(p, g, sparsity)
        apply = lazy(dense) if training.lazy and leaf.by_row else dense
        decay = training.weight_decay if leaf.decays else 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            apply(p, g, slots_of(arrays, leaf.name, slots), weight_decay=decay, **options)
        if leaf.sparse:
            present = [slot for slot in (*slots, "mask") if f"{slot}.{leaf.name}" in arrays]
            memory = slots_of(arrays, leaf.name, present)
            sparsify.constrain(p, memory, sparsity, job.step, training.decay_steps, lr=lr, beta2=beta2)


def score_batches(arrays: dict[str, Array], job: tuple[Objective, list[Any]]) -> list[tuple[float, int]]:
    """Of each batch the sum of the losses, and how many they are."""
    objective, batches = job
    params = objective.params(of_params(arrays))
    with np.errstate(over="ignore", invalid="ignore"):
        return [objective.score(params, batch) for batch in batches]


def of_params(arrays: dict[str, Array]) -> dict[str, Array]:
    """The parameters among the arrays of a team."""
    return {name.removeprefix("params."): a for name, a in arrays.items() if name.startswith("params.")}


def slots_of(arrays: dict[str, Array], name: str, slots: Iterable[str]) -> Slots:
    return {slot: arrays[f"{slot}.{name}"] for slot in slots}
