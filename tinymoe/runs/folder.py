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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import UserError
from .checkpoint import write_atomically
from .settings import Settings, to_plain

CONFIG, METRICS, CHECKPOINT, MODEL = "config.toml", "metrics.jsonl", "checkpoint.safetensors", "model.safetensors"
FILES = (CONFIG, METRICS, CHECKPOINT, MODEL, "loss.png", "experts.png", "captions.png", "sample.txt")


def new_folder(out: Path | None, overwrite: bool, settings: Settings) -> Path:
    """Make the folder of a new run, with its config.toml: `out`, or the next number under runs/.

    Raises UserError where that can't be, or where `out` holds anything else than a run to be overwritten.
    """
    try:
        folder = out or _next_number(Path("runs"))
        folder.mkdir(parents=True, exist_ok=True)
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
    old = [folder / name for name in FILES if (folder / name).exists()]
    for file in old:
        if not file.is_file():
            raise UserError(f"{file} is not a file, so {folder} is not overwritten; choose another --out")
    for file in sorted(old, key=lambda file: file.name == CONFIG):  # the config last: until then it is a run
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
        write_atomically(folder / METRICS, "".join(kept).encode())
        self.file = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, **record: Any) -> None:
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
