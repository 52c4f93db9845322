"""The bug museum: mistakes of mixture-of-experts code, all but two of them public, each with the check that catches it.

    from tinymoe.systems.museum import MUSEUM
    for exhibit in MUSEUM:
        print(exhibit.name, exhibit.source, exhibit.story, sep="\n")
        exhibit.check(exhibit.right)        # says nothing
        exhibit.check(exhibit.buggy)        # AssertionError: what is wrong

Most of them run, train, and log sensible numbers; few are found by looking at the loss. Numbers after a repository are
its issues and pull requests. Where code is named without a number, the code was read. The bugs are rewritten here as
they look in NumPy, each alone; some systems have mended theirs long ago.

Rooms: `gates` (who is chosen), `losses` (balance and counts), `layers` (what the experts see and return).
"""

from .exhibit import Exhibit
from .gates import GATES
from .layers import LAYERS
from .losses import LOSSES

MUSEUM: tuple[Exhibit, ...] = GATES + LOSSES + LAYERS

__all__ = ["MUSEUM", "Exhibit"]
