"""python -m tinymoe.check: compares the gradients of the package numerically with slopes measured on the forward.

It calls operations and whole models in float64, and compares what their backwards return with slopes by central
differences and, where the function allows it, by the complex step. Prints a line per operation and per parameter of a
model. Exits 1 if a relative error exceeds 1e-7.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, partial

import numpy as np

from ..errors import Parser, UserError, run
from ..gradcheck import TOLERANCE
from .trial import Outcome, Trial, carried_out
from .trials import GROUPS, Group


def outcomes(group: Group, seed: int) -> Iterator[Outcome]:
    """Of each trial of a group."""

    @cache
    def drawn(seed: int) -> list[Trial]:
        return list(group.trials(np.random.default_rng(seed)))

    def draw(place: int, seed: int) -> Trial:
        return drawn(seed)[place]

    for place in range(len(drawn(seed))):
        yield carried_out(partial(draw, place), seed)


def print_report(group: Group, seed: int) -> float:
    """Prints what came of a group; returns its worst error."""
    by_operation: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes(group, seed):
        by_operation[outcome.trial.operation.__name__].append(outcome.worst)
        if group.by_input:
            print(f"\n{group.title}: {outcome.trial.name}")
            for name, error in outcome.errors.items():
                print(f"  {name:<36} {_shown(error)}")
    if not group.by_input:
        print(f"\n{group.title:<24} {'trials':>6}  worst relative error")
        for name, errors in by_operation.items():
            print(f"  {name:<22} {len(errors):>6}  {_shown(max(errors))}")
    return max(max(errors) for errors in by_operation.values())


def _shown(error: float) -> str:
    return f"{error:.1e}" if error <= TOLERANCE else f"{error:.1e}  WRONG"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m tinymoe.check",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the inputs; another seed, other inputs (default 0)")
    seed = parser.parse_args(argv).seed
    if seed < 0:
        raise UserError(f"--seed is {seed}; it must be 0 or more")

    worst = max(print_report(group, seed) for group in GROUPS)
    print(f"\nworst of all {_shown(worst)}, allowed {TOLERANCE:.0e}")
    return 1 if worst > TOLERANCE else 0


if __name__ == "__main__":
    run(main)
