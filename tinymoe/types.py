"""Names of types that are used throughout the package."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Backward = Callable[..., Any]  # takes a gradient for each float output, returns a tuple of those of the float inputs
Operation = Callable[..., tuple[Any, Backward]]  # y, backward = operation(x, …)
