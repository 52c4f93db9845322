"""The folder of a training run: what it holds, how it is made, and how it is found again.

config.toml              all settings, resolved; `--config` reads it
metrics.jsonl            one record per training step and per evaluation
checkpoint.safetensors   parameters and optimiser: what `--resume` goes on from
model.safetensors        the parameters alone, for `tinymoe.generate`
loss.png, experts.png    pictures of metrics.jsonl
sample.txt               text that the model wrote at the end
captions.png             of a captioning run: pictures and what the model says of them
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import tomli_w

from ..errors import UserError
from .files import check_plain, naming, remove_leftovers, write_atomically
from .settings import Settings, to_plain

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

CONFIG, METRICS, CHECKPOINT, MODEL = "config.toml", "metrics.jsonl", "checkpoint.safetensors", "model.safetensors"
FILES = (CONFIG, METRICS, CHECKPOINT, MODEL, "loss.png", "experts.png", "captions.png", "sample.txt")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While inside, the folder is this process's own; raises UserError if it is another's.

    The lock ends with its process, however that ends. A folder that isn't there, or on a file system or an operating
    system without such locks, is not locked.
    """
    number = None
    try:
        if fcntl is not None:
            try:
                number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is at work in {folder}; wait for its end, or stop it first") from None
            except OSError:
                pass
        yield
    finally:
        if number is not None:
            os.close(number)


def new_folder(out: Path | None, overwrite: bool, settings: Settings, held: ExitStack) -> Path:
    """Make the folder of a new run, with its config.toml: `out`, or the next number under runs/; locked until `held` ends.

    Raises UserError where that can't be, or where `out` holds anything else than a run to be overwritten.
    """
    try:
        folder = out or _next_number(Path("runs"))
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(folder))
        remove_leftovers(folder, FILES)
        if any(folder.iterdir()):
            _make_room(folder, overwrite)
        write_config(folder, settings)
    except OSError as error:
        raise UserError(f"can't write to {out or 'runs/'}: {error.strerror}; choose another --out") from None
    return folder


def _make_room(folder: Path, overwrite: bool) -> None:
    if not overwrite:
        raise UserError(
            f"{folder} is not empty; go on with --resume {folder}, replace it with --overwrite, or choose another --out"
        )
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} holds files but no {CONFIG}, so it is not a run and is not overwritten; choose another --out"
        )
    check_plain(folder / name for name in FILES)
    old = [folder / name for name in FILES if (folder / name).exists()]
    for file in old:
        if file.name != CONFIG:  # this one is replaced: with it the folder is a run at each moment
            file.unlink()


def _next_number(parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    number = max((int(f.name) for f in parent.iterdir() if f.name.isdecimal()), default=0)
    while True:
        number += 1
        try:
            (parent / f"{number:03}").mkdir()
        except FileExistsError:
            continue  # another run was quicker
        return parent / f"{number:03}"


def write_config(folder: Path, settings: Settings) -> None:
    write_atomically(folder / CONFIG, tomli_w.dumps(to_plain(settings)).encode())


class Metrics:
    """metrics.jsonl, open for appending."""

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        """Go on after `last_step`: later records, and a half-written last line, are dropped."""
        kept = [json.dumps(r) + "\n" for r in read_metrics(folder) if r["step"] <= last_step]
        self.path = folder / METRICS
        write_atomically(self.path, "".join(kept).encode())
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self.path):  # with what could not be written before
            self.file.close()

    def add(self, **record: Any) -> None:
        with naming(self.path):
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()


def is_record(record: dict[str, Any]) -> bool:
    """Whether it has what the pictures need."""
    known = record.get("split") in ("train", "val") and isinstance(record.get("loss"), float)
    return known and (record["split"] == "val" or isinstance(record.get("load"), list))


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole records of metrics.jsonl, oldest first."""
    path = folder / METRICS
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off by a crash
            if isinstance(record, dict) and isinstance(record.get("step"), int) and is_record(record):
                yield record
