"""What the recipes minimise that training does not: a student's loss beside its teacher."""

from collections.abc import Iterator

import numpy as np

from ...models.config import LanguageConfig
from ...models.language import loss
from ...recipes.distill import taught
from ...recipes.fit import Model
from ..trial import Trial, of_parameters
from .language import SMALL, draw


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    student, teacher = LanguageConfig(**SMALL), LanguageConfig(**{**SMALL, "layers": 1, "dense_layers": (0,)})
    (wise, _), (params, batch) = draw(teacher, rng), draw(student, rng)
    of_logits = taught(Model(wise, teacher), 0.7, 2.0)

    def of(tree):
        return loss(tree, student, batch, of_logits=of_logits)

    yield of_parameters("a student and its teacher", of, params)
