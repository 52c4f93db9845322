"""A model trained on one core with the common trainer, and what the recipes compare."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..data.windows import TrainingWindows, evaluation_batches
from ..errors import options_of
from ..models.config import LanguageConfig
from ..models.evaluation import measure
from ..models.language import forward, next_token
from ..models.parameters import Language
from ..optim.hyperparameters import State, fresh
from ..optim.trainer import Trainer
from ..runs.settings import Settings
from ..runs.state import new_parameters
from ..tree import tree_map
from ..types import Array


class Model(NamedTuple):
    """`forward(*model, ids)` runs it."""

    params: Language
    config: LanguageConfig


def new_model(config: LanguageConfig, seed: int) -> Model:
    return Model(new_parameters(config, np.random.default_rng(seed)), config)


def with_shape(settings: Settings, config: LanguageConfig) -> Settings:
    """The settings of a training run for a model of this shape."""
    return settings.but(**{name: getattr(config, f.name) for name, f in options_of(config)})


def for_steps(settings: Settings, steps: int) -> Settings:
    """The same for so many steps: the warm-up a tenth of them at most, the cosine down to the last."""
    return settings.but(steps=steps, decay_steps=steps, warmup=min(settings.training.warmup, steps // 10))


def fit(model: Model, settings: Settings, tokens: Array, of_logits: Any = next_token, only: str = "") -> Model:
    """A trained copy of the model: `steps` steps with the settings' optimiser, schedule and balancing losses.

    of_logits  the loss of the logits, see `models.language.loss`
    only       leaves without this role stay as they are
    """
    state = start(model, settings)
    advance(state, model.config, settings, tokens, settings.run.steps, of_logits, only)
    return Model(state.params, model.config)


def start(model: Model, settings: Settings) -> State:
    """A copy of the parameters with an optimiser that has seen nothing."""
    return fresh(tree_map(np.copy, model.params), settings.training)


def advance(
    state: State,
    config: LanguageConfig,
    settings: Settings,
    tokens: Array,
    until: int,
    of_logits: Any = next_token,
    only: str = "",
) -> None:
    """Train the state in place up to step `until`. Raises NotFinite when the loss or the gradient is not."""
    windows = TrainingWindows(tokens, config.context, settings.run.seed)
    objective = replace(settings.objective, config=config, of_logits=of_logits)
    with Trainer(state, objective, settings.training, seed=settings.run.seed, only=only) as trainer:
        while state.step < until:
            trainer.step(windows.batch(state.step + 1, settings.training.batch_size))


def token_losses(model: Model, tokens: Array, limit: int = 0) -> Array:
    """(windows, T): what each token of text cut into windows costs, in nats; `limit` windows, or with 0 all."""
    found = []
    for batch in evaluation_batches(tokens, model.config.context, 16, limit):
        assert batch.targets is not None
        (logits, _, _), _ = forward(*model, batch)
        losses, _ = ops.cross_entropies(logits, batch.targets.reshape(-1))
        found.append(losses.reshape(batch.ids.shape))
    return np.concatenate(found)


def evaluate(model: Model, tokens: Array, limit: int = 0) -> float:
    """Mean cross-entropy in nats per token, over `limit` windows, or with 0 all."""
    return measure(*model, evaluation_batches(tokens, model.config.context, 16, limit)).loss


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Markdown; floats with three decimals, integers with commas."""

    def cell(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    lines = [list(head), *(list(map(cell, row)) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
