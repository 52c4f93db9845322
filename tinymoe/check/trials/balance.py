"""Example and edge inputs for the operations in `ops/balance.py`, `ops/capacity.py` and `systems/conventions.py`.

Choices are typed, not drawn: where the load happens to be even, balancing losses have no slope to check.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...ops.balance import (
    device_balance,
    expert_shares,
    importance,
    load_balance,
    sequence_balance,
    squared_variation,
    z_loss,
)
from ...ops.capacity import renormalize_kept
from ...systems.conventions import BALANCE, BalanceConvention, balance_loss
from ..trial import Trial


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    normal = rng.standard_normal
    for name, indices, n_experts in _choices():
        (n, k), masks = indices.shape, _masks(len(indices))
        for masked, mask in masks:
            logits, option, label = normal((n, n_experts)), {"mask": mask}, f"{name}, {masked}"
            shares = expert_shares(rng.integers(0, n_experts, (9, k)), n_experts)
            yield Trial(label, load_balance, (logits, indices), option)
            yield Trial(f"{label}, given shares", load_balance, (logits, indices), option | {"shares": shares})
            yield Trial(label, device_balance, (logits, indices, np.arange(n_experts) % 3), option)
            yield Trial(label, importance, (rng.random((n, k)), indices, n_experts), option)
            yield Trial(label, z_loss, (logits,), option)
    yield from _sequences(normal)
    yield from _stacks(normal)
    for name, n, k in (("six rows", 6, 3), ("one row", 1, 2), ("no rows", 0, 2)):
        kept = np.arange(n * k).reshape(n, k) % 7 != 3  # mostly two or more: the weight of a lone one is always 1
        yield Trial(f"{name}, some dropped", renormalize_kept, (rng.random((n, k)) + 0.1, kept))
        yield Trial(f"{name}, all dropped", renormalize_kept, (rng.random((n, k)) + 0.1, np.zeros((n, k), bool)))
    for name, v in (("five", normal(5) + 2), ("one", normal(1)), ("a single one used", np.array([0.0, 3.0, 0.0]))):
        yield Trial(name, squared_variation, (v,))


def _choices() -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, indices (N, K), E)"""
    yield "top-2 of 5", np.array([[0, 2], [0, 4], [2, 0], [0, 1], [2, 3], [1, 0], [0, 2]]), 5
    yield "top-3 of 4", np.array([[0, 1, 2], [1, 0, 3], [0, 2, 1], [0, 1, 3], [1, 0, 2]]), 4
    yield "all to one", np.full((6, 1), 1), 4
    yield "one row", np.array([[2, 0]]), 4
    yield "no rows", np.zeros((0, 2), int), 4


def _masks(n: int) -> tuple[tuple[str, np.ndarray | None], ...]:
    return ("no padding", None), ("a third is padding", np.arange(n) % 3 != 1), ("all padding", np.zeros(n, bool))


def _sequences(normal: Any) -> Iterator[Trial]:
    for name, n, n_experts, k, batch in (
        ("two of six", 12, 5, 2, 2),
        ("four of one", 4, 5, 1, 4),
        ("one of six, most experts", 6, 4, 3, 1),
        ("two of none", 0, 4, 2, 2),
    ):
        for masked, mask in (*_masks(n), ("the first is padding", np.arange(n) >= n // batch)):
            logits = normal((n, n_experts)) + 4 * np.eye(n_experts)[0]  # expert 0 is always chosen
            yield Trial(f"{name}, {masked}", sequence_balance, (logits, k, batch), {"mask": mask})


def _stacks(normal: Any) -> Iterator[Trial]:
    """Every switch at least once, in all combinations of layers and probabilities."""
    own = BalanceConvention("first", True, "pooled", "gates"), BalanceConvention("first", False, "mean", "twice")
    for convention in dict.fromkeys((*BALANCE.values(), *own)):  # each once
        name = f"{convention.choices}, {convention.layers}, {convention.probabilities}, divided {convention.divided}"
        for n, n_experts, k in ((6, 5, 2), (1, 3, 1), (0, 4, 2)):
            token, layer = np.arange(n)[:, None], np.arange(3)[:, None, None]
            indices = (token * token // 4 + layer // 2 + np.arange(k)) % n_experts
            for masked, mask in _masks(n):
                inputs = normal((3, n, n_experts)), indices, convention
                yield Trial(f"{name}, top-{k} of {n} rows, {masked}", balance_loss, inputs, {"mask": mask})
