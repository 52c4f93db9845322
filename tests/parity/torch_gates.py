"""Scores, gates and soft mixtures once more in PyTorch, from the formulas; autograd differentiates.

Written the plain way: masks of −inf, loops over tokens and groups, all assignments tried. Tensors are what carries a
gradient; options arrive as NumPy arrays.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from tests.parity.pytorch import torch
from tinymoe import ops
from tinymoe.ops import gates, gelu, relu, scores, shared_gates, silu, soft

F = torch.nn.functional


def unit_rows(x, *, eps=1e-12):
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def cosine_scores(x, router, scale, *, eps=1e-12):
    return scale * F.linear(unit_rows(x, eps=eps), unit_rows(router.T, eps=eps))


def pick(scores, indices):
    return (F.one_hot(indices, scores.shape[1]) * scores[:, None]).sum(-1)


def top_k_softmax(logits, k):
    values, indices = logits.topk(k)
    outside = logits < values[:, -1:]
    return torch.softmax(logits.masked_fill(outside, -torch.inf), -1).gather(1, indices), indices


def top_k_gate(logits, k, renormalize=True, *, eps=0.0, scale=1.0):
    weights, indices = torch.softmax(logits, -1).topk(k)
    return scale * (weights / (weights.sum(-1, keepdim=True) + eps) if renormalize else weights), indices


def gshard_gate(logits, *, uniforms=None, threshold=0.2):
    weights, indices = top_k_gate(logits, 2, eps=1e-9)
    chance = weights[:, 1].detach().numpy() / max(threshold, 1e-9)
    second = torch.from_numpy(np.ones(len(logits), bool) if uniforms is None else uniforms < chance)
    return weights, indices, torch.stack([torch.ones_like(second), second], 1)


def smooth_load(clean, noisy, sigma, k):
    if not len(clean):
        return (clean + noisy + sigma).sum(0)  # zeros
    top = noisy.topk(k + 1).values
    inside = noisy > top[:, k:]
    threshold = torch.where(inside, top[:, k:], top[:, k - 1 : k])
    return torch.special.ndtr((clean - threshold) / sigma).sum(0)


def counted_load(clean, noisy, sigma, k):
    nothing = 0 * (clean + noisy + sigma).sum(0)  # joins them to the graph, with gradient 0
    return nothing + F.one_hot(noisy.topk(k).indices, noisy.shape[1]).sum((0, 1))


def noisy_top_k_gate(clean, spread, k, *, noise=None):
    sigma = F.softplus(spread, threshold=100) + 0.01
    noisy = clean if noise is None else clean + torch.from_numpy(noise) * sigma
    load = counted_load if noise is None or k == clean.shape[1] else smooth_load
    return *top_k_softmax(noisy, k), load(clean, noisy, sigma, k)


def sigmoid_gate(
    logits, k, *, bias=None, groups=1, kept_groups=None, scale=1.0, normalize=True, eps=1e-20
):  # a loop over tokens and groups
    s = torch.sigmoid(logits)
    size = logits.shape[1] // groups
    chosen = np.zeros((len(logits), k), int)
    for n, row in enumerate(s.detach().numpy() + (0 if bias is None else bias)):
        worth = [sum(sorted(row[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        best_groups = sorted(range(groups), key=lambda g: -worth[g])[: kept_groups or groups]
        allowed = [e for g in best_groups for e in range(g * size, (g + 1) * size)]
        chosen[n] = sorted(allowed, key=lambda e: -row[e])[:k]
    indices = torch.from_numpy(chosen)
    weights = s.gather(1, indices)
    return scale * (weights / (weights.sum(-1, keepdim=True) + eps) if normalize else weights), indices


def sinkhorn_gate(logits, k, *, balanced=True):
    n, n_experts = logits.shape
    plan = logits.detach()
    if balanced and n:
        cost, columns, change = (
            plan.exp(),
            torch.ones(n_experts).double(),
            1.0,
        )  # as Megatron does: no maximum taken off
        while change > 1e-4:
            rows = 1 / n / ((cost * columns).sum(1) + 1e-8)
            new = 1 / n_experts / ((cost * rows[:, None]).sum(0) + 1e-8)
            change, columns = float((new - columns).abs().mean()), new
        plan = rows[:, None] * cost * columns
    indices = plan.topk(k).indices
    return (torch.sigmoid(logits) if k == 1 else torch.softmax(logits, -1)).gather(1, indices), indices


def base_gate(scores, *, balanced=True):
    n, n_experts = scores.shape
    indices = scores.detach().argmax(1)
    if balanced:  # try all assignments
        choices = torch.tensor(list(product(range(n_experts), repeat=n)), dtype=torch.long)  # (Eᴺ, N)
        counts = F.one_hot(choices, n_experts).sum(1)
        values = scores.detach()[torch.arange(n), choices].sum(1)
        even = counts.max(1).values - counts.min(1).values <= 1
        indices = choices[values.masked_fill(~even, -torch.inf).argmax()]
    return torch.sigmoid(scores.gather(1, indices[:, None])), indices[:, None]


def expert_choice_gate(logits, capacity):
    n, n_experts = logits.shape
    p = torch.softmax(logits, -1)
    kept = torch.zeros(n, n_experts, dtype=torch.bool)
    for e in range(n_experts):
        kept[p[:, e].topk(min(capacity, n)).indices, e] = True
    return p.where(kept, 0.0), torch.arange(n_experts).expand(n, -1), kept


def soft_routing(x, slots, scale):
    a = cosine_scores(x, slots, scale, eps=1e-6)
    return torch.softmax(a, 0), torch.softmax(a, 1)


def soft_moe(x, slots, scale, up, down, gate=None, *, activation):
    dispatch, combine = soft_routing(x, slots, scale)
    activation = {relu: F.relu, gelu: lambda u: F.gelu(u, approximate="tanh"), silu: F.silu}[activation]
    inputs = (dispatch.T @ x).unflatten(0, (len(up), -1))  # (E, S, D)
    u = inputs @ up
    h = activation(u) if gate is None else activation(inputs @ gate) * u
    return combine @ (h @ down).flatten(0, 1)


REFERENCES: dict[Callable[..., Any], Callable[..., Any]] = {
    scores.unit_rows: unit_rows,
    scores.cosine_scores: cosine_scores,
    scores.mlp_scores: lambda x, hidden, out: torch.tanh(x @ hidden) @ out,
    scores.jitter: lambda x, factors: x * torch.from_numpy(factors),
    scores.cast: lambda x, dtype: x.to(getattr(torch, dtype)),
    ops.pick: pick,
    ops.top_k_gate: top_k_gate,
    gates.top_k_softmax: top_k_softmax,
    gates.gshard_gate: gshard_gate,
    gates.noisy_top_k_gate: noisy_top_k_gate,
    gates.smooth_load: smooth_load,
    gates.counted_load: counted_load,
    gates.sigmoid_gate: sigmoid_gate,
    shared_gates.sinkhorn_gate: sinkhorn_gate,
    shared_gates.base_gate: base_gate,
    shared_gates.expert_choice_gate: expert_choice_gate,
    soft.soft_routing: soft_routing,
    soft.soft_moe: soft_moe,
}
