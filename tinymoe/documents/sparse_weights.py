"""《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6: a sparse product, and a language model with sparse experts.

    C = sparse_matrix_multiplication(A, B)                         §6.3
    embedding = create_sparse_embedding(V, D, W)                   §6.6
    experts = create_sparse_experts(V, H, W)
    model = SparseExpertLanguageModel(V=256, D=32, H=8)
    model.train(ids, targets)

What is wrong there:
- the product takes its size from `len(A)` and `len(B[0])`, the number of triples and the length of one, always 3; it
  compares a column of A with a column of B, not with a row; the column of the result is a counter that nothing depends
  on, so each product lands in all three columns;
- `create_sparse_experts` uses a `D` that is not defined;
- nothing is sparse: `tf.random.normal` fills every place. W is its standard deviation;
- nothing says what the experts do, and nothing is trained.

Here most places are zero and not stored, from the start and for good: only stored values have a gradient. That is §6.4:
initialise several sparse matrices, improve them by gradient descent while they stay sparse, combine them. An expert has the
shape of an embedding, (V, D): it is used like one that is tied to the output, as the map from a position's D features to the
scores of V words, scores = expert · x (Press & Wolf 2017). A gate chooses k of the H experts for each position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..ops import (
    combine,
    cross_entropy,
    dispatch,
    group_by_expert,
    grouped_sparse_linear,
    linear,
    token_shift,
    top_k_gate,
)
from ..ops.sparse import check_values
from ..sparse import CSR, matmul_loop, sparse_normal
from ..types import Array
from .fit import train

Triple = tuple[int, int, complex]


def sparse_matrix_multiplication(A: Sequence[Triple], B: Sequence[Triple]) -> list[Triple]:
    """§6.3: the product of two matrices as triples (row, column, value): C_ij = Σ_k a_ik b_kj, one step for each product.

    Triples don't tell a matrix's shape, and none is needed. Matrices with a shape multiply by `@`: see `tinymoe.sparse`.
    """
    return matmul_loop(A, B)


def create_sparse_embedding(V: int, D: int, W: float, density: float = 0.25, rng: Any = 0) -> CSR:
    """§6.6: V rows of width D with exactly round(density · V · D) stored values, the rest zero.

    W    the deviation of a full matrix of the same effect: stored values have W / √density, so that sums keep their size
    rng  a np.random.Generator, or a seed for one
    """
    return sparse_normal(np.random.default_rng(rng), (V, D), density, W, np.float64)


def create_sparse_experts(V: int, H: int, W: float, D: int = 32, density: float = 0.25, rng: Any = 0) -> list[CSR]:
    """§6.6: H experts, each a sparse (V, D) matrix of its own; arguments as in `create_sparse_embedding`."""
    rng = np.random.default_rng(rng)
    return [create_sparse_embedding(V, D, W, density, rng) for _ in range(H)]


def stack(experts: Sequence[CSR]) -> CSR:
    """H matrices (V, D) as one (H·D, V), their transposes below one another: the form in which all are used at once."""
    parts = [expert.T.to_coo() for expert in experts]
    D, V = parts[0].shape
    rows = np.concatenate([h * D + part.rows for h, part in enumerate(parts)])
    columns, values = (np.concatenate([getattr(part, name) for part in parts]) for name in ("cols", "data"))
    return CSR.from_coordinates(rows, columns, values, (len(parts) * D, V), keep_zeros=True)


def sparse_embedding(ids, values, pattern):
    """Look up a row of a sparse table for every id.

        y_n = A[ids_n],   A = the pattern with these values        dvalues_e = Σ_{n : ids_n = i} dy_nj  for entry e at (i, j)

    The same as onehot(ids) A, a product of two sparse matrices.

    ids      (N,)    int in [0, V)
    values   (Z,)    of the stored entries, row after row
    pattern  a `CSR` of shape (V, D) whose own values are not looked at
    y        (N, D)

    Raises IndexError for an id outside the table, ValueError when values don't fit the pattern.
    """
    check_values(values, pattern)
    if ids.size and not 0 <= ids.min() <= ids.max() < pattern.shape[0]:
        raise IndexError(f"ids span {ids.min()} to {ids.max()}; the table has rows 0 to {pattern.shape[0] - 1}")
    entries = pattern.with_data(np.arange(pattern.nnz))[ids].to_coo()  # which entry stands where in y
    y = np.zeros(entries.shape, values.dtype)
    y[entries.rows, entries.cols] = values[entries.data]

    def backward(dy):
        collected = np.bincount(entries.data, dy[entries.rows, entries.cols], minlength=pattern.nnz)
        return (collected.astype(dy.dtype, copy=False),)

    return y, backward


@dataclass
class Parameters:
    embedding: CSR  # (V, D)
    shift: Array  # (D,) how much of the position before, per channel
    gate: Array  # (D, H)
    experts: CSR  # (H·D, V), see `stack`


def language_model(ids, p: Parameters, k: int):
    """At each position the scores of the word that follows, from the words here and before.

        x = shift(embedding[ids])        w, S = top_k_gate(x gate)        logits_n = Σ_{h∈S_n} w_nh expert_h · x_n

    ids     (B, T)     int in [0, V)
    logits  (B·T, V)

    `backward(dlogits)` returns `Parameters` whose sparse matrices have the patterns of those passed in.
    """
    D, H = p.gate.shape
    features, embedding_back = sparse_embedding(ids.reshape(-1), p.embedding.data, p.embedding)
    shifted, shift_back = token_shift(features.reshape(*ids.shape, D), p.shift)
    x = shifted.reshape(-1, D)
    scores, gate_back = linear(x, p.gate)
    (weights, chosen), top_k_back = top_k_gate(scores, k, renormalize=k > 1)
    assignment = group_by_expert(chosen, H)
    rows, dispatch_back = dispatch(x, assignment)
    outputs, experts_back = grouped_sparse_linear(rows, p.experts.data, p.experts, assignment.counts)
    logits, combine_back = combine(outputs, weights, assignment)

    def backward(dlogits):  # read upwards
        doutputs, dweights = combine_back(dlogits)
        drows, dexperts = experts_back(doutputs)
        (dx_experts,) = dispatch_back(drows)
        dx_gate, dgate = gate_back(*top_k_back(dweights))
        dfeatures, dshift = shift_back((dx_experts + dx_gate).reshape(shifted.shape))
        (dembedding,) = embedding_back(dfeatures.reshape(-1, D))
        return Parameters(p.embedding.with_data(dembedding), dshift, dgate, p.experts.with_data(dexperts))

    return logits, backward


def language_loss(p: Parameters, ids, targets, k: int):
    """The mean cross-entropy of the words `targets` (B, T) that follow ids (B, T); −100 is ignored."""
    logits, model_back = language_model(ids, p, k)
    loss, loss_back = cross_entropy(logits, targets.reshape(-1))

    def backward(dloss):
        return model_back(*loss_back(dloss))

    return loss, backward


class SparseExpertLanguageModel:
    """The language model that §6.6 asks for, on `create_sparse_embedding` and `create_sparse_experts`.

    V, D, H  words, features of a position, experts
    k        experts that run for a position
    density  the share of places that embedding and experts store
    rng      a np.random.Generator, or a seed for one
    """

    def __init__(self, V: int, D: int, H: int, k: int = 2, density: float = 0.25, rng: Any = 0) -> None:
        if not 1 <= k <= H:
            raise ValueError(f"k is {k}; it must lie between 1 and the number of experts, {H}")
        self.k, self.rng = k, np.random.default_rng(rng)
        self.parameters = Parameters(
            create_sparse_embedding(V, D, 1.0, density, self.rng),
            self.rng.random(D),
            self.rng.standard_normal((D, H)) / np.sqrt(D),
            stack(create_sparse_experts(V, H, D**-0.5, D, density, self.rng)),
        )

    def __call__(self, ids: Array) -> Array:
        """The scores (B, T, V) of each next word, for ids (B, T)."""
        logits, _ = language_model(ids, self.parameters, self.k)
        return logits.reshape(*ids.shape, logits.shape[1])

    def loss(self, ids: Array, targets: Array) -> Any:
        """loss, backward: the mean cross-entropy in nats, and the gradient for the parameters."""
        return language_loss(self.parameters, ids, targets, self.k)

    def train(self, ids: Array, targets: Array, epochs: int = 10, **options: Any) -> list[float]:
        """Returns the mean loss of each epoch; options are those of `fit.train`."""
        loss_of = partial(language_loss, k=self.k)
        settings: dict[str, Any] = {"epochs": epochs, "rng": self.rng} | options
        curve = []
        for p, loss in train(self.parameters, loss_of, (ids, targets), **settings):
            self.parameters = p
            curve.append(loss)
        return curve
