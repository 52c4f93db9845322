"""The same mathematics in PyTorch, differentiated by its autograd: outputs, losses and every gradient agree to 1e-10.

The PyTorch side is written from the formulas in the docstrings with PyTorch's own operations: fused attention on
repeated heads, rotation by complex numbers, a loop over experts with boolean masks where the library sorts.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.conftest import shaken
from tests.parity import torch_balance, torch_distillation, torch_gates, torch_recurrent
from tests.parity.pytorch import torch
from tinymoe import ops, optim
from tinymoe.check.trials import operations
from tinymoe.data.windows import Batch
from tinymoe.models.balancing import Balancing
from tinymoe.models.config import EXPERT_KINDS, NORMS, POSITIONS, LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.models.language import forward, loss
from tinymoe.tree import named

F = torch.nn.functional
CASES = list(operations(np.random.default_rng(1)))


def agree(name, got, expected, unit=1.0):
    """Equal shape, type, and values to 1e-10 of the largest. Where the true value is 0 and PyTorch finds mere rounding
    (1e-13 of `unit`, the size of the gradients around it), the library too may find no more."""
    got, expected = np.asarray(got), expected.detach().numpy()
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
    if got.dtype.kind in "ib":
        assert np.array_equal(got, expected), name
    elif got.size:
        size, error = np.abs(expected).max(), np.abs(got - expected).max()
        limit = 1e-10 * size if size > 1e-13 * unit else 1e-13 * unit
        assert error <= limit, f"{name}: off by {error:.1e}, with elements up to {size:.1e}"


def rotary(x, positions, base=10_000.0):  # (B, T, H, P)
    half = x.shape[-1] // 2
    angles = torch.outer(positions.double(), base ** (-torch.arange(half).double() / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def causal_attention(q, k, v):  # (B, H or G, T, P)
    k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], 1) for heads in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def full_attention(q, k, v):
    if k.shape[2] == 0:
        return q * 0 + k.sum() + v.sum()  # nothing to see: zeros, here with a gradient of zeros
    k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], 1) for heads in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def cross_entropy(logits, targets):
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / max(int((targets != -100).sum()), 1)


def load_balance(logits, indices):
    n, n_experts = logits.shape
    share = F.one_hot(indices, n_experts).sum((0, 1)).double() / max(indices.numel(), 1)
    return n_experts * (share * torch.softmax(logits, -1).sum(0) / max(n, 1)).sum()


def expert(x, up, down, gate=None, *, activation):
    activation = REFERENCES[activation]
    return (activation(x @ up) if gate is None else activation(x @ gate) * (x @ up)) @ down


def for_groups(function, x, *weights, counts, **options):
    return torch.cat([function(*part, **options) for part in zip(x.split(counts.tolist()), *weights, strict=True)])


def top_k_route(x, router, k, renormalize=True):
    logits = x @ router
    gates, indices = torch_gates.top_k_gate(logits, k, renormalize)
    counts = indices.flatten().bincount(minlength=router.shape[1])
    return (
        gates,
        load_balance(logits, indices),
        (logits.detach(), indices, gates.detach(), counts, torch.ones_like(indices, dtype=torch.bool)),
    )


def tight_route(x, router, k, room):
    gates, balance, routing = top_k_route(x, router, k)
    kept = ops.keep_within_capacity(routing[1].numpy(), router.shape[1], room)
    return gates, balance, (*routing[:-1], torch.from_numpy(kept))


def moe_layer(x, router, *weights, route, activation):
    """`route` is a partial of one of the library's, and stands for the function of its name here."""
    gates, balance, routing = {"top_k_route": top_k_route, "tight_route": tight_route}[route.func.__name__](
        x, router, **route.keywords
    )
    _, indices, _, _, kept = routing
    y = torch.zeros_like(x)
    for e, of_expert in enumerate(zip(*weights, strict=True)):
        visits = (indices == e) & kept  # (N, K)
        rows = visits.any(-1).nonzero()[:, 0]
        gate = gates.where(visits, 0.0).sum(-1)[rows, None]
        y = y.index_add(0, rows, gate * expert(x[rows], *of_expert, activation=activation))
    return y, balance, routing


