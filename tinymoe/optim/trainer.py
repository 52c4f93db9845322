"""One step of training: a batch in, better parameters out.

    shard     the batch is cut into pieces, and each member of the team gets some
    reduce    each member computes loss and gradient of its pieces; then each adds up all gradients for its part of the leaves
    update    after clipping, each lets the optimiser change its part
    after     what goes by the load of the whole batch, and by the whole run: router biases, masks of sparse weights

Every sum has a fixed order, so the same settings give the same numbers to the last bit. What is minimised is an `Objective`:
nothing here knows a model.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..options import check_options, option
from ..tree import roles, values_of
from . import sparsify
from .sparsify import Sparsity
from .team import Team
from .updates import OPTIMIZERS, SLOTS, Slots, clip_factor, global_norm, lazy, learning_rate, new_slots

Array = np.ndarray


@dataclass(frozen=True)
class Training:
    """What a step depends on, beside the batch. Raises ValueError for what makes no sense."""

    batch_size: int = option(12, "windows per optimiser step (B)", "optimisation")
    accumulate: int = option(
        1, "compute the batch in so many passes, one after another, to save memory; see --workers", "optimisation"
    )
    optimizer: str = option("adamw", "AdamW, or SGD with momentum", "optimisation", choices=tuple(OPTIMIZERS))
    lr: float = option(2e-3, "peak learning rate", "optimisation", above=0.0)
    final_lr: float = option(
        0.05, "learning rate at the end of the cosine, as a share of the peak", "optimisation", least=0.0
    )
    warmup: int = option(100, "steps in which the learning rate rises from 0", "optimisation", least=0)
    decay_steps: int = option(
        0,
        "step at which the cosine ends; 0 means the preset's number of steps, or --steps if "
        "that is more, so that stopping early and resuming changes nothing",
        "optimisation",
        least=0,
    )
    beta1: float = option(0.9, "AdamW's decay of the mean, SGD's momentum", "optimisation", least=0.0, below=1.0)
    beta2: float = option(0.95, "AdamW's decay of the mean square", "optimisation", least=0.0, below=1.0)
    weight_decay: float = option(1.0, "times the learning rate, on matrices only", "optimisation", least=0.0)
    clip: float = option(1.0, "largest global norm of the gradient; 0 for no limit", "optimisation", least=0.0)
    lazy: bool = option(
        False,
        "update only the embedding rows and experts that were used; the moments of the others stand still",
        "optimisation",
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate is {self.accumulate}, more than the {self.batch_size} windows of a batch")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return learning_rate(step, self.lr, self.warmup, self.decay_steps, self.final_lr * self.lr)


class Examples(Protocol):
    """A batch: a number of examples, of which some can be taken."""

    def __len__(self) -> int: ...

    def take(self, rows: Array) -> "Examples": ...

    @property
    def predicted(self) -> int:
        """What its mean loss weighs: the number of things it predicts."""
        ...


class Objective:
    """What is minimised, and what it means for parameters to be a model. Every member of the team gets a copy.

    `(loss, report), backward = objective(params, batch, rng)`, with backward(share) → a gradient of the type of params,
    `share` times that of the mean loss of the batch; `rng` draws noise and dropout.
    """

    def params(self, leaves: dict[str, Array]) -> Any:
        """The parameters around these numbers, by dotted name."""
        raise NotImplementedError

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator) -> tuple[tuple[Any, Any], Any]:
        raise NotImplementedError

    def score(self, params: Any, batch: Any) -> tuple[float, int]:
        """In evaluation: the sum of the losses of a batch, and how many they are."""
        raise NotImplementedError

    asks_first = False  # whether all shards are surveyed before any gradient

    def survey(self, params: Any, batch: Any, rng: np.random.Generator) -> Any:
        """What the others must know of a shard, from a forward pass with the noise of the real one."""

    def informed(self, surveys: Sequence[Any]) -> "Objective":
        """This objective, knowing what was found in all shards of the batch."""
        return self

    def merged(self, reports: Sequence[tuple[float, Any]]) -> Any:
        """One report of the batch from those of its shards and their shares of it."""

    def after(self, params: Any, report: Any) -> None:
        """Change what no gradient changes, in place."""


@dataclass
class State:
    """Parameters, the optimiser's memory of each leaf by name, and how far training has come."""

    params: Any
    slots: dict[str, Slots]
    step: int = 0
    seconds: float = 0.0  # spent training, over all sessions


def fresh(params: Any, training: Training) -> State:
    """Parameters with an optimiser that has seen nothing."""
    return State(params, {name: new_slots(training.optimizer, p) for name, p in values_of(params).items()})


class NotFinite(ArithmeticError):
    """The loss, the gradient or a parameter is no longer a number."""


class StepReport(NamedTuple):
    loss: float  # mean over what the batch predicts
    norm: float  # of the gradient, before clipping
    details: Any  # what the objective says of the batch


class Leaf(NamedTuple):
    """A leaf and how it is updated."""

    name: str
    decays: bool
    by_row: bool  # its first axis is one of tokens or of experts, of which a batch may use a part
    sparse: bool  # the recipe for sparse weights works on it
    fixed: bool  # no gradient moves it


