"""Mistakes of the user: one sentence, no traceback."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Bad input. The message says what was given, what is allowed and how to mend it; commands exit with status 2."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def run(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status; a `UserError` becomes one line on stderr and status 2."""
    try:
        status = command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        status = 0
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        status = 2
    sys.exit(status)
