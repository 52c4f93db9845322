"""Recipes that make the weights of attention and experts sparse during training, and keep them so.

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
from typing import Any

import numpy as np

from ..runs.settings import Settings
from ..sparse import CSR, magnitude_mask, prune_global, prune_n_m, sparse_plus_low_rank

Array = np.ndarray

MASKED = ("prune", "init", "rigl")
RIGL_SHARE = 0.3  # of the weights that is moved at first; falls along a cosine to 0 at 75 % of the run


def chosen(names: Any) -> list[str]:
    """The leaves that a recipe works on: the matrices of attention and experts."""
    return [n for n in names if (".attention." in n or ".experts." in n) and not n.endswith("bias")]


def first_masks(weights: dict[str, Array], settings: Settings, rng: np.random.Generator) -> dict[str, Array]:
    """The masks to begin with, by name. For `init` and `rigl` weights are cut, and scaled by 1/√density, in place."""
    if settings.sparsity not in MASKED:
        return {}
    masks = {name: np.ones(w.shape, bool) for name, w in weights.items()}
    if settings.sparsity != "prune":
        for name, w in weights.items():
            masks[name] = magnitude_mask(rng.random(w.shape), settings.sparsity_level)
            w *= masks[name] / math.sqrt(1 - settings.sparsity_level)
    return masks


def penalize(weight: Array, gradient: Array, settings: Settings) -> None:
    """Before the optimiser: add the subgradient of λ Σ|w| to the gradient, in place."""
    if settings.sparsity == "l1":
        gradient += settings.l1 * np.sign(weight)


def constrain(weight: Array, slots: dict[str, Array], settings: Settings, step: int, lr: float) -> None:
    """After the optimiser: put the weight back where the recipe wants it, in place."""
    if "mask" in slots:
        weight *= slots["mask"]
    elif settings.sparsity == "l1-proximal":
        divisor = np.sqrt(slots["square"] / (1 - settings.beta2**step)) + 1e-8 if "square" in slots else 1.0
        weight[...] = np.sign(weight) * np.maximum(np.abs(weight) - lr * settings.l1 / divisor, 0)
    elif settings.sparsity == "iht" and _is_revision(step, settings):
        weight *= magnitude_mask(weight, settings.sparsity_level)


def _is_revision(step: int, settings: Settings) -> bool:
    """Every `sparsity_every` steps, and at the planned end. Not wherever a run stops, since it may be resumed."""
    return step % settings.sparsity_every == 0 or step == settings.decay_steps


def level_at(step: int, settings: Settings) -> float:
    """The share of zeros that `prune` wants at a step: s (1 − (1 − p)³), p from 0 at 20 % to 1 at 70 % of the run."""
    p = (step / settings.decay_steps - 0.2) / 0.5
    return settings.sparsity_level * (1 - (1 - min(max(p, 0.0), 1.0)) ** 3)


def revise(
    weights: dict[str, Array],
    gradients: dict[str, Array],
    slots: dict[str, dict[str, Array]],
    settings: Settings,
    step: int,
) -> None:
    """Every `sparsity_every` steps: move masks (`prune`, `rigl`) or decompose weights (`low-rank`), in place."""
    if not _is_revision(step, settings):
        return
    if settings.sparsity == "prune":
        for name, mask in _pruned(weights, settings, level_at(step, settings)).items():
            slots[name]["mask"][...] = mask
            weights[name] *= mask
    elif settings.sparsity == "rigl" and step < 0.75 * settings.decay_steps:
        share = RIGL_SHARE / 2 * (1 + math.cos(math.pi * step / (0.75 * settings.decay_steps)))
        for name, w in weights.items():
            drop_and_grow(w, gradients[name], slots[name], share)
    elif settings.sparsity == "low-rank" and step > settings.decay_steps / 2:
        for w in weights.values():
            for matrix in w if w.ndim == 3 else [w]:
                rank = min(settings.rank, *matrix.shape)
                matrix[...] = sparse_plus_low_rank(matrix, rank, settings.sparsity_level, 3).to_dense()


def _pruned(weights: dict[str, Array], settings: Settings, level: float) -> dict[str, Array]:
    if settings.sparsity_scope == "global":
        return dict(zip(weights, prune_global(list(weights.values()), level), strict=True))
    if settings.sparsity_scope == "layer":
        return {name: magnitude_mask(w, level) for name, w in weights.items()}
    if level == 0:
        return {name: np.ones(w.shape, bool) for name, w in weights.items()}
    n, m = map(int, settings.sparsity_scope.split(":"))  # groups along the inputs of a neuron
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
