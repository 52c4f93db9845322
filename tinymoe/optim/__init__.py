"""From gradients to better parameters: the updates, their schedule, one training step, and recipes for sparse weights.

Reading order: updates (SGD, AdamW, lazy forms, learning rate, clipping) · hyperparameters (what a step depends on) ·
objective (what is minimised) · trainer (one step) · tasks (what each process does for it) · team (processes that share
arrays) · one_core · sparsify (recipes for sparse weights).
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
