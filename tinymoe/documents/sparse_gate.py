"""The untitled document on the 稀疏门控 (sparse gate), §5: SparseExpertModel(num_experts, input_dim, output_dim, k).

    model = SparseExpertModel(num_experts=8, input_dim=3, output_dim=2, k=2)
    model.train(x, targets)
    y = model(x)

What is wrong there:
- an expert's score is the sum of its own outputs, so all of them run before any is chosen: nothing is sparse;
- the sum runs over the whole batch, so all rows get the same experts, and a row's result depends on its neighbours;
- `torch.tensor(weights)` detaches the scores, and the outputs are added without them: no gradient says whom to choose;
- for a given choice the result is one linear map of the batch, whatever the number of experts;
- Δw = ∂L/∂w for the chosen (§4) climbs the loss: the step is −η ∂L/∂w.

Here the gate matches each row with a learned key of each expert, w_i = f(x, e_i) = x·e_i (§4), A = TopK(W, K) per row,
only chosen experts compute, and their outputs are weighed by the gate, through which it learns. Weights and bias
of an expert that no row of a batch chose are left as they are, to the bit (§3.2): that is the lazy form of Adam.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..ops import combine, dispatch, embedding, group_by_expert, grouped_linear, linear, load_balance, top_k_gate
from ..tree import leaf
from ..types import Array
from .fit import mean_squared_error, train


@dataclass
class Parameters:
    keys: Array  # (D, E)  column i is e_i
    weight: Array = leaf("expert")  # (E, D, C)
    bias: Array = leaf("expert")  # (E, C)


def network(x, p: Parameters, k: int):
    """Each row through the k experts whose keys match it best.

        w = top_k_gate(x keys)        y_n = Σ_{i∈A_n} w_ni (x_n W_i + b_i)
        dx_n = Σ_{i∈A_n} w_ni dy_n W_iᵀ + keys dz_n,   dz from the gate's and the balance's backward

    With k = 1 the weight is the probability itself: renormalised it would always be 1, and teach the keys nothing.

    x        (N, D)
    y        (N, C)
    balance  ()         the load-balance loss, to be weighed by the caller
    chosen   (N, K)     int, without gradient

    Raises ValueError unless 1 ≤ k ≤ E.
    Source: the untitled document on the 稀疏门控 (sparse gate), §3–4; Shazeer et al. 2017, eq. 1–5.
    """
    scores, match_back = linear(x, p.keys)
    (weights, chosen), gate_back = top_k_gate(scores, k, renormalize=k > 1)
    balance, balance_back = load_balance(scores, chosen)
    assignment = group_by_expert(chosen, len(p.weight))
    rows, dispatch_back = dispatch(x, assignment)
    products, weight_back = grouped_linear(rows, p.weight, assignment.counts)
    expert_of_row = np.repeat(np.arange(len(p.weight)), assignment.counts)
    offsets, bias_back = embedding(expert_of_row, p.bias)
    y, combine_back = combine(products + offsets, weights, assignment)

    def backward(dy, dbalance):  # read upwards
        doutputs, dweights = combine_back(dy)
        (dbias,) = bias_back(doutputs)
        drows, dweight = weight_back(doutputs)
        (dx_experts,) = dispatch_back(drows)
        (dscores_balance,) = balance_back(dbalance)
        (dscores_gate,) = gate_back(dweights)
        dx_match, dkeys = match_back(dscores_gate + dscores_balance)
        return dx_experts + dx_match, Parameters(dkeys, dweight, dbias)

    return (y, balance, chosen), backward


def squared_loss(p: Parameters, x, targets, k: int, balance: float):
    """The mean squared error, plus `balance` times the load-balance loss; targets (N, C)."""
    (y, uneven, _), network_back = network(x, p, k)
    error, error_back = mean_squared_error(y, targets)
    loss = error + balance * uneven

    def backward(dloss):
        dy, _ = error_back(dloss)
        _, dp = network_back(dy, dloss * balance)
        return dp

    return loss, backward


class SparseExpertModel:
    """The document's model, with its four arguments.

    num_experts, k         how many experts there are, and how many run for a row
    input_dim, output_dim  columns of the inputs and of the outputs
    balance                weight of the load-balance loss, against §8's "some overused, others ignored"
    rng                    a np.random.Generator, or a seed for one
    """

    def __init__(
        self, num_experts: int, input_dim: int, output_dim: int, k: int, *, balance: float = 0.01, rng: Any = 0
    ) -> None:
        if not 1 <= k <= num_experts:
            raise ValueError(f"k is {k}; it must lie between 1 and the number of experts, {num_experts}")
        self.k, self.balance, self.rng = k, balance, np.random.default_rng(rng)
        keys = self.rng.standard_normal((input_dim, num_experts))
        weight = self.rng.standard_normal((num_experts, input_dim, output_dim))
        self.parameters = Parameters(
            keys / np.sqrt(input_dim), weight / np.sqrt(input_dim), np.zeros((num_experts, output_dim))
        )

    def __call__(self, x: Array) -> Array:
        """The outputs (N, output_dim) for x (N, input_dim)."""
        (y, _, _), _ = network(x, self.parameters, self.k)
        return y

    def loss(self, x: Array, targets: Array) -> Any:
        """loss, backward: the training loss, and the gradient for the parameters."""
        return squared_loss(self.parameters, x, targets, self.k, self.balance)

    def train(self, x: Array, targets: Array, epochs: int = 100, **options: Any) -> list[float]:
        """Returns the mean loss of each epoch; options are those of `fit.train`."""
        loss_of = partial(squared_loss, k=self.k, balance=self.balance)
        settings: dict[str, Any] = {"epochs": epochs, "rng": self.rng, "lazy": True} | options
        curve = []
        for p, loss in train(self.parameters, loss_of, (x, targets), **settings):
            self.parameters = p
            curve.append(loss)
        return curve
