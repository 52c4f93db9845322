"""What an exhibit is, and how its check complains."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exhibit:
    """A bug, the check that catches it, and the code that passes.

    `right` and `buggy` have the same signature, and `check(right)` says nothing where `check(buggy)` raises
    AssertionError with what it found.
    """

    name: str
    source: str  # where it happened, if that is known
    right: Callable[..., Any]
    buggy: Callable[..., Any]
    check: Callable[[Callable[..., Any]], None]

    @property
    def story(self) -> str:
        """What went wrong and how it looked: the docstring of `buggy`, as one paragraph."""
        return " ".join((inspect.getdoc(self.buggy) or "").split())


def require(holds: Any, otherwise: str) -> None:
    """An assertion that stays with `python -O`."""
    if not holds:
        raise AssertionError(otherwise)
