"""A trial: a function and inputs on which its backward is compared with measured slopes."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..gradcheck import TOLERANCE, MarginError, Report, check_gradients
from ..gradcheck.slopes import floats_of
from ..tree import values_of, with_values
from ..types import Operation
from .backwards import Place, running


class Trial(NamedTuple):
    """An operation, or a model as a function of its parameters, and inputs to check it on."""

    name: str
    operation: Operation
    inputs: tuple[Any, ...]  # in the order of the signature
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    analytic: bool = True  # whether the complex step works
    names: Sequence[str] | None = None  # of the inputs, where the signature doesn't tell

    def __str__(self) -> str:
        return f"{self.operation.__name__}: {self.name}"

    def report(self, method: str, seed: int) -> Report:
        return check_gradients(self.operation, *self.inputs, method=method, seed=seed, names=self.names, **self.options)

    def places(self) -> set[Place]:
        """Of the functions that run when the operation's backward does."""
        y, backward = self.operation(*self.inputs, **self.options)
        dys = [np.ones_like(f) for f in floats_of(y)]
        with running() as ran:
            backward(*dys)
        return ran


class Outcome(NamedTuple):
    """What came of a trial."""

    trial: Trial
    errors: dict[str, float]  # the worst relative error of each input; infinite where a rule is broken

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=np.inf)

    @property
    def ok(self) -> bool:
        return self.worst <= TOLERANCE


def carried_out(draw: Callable[[int], Trial], seed: int) -> Outcome:
    """The outcome of the trial that `draw(seed)` returns, by all methods that it allows; what is wrong goes to stderr.

    Where its sample has no margin, says so and draws another. Only central differences notice that, so they come first.
    """
    for attempt in range(20):
        drawn = seed + 1000 * attempt
        trial = draw(drawn)
        try:
            reports = [trial.report(m, drawn) for m in (("central", "complex") if trial.analytic else ("central",))]
        except MarginError as error:
            print(f"refused a sample and drew another: {error}", file=sys.stderr)
            continue
        for report in reports:
            if not report.ok:
                print(f"{trial}\n{report}", file=sys.stderr)
        if any(report.problems for report in reports):
            return Outcome(trial, {"a broken rule": np.inf})
        return Outcome(
            trial, {same[0].name: max(i.error for i in same) for same in zip(*(r.inputs for r in reports), strict=True)}
        )
    raise MarginError("twenty samples in a row had no margin")


def of_parameters(name: str, loss: Callable[..., Any], parameters: Any, *data: Any, analytic: bool = True) -> Trial:
    """The trial of a model: loss(parameters, *data) returns y, backward, and backward(dy) has the parameters' type."""
    values = values_of(parameters)

    def model(*arrays):
        y, backward = loss(with_values(parameters, dict(zip(values, arrays, strict=True))), *data)
        return y, lambda dy: tuple(values_of(backward(dy)).values())

    return Trial(name, model, tuple(values.values()), analytic=analytic, names=list(values))
