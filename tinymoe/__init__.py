"""Sparse mixture-of-experts language models in NumPy, with gradients written by hand and checked against slopes.

Reading order: `ops` (arrays in, `y, backward` out) · `gradcheck` (is a backward right?) · `tree` (parameters as
nested dataclasses) · `models.language` (the transformer) · `data` (text to windows of tokens) · `optim`
(one step of training) · `train`, `generate`, `check` (the commands, `python -m tinymoe.<name>`).

Axes, in shapes: B sequences · T positions · N = B·T rows (tokens) · D model width · H heads · G key/value heads ·
P width per head · E experts · K experts per token · M = N·K assignments · F expert width · V vocabulary.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .estimator.estimator import SparseMoeModel as SparseMoeModel

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "SparseMoeModel":  # imported when asked for, so that `import tinymoe` stays light
        from .estimator.estimator import SparseMoeModel

        return SparseMoeModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
