"""From gradients to better parameters: the updates, their schedule, one training step, and recipes for sparse weights.

Reading order: updates (SGD, AdamW, lazy forms, learning rate, clipping) · trainer (one step) · team (processes that share
arrays) · sparsify (weights that become sparse and stay so).
"""

from .updates import OPTIMIZERS, SLOTS, Slots, adamw, clip_factor, global_norm, lazy, learning_rate, new_slots, sgd

__all__ = [
    "OPTIMIZERS",
    "SLOTS",
    "Slots",
    "adamw",
    "clip_factor",
    "global_norm",
    "lazy",
    "learning_rate",
    "new_slots",
    "sgd",
]