def moe(*inputs, k, renormalize, activation):
    return moe_layer(*inputs, route=partial(ops.top_k_route, k=k, renormalize=renormalize), activation=activation)


def combine(rows, weights, assignment):
    tokens, order = torch.from_numpy(assignment.tokens), torch.from_numpy(assignment.order)
    return rows.new_zeros(len(weights), rows.shape[1]).index_add(0, tokens, rows * weights.flatten()[order, None])


def routed_experts(x, weights, *mlp, assignment, activation):
    rows = x[torch.from_numpy(assignment.tokens)]
    outputs = for_groups(expert, rows, *mlp, counts=torch.from_numpy(assignment.counts), activation=activation)
    return combine(outputs, weights, assignment)


def filled(values, pattern):
    """The sparse matrix with its zeros, as autograd sees it."""
    rows = tuple(torch.tensor(axis).long() for axis in (pattern.to_coo().rows, pattern.indices))
    return values.new_zeros(pattern.shape).index_put(rows, values)


REFERENCES: dict[Callable[..., Any], Callable[..., Any]] = {
    ops.sparse_matmul: lambda values, x, pattern: filled(values, pattern) @ x,
    ops.grouped_sparse_linear: lambda x, values, pattern, counts: for_groups(
        torch.matmul, x, filled(values, pattern).reshape(len(counts), x.shape[1], -1), counts=counts
    ),
    ops.sparse_linear: lambda x, values, pattern, bias=None: F.linear(x, filled(values, pattern).T, bias),
    ops.softplus: partial(F.softplus, threshold=100),
    ops.gelu: partial(F.gelu, approximate="tanh"),
    ops.gelu_exact: F.gelu,
    ops.dropout: lambda x, keep, rate: x.where(keep, 0.0) / (1 - rate),
    ops.without_padding: lambda x, real: x.where(real[:, None], 0.0),
    ops.linear: lambda x, weight, bias=None: F.linear(x, weight.T, bias),
    ops.rms_norm: lambda x, gain: F.rms_norm(x, gain.shape, gain, 1e-6),
    ops.layer_norm: lambda x, gain, bias: F.layer_norm(x, gain.shape, gain, bias, 1e-5),
    ops.softmax: partial(torch.softmax, dim=-1),
    ops.log_sum_exp: partial(torch.logsumexp, dim=-1),
    ops.add_positions: lambda x, table: x + table[: x.shape[1]],
    ops.token_shift: lambda x, mix: x.lerp(F.pad(x, (0, 0, 1, 0))[:, :-1], mix),
    ops.dispatch: lambda x, to: (torch.from_numpy(to.tokens)[:, None] == torch.arange(len(x))).double() @ x,  # one-hot
    ops.grouped_linear: lambda x, weight, counts: for_groups(torch.matmul, x, weight, counts=counts),
    ops.experts: partial(for_groups, expert),
}
SAME_NAME = [F.relu, torch.sigmoid, torch.tanh, F.silu, F.embedding]
SAME_NAME += [cross_entropy, rotary, causal_attention, combine, load_balance, moe, moe_layer, top_k_route]
REFERENCES |= {getattr(ops, function.__name__): function for function in SAME_NAME}


REFERENCES |= {
    ops.full_attention: full_attention,
    ops.fuse_prefix: lambda features, text: torch.cat([features, text], 1),
    ops.fuse_additive: lambda features, text: text + features.mean(1, keepdim=True),
    ops.text_rows: lambda y, rows: y[:, rows:],
    ops.half_squared_errors: lambda outputs, targets: (targets - outputs).square().sum(1) / 2,
    ops.cross_entropies: partial(F.cross_entropy, reduction="none"),
    ops.mixture_likelihood: lambda scores, losses: (
        -torch.logsumexp(torch.log_softmax(scores, 1) - losses, 1).sum() / max(len(scores), 1)
    ),
}
REFERENCES[ops.routed_experts] = routed_experts
REFERENCES |= (
    torch_gates.REFERENCES | torch_balance.REFERENCES | torch_recurrent.REFERENCES | torch_distillation.REFERENCES
)


