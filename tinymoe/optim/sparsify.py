"""Recipes for sparse weights of attention (or recurrence) and experts, at work during training.

    prune        magnitude pruning, level rising along a cubic from 20 % to 70 % of the run (Zhu & Gupta 2017, eq. 1)
    init         sparse from the start: random places, the rest scaled to keep the output variance; mask never moves
    l1           λ Σ|w| in the loss, by its subgradient λ sign(w): weights get small, but not zero
    l1-proximal  the same penalty by its proximal step, w ← sign(w) max(|w| − lr λ/p, 0): exact zeros. p is what the
                 optimiser divides a gradient by: √v̂ for Adam (Yun et al. 2021), 1 for SGD
    iht          iterative hard thresholding: every so many steps the smallest weights are set to 0; all may come back
    rigl         sparse from the start; every so many steps the smallest weights are dropped and as many grown where the
                 gradient is largest (Evci et al. 2020, §3)
    low-rank     W ≈ sparse + low rank: every so many steps in the second half W is replaced by its decomposition

A mask is a slot of the optimiser's memory, so it is shared, saved and resumed with it.

Source: 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §4 (稀疏初始化, 稀疏正则化, 稀疏分解) and §6.4.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import check_options, option
from ..sparse import CSR, magnitude_mask, prune_global, prune_n_m, sparse_plus_low_rank
from ..types import Array

RECIPES = ("none", "prune", "init", "l1", "l1-proximal", "iht", "rigl", "low-rank")
MASKED = ("prune", "init", "rigl")
RIGL_SHARE = 0.3  # of the weights that is moved at first; falls along a cosine to 0 at 75 % of the run


@dataclass(frozen=True)
class Sparsity:
    """Which recipe, and its numbers. Raises ValueError for what makes no sense."""

    sparsity: str = option(
        "none", "make weights sparse: a recipe from the list at the end", "sparsity", choices=RECIPES
    )
    level: float = option(0.9, "share of zeros to reach", "sparsity", flag="sparsity_level", least=0.0, below=1.0)
    scope: str = option(
        "layer",
        "what prune compares: the weights of a layer, of all layers (global), or N of every M (such as 2:4)",
        "sparsity",
        flag="sparsity_scope",
    )
    every: int = option(100, "steps between two revisions of which weights are zero", "sparsity", flag="sparsity_every")
    l1: float = option(1e-5, "weight λ of the L1 penalty", "sparsity", least=0.0)
    rank: int = option(8, "rank of the dense part in low-rank", "sparsity")

    def __post_init__(self) -> None:
        check_options(self)
        if self.scope not in ("layer", "global"):
            n, _, m = self.scope.partition(":")
            if not (n.isdecimal() and m.isdecimal() and 1 <= int(n) <= int(m)):
                raise ValueError(f"sparsity_scope is {self.scope!r}; choose layer, global, or N:M with 1 ≤ N ≤ M (2:4)")

    @property
    def on(self) -> bool:
        return self.sparsity != "none"

    def revises(self, step: int, end: int) -> bool:
        """Every so many steps, and at the planned end. Not wherever a run stops, since it may be resumed."""
        return step % self.every == 0 or step == end

    def level_at(self, step: int, end: int) -> float:
        """The share of zeros that `prune` wants at a step: s (1 − (1 − p)³), p from 0 at 20 % to 1 at 70 % of the run."""
        p = (step / end - 0.2) / 0.5
        return self.level * (1 - (1 - min(max(p, 0.0), 1.0)) ** 3)


def first_masks(weights: dict[str, Array], sparsity: Sparsity, rng: np.random.Generator) -> dict[str, Array]:
    """The masks to begin with, by name. For `init` and `rigl` weights are cut, and scaled by 1/√density, in place."""
    if sparsity.sparsity not in MASKED:
        return {}
    masks = {name: np.ones(w.shape, bool) for name, w in weights.items()}
    if sparsity.sparsity != "prune":
        for name, w in weights.items():
            masks[name] = magnitude_mask(rng.random(w.shape), sparsity.level)
            w *= masks[name] / math.sqrt(1 - sparsity.level)
    return masks


def penalize(weight: Array, gradient: Array, sparsity: Sparsity) -> None:
    """Before the optimiser: add the subgradient of λ Σ|w| to the gradient, in place."""
    if sparsity.sparsity == "l1":
        gradient += sparsity.l1 * np.sign(weight)


def constrain(
    weight: Array, slots: dict[str, Array], sparsity: Sparsity, step: int, end: int, *, lr: float, beta2: float = 0.95
) -> None:
    """After the optimiser: put the weight back where the recipe wants it, in place."""
    if "mask" in slots:
        weight *= slots["mask"]
    elif sparsity.sparsity == "l1-proximal":
        divisor = np.sqrt(slots["square"] / (1 - beta2**step)) + 1e-8 if "square" in slots else 1.0
        weight[...] = np.sign(weight) * np.maximum(np.abs(weight) - lr * sparsity.l1 / divisor, 0)
    elif sparsity.sparsity == "iht" and sparsity.revises(step, end):
        weight *= magnitude_mask(weight, sparsity.level)


def revise(
    weights: dict[str, Array],
    gradients: dict[str, Array],
    slots: dict[str, dict[str, Array]],
    sparsity: Sparsity,
    step: int,
    end: int,
) -> None:
    """Every so many steps, `end` the last: move masks (`prune`, `rigl`) or decompose weights (`low-rank`), in place."""
    if not sparsity.revises(step, end):
        return
    if sparsity.sparsity == "prune":
        for name, mask in _pruned(weights, sparsity, sparsity.level_at(step, end)).items():
            slots[name]["mask"][...] = mask
            weights[name] *= mask
    elif sparsity.sparsity == "rigl" and step < 0.75 * end:
        share = RIGL_SHARE / 2 * (1 + math.cos(math.pi * step / (0.75 * end)))
        for name, w in weights.items():
            drop_and_grow(w, gradients[name], slots[name], share)
    elif sparsity.sparsity == "low-rank" and step > end / 2:
        for w in weights.values():
            for matrix in w if w.ndim == 3 else [w]:
                rank = min(sparsity.rank, *matrix.shape)
                matrix[...] = sparse_plus_low_rank(matrix, rank, sparsity.level, 3).to_dense()


def _pruned(weights: dict[str, Array], sparsity: Sparsity, level: float) -> dict[str, Array]:
    if sparsity.scope == "global":
        return dict(zip(weights, prune_global(list(weights.values()), level), strict=True))
    if sparsity.scope == "layer":
        return {name: magnitude_mask(w, level) for name, w in weights.items()}
    if level == 0:
        return {name: np.ones(w.shape, bool) for name, w in weights.items()}
    n, m = map(int, sparsity.scope.split(":"))  # groups along the inputs of a neuron
    return {name: prune_n_m(w, n, m, axis=-2) for name, w in weights.items()}


def drop_and_grow(weight: Array, gradient: Array, slots: dict[str, Array], share: float) -> None:
    """RigL's step, in place: a share of the active weights, the smallest, is dropped, and as many others grown where
    |gradient| is largest. A grown weight begins at 0, with nothing remembered about it.

    The dense gradient that growing needs is there anyway: the forward sees zeros, and the gradient of a zero weight is
    not zero.
    """
    mask = slots["mask"]
    active = int(mask.sum())
    moved = min(int(share * active), mask.size - active)
    if moved == 0:
        return
    size = np.where(mask, np.abs(weight), -1.0)
    kept = magnitude_mask(size + 1, 1 - (active - moved) / mask.size)
    want = np.where(mask, 0.0, np.abs(gradient) + 1e-30)  # what has just been dropped does not grow again at once
    grown = magnitude_mask(want, 1 - moved / mask.size)
    mask[...] = kept | grown
    weight *= kept
    for name, slot in slots.items():
        if name != "mask":
            slot *= kept


def as_csr(weight: Array) -> CSR:
    """A weight (…, D, F) as one CSR matrix: the matrices of a stack below one another."""
    return CSR.from_dense(weight.reshape(-1, weight.shape[-1]))


def summary(weights: dict[str, Array]) -> dict[str, Any]:
    """Density of the chosen weights, and what they take up as dense arrays and as CSR."""
    size = sum(w.size for w in weights.values())
    stored = [as_csr(w) for w in weights.values()]
    return {
        "density": round(sum(s.nnz for s in stored) / max(size, 1), 5),
        "dense_bytes": sum(w.nbytes for w in weights.values()),
        "csr_bytes": sum(s.nbytes for s in stored),
    }
