"""One step of training: a batch in, better parameters out.

    shard     the batch is cut into pieces, and each member of the team gets some
    reduce    each member computes loss and gradient of its pieces; then each adds up all gradients for its part of the leaves
    update    after clipping, each lets the optimiser change its part
    after     what goes by the load of the whole batch, and by the whole run: router biases, masks of sparse weights

Every sum has a fixed order, so on one machine the same settings give the same numbers to the last bit. What is
minimised is an `Objective`: nothing here knows a model.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..tree import values_of
from . import sparsify
from .hyperparameters import NotFinite, State, Training
from .objective import Examples, Objective
from .sparsify import Sparsity
from .tasks import (
    Leaf,
    ShardJobs,
    UpdateJob,
    add_gradients,
    leaves,
    of_params,
    score_batches,
    shard_gradients,
    slots_of,
    survey_shards,
    update_leaves,
)
from .team import Team
from .updates import clip_factor


class StepReport(NamedTuple):
    loss: float  # mean over what the batch predicts
    norm: float  # of the gradient, before clipping
    details: Any  # what the objective says of the batch


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

    def shard(self, batch: Examples) -> list[ShardJobs]:
        """What each member of the team has to do."""
        members = range(self.team.size)
        noise = (self.seed, self.state.step + 1)
        jobs = [ShardJobs(member, [], self.objective, noise, batch.predicted, list(self.leaves)) for member in members]
        pieces = np.array_split(np.arange(len(batch)), self.team.size * self.training.accumulate)
        for number, rows in enumerate(pieces):
            if len(rows):
                jobs[number % self.team.size].shards.append((number, batch.take(rows)))
        return jobs

    def reduce(self, jobs: list[ShardJobs]) -> StepReport:
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


def even_groups(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Names in `count` groups of about the same number of elements."""
    groups: list[list[str]] = [[] for _ in range(count)]
    filled = [0] * count
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        lightest = filled.index(min(filled))
        groups[lightest].append(name)
        filled[lightest] += sizes[name]
    return groups
