"""How the optimiser is set, and what training changes."""

from dataclasses import dataclass
from typing import Any

from ..errors import check_options, option
from ..tree import values_of
from .updates import OPTIMIZERS, Slots, learning_rate, new_slots


@dataclass(frozen=True)
class Training:
    """The optimiser's settings, and the size of its batch. Raises ValueError for what makes no sense."""

    batch_size: int = option(12, "windows per optimiser step (B)", "optimisation")
    accumulate: int = option(
        1, "compute the batch in so many passes, one after another, to save memory; see --workers", "optimisation"
    )
    optimizer: str = option("adamw", "AdamW, or SGD with momentum", "optimisation", choices=tuple(OPTIMIZERS))
    lr: float = option(2e-3, "peak learning rate", "optimisation", above=0.0)
    final_lr: float = option(
        0.05, "learning rate at the end of the cosine, as a share of the peak", "optimisation", least=0.0
    )
    warmup: int = option(100, "steps in which the learning rate rises from 0", "optimisation", least=0)
    decay_steps: int = option(
        0,
        "step at which the cosine ends; 0 means the preset's number of steps, or --steps if "
        "that is more, so that stopping early and resuming changes nothing",
        "optimisation",
        least=0,
    )
    beta1: float = option(0.9, "AdamW's decay of the mean, SGD's momentum", "optimisation", least=0.0, below=1.0)
    beta2: float = option(0.95, "AdamW's decay of the mean square", "optimisation", least=0.0, below=1.0)
    weight_decay: float = option(1.0, "times the learning rate, on matrices only", "optimisation", least=0.0)
    clip: float = option(1.0, "largest global norm of the gradient; 0 for no limit", "optimisation", least=0.0)
    lazy: bool = option(
        False,
        "update only the embedding rows and experts that were used; the moments of the others stand still",
        "optimisation",
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate is {self.accumulate}, more than the {self.batch_size} windows of a batch")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return learning_rate(step, self.lr, self.warmup, self.decay_steps, self.final_lr * self.lr)


@dataclass
class State:
    """Parameters, the optimiser's memory of each leaf by name, and how far training has come."""

    params: Any
    slots: dict[str, Slots]
    step: int = 0
    seconds: float = 0.0  # spent training, over all sessions


def fresh(params: Any, training: Training) -> State:
    """Parameters with an optimiser that has seen nothing."""
    return State(params, {name: new_slots(training.optimizer, p) for name, p in values_of(params).items()})


class NotFinite(ArithmeticError):
    """The loss, the gradient or a parameter is no longer a number."""
