"""A mixture of small networks that learns by its likelihood: for rows of numbers, with classes or numbers to predict.

    z = [x 1] Gate                          the gate chooses the k best experts S and weighs them: w = softmax(z_S)
    o_i = [relu([x 1] Up_i) 1] Down_i       the answer of expert i∈S
    loss = −mean ln Σ_{i∈S} w_i exp(−loss_i(o_i)) + balance · load_balance(z, S)

Only the chosen experts run, forward and backward; each is judged by itself (`ops/likelihood.py`).

Source: Jacobs, Jordan, Nowlan & Hinton 1991 (the likelihood); Shazeer et al. 2017 (only k experts run); the untitled
document on sparse experts as a new view of the LLM, §3 and §4: sub-models θ_k that run only when they are needed.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..data.rows import Rows
from ..ops import cross_entropies, half_squared_errors, mixture_likelihood, pick
from ..optim.objective import Objective
from ..tree import leaf
from ..types import Array


@dataclass
class Network:
    """The parameters. The last row of each matrix is the bias: the weight of an input that is always 1."""

    gate: Array = leaf("matrix")  # (D+1, E)
    up: Array = leaf("matrix", "expert")  # (E, D+1, F)
    down: Array = leaf("matrix", "expert")  # (E, F+1, C)  C outputs: targets or classes


class Choice(NamedTuple):
    """What the gate decided, without gradient."""

    indices: Array  # (N, K) int
    weights: Array  # (N, K)
    assignment: ops.Assignment


def initialize(rng: np.random.Generator, inputs: int, hidden: int, outputs: int, experts: int) -> Network:
    """Weights at the scale that keeps a row's size (He et al. 2015 behind the ReLU), biases 0."""

    def normal(scale: float, *shape: int) -> Array:
        weight = rng.standard_normal(shape) * math.sqrt(scale / (shape[-2] - 1))
        weight[..., -1, :] = 0
        return weight

    return Network(
        normal(1, inputs + 1, experts),
        normal(2, experts, inputs + 1, hidden),
        normal(1, experts, hidden + 1, outputs),
    )


def network(x, p: Network, k: int):
    """Each row through the k experts that its gate prefers, every answer by itself.

    x        (N, D)  data: it gets no gradient
    outputs  (M, C)  the experts' answers, grouped by expert
    logits   (N, E)  of the gate
    """
    inputs = with_ones(x)
    logits, gate_back = ops.linear(inputs, p.gate)
    (weights, indices), _ = ops.top_k_gate(logits, k)
    assignment = ops.group_by_expert(indices, p.gate.shape[1])
    rows, _ = ops.dispatch(inputs, assignment)
    h, up_back = ops.grouped_linear(rows, p.up, assignment.counts)
    a, relu_back = ops.relu(h)
    outputs, down_back = ops.grouped_linear(with_ones(a), p.down, assignment.counts)

    def backward(doutputs, dlogits):  # read upwards
        da, ddown = down_back(doutputs)
        (dh,) = relu_back(da[:, :-1])
        _, dup = up_back(dh)
        _, dgate = gate_back(dlogits)
        return Network(dgate, dup, ddown)

    return (outputs, logits, Choice(indices, weights, assignment)), backward


def mixture_loss(p: Network, x, targets, k: int, balance: float):
    """The mixture's negative log-likelihood, plus `balance` times the load-balance loss, against idle experts.

    targets  (N,) int, classes; or (N, C), numbers
    """
    (outputs, logits, choice), network_back = network(x, p, k)
    order, inverse, tokens, _ = choice.assignment
    expert_loss = cross_entropies if targets.dtype.kind == "i" else half_squared_errors
    losses, losses_back = expert_loss(outputs, targets[tokens])
    scores, pick_back = pick(logits, choice.indices)
    unlikely, mixture_back = mixture_likelihood(scores, losses[inverse].reshape(scores.shape))
    uneven, balance_back = ops.load_balance(logits, choice.indices)
    loss = unlikely + balance * uneven

    def backward(dloss):  # read upwards
        (dlogits_balance,) = balance_back(dloss * balance)
        dscores, dlosses = mixture_back(dloss)
        (dlogits,) = pick_back(dscores)
        doutputs, *_ = losses_back(dlosses.reshape(-1)[order])
        return network_back(doutputs, dlogits + dlogits_balance)

    return loss, backward


@dataclass(frozen=True)
class MixtureObjective(Objective):
    """`mixture_loss` of some rows and their targets."""

    k: int
    balance: float

    def params(self, leaves: dict[str, Array]) -> Network:
        return Network(**leaves)

    def __call__(self, params: Network, batch: Rows, rng: np.random.Generator) -> Any:
        x, targets = batch.arrays
        loss, backward = mixture_loss(params, x, targets, self.k, self.balance)
        return (loss, None), backward


def with_ones(x):
    """A column of ones on the right; its gradient is the bias's, so that of x is dy without the last column."""
    return np.concatenate([x, np.ones((len(x), 1), x.dtype)], 1)
