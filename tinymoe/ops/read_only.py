"""What an operation returns and its backward reads later: writing into it is an error, not a wrong gradient."""

import numpy as np

from ..types import Array


def read_only(y: Array) -> Array:
    """`y` itself, which nobody can write into from now on. Take a copy for that: `y.copy()`."""
    if isinstance(y, np.ndarray):  # what has no axes may be a number, which nobody can write into anyway
        y.flags.writeable = False
    return y
