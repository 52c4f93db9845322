"""From a command line to a run that is ready to start."""

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from ..data import corpora
from ..data.sources import CaptionSource, TextSource, new_source
from ..errors import Parser, UserError, named_path
from ..models.balancing import LOSSES
from ..models.config import ROUTERS
from ..optim import sparsify
from ..optim.hyperparameters import State
from ..runs.files import remove_leftovers
from ..runs.folder import FILES, locked, new_folder
from ..runs.settings import OPTIONS, PRESET_HELP, PRESETS, Settings, flag, resolve
from ..runs.state import new_state
from .resume import RESUMABLE, resumed

DESCRIPTION = """Train a language model with sparse experts on text, in NumPy.

Without flags: two minutes on the documentation that comes with Python. Results go to a folder: config.toml,
metrics.jsonl (a record per step), model.safetensors, loss.png, experts.png (load of each expert over time) and
sample.txt. Ctrl-C, SIGTERM or closing the terminal saves what there is; --resume goes on, with the same numbers as if
nothing had happened."""


EXAMPLES = """examples:
  python -m tinymoe.train
  python -m tinymoe.train --corpus my.txt --out runs/mine --steps 3000
  python -m tinymoe.train --resume runs/mine --steps 4000
  python -m tinymoe.train --task caption
"""


def lists() -> str:
    """What the help ends with: the names that can be chosen, and what they mean."""
    recipes = (sparsify.__doc__ or "").split("\n\n")[1]
    bias = "no loss: a bias of each expert that enters the choice only moves with the load (DeepSeek-V3)"
    return (
        f"presets:\n{_listed(PRESET_HELP)}\n\nrouters:\n{_listed(ROUTERS)}\n\n"
        f"losses for --balance:\n{_listed({**LOSSES, 'bias': bias})}\n\n"
        f"recipes for --sparsity:\n{recipes}\n\n{EXAMPLES}"
    )


def parser() -> Parser:
    """The command line, made from the options of a run."""
    parser = Parser(
        prog="python -m tinymoe.train",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=lists(),
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--out", type=named_path, metavar="DIR", help="folder for the results (default: a new number under runs/)"
    )
    files.add_argument(
        "--resume",
        type=named_path,
        metavar="DIR",
        help="go on with the run in DIR from its last checkpoint; of "
        f"the other flags only {', '.join(flag(n) for n in sorted(RESUMABLE))} can be given with it",
    )
    files.add_argument("--overwrite", action="store_true", help="replace the run that is in --out")
    files.add_argument(
        "--config",
        type=named_path,
        metavar="FILE.toml",
        help="read settings from a file such as a run's config.toml; flags override it",
    )
    headings = dict.fromkeys(f.metadata["group"] for f in OPTIONS.values())
    groups = {heading: parser.add_argument_group(heading) for heading in headings}
    for name, f in OPTIONS.items():
        several = get_origin(f.type) is tuple
        options: dict[str, Any] = {"type": get_args(f.type)[0] if several else f.type, "default": argparse.SUPPRESS}
        shown = " ".join(map(str, f.default)) or "none" if isinstance(f.default, tuple) else f.default
        options["help"] = f"{f.metadata['help']} (default: {PRESETS['default'].get(name, shown)})".replace("%", "%%")
        if several:
            options["action"] = "append"
        if f.type is bool:
            del options["type"]
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = f.metadata.get("metavar", "X" if f.type is float else "NAME" if f.type is str else "N")
        if "choices" in f.metadata:
            options["help"] += f"; one of {', '.join(f.metadata['choices'])}"
        groups[f.metadata["group"]].add_argument(flag(name), **options)
    return parser


def _listed(described: dict[str, str]) -> str:
    return "\n".join(f"  {name:<14} {text}" for name, text in described.items())


@dataclass
class Prepared:
    """A run that is ready to start: what the user gave has been checked."""

    folder: Path
    settings: Settings
    state: State
    source: TextSource | CaptionSource
    held: ExitStack  # the lock of the folder


def prepare(argv: list[str] | None = None) -> Prepared:
    """Read flags, corpora and the folder; raises UserError before anything is written."""
    with ExitStack() as held:
        work = _prepare(argv, held)
        work.held = held.pop_all()
        return work


def _prepare(argv: list[str] | None, held: ExitStack) -> Prepared:
    flags = vars(parser().parse_args(argv))
    out, resume, overwrite, config = (flags.pop(name) for name in ("out", "resume", "overwrite", "config"))
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}
    if resume:
        if out or overwrite or config or flags.keys() - set(RESUMABLE):
            raise UserError(
                f"with --resume only {', '.join(map(flag, RESUMABLE))} can be given; the other settings are "
                "those of the run"
            )
        held.enter_context(locked(resume))
        settings, state, sha256 = resumed(resume, flags)
        remove_leftovers(resume, FILES)
    else:
        settings, state, sha256 = resolve(flags, config), None, None
        here = tuple(map(corpora.absolute, settings.data.corpus))
        settings = settings.but(corpus=here)  # so that the run can be resumed from anywhere
    source, model = new_source(settings.data, settings.model.context, settings.run.seed), settings.model
    if model.position in ("learned", "sinusoidal") and source.context > model.context:
        raise UserError(
            f"the longest caption has {source.context} bytes, but --context {model.context} gives only so many positions; "
            f"give --context {source.context} or --position rotary"
        )
    if sha256 not in (None, source.sha256):
        raise UserError(
            f"the corpus {source.name} is not the text that {resume} was trained on (sha256 "
            f"{source.sha256[:12]} instead of {str(sha256)[:12]}); restore it, or train anew"
        )
    state = state or new_state(settings)
    return Prepared(resume or new_folder(out, overwrite, settings, held), settings, state, source, held)
