"""《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §5.2: experts that are an embedding, an LSTM and a softmax.

    model = LSTMExperts(vocab_size, embedding_size, hidden_units, num_experts)
    history = model.fit(x_train, y_train, epochs=10, batch_size=32, validation_data=(x_val, y_val))

What is wrong there:
- `expert_model` uses the same three layers at every call, so all experts are one: the mixture equals a single expert;
- `expert_weights` is never defined;
- `reduce_sum(expert * weight, axis=0)` adds up the batch, so that texts become one;
- `reduce_mean` over experts divides by their number once more: probabilities no longer add up to 1.

Here each expert has layers of its own, and a gate, by the first token of a text (all that is known when it begins),
chooses k experts for that text and weighs them: p = Σ w_i p_i. Only these run.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..ops import combine, embedding, group_by_expert, lstm, softmax, top_k_gate
from ..types import Array
from .fit import train
from .layers import Dense, new_dense


@dataclass
class LSTMExpert:
    embedding: Array  # (V, D)
    w_in: Array  # (D, 4H)
    w_rec: Array  # (H, 4H)
    bias: Array  # (4H,)
    output_layer: Dense  # (H, V)

    def forward(self, ids):
        """ids (B, T) → the probabilities of each next token (B, T, V); backward(dprobabilities) → an `LSTMExpert`"""
        (B, T), (V, D), H = ids.shape, self.embedding.shape, len(self.w_rec)
        x, embedding_back = embedding(ids.reshape(-1), self.embedding)
        start = np.zeros((B, H), x.real.dtype)
        (states, _, _), lstm_back = lstm(x.reshape(B, T, D), self.w_in, self.w_rec, self.bias, start, start)
        logits, output_back = self.output_layer.forward(states.reshape(-1, H))
        p, softmax_back = softmax(logits)

        def backward(dp):  # read upwards
            drows, doutput = output_back(*softmax_back(dp.reshape(B * T, V)))
            dx, dw_in, dw_rec, dbias, _, _ = lstm_back(drows.reshape(B, T, H), start, start)
            (dembedding,) = embedding_back(dx.reshape(B * T, D))
            return LSTMExpert(dembedding, dw_in, dw_rec, dbias, doutput)

        return p.reshape(B, T, V), backward


@dataclass
class Parameters:
    gate: Array  # (V, E)  scores of the experts for each first token
    experts: tuple[LSTMExpert, ...]


def new_lstm_expert(rng: np.random.Generator, vocabulary: int, width: int, hidden: int) -> LSTMExpert:
    """Forget gates begin more than half open on average, so that the memory is long enough to learn from."""
    bias = np.zeros(4 * hidden)
    bias[hidden : 2 * hidden] = 1
    return LSTMExpert(
        rng.standard_normal((vocabulary, width)),
        rng.standard_normal((width, 4 * hidden)) / np.sqrt(width),
        rng.standard_normal((hidden, 4 * hidden)) / np.sqrt(hidden),
        bias,
        new_dense(rng, hidden, vocabulary),
    )


def mix_of_experts(ids, p: Parameters, k: int):
    """The probabilities of the next token, mixed: p_b = Σ_{i∈S_b} w_bi p_i(text b), S_b by the text's first token.

    ids            (B, T)  int, T ≥ 1
    probabilities  (B, T, V)

    `backward(dprobabilities)` returns `Parameters`. With k = 1 the weight is 1 and the gate learns nothing.
    """
    scores, gate_back = embedding(ids[:, 0], p.gate)
    (weights, chosen), top_k_back = top_k_gate(scores, k)
    assignment = group_by_expert(chosen, len(p.experts))
    ends = np.cumsum(assignment.counts)[:-1]
    parts = zip(p.experts, np.split(ids[assignment.tokens], ends), strict=True)
    outputs, expert_backs = zip(*(expert.forward(part) for expert, part in parts), strict=True)
    rows = np.concatenate(outputs)  # (M, T, V)
    flat, combine_back = combine(rows.reshape(len(rows), rows[:1].size), weights, assignment)

    def backward(dprobabilities):  # read upwards
        drows, dweights = combine_back(dprobabilities.reshape(flat.shape))
        dparts = zip(expert_backs, np.split(drows, ends), strict=True)
        dexperts = tuple(back(part) for back, part in dparts)
        (dgate,) = gate_back(*top_k_back(dweights))
        return Parameters(dgate, dexperts)

    return flat.reshape(len(ids), *rows.shape[1:]), backward


def log_loss(probabilities, targets):
    """Mean of −ln p[target], in nats: the cross-entropy of probabilities that are made already.

        loss = −1/n Σ ln p_r[target_r]        dp_r = −dloss/n onehot(target_r) / p_r

    probabilities  (N, V)
    targets        (N,)    int in [0, V)
    loss           ()      0 if there are no rows
    """
    rows, n = np.arange(len(targets)), max(len(targets), 1)
    of_target = probabilities[rows, targets]
    loss = -np.log(of_target).sum() / n

    def backward(dloss):
        dprobabilities = np.zeros(probabilities.shape, probabilities.real.dtype)
        dprobabilities[rows, targets] = -dloss / n / of_target
        return (dprobabilities,)

    return loss, backward


def mixture_loss(p: Parameters, x, y, k: int):
    """x (B, T) and the tokens y (B, T) that follow at each position; backward(dloss) returns `Parameters`."""
    probabilities, mix_back = mix_of_experts(x, p, k)
    loss, loss_back = log_loss(probabilities.reshape(y.size, p.gate.shape[0]), y.reshape(-1))

    def backward(dloss):
        (dprobabilities,) = loss_back(dloss)
        return mix_back(dprobabilities.reshape(probabilities.shape))

    return loss, backward


class LSTMExperts:
    """The document's model: its four sizes, and k experts for a text.

    rng  a np.random.Generator, or a seed for one
    """

    def __init__(
        self, vocab_size: int, embedding_size: int, hidden_units: int, num_experts: int, k: int = 2, rng: Any = 0
    ) -> None:
        if not 1 <= k <= num_experts:
            raise ValueError(f"k is {k}; it must lie between 1 and the number of experts, {num_experts}")
        self.k, self.rng = k, np.random.default_rng(rng)
        experts = (new_lstm_expert(self.rng, vocab_size, embedding_size, hidden_units) for _ in range(num_experts))
        self.parameters = Parameters(self.rng.standard_normal((vocab_size, num_experts)), tuple(experts))

    def __call__(self, x: Array) -> Array:
        """The probabilities (B, T, V) of each next token, for tokens x (B, T)."""
        return mix_of_experts(x, self.parameters, self.k)[0]

    def loss(self, x: Array, y: Array) -> Any:
        """loss, backward: −ln p of the tokens y (B, T), mean, and the gradient for the parameters."""
        return mixture_loss(self.parameters, x, y, self.k)

    def accuracy(self, x: Array, y: Array) -> float:
        """The share of tokens whose probability is the largest."""
        return float((self(x).argmax(-1) == y).mean())

    def fit(
        self,
        x: Array,
        y: Array,
        epochs: int = 10,
        batch_size: int = 32,
        validation_data: tuple[Array, Array] | None = None,
        **options: Any,
    ) -> list[dict[str, float]]:
        """For each epoch its loss and accuracy, and those on validation data; options are those of `fit.train`."""
        loss_of = partial(mixture_loss, k=self.k)
        settings: dict[str, Any] = {"epochs": epochs, "rng": self.rng, "batch_size": batch_size} | options
        history = []
        for p, loss in train(self.parameters, loss_of, (x, y), **settings):
            self.parameters = p
            record = {"loss": loss, "accuracy": self.accuracy(x, y)}
            if validation_data is not None:
                record["val_loss"] = float(self.loss(*validation_data)[0])
                record["val_accuracy"] = self.accuracy(*validation_data)
            history.append(record)
        return history
