"""python -m tinymoe.recipes NAME [DIR]: upcycle, distill, prune, independent or search; a table, and a model to use.

Where a recipe starts from a model it takes the one in DIR, the folder of a training run, or trains a small one first.
The model it ends with goes to --out, for `python -m tinymoe.generate`.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import Parser, UserError, named_path, run
from ..optim.hyperparameters import NotFinite
from ..optim.one_core import one_core
from ..runs.settings import OPTIONS, flag
from .commands import DEFAULTS, SHAPE, TRAINING, Job, run_distill, run_independent, run_prune, run_search, run_upcycle

Option = tuple[str, type, Any, str]  # name, type, default, help


class Recipe(NamedTuple):
    run: Callable[[Job], int]
    help: str
    model: str  # what DIR is; empty where there is none
    options: tuple[Option, ...]


RECIPES = {
    "upcycle": Recipe(
        run_upcycle,
        "make a sparse model of a dense one (trained with every layer in --dense-layers), and train on",
        "the dense model",
        (
            ("noise", float, 0.0, "added to the copies, as a share of their own size"),
            ("split", int, None, "shards that a feed-forward is cut into (default: top-k, so no more work per token)"),
        ),
    ),
    "distill": Recipe(
        run_distill,
        "train a student with a teacher's probabilities, and the same student without",
        "the teacher",
        (
            ("student", str, "sparse", "its kind, sparse or dense; without DIR the teacher is of the other"),
            ("alpha", float, 0.9, "weight of the teacher, between 0 and 1"),
            ("temperature", float, 1.0, "softens the probabilities of both"),
            ("teacher_steps", int, 800, "without DIR: optimiser steps of the teacher"),
        ),
    ),
    "prune": Recipe(
        run_prune,
        "take out the experts that are missed least, and compare with other choices",
        "the sparse model",
        (
            ("keep", int, None, "experts to keep in each layer (default: half of them)"),
            ("tune", int, 100, "optimiser steps afterwards"),
        ),
    ),
    "independent": Recipe(
        run_independent,
        "train experts apart on parts of the text, choose, connect and train on; compare with joint training",
        "",
        (("parts", int, 6, "sections of equal length to cut the text into; the corpus toy has its five dialects"),),
    ),
    "search": Recipe(
        run_search,
        "successive halving over experts, top-k and expert width, all with the same expert weights per token",
        "",
        (
            ("budget", int, None, "top-k × expert width of every shape (default: that of the other flags)"),
            ("most", int, 16, "experts at most"),
            ("rungs", int, 3, "measurements; after each the better half goes on, to twice as many steps"),
        ),
    ),
}
LEAST = {
    "noise": 0,
    "tune": 0,
    "teacher_steps": 1,
    "split": 1,
    "keep": 1,
    "parts": 1,
    "budget": 1,
    "most": 1,
    "rungs": 1,
}
HELP = {"steps": "optimiser steps of each training", "seed": "draws all that is random"}


def parser() -> Parser:
    top = Parser(
        prog="python -m tinymoe.recipes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(__doc__ or "").partition(": ")[2],
    )
    recipes = top.add_subparsers(dest="recipe", required=True, metavar="NAME")
    for name, recipe in RECIPES.items():
        command = recipes.add_parser(name, help=recipe.help, description=recipe.help)
        if recipe.model:
            role = f"{recipe.model}, a folder (default: train a small one)"
            command.add_argument("folder", nargs="?", type=named_path, metavar="DIR", help=role)
        command.add_argument(
            "--out", type=named_path, metavar="DIR", help="folder for the result (default: a new one in runs/)"
        )
        command.add_argument("--overwrite", action="store_true", help="replace the run that is in --out")
        command.add_argument("--corpus", action="append", metavar="TEXT", help="as in tinymoe.train (default: pydoc)")
        for option in recipe.options:
            add(command, *option)
        for name, f in OPTIONS.items():
            if name in (*TRAINING, *SHAPE):
                text = HELP.get(name, f.metadata["help"])
                add(command, name, f.type, argparse.SUPPRESS, f"{text} (default: {DEFAULTS.get(name, f.default)})")
    return top


def add(command: Parser, name: str, kind: Any, default: Any, text: str) -> None:
    shown = text if default in (None, argparse.SUPPRESS) else f"{text} (default: {default})"
    metavar = {int: "N", float: "X", str: "NAME"}[kind]
    command.add_argument(flag(name), type=kind, default=default, metavar=metavar, help=shown)


def main(argv: list[str] | None = None) -> int:
    given = parser().parse_args(argv)
    for name, least in LEAST.items():
        value = getattr(given, name, None)
        if value is not None and not least <= value < float("inf"):
            raise UserError(f"{flag(name)} is {value}; it must be a finite number, at least {least}")
    if getattr(given, "student", "dense") not in ("sparse", "dense"):
        raise UserError(f"--student is {given.student!r}; choose sparse or dense")
    with one_core():
        try:
            job = Job(given)
            with job.held:
                return RECIPES[given.recipe].run(job)
        except NotFinite as error:
            raise UserError(f"{error}; train with a lower --lr") from None


if __name__ == "__main__":
    run(main, patient=True)
