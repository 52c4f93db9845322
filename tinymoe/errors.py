"""Mistakes of the user: one sentence, no traceback."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Bad input. The message says what was given, what is allowed and how to mend it; commands exit with status 2."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def say(text: str) -> None:
    """Print; when nobody reads any longer (a closed pipe), be silent from then on, for the work goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the rest of the process)


def run(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status; what a user can mend becomes one line on stderr and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end the work
    try:
        status = command()
        sys.stdout.flush()
    except UserError as error:
        status = _complain(str(error))
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 0
    except OSError as error:
        status = _complain(
            f"{error.filename or 'writing'}: {error.strerror or error}; free the disk or choose another place"
        )
    except MemoryError:
        status = _complain("there is not enough memory; choose smaller sizes")
    except KeyboardInterrupt:
        status = _complain("stopped")
    sys.exit(status)


def _complain(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2
