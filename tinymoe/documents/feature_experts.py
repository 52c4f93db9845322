"""《稀疏专家模型》 §5.2 and §5.4: experts that read a part of the input each, and the picture of what they predict.

    model = SparseExpertModel(num_experts=2)
    model.train(inputs, targets)
    predictions = model(test_inputs)
    scatter(test_inputs, predictions).savefig("predictions.png")

What is wrong there:
- `inputs[:, i]` has one axis, and a dense layer needs two: the model fails at its first call;
- expert i reads feature i, so with two experts and the three features of the example the third is never read;
- outputs are added without the weights w_i of its own §4.2. A sum of functions of one feature each can't express how
  features act together, and no expert can be left out;
- the training code is a comment.

Here the features are divided among the experts, so that one expert reads each, and a gate, w = softmax(x R + b), says
for each row how much each expert counts: Y = Σ w_i E_i(part i of X). The experts together are one network with sparse,
block-diagonal weights.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ops import softmax
from ..types import Array
from .fit import mean_squared_error, train
from .layers import Dense, ExpertNetwork, new_expert


@dataclass
class Parameters:
    gate: Dense  # (D, E)
    experts: tuple[ExpertNetwork, ...]  # E of them, each (its share of D) → 64 → 1


def network(x, p: Parameters):
    """Every expert on its features, weighed by the gate.

        y_n = Σ_i w_ni E_i(x_n, features i),   w = softmax(x R + b)
        dE_i = w_i dy        dw_ni = dy_n E_i(x_n)        dx = (through the experts, side by side) + (through the gate)

    x  (N, D)
    y  (N, 1)

    Source: 《稀疏专家模型》 §4.2–4.3.
    """
    parts = np.split(x, borders(p), axis=1)
    outputs, expert_backs = zip(*(e.forward(part) for e, part in zip(p.experts, parts, strict=True)), strict=True)
    stacked = np.concatenate(outputs, axis=1)  # (N, E)
    logits, gate_back = p.gate.forward(x)
    weights, softmax_back = softmax(logits)
    y = (weights * stacked).sum(1, keepdims=True)

    def backward(dy):  # read upwards
        dx_gate, dgate = gate_back(*softmax_back(dy * stacked))
        columns = np.split(dy * weights, len(expert_backs), axis=1)
        dparts, dexperts = zip(*(back(d) for back, d in zip(expert_backs, columns, strict=True)), strict=True)
        return np.concatenate(dparts, axis=1) + dx_gate, Parameters(dgate, dexperts)

    return y, backward


def borders(p: Parameters) -> Array:
    """The first feature of every expert but the first."""
    return np.cumsum([e.dense1.weight.shape[0] for e in p.experts])[:-1]


def squared_loss(p: Parameters, x, targets):
    """The mean squared error of the model's predictions; targets (N, 1)."""
    y, network_back = network(x, p)
    loss, error_back = mean_squared_error(y, targets)

    def backward(dloss):
        dy, _ = error_back(dloss)
        _, dp = network_back(dy)
        return dp

    return loss, backward


class SparseExpertModel:
    """The document's model, with its one argument. Keras learns the number of features from the first input; here it is
    given, 3 as in the document's example.

    num_experts   how many share the features, at most one for each
    num_features  columns of the inputs
    rng           a np.random.Generator, or a seed for one
    """

    def __init__(self, num_experts: int, num_features: int = 3, rng: Any = 0) -> None:
        if not 1 <= num_experts <= num_features:
            raise ValueError(
                f"num_experts is {num_experts}; it must lie between 1 and the number of features, {num_features}, "
                "so that each expert has one to read"
            )
        self.rng = np.random.default_rng(rng)
        widths = [len(part) for part in np.array_split(np.arange(num_features), num_experts)]
        experts = tuple(new_expert(self.rng, width, 64, 1) for width in widths)
        gate = Dense(np.zeros((num_features, num_experts)), np.zeros(num_experts))  # at first all count the same
        self.parameters = Parameters(gate, experts)

    def __call__(self, inputs: Array) -> Array:
        """The predictions (N, 1) for inputs (N, D)."""
        return network(inputs, self.parameters)[0]

    def loss(self, inputs: Array, targets: Array) -> Any:
        """loss, backward: the mean squared error, and the gradient for the parameters."""
        return squared_loss(self.parameters, inputs, targets)

    def train(self, inputs: Array, targets: Array, epochs: int = 100, **options: Any) -> list[float]:
        """Returns the mean loss of each epoch; options are those of `fit.train`."""
        settings: dict[str, Any] = {"epochs": epochs, "rng": self.rng} | options
        curve = []
        for p, loss in train(self.parameters, squared_loss, (inputs, targets), **settings):
            self.parameters = p
            curve.append(loss)
        return curve


def scatter(test_inputs: Array, predictions: Array, targets: Array | None = None) -> Any:
    """The document's picture, §5.4: input feature 1 against prediction; with the targets behind it, where given."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if targets is not None:
        axes.scatter(test_inputs[:, 0], targets, color="0.8", label="target")
    axes.scatter(test_inputs[:, 0], predictions, s=12, color="C0", label="prediction")
    axes.set(xlabel="Input Feature 1", ylabel="Prediction")
    axes.legend()
    return figure


def example(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Inputs (n, 3) as in the document, and targets (n, 1): the third feature says whether the others matter."""
    inputs = rng.random((n, 3))
    wave = np.sin(2 * np.pi * inputs[:, 0]) + inputs[:, 1]
    return inputs, np.where(inputs[:, 2] > 0.5, wave, -inputs[:, 2])[:, None]


def draw(path: str) -> None:
    """Train the document's model on the example and save the picture."""
    rng = np.random.default_rng(0)
    model = SparseExpertModel(num_experts=2)
    model.train(*example(rng, 1000), epochs=150)
    test_inputs, targets = example(rng, 100)
    scatter(test_inputs, model(test_inputs), targets).savefig(path, dpi=110)


if __name__ == "__main__":
    draw(sys.argv[1])
