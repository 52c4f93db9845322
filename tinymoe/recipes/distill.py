"""A student that learns from a teacher: from all the probabilities of the next token, not only from which one it was."""

from typing import Any

from ..models.language import forward, next_token
from ..ops.distillation import distillation
from ..runs.settings import Settings
from ..types import Array
from .fit import Model, fit


def distill(
    teacher: Model, student: Model, settings: Settings, tokens: Array, alpha: float = 0.9, temperature: float = 1.0
) -> Model:
    """A trained copy of the student; either model may be dense or sparse.

        loss = (1 − α) cross_entropy(logits, next token) + α distillation(logits, teacher's logits, T) + balancing losses

    Raises ValueError unless 0 ≤ α ≤ 1 and both know the same tokens.
    Source: Hinton, Vinyals & Dean 2015, §2; 《稀疏专家模型》 §8.2 (知识蒸馏).
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
    if teacher.config.vocabulary != student.config.vocabulary:
        raise ValueError(
            f"the teacher has {teacher.config.vocabulary} tokens and the student {student.config.vocabulary}; "
            "they must have the same"
        )
    return fit(student, settings, tokens, taught(teacher, alpha, temperature))


def taught(teacher: Model, alpha: float, temperature: float) -> Any:
    """What `distill` minimises, as a loss of the logits; the teacher reads the same windows."""

    def of_logits(logits, batch):
        (wise, _, _), _ = forward(*teacher, batch)
        hard, hard_back = next_token(logits, batch)
        soft, soft_back = distillation(logits, teacher=wise, temperature=temperature)
        loss = (1 - alpha) * hard + alpha * soft

        def backward(dloss):
            (dhard,), (dsoft,) = hard_back((1 - alpha) * dloss), soft_back(alpha * dloss)
            return (dhard + dsoft,)

        return loss, backward

    return of_logits