def flat(outputs):
    return [leaf for output in outputs for leaf in flat(output)] if isinstance(outputs, tuple) else [outputs]


def test_every_operation_is_compared():
    assert set(REFERENCES) == {case.operation for case in CASES} >= set(ops.OPERATIONS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation(case):
    rng = np.random.default_rng(2)
    inputs = [torch.tensor(a) if type(a) is np.ndarray else a for a in case.inputs]
    floats = [t.requires_grad_() for t in inputs if torch.is_tensor(t) and t.is_floating_point()]
    y, backward = case.operation(*case.inputs, **case.options)
    expected = REFERENCES[case.operation](*inputs, **case.options)
    for i, (one, other) in enumerate(zip(flat(y), flat(expected), strict=True)):
        agree(f"output {i}", one, other)
    outputs = [t for t in flat(expected) if t.requires_grad]
    dys = [np.asarray(rng.standard_normal(t.shape)) for t in outputs]
    gradients = torch.autograd.grad(outputs, floats, [torch.from_numpy(dy) for dy in dys])
    for i, (one, other) in enumerate(zip(backward(*dys), gradients, strict=True)):
        agree(f"gradient {i}", one, other)


def test_ties_go_to_the_lowest_index():
    logits = np.random.default_rng(3).integers(0, 3, (50, 7)).astype(float)
    best_first = torch.from_numpy(logits).sort(descending=True, stable=True).indices
    agree("indices", ops.top_k_gate(logits, 4)[0][1], best_first[:, :4])


def language(p, c, ids, rng):
    """Logits (B·T, V), then the balance and the routing of every layer, from the parameters by their dotted names."""
    B, T = ids.shape

    def norm(x, name):
        parameters = [p[f"{name}.{part}"] for part in (("gain",) if c.norm == "rms" else ("gain", "bias"))]
        return REFERENCES[ops.rms_norm if c.norm == "rms" else ops.layer_norm](x, *parameters)

    def shifted(x, name):
        return REFERENCES[ops.token_shift](x, p[name]) if c.shift else x

    def dropped(x):
        if c.dropout == 0:
            return x
        keep = rng.random((B * T, c.width), dtype=np.float32) >= c.dropout
        return REFERENCES[ops.dropout](x, torch.from_numpy(keep).view_as(x), c.dropout)

    def attention(x, name):
        q, k, v = ((x @ p[name + part]).view(B, T, -1, c.width // c.heads) for part in (".query", ".key", ".value"))
        if c.position == "rotary":
            q, k = (rotary(heads, torch.arange(T)) for heads in (q, k))
        y = causal_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return y.transpose(1, 2).flatten(2) @ p[name + ".output"]

    def mixture(x, name, dense):
        weights = [p[f"{name}.experts.{part}"] for part in ("up", "down", "gate")[: 2 + (c.expert_kind == "swiglu")]]
        act = EXPERT_KINDS[c.expert_kind]
        if dense:
            return expert(x, *(w.squeeze(0) for w in weights), activation=act), None, None
        inputs = x.flatten(0, 1), p[name + ".router.weight"], *weights
        y, *rest = moe(*inputs, k=c.top_k, renormalize=c.renormalize and c.top_k > 1, activation=act)
        return y.view_as(x), *rest

    x = F.embedding(ids, p["embedding"])
    if c.position == "learned":
        x = x + p["positions"][:T]
    if c.position == "sinusoidal":
        i = torch.arange(c.width)
        angles = torch.arange(T).double()[:, None] / 10_000.0 ** ((i - i % 2).double() / c.width)
        x = x + torch.where(i % 2 == 0, angles.sin(), angles.cos())
    x, layers = dropped(x), []
    for layer in range(c.layers):
        a, m = f"blocks.{layer}.attention", f"blocks.{layer}.mixture"
        x = x + dropped(attention(shifted(norm(x, a + "_norm"), a + "_shift"), a))
        y, *balance_and_routing = mixture(shifted(norm(x, m + "_norm"), m + "_shift"), m, layer in c.dense_layers)
        x = x + dropped(y)
        layers.append(balance_and_routing)
    return (norm(x, "norm") @ (p["embedding"].T if c.tied else p["head"])).flatten(0, 1), *zip(*layers, strict=True)


def seen(routed):
    """What the reference knows of each layer's routing, too."""
    return tuple(None if r is None else (r.logits, r.indices, r.weights, r.counts, r.kept) for r in routed)


def agree_on_model(seed, weight, shape=(3, 5), **options):
    """With parameters away from their initial zeros and ones, and targets of which some are ignored."""
    small = {"vocabulary": 11, "context": 8, "layers": 2, "width": 12, "heads": 3, "kv_heads": 3, "experts": 5}
    config = LanguageConfig(**(small | {"expert_width": 7} | options))
    rng = np.random.default_rng(seed)
    params = shaken(initialize(config, rng, np.float64), rng, 0.3)
    ids, targets = rng.integers(0, config.vocabulary, (2, *shape))
    targets[:, 1:][rng.random(targets[:, 1:].shape) < 0.3] = -100

    masks = [np.random.default_rng(9) if config.dropout else None for _ in range(3)]
    p = {name: torch.tensor(a, requires_grad=True) for name, a in named(params).items()}
    logits, balances, routings = language(p, config, torch.from_numpy(ids), masks[0])
    present = [b for b in balances if b is not None]
    balance = torch.stack(present).mean() if present else torch.zeros((), dtype=torch.float64)
    total = F.cross_entropy(logits, torch.from_numpy(targets).flatten()) + weight * balance
    (our_logits, losses, routed), forward_back = forward(params, config, ids, masks[1], balancing=Balancing(weight=1.0))
    of_loss, loss_back = loss(params, config, Batch(ids, targets), Balancing(weight=weight), masks[2])
    found = tuple(None if r is None else w for w, r in zip(losses, routed, strict=True))
    ours = of_loss[0], float(of_loss[1].balance), seen(of_loss[1].routed), our_logits, seen(routed), found
    theirs = total, balance, routings, logits, routings, balances
    for i, (one, other) in enumerate(zip(flat(ours), flat(theirs), strict=True)):
        assert (one is None) == (other is None)
        if one is not None:
            agree(f"output {i}", one, other)

    dloss, dlogits, dbalances = -1.7, rng.standard_normal(logits.shape), rng.standard_normal(config.layers)
    each = [torch.tensor(d) for d, b in zip(dbalances, balances, strict=True) if b is not None]
    for gradient, outputs, doutputs in (
        (loss_back(dloss), [total], [torch.tensor(dloss, dtype=torch.float64)]),
        (forward_back(dlogits, list(dbalances)), [logits, *present], [torch.tensor(dlogits), *each]),
    ):
        expected = torch.autograd.grad(outputs, list(p.values()), doutputs, retain_graph=True)
        largest = max(float(g.abs().max()) for g in expected)
        got = named(gradient)
        assert list(got) == list(p)
        for name, other in zip(p, expected, strict=True):
            agree(name, got[name], other, unit=largest)


@pytest.mark.parametrize("kinds", list(product(POSITIONS, NORMS, EXPERT_KINDS, (True, False))), ids=str)
def test_kinds(kinds):
    position, norm, kind, tied = kinds
    agree_on_model(4, 0.3, position=position, norm=norm, expert_kind=kind, tied=tied, heads=6, kv_heads=2)


SHAPES = {
    "multi-query": {"heads": 3, "kv_heads": 1},
    "top-1 renormalised": {"top_k": 1},
    "top-1": {"top_k": 1, "renormalize": False},
    "top-2": {"renormalize": False, "heads": 1, "kv_heads": 1},
    "top-3": {"top_k": 3, "layers": 3},
    "all experts": {"top_k": 5},
    "all experts, not renormalised": {"top_k": 5, "renormalize": False},
    "one expert": {"experts": 1, "top_k": 1},
    "more experts than tokens": {"experts": 40, "top_k": 3, "shape": (1, 7)},
    "first layer dense": {"dense_layers": (0,), "layers": 3, "expert_kind": "relu"},
    "all dense": {"dense_layers": (0, 1)},
    "dropout": {"dropout": 0.25, "dense_layers": (1,), "layers": 3},
    "token shift": {"shift": True, "dense_layers": (1,), "layers": 3, "norm": "layer"},
    "one position": {"shape": (4, 1)},
    "one token": {"shape": (1, 1), "position": "learned", "shift": True},
    "full context": {"shape": (2, 8), "position": "sinusoidal"},
    "odd widths": {"width": 15, "heads": 5, "kv_heads": 5, "position": "sinusoidal"},
    "bytes": {"vocabulary": 256, "width": 32, "heads": 4, "kv_heads": 2, "experts": 8, "shape": (4, 8), "layers": 4},
}


@pytest.mark.parametrize("seed", [5, 6, 7])
@pytest.mark.parametrize("options", SHAPES.values(), ids=list(SHAPES))
def test_shapes(options, seed):
    for weight in (0.0, 0.01, 2.0):
        agree_on_model(seed, weight, **options)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", optim.OPTIMIZERS)
def test_optimizer(optimizer, decay):
    rng = np.random.default_rng(12)
    ours = [rng.standard_normal(shape) for shape in ((5, 3), (7,), (2, 200, 100))]  # the last is more than one chunk
    slots = [optim.new_slots(optimizer, a) for a in ours]
    theirs = [torch.nn.Parameter(torch.tensor(a)) for a in ours]
    sgd = torch.optim.SGD(theirs, momentum=0.8)  # its own weight decay is not decoupled
    adamw = torch.optim.AdamW(theirs, betas=(0.8, 0.97), eps=1e-6, weight_decay=decay)
    reference = {"sgd": sgd, "adamw": adamw}[optimizer]
    for step, lr in enumerate((0.01, 0.03, 0.02, 0.001, 0.05), start=1):
        reference.param_groups[0]["lr"] = lr
        for a, b, slot in zip(ours, theirs, slots, strict=True):
            g = rng.standard_normal(a.shape) * (step != 3)  # zero at the third step, like an idle expert's
            options = {"lr": lr, "step": step, "beta1": 0.8, "beta2": 0.97, "eps": 1e-6, "momentum": 0.8}
            optim.OPTIMIZERS[optimizer](a, g, slot, weight_decay=decay, **options)
            b.grad = torch.tensor(g)
            if optimizer == "sgd":
                b.data *= 1 - lr * decay
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [0.5, 3.0, 1e3])
def test_clipping(limit):
    rng = np.random.default_rng(13)
    gradients = [rng.standard_normal(shape) for shape in ((5, 3), (7,), (2, 3, 4))]
    norm = optim.global_norm(gradients)
    theirs = [torch.nn.Parameter(torch.zeros_like(torch.tensor(g))) for g in gradients]
    for p, g in zip(theirs, gradients, strict=True):
        p.grad = torch.tensor(g)
    assert float(torch.nn.utils.clip_grad_norm_(theirs, limit)) == pytest.approx(norm, rel=1e-12)
    extra = 1 + 1e-6 / norm if limit < norm else 1  # PyTorch divides by norm + 1e-6
    for p, g in zip(theirs, gradients, strict=True):
        np.testing.assert_allclose(g * optim.clip_factor(norm, limit), p.grad.numpy() * extra, rtol=1e-12)
