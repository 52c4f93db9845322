"""python -m tinymoe.check: compares the gradients of the package numerically with slopes measured on the forward.

It looks through the source of the package for functions that carry gradients back. It calls operations and whole models
in float64; compares what their backwards return with slopes by central differences and, where the function allows it, by
the complex step; and notes which of the functions that it found run in these. Prints a line per operation and per
parameter of a model. Exits 1 if a relative error exceeds 1e-7, or if a function that was found runs in no comparison that
comes out right.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, partial

import numpy as np

from ..errors import Parser, UserError, run
from ..gradcheck import TOLERANCE
from .backwards import LEFT_OUT, Place, written
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


def print_report(group: Group, seed: int) -> tuple[float, set[Place]]:
    """Prints what came of a group; returns its worst error, and which functions ran in the trials that came out right."""
    by_operation: dict[str, list[float]] = defaultdict(list)
    checked: set[Place] = set()
    for outcome in outcomes(group, seed):
        by_operation[outcome.trial.operation.__name__].append(outcome.worst)
        if outcome.ok:
            checked |= outcome.trial.places()
        if group.by_input:
            print(f"\n{group.title}: {outcome.trial.name}")
            for name, error in outcome.errors.items():
                print(f"  {name:<36} {_shown(error)}")
    if not group.by_input:
        print(f"\n{group.title:<24} {'trials':>6}  worst relative error")
        for name, errors in by_operation.items():
            print(f"  {name:<22} {len(errors):>6}  {_shown(max(errors))}")
    return max(max(errors) for errors in by_operation.values()), checked


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

    found, checked, worst = written(), set[Place](), 0.0
    for group in GROUPS:
        error, ran = print_report(group, seed)
        worst, checked = max(worst, error), checked | ran
    forgotten = [backward for backward in found if backward.place not in checked]
    print()
    for folder, reason in LEFT_OUT.items():
        print(f"left out: tinymoe/{folder}, because {reason}")
    for backward in forgotten:
        print(f"not checked: {backward}")
    count = f"{len(forgotten)} not checked" if forgotten else "all checked"
    print(f"{len(found)} backward functions found, {count}; worst of all {_shown(worst)}, allowed {TOLERANCE:.0e}")
    return 1 if forgotten or worst > TOLERANCE else 0


if __name__ == "__main__":
    run(main)