class Trainer:
    """Trains a state in place. From `__enter__` to `__exit__` a team of processes is at work."""

    def __init__(
        self,
        state: State,
        objective: Objective,
        training: Training,
        *,
        sparsity: Sparsity | None = None,
        workers: int = 1,
        seed: int = 0,
        only: str = "",
    ) -> None:
        """`seed` draws noise and dropout; with `only`, leaves without that role stay as they are."""
        self.state, self.objective, self.training, self.seed = state, objective, training, seed
        self.sparsity, self.workers, self.only = sparsity or Sparsity(), workers, only

    def __enter__(self) -> "Trainer":
        state, size = self.state, self.workers
        params = {name: p if p.flags.writeable else p.copy() for name, p in values_of(state.params).items()}
        self.leaves = {leaf.name: leaf for leaf in leaves(state.params, self.sparsity, self.only)}
        arrays = {f"params.{name}": p for name, p in params.items()}
        arrays |= {f"{slot}.{name}": a for name, slots in state.slots.items() for slot, a in slots.items()}
        arrays |= {
            f"gradient.{member}.{name}": np.zeros_like(params[name]) for member in range(size) for name in self.leaves
        }
        self.team = Team(size, arrays)
        state.params = self.params
        state.slots = {name: slots_of(self.team.arrays, name, slots) for name, slots in state.slots.items()}
        self.groups = even_groups({name: params[name].size for name in self.leaves}, size)
        return self

    def __exit__(self, *_: object) -> None:
        self.state.params = self.params
        self.team.__exit__()

    @property
    def params(self) -> Any:
        """The parameters as they are now: dense ones share memory with the trainer, sparse ones are copies."""
        return self.objective.params(of_params(self.team.arrays))

    def step(self, batch: Examples) -> StepReport:
        """One optimiser step. Raises NotFinite, with the state as it was, when loss or gradient is not finite."""
        report = self.reduce(self.shard(batch))
        if not (math.isfinite(report.loss) and math.isfinite(report.norm)):
            raise NotFinite(
                f"the loss is {report.loss:.3g} and the norm of the gradient {report.norm:.3g} at step {self.state.step + 1}"
            )
        self.update(clip_factor(report.norm, self.training.clip))
        self.after_update(report)
        self.state.step += 1
        return report

    def shard(self, batch: Examples) -> list["ShardJobs"]:
        """What each member of the team has to do."""
        members = range(self.team.size)
        noise = (self.seed, self.state.step + 1)
        jobs = [ShardJobs(member, [], self.objective, noise, batch.predicted, list(self.leaves)) for member in members]
        pieces = np.array_split(np.arange(len(batch)), self.team.size * self.training.accumulate)
        for number, rows in enumerate(pieces):
            if len(rows):
                jobs[number % self.team.size].shards.append((number, batch.take(rows)))
        return jobs

    def reduce(self, jobs: list["ShardJobs"]) -> StepReport:
        """Loss and gradient of the batch; the gradient is then in the arrays `gradient.0.…`."""
        if self.objective.asks_first:
            found = [survey for surveys in self.team.run(survey_shards, jobs) for survey in surveys]
            jobs = [job._replace(objective=self.objective.informed(found)) for job in jobs]
        shards = [shard for shards in self.team.run(shard_gradients, jobs) for shard in shards]
        sums = [([leaf.name for leaf in self.group(group)], self.team.size) for group in self.groups]
        norm = math.hypot(*self.team.run(add_gradients, sums))
        loss = sum(shard.share * shard.loss for shard in shards)
        return StepReport(loss, norm, self.objective.merged([(shard.share, shard.report) for shard in shards]))

    def update(self, factor: float) -> None:
        """Let the optimiser change the parameters, with `factor` times the gradient."""
        common = self.training, self.sparsity, factor, self.state.step + 1
        self.team.run(update_leaves, [UpdateJob(self.group(group), *common) for group in self.groups])

    def after_update(self, report: StepReport) -> None:
        """What goes by the whole batch, or by the whole run."""
        self.objective.after(self.state.params, report.details)
        if self.sparsity.on:
            params = values_of(self.state.params)
            weights = {name: params[name] for name, leaf in self.leaves.items() if leaf.sparse}
            gradients = {name: self.team.arrays[f"gradient.0.{name}"] for name in weights}
            step, end = self.state.step + 1, self.training.decay_steps
            sparsify.revise(weights, gradients, self.state.slots, self.sparsity, step, end)

    def evaluate(self, batches: Iterable[Examples]) -> tuple[float, int]:
        """Mean loss over some batches, and what it is a mean of: the number of things predicted."""
        given = list(batches)
        jobs = [(self.objective, given[member :: self.team.size]) for member in range(self.team.size)]
        totals = [pair for found in self.team.run(score_batches, jobs) for pair in found]
        count = sum(n for _, n in totals)
        return math.fsum(total for total, _ in totals) / count, count

    def group(self, names: list[str]) -> list[Leaf]:
        return [self.leaves[name] for name in names]


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


# What follows is run by every member of the team, on the arrays that they share.


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


def even_groups(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Names in `count` groups of about the same number of elements."""
    groups: list[list[str]] = [[] for _ in range(count)]
    filled = [0] * count
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        lightest = filled.index(min(filled))
        groups[lightest].append(name)
        filled[lightest] += sizes[name]
    return groups
