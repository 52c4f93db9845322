"""Going on with a run: its settings and its state as they were left, and what may be set anew."""

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..optim.hyperparameters import State
from ..runs.files import check_plain
from ..runs.folder import CHECKPOINT, CONFIG, FILES, MODEL
from ..runs.settings import OPTIONS, Settings, read_toml
from ..runs.state import load_state

# what a resumed run may set anew, by a flag or in config.toml
RESUMABLE = ("steps", "eval_every", "checkpoint_every", "sample_tokens")


def resumed(folder: Path, flags: dict[str, Any]) -> tuple[Settings, State | None, str | None]:
    """Settings, state (None before the first checkpoint) and the corpus's sha256 of the run in a folder.

    Raises UserError where something is missing, damaged, or from another run.
    """
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} is not the folder of a run (it has no {CONFIG})")
    check_plain(folder / name for name in FILES)
    written = read_toml(folder / CONFIG)
    if written.keys() != OPTIONS.keys():
        raise UserError(f"{folder / CONFIG} is incomplete or of another version; restore it, or train anew")
    if not (folder / CHECKPOINT).exists():
        if (folder / MODEL).exists():
            raise UserError(
                f"{folder} has a model but no {CHECKPOINT} to go on from; restore it, or train anew elsewhere"
            )
        return Settings.of(**{**written, **flags}), None, None  # stopped before the first checkpoint
    state, settings, sha256 = load_state(folder)
    trained = settings.flat()
    changed = [n for n, v in written.items() if n not in RESUMABLE and v != trained[n]]
    if changed:
        raise UserError(
            f"{folder / CONFIG} and the checkpoint beside it differ in {', '.join(changed)}: one of them is from another "
            "run; restore it, or train anew"
        )
    settings = settings.but(**{**{name: written[name] for name in RESUMABLE}, **flags})
    if settings.run.steps < state.step:
        raise UserError(f"{folder} has already done {state.step} steps; give --steps above that to go on")
    return settings, state, sha256
