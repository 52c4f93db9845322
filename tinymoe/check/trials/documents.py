"""The documents' models, small, each under the name of its file."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import numpy as np

from ...documents import big_language_model as d2
from ...documents import feature_experts as d0
from ...documents import lstm_experts as d2_lstm
from ...documents import sparse_gate as d1
from ...documents import sparse_weights as d3
from ...documents.fit import mean_squared_error
from ...documents.layers import Dense, new_expert
from ...sparse import CSR
from ..trial import Trial, of_parameters


def trials(rng: np.random.Generator) -> Iterator[Trial]:
    for name, loss, parameters, data in models(rng):
        yield of_parameters(name, loss, parameters, *data)


def models(rng: np.random.Generator, n: int = 6) -> Iterator[tuple[str, Callable[..., Any], Any, tuple[Any, ...]]]:
    """(name, loss, parameters, data) of every model, for n rows."""
    normal, ids = rng.standard_normal, rng.integers(0, 5, (n, 4))
    x, targets, pixels = normal((n, 3)), normal((n, 2)), normal((2, 2, 2, 3))
    yield "feature experts", d0.squared_loss, feature_experts(rng), (x, targets[:, :1])
    for k in (1, 2, 3):
        p1 = d1.SparseExpertModel(3, 3, 2, k, rng=rng).parameters
        yield f"sparse gate, k = {k}", partial(d1.squared_loss, k=k, balance=0.1), p1, (x, targets)
    for k in (1, 2):
        yield (
            f"big language model, k = {k}",
            partial(d2.language_loss, k=k),
            language_model(rng),
            (["ab", "cde", "é"][:n],),
        )
    yield "big language model, sparse", d2.language_loss, d2.sparsify(language_model(rng), 0.6), (["abc", "de"][:n],)
    yield "big language model, with images", d2.caption_loss, visual_model(rng), (pixels[:n], ["ab", "c"][:n])
    yield "LSTM experts", partial(d2_lstm.mixture_loss, k=2), lstm_experts(rng), (ids, ids[:, ::-1])
    for k in (1, 2):
        yield f"sparse weights, k = {k}", partial(d3.language_loss, k=k), sparse_weights(rng), (ids, ids[:, ::-1])


def feature_experts(rng: Any = 0) -> d0.Parameters:
    rng = np.random.default_rng(rng)
    p = d0.SparseExpertModel(2, rng=rng).parameters
    return replace(p, gate=Dense(rng.standard_normal((3, 2)), np.zeros(2)))  # at 0 all would count the same


def language_model(rng: Any = 0) -> d2.BigLanguageModel:
    rng = np.random.default_rng(rng)
    model = d2.new_language_model(rng, width=4, layers=2, experts=3, hidden=5)
    for layer in model.hidden_layers:
        for expert in layer.experts:
            expert.dense1.bias += 0.3 * rng.standard_normal(5)  # at 0 a unit without inputs would sit on ReLU's kink
    return model


def visual_model(rng: Any = 0) -> d2.VisualLanguageModel:
    rng = np.random.default_rng(rng)
    return d2.new_visual_language_model(rng, 12, language_model(rng))


def lstm_experts(rng: Any = 0) -> d2_lstm.Parameters:
    return d2_lstm.LSTMExperts(5, 3, 4, 3, rng=rng).parameters


def sparse_weights(rng: Any = 0) -> d3.Parameters:
    return d3.SparseExpertLanguageModel(7, 6, 3, density=0.4, rng=rng).parameters


def operations(rng: np.random.Generator) -> Iterator[Trial]:
    """What the models are made of and `ops` has not, and the models as functions of their inputs.

    Each input reaches the result by two ways: through the experts and through the gate.
    """
    normal = rng.standard_normal
    yield Trial("four rows", mean_squared_error, (normal((4, 2)), normal((4, 2))))
    yield Trial("four rows", d2_lstm.log_loss, (0.1 + rng.random((4, 3)), np.array([0, 2, 2, 1])))
    table = CSR.from_dense(normal((5, 4)), rng.random((5, 4)) < 0.4)
    yield Trial("repeated ids", d3.sparse_embedding, (np.array([3, 0, 3, 3, 4]), normal(table.nnz), table))

    p1 = d1.SparseExpertModel(4, 3, 2, 2, rng=rng).parameters
    yield Trial("feature experts", _of_input(d0.network), (normal((5, 3)), feature_experts(rng)))
    yield Trial("sparse gate", _of_input(d1.network), (normal((5, 3)), p1, 2))
    pictures, texts = normal((2, 2, 2, 3)), ["ab", "c"]
    yield Trial("two pictures", _of_input(d2.visual_language_model), (pictures, texts, visual_model(rng)))

    experts = tuple(new_expert(rng, 3, 4, 2) for _ in range(3))

    def mix_of_experts(x, gate):
        y, backward = d2.mix_of_experts(x, experts, gate, 2)
        return y, lambda dy: backward(dy)[::2]  # dx and dgate

    yield Trial("of three experts", mix_of_experts, (normal((5, 3)), normal((3, 3))))


def _of_input(network: Callable[..., Any]) -> Callable[..., Any]:
    """The network as a function of its first argument alone: of its gradients only that one is returned."""

    @wraps(network)
    def of_input(x, *args):
        y, network_back = network(x, *args)
        return y, lambda *dy: (network_back(*dy)[0],)

    return of_input
