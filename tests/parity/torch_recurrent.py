"""Recurrent networks once more: PyTorch's own modules, with weights from the arrays; autograd differentiates."""

from collections.abc import Callable
from typing import Any

from tests.parity.pytorch import torch
from tinymoe.ops import recurrent


def run(module, x, weights, *states):
    """The module, with `weights` in the order of its own, applied to x (B, T, D) and states (B, H)."""
    if not x.shape[1]:  # PyTorch refuses to read no positions; what goes in comes out
        nothing = sum(0 * w.sum() for w in weights)  # joins them to the graph, with gradient 0
        return x.new_zeros(len(x), 0, states[0].shape[1]) + x.sum() + nothing, *states
    network = module(x.shape[2], states[0].shape[1], batch_first=True).double()
    parameters = dict(zip(dict(network.named_parameters()), weights, strict=True))
    start = tuple(s[None] for s in states)
    y, last = torch.func.functional_call(network, parameters, (x, start if len(start) > 1 else start[0]))
    return y, *(s[0] for s in (last if isinstance(last, tuple) else (last,)))


def rnn(x, w_in, w_rec, bias, h0):
    return run(torch.nn.RNN, x, (w_in.T, w_rec.T, bias, torch.zeros_like(bias)), h0)


def gru(x, w_in, w_rec, bias, bias_rec, h0):
    both = bias.new_zeros(2 * len(bias_rec))  # r and z have one bias, not two
    return run(torch.nn.GRU, x, (w_in.T, w_rec.T, bias, torch.cat([both, bias_rec])), h0)


def lstm(x, w_in, w_rec, bias, h0, c0):
    return run(torch.nn.LSTM, x, (w_in.T, w_rec.T, bias, torch.zeros_like(bias)), h0, c0)


REFERENCES: dict[Callable[..., Any], Callable[..., Any]] = {
    recurrent.rnn: rnn,
    recurrent.gru: gru,
    recurrent.lstm: lstm,
}
