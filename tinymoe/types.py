"""The types that have a name of their own in the whole package."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Backward = Callable[..., Any]  # takes a gradient for each float output, returns a tuple of one for each float input
Operation = Callable[..., tuple[Any, Backward]]  # y, backward = operation(x, …)
