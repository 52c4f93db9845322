"""`ops/balance.py`, `renormalize_kept` and `balance_loss` in PyTorch, for its autograd: written from the formulas, with
padding cut out where the library masks it, and a loop over sequences or layers where the library has one array.
"""

from collections.abc import Callable
from typing import Any

from tests.parity.pytorch import torch
from tinymoe.ops.balance import (
    device_balance,
    importance,
    load_balance,
    sequence_balance,
    squared_variation,
    z_loss,
)
from tinymoe.ops.capacity import renormalize_kept
from tinymoe.systems.conventions import balance_loss


def one_hot(indices, n_experts):
    return torch.nn.functional.one_hot(indices, n_experts).double()


def rows(mask, n):
    return torch.ones(n, dtype=torch.bool) if mask is None else torch.from_numpy(mask)


def shares_of(indices, n_experts):
    return one_hot(indices, n_experts).sum((0, 1)) / max(indices.numel(), 1)


def torch_load_balance(logits, indices, mask=None, shares=None):
    real = rows(mask, len(logits))
    p = torch.softmax(logits[real], -1)
    f = shares_of(indices[real], p.shape[1]) if shares is None else torch.from_numpy(shares)
    return p.shape[1] * (f * p.sum(0) / max(len(p), 1)).sum()


def torch_device_balance(logits, indices, devices, mask=None):
    """The sum over devices as it stands in the paper."""
    real = rows(mask, len(logits))
    p = torch.softmax(logits[real], -1).sum(0) / max(int(real.sum()), 1)
    f = shares_of(indices[real], len(p)) * len(p)
    return sum(f[devices == d].mean() * p[devices == d].sum() for d in devices.unique())


def torch_sequence_balance(logits, k, batch, mask=None):
    n_experts, losses = logits.shape[1], []
    for z, real in zip(logits.chunk(batch), rows(mask, len(logits)).chunk(batch), strict=True):
        if real.any():
            s = torch.sigmoid(z[real])
            f = one_hot(s.topk(k).indices, n_experts).sum((0, 1)) * n_experts / (k * len(s))
            losses.append((f * (s / s.sum(-1, keepdim=True)).mean(0)).sum())
    return sum(losses) / len(losses) if losses else 0 * logits.sum()


def torch_importance(weights, indices, n_experts, mask=None):
    real = rows(mask, len(weights))
    return weights.new_zeros(n_experts).index_add(0, indices[real].flatten(), weights[real].flatten())


def torch_squared_variation(v):
    return v.var(correction=0) / (v.mean() ** 2 + 1e-10)


def torch_z_loss(logits, mask=None):
    real = rows(mask, len(logits))
    return (torch.logsumexp(logits[real], -1) ** 2).sum() / max(int(real.sum()), 1)


def torch_renormalize_kept(weights, kept):
    lines = [w * m / (w * m).sum() if m.any() else 0 * w for w, m in zip(weights, kept, strict=True)]
    return torch.stack(lines) if lines else weights * 1


def torch_balance_loss(logits, indices, convention, mask=None):
    real = rows(mask, logits.shape[1])
    layers = [(z[real], i[real]) for z, i in zip(logits, indices, strict=True)]
    if convention.layers == "pooled":
        layers = [tuple(torch.cat(parts) for parts in zip(*layers, strict=True))]
    losses = []
    for z, chosen in layers:
        p = torch.softmax(z, -1)
        if convention.probabilities == "gates":
            gates = torch.softmax(z.gather(1, chosen), -1)
            p = torch.zeros_like(z).scatter(1, chosen, gates)
        elif convention.probabilities == "twice":
            p = torch.softmax(p, -1)
        counted = chosen[:, :1] if convention.choices == "first" else chosen
        f = one_hot(counted, z.shape[1]).sum((0, 1)) / max(len(z), 1) / (counted.shape[1] if convention.divided else 1)
        losses.append(z.shape[1] ** 2 * (f * p.sum(0) / max(len(z), 1)).mean())
    total = torch.stack(losses)
    return total.mean() if convention.layers == "mean" else total.sum()


REFERENCES: dict[Callable[..., Any], Callable[..., Any]] = {
    load_balance: torch_load_balance,
    device_balance: torch_device_balance,
    sequence_balance: torch_sequence_balance,
    importance: torch_importance,
    squared_variation: torch_squared_variation,
    z_loss: torch_z_loss,
    renormalize_kept: torch_renormalize_kept,
    balance_loss: torch_balance_loss,
}
