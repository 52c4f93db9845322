"""A dense layer whose weight may be sparse, and the expert of two of them: objects with `forward`, as the articles have.

Parameters are dataclasses of arrays; `forward` returns `y, backward`, and `backward(dy)` returns dx and a gradient of the
object's own type.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..ops import linear, relu, sparse_linear
from ..sparse import CSR
from ..types import Array


@dataclass
class Dense:
    """y = x W + b"""

    weight: Array | CSR  # (D, F)
    bias: Array  # (F,)

    def forward(self, x):
        """x (N, D) → y (N, F). A sparse weight gets a gradient at its stored places only, of the same pattern."""
        if not isinstance(self.weight, CSR):
            y, linear_back = linear(x, self.weight, self.bias)
        else:
            y, linear_back = sparse_linear(x, self.weight.data, self.weight, self.bias)

        def backward(dy):
            dx, dweight, dbias = linear_back(dy)
            return dx, Dense(self.weight.with_data(dweight) if isinstance(self.weight, CSR) else dweight, dbias)

        return y, backward


@dataclass
class ExpertNetwork:
    """Two dense layers with a ReLU between them: the document's Dense(F, relu) → Dense(C)."""

    dense1: Dense  # (D, F)
    dense2: Dense  # (F, C)

    def forward(self, x):
        """x (N, D) → y (N, C)"""
        h, back1 = self.dense1.forward(x)
        a, relu_back = relu(h)
        y, back2 = self.dense2.forward(a)

        def backward(dy):  # read upwards
            da, ddense2 = back2(dy)
            dx, ddense1 = back1(*relu_back(da))
            return dx, ExpertNetwork(ddense1, ddense2)

        return y, backward


def new_dense(rng: np.random.Generator, inputs: int, outputs: int, gain: float = 1.0) -> Dense:
    """Normal weights of variance gain / inputs, which keeps a row's size for gain 1; biases 0."""
    return Dense(rng.standard_normal((inputs, outputs)) * math.sqrt(gain / inputs), np.zeros(outputs))


def new_expert(rng: np.random.Generator, inputs: int, hidden: int, outputs: int) -> ExpertNetwork:
    """Gain 2 before the ReLU, which halves the mean square (He et al. 2015)."""
    return ExpertNetwork(new_dense(rng, inputs, hidden, 2.0), new_dense(rng, hidden, outputs))
