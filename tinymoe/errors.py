"""What a user can set, and what is said of a mistake: one sentence, no traceback.

Settings come in parts: frozen dataclasses whose fields say what a user needs to know, and which check themselves.

    @dataclass(frozen=True)
    class Part:
        steps: int = option(100, "how many steps to take", "run")
        rate: float = option(0.1, "how far a step goes", "run", above=0.0)

        def __post_init__(self) -> None:
            check_options(self)

A field made by `option` can be set by a flag and in config.toml; flags, help and types come from here, once. A field without
it is an ordinary one, filled in by the program. Numbers are at least 1 unless `least` or `above` says something else.
"""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, NoReturn


class UserError(Exception):
    """Bad input. The message says what was given, what is allowed and how to mend it; commands exit with status 2."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def named_path(text: str) -> Path:
    """The type of each argument that names a file or a folder. An empty name, as of a shell variable that is not set, would
    be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of a file or a folder is empty; give one")
    return Path(text)


class Output:
    """Standard output or standard error. What can't be written to it, since it is full, closed or gone, is noted as
    `failure`; then it leads nowhere, and, if `patient`, the work goes on. Otherwise the error is raised."""

    def __init__(self, stream: Any, name: str, patient: bool) -> None:
        self.stream, self.name, self.patient = stream, name, patient
        self.failure: OSError | None = None
        if stream is None:  # it was closed before we began
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the rest of the process)
            self.failure = OSError(errno.EBADF, "it is closed", name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._noting():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting():
            self.stream.flush()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self.name
            self.failure = self.failure or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # with what is still in the buffer
            os.close(nowhere)
            if not self.patient:
                raise


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def run(command: Callable[[], int], patient: bool = False) -> NoReturn:
    """Run a command and exit with its status; what a user can mend becomes one line on stderr and status 2.

    A `patient` command goes on with its work when its output can't be written; if it was not all read, the status says so.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: no file of ours may get this number, for others print there
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end the work
    printed = Output(sys.stdout, "standard output", patient)
    sys.stdout, sys.stderr = printed, Output(sys.stderr, "standard error", True)
    try:
        try:
            status = command()
        except SystemExit as done:
            if done.code:
                raise
            status = 0  # --help
        printed.flush()
        if printed.failure and not isinstance(printed.failure, BrokenPipeError):
            lost = "the work was done, but not all that it had to say could be written there"
            status = max(status, _complain(f"standard output: {printed.failure.strerror}; {lost}"))
    except UserError as error:
        status = _complain(str(error))
    except BrokenPipeError:  # the reader, such as head, has seen enough
        status = 0
    except OSError as error:
        status = _complain(f"{error.filename or 'the system'}: {error.strerror or error}; {_advice(error)}")
    except MemoryError:
        status = _complain("there is not enough memory; choose smaller sizes")
    except KeyboardInterrupt:
        status = _complain("stopped")
    sys.exit(status)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free the disk or choose another place"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "is its folder still there? make it again or choose another place"
    return "choose another place"


def _complain(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


def option(default: Any, help: str, group: str, **more: Any) -> Any:
    """A field that a user can set.

    help, group  one sentence, and under which heading it stands
    flag         its name for users, where that is not the field's
    least, above, below    bounds of a number (≥, >, <)
    choices      the allowed values
    metavar      what the help shows in place of a value
    """
    return field(default=default, metadata={"help": help, "group": group, **more})


def options_of(part: Any) -> Iterator[tuple[str, Field[Any]]]:
    """(name for users, field) of each option of a part, or of its class."""
    for f in fields(part):
        if "help" in f.metadata:
            yield f.metadata.get("flag", f.name), f


def check_options(part: Any) -> None:
    """Raises ValueError, in a sentence that begins with the option's name, for the first value out of its bounds."""
    for name, f in options_of(part):
        value, of = getattr(part, f.name), f.metadata
        if f.type in (int, float):
            least = None if "above" in of else of.get("least", 1)
            inside = (
                (least is None or value >= least)
                and ("above" not in of or value > of["above"])
                and value < of.get("below", float("inf"))
            )
            if not inside:
                bounds = f"above {of['above']:g}" if least is None else f"at least {least:g}"
                bounds += f" and below {of['below']:g}" if "below" in of else ""
                kind = "a finite number " if f.type is float else ""
                raise ValueError(f"{name} is {value}; it must be {kind}{bounds}")
        if "choices" in of and value not in of["choices"]:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(of['choices'])}")
