"""The plain training loop: one process, one batch after the other, any loss of the logits."""

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from .. import ops, optim
from ..data.windows import Batch, TrainingWindows, evaluation_batches
from ..models.config import LanguageConfig
from ..models.initialise import initialize
from ..models.language import forward
from ..models.parameters import Language
from ..runs.settings import Settings
from ..runs.state import NotFinite, State
from ..tree import named, tree_map

Array = np.ndarray
Objective = Callable[[Array, Batch], tuple[Any, Callable[..., Any]]]  # (logits, batch) → loss, backward(dloss)


class Model(NamedTuple):
    """`forward(*model, ids)` runs it."""

    params: Language
    config: LanguageConfig


def new_model(config: LanguageConfig, seed: int) -> Model:
    return Model(initialize(config, np.random.default_rng(seed)), config)


def with_shape(settings: Settings, config: LanguageConfig) -> Settings:
    """The settings of a training run for a model of this shape."""
    known = {f.name for f in fields(Settings)}
    return replace(settings, **{f.name: getattr(config, f.name) for f in fields(config) if f.name in known})


def for_steps(settings: Settings, steps: int) -> Settings:
    """The same for so many steps: the warm-up a tenth of them at most, the cosine down to the last."""
    return replace(settings, steps=steps, decay_steps=steps, warmup=min(settings.warmup, steps // 10))


def next_token(logits: Array, batch: Batch):
    """The usual objective: cross-entropy of the tokens that follow."""
    return ops.cross_entropy(logits, batch.targets.reshape(-1))


def fit(model: Model, settings: Settings, tokens: Array, objective: Objective = next_token, only: str = "") -> Model:
    """A trained copy of the model: `settings.steps` steps with its optimiser, schedule and balancing losses.

    With `only`, leaves whose name does not contain it stay as they are.
    """
    state = start(model, settings)
    advance(state, model.config, settings, tokens, settings.steps, objective, only)
    return Model(state.params, model.config)


def start(model: Model, settings: Settings) -> State:
    """A copy of the parameters with an optimiser that has seen nothing."""
    params = tree_map(np.copy, model.params)
    return State(params, {name: optim.new_slots(settings.optimizer, p) for name, p in named(params).items()})


def advance(
    state: State,
    config: LanguageConfig,
    settings: Settings,
    tokens: Array,
    until: int,
    objective: Objective = next_token,
    only: str = "",
) -> None:
    """Train the state in place up to step `until`. Raises NotFinite when the loss or the gradient is not."""
    windows = TrainingWindows(tokens, settings.context, settings.seed)
    update, leaves = optim.OPTIMIZERS[settings.optimizer], named(state.params)
    while state.step < until:
        step = state.step + 1
        rng = np.random.default_rng([settings.seed, step])
        with np.errstate(over="ignore", invalid="ignore"):  # it is found and said in one sentence below
            loss, gradient = loss_and_gradient(state.params, config, settings, windows, step, objective, rng)
            gradients = {name: g for name, g in named(gradient).items() if only in name}
            norm = optim.global_norm(gradients.values())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(f"the loss is {loss:.3g} and the norm of the gradient {norm:.3g} at step {step}")
        factor = optim.clip_factor(norm, settings.clip)
        floor = settings.final_lr * settings.lr
        lr = optim.learning_rate(step, settings.lr, settings.warmup, settings.decay_steps, floor)
        for name, g in gradients.items():
            decay = settings.weight_decay if g.ndim > 1 else 0.0
            options = {"lr": lr, "step": step, "beta1": settings.beta1, "beta2": settings.beta2}
            update(leaves[name], g * factor, state.slots[name], weight_decay=decay, **options)
        state.step = step


def loss_and_gradient(params, config, settings, windows, step, objective, rng):
    """Of the batch of this step: the objective, and the gradient of it and of the mean of the layers' balancing losses."""
    batch = windows.batch(step, settings.batch_size)
    (logits, losses, routed), forward_back = forward(params, config, batch.ids, rng, balancing=settings.balancing)
    loss, loss_back = objective(logits, batch)
    (dlogits,) = loss_back(1.0)
    layers = max(sum(r is not None for r in routed), 1)
    return float(loss), forward_back(dlogits, [1 / layers] * len(losses))


def token_losses(model: Model, tokens: Array, limit: int = 0) -> Array:
    """(windows, T): what each token of text cut into windows costs, in nats; `limit` windows, or with 0 all."""
    found = []
    for batch in evaluation_batches(tokens, model.config.context, 16, limit):
        (logits, _, _), _ = forward(*model, batch.ids)
        chosen = np.take_along_axis(logits, batch.targets.reshape(-1, 1), 1)[:, 0]
        found.append((ops.log_sum_exp(logits)[0] - chosen).reshape(batch.ids.shape))
    return np.concatenate(found)


def evaluate(model: Model, tokens: Array, limit: int = 0) -> float:
    """Mean cross-entropy in nats per token."""
    return float(token_losses(model, tokens, limit).mean(dtype=np.float64))


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Markdown; floats with three decimals, integers with commas."""

    def cell(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    lines = [list(head), *(list(map(cell, row)) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
