"""Which shape of sparse model is best at one price per token? Successive halving over (experts, top_k, expert width).

Every candidate has the same K·F: a token meets as many expert weights in each. All are trained for a few steps, the worse
half is dropped, the rest is trained on to twice as many steps, and so on. The learning rate stays constant after its
warm-up, since a schedule that ends early would favour whoever is measured at its end.

Source: Jamieson & Talwalkar 2016; 《稀疏专家模型》 §8.2 (神经架构搜索).
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..models.accounting import active_parameters, parameters_by_part
from ..models.config import LanguageConfig
from ..models.parameters import Language
from ..runs import plots
from ..runs.settings import Settings
from ..types import Array
from .fit import Model, advance, evaluate, new_model, start

C = TypeVar("C", bound=Hashable)


class Shape(NamedTuple):
    experts: int  # 1: dense
    top_k: int
    expert_width: int

    def __str__(self) -> str:
        kind = "dense" if self.experts == 1 else f"top-{self.top_k} of {self.experts}"
        return f"{kind}, width {self.expert_width}"


class Result(NamedTuple):
    shape: Shape
    steps: int
    loss: float  # on validation text, nats per token
    seconds: float  # of processor time per training step, which other programs at work do not change much
    total: int  # parameters
    active: int  # of them at work on a token


def shapes(budget: int, most: int = 16) -> list[Shape]:
    """The dense shape of width K·F = `budget`, and top-1, 2 and 4 of 2, 4, 8, … up to `most` or 64 experts."""
    sparse = [
        Shape(experts, k, budget // k)
        for k in (1, 2, 4)
        for experts in (2, 4, 8, 16, 32, 64)
        if k < experts <= most and budget % k == 0
    ]
    return [Shape(1, 1, budget), *sparse]


def halving(
    candidates: Sequence[C], measure: Callable[[C, int], float], steps: int, rungs: int
) -> list[dict[C, float]]:
    """Losses by candidate on each rung: all of them after `steps` steps, the better half after 2·steps, and so on.

    `measure(candidate, steps)` trains a candidate on to so many steps in all and returns its loss.
    """
    found, alive = [], list(candidates)
    for rung in range(rungs):
        losses = {candidate: measure(candidate, steps << rung) for candidate in alive}
        found.append(losses)
        alive = sorted(alive, key=losses.__getitem__)[: max(len(alive) // 2, 1)]
    return found


def pareto(costs: Array, losses: Array) -> Any:
    """(n,) bool: the points that no other one beats in cost or loss without being worse in the other."""
    no_worse = (costs[:, None] <= costs) & (losses[:, None] <= losses)
    better = (costs[:, None] < costs) | (losses[:, None] < losses)
    return ~(no_worse & better).any(0)


def search(settings: Settings, candidates: Sequence[Shape], train: Array, val: Array, rungs: int) -> Any:
    """Successive halving of candidates, the first rung after the settings' steps. Returns (results, best model)."""
    states: dict[Shape, Any] = {}
    results: list[Result] = []

    def measure(shape: Shape, steps: int) -> float:
        own = with_candidate(settings, shape)
        state = states.get(shape) or start(new_model(own.model, own.run.seed), own)
        states[shape] = state
        done, began = state.step, time.process_time()
        advance(state, own.model, own, train, steps)
        seconds = (time.process_time() - began) / max(steps - done, 1)
        loss = evaluate(Model(state.params, own.model), val, 200)
        results.append(Result(shape, steps, loss, seconds, *parameters(state.params, own.model)))
        return loss

    last = halving(candidates, measure, settings.run.steps, rungs)[-1]
    best = min(last, key=last.__getitem__)
    return results, Model(states[best].params, with_candidate(settings, best).model)


def with_candidate(settings: Settings, shape: Shape) -> Settings:
    """The settings with this shape, at a constant learning rate."""
    dense = tuple(range(settings.model.layers)) if shape.experts == 1 else ()
    return settings.but(**shape._asdict(), dense_layers=dense, final_lr=1.0)


def parameters(params: Language, config: LanguageConfig) -> tuple[int, int]:
    """(all, those at work on a token)."""
    return sum(parameters_by_part(params).values()), active_parameters(params, config)


def unbeaten(results: Sequence[Result]) -> list[bool]:
    """Which are on the Pareto front of parameters and loss among those with as many steps."""
    rungs = {steps: [r for r in results if r.steps == steps] for steps in {r.steps for r in results}}
    fronts = {
        rung[i]
        for rung in rungs.values()
        for i in np.flatnonzero(pareto(np.array([r.total for r in rung]), np.array([r.loss for r in rung])))
    }
    return [r in fronts for r in results]


def draw(results: Sequence[Result]) -> Any:
    """Validation loss against all parameters, a colour and a Pareto front for each rung."""
    figure, (axes,) = plots.new_figure(1, 4.8)
    first = dict(zip(results, unbeaten(results), strict=True))
    for number, steps in enumerate(sorted({r.steps for r in results})):
        rung = sorted((r for r in results if r.steps == steps), key=lambda r: r.total)
        front = [r for r in rung if first[r]]
        color = f"C{number}"
        axes.plot([r.total for r in rung], [r.loss for r in rung], "o", color=color, markersize=4)
        axes.step([r.total for r in front], [r.loss for r in front], where="post", color=color, label=f"{steps} steps")
        for r in front:
            axes.annotate(str(r.shape), (r.total, r.loss), (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="parameters", xscale="log", ylabel="validation loss, nats per byte")
    axes.set_title("Equal expert weights per token; the lines join what no other shape beats", fontsize=10)
    axes.legend()
    return figure
