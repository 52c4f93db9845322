"""The pack for authors of kernels beside PyTorch, which reads the stored files and the words of the manifest."""

import numpy as np

from tests.golden.test_golden import every_case, load
from tests.parity.pytorch import torch

F = torch.nn.functional


def torch_layer(t, c, mask):
    """The layer in PyTorch's own operations, from the words of the manifest; loops over tokens and experts."""
    n, n_experts, k = len(t["x"]), c["experts"], c["k"]
    x = t["x"].masked_fill(~mask[:, None], 0.0)
    logits = x @ t["router"]
    tracked = {"logits": logits}
    scores, preference = torch.softmax(logits, -1), logits
    if c["routing"] == "noisy":
        tracked["spread"] = spread = x @ t["noise_router"]
        sigma = F.softplus(spread) + 0.01
        preference = noisy = logits + t["noise"] * sigma
        scores = torch.softmax(noisy, -1)
    if c["routing"] == "sigmoid":
        scores = torch.sigmoid(logits)
        preference = scores + t["bias"]
        grouped = preference.unflatten(1, (c["groups"], -1))
        best = grouped.topk(2).values.sum(-1).topk(c["kept_groups"]).indices
        inside = F.one_hot(best, c["groups"]).sum(1).bool()
        preference = grouped.masked_fill(~inside[..., None], -torch.inf).flatten(1)
    indices = preference.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    kept = mask[:, None].expand(n, k).clone()
    if c["routing"] == "expert choice":
        indices = torch.arange(n_experts).expand(n, -1)
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.topk(c["capacity"], 0).indices, torch.arange(n_experts)] = True
    elif c["capacity"] is not None:
        room = [c["capacity"]] * n_experts
        for j in range(k):
            for i in range(n):
                e = int(indices[i, j])
                kept[i, j] = bool(mask[i]) and room[e] > 0
                room[e] -= int(kept[i, j])
    chosen = scores.gather(1, indices)
    counted = {"no": None, "chosen": torch.ones_like(kept), "kept": kept}[c["normalize"]]
    if counted is not None:
        total = chosen.where(counted, 0.0).sum(-1, keepdim=True)
        chosen = chosen / total.where(total > 0, 1.0)
    tracked["weights"] = weights = (c["scale"] * chosen).where(kept, 0.0)

    activations = {"silu": F.silu, "relu": F.relu, "gelu_tanh": lambda u: F.gelu(u, approximate="tanh")}
    act = activations[c["activation"]]

    def expert(rows, prefix, *place):
        up, down = (t[prefix + m][place] for m in ("up", "down"))
        return (act(rows @ t[prefix + "gate"][place]) * (rows @ up) if c["gated"] else act(rows @ up)) @ down

    y = expert(x, "shared_") if c["shared_expert"] else torch.zeros_like(x)
    for e in range(n_experts):
        y = y + (weights * (kept & (indices == e))).sum(-1, keepdim=True) * expert(x, "", e)

    onehot = F.one_hot(indices, n_experts).double()
    real, m = mask[:, None].double(), max(int(mask.sum()), 1)
    losses = {}
    for loss in c["losses"]:
        if loss == "balance":
            f = (onehot * real[..., None]).sum((0, 1)) / (m * k)
            losses[loss] = n_experts * f @ (scores * real).sum(0) / m
        elif loss == "z_loss":
            losses[loss] = logits.logsumexp(-1).square().mean()
        elif loss == "sequence_balance":
            parts = []
            for z in logits.chunk(c["sequences"]):
                s = torch.sigmoid(z)
                f = F.one_hot(s.topk(k).indices, n_experts).sum((0, 1)).double() * n_experts / (k * len(z))
                parts.append(f @ (s / s.sum(-1, keepdim=True)).mean(0))
            losses[loss] = torch.stack(parts).mean()
        elif loss == "importance_loss":
            imp = (onehot * weights[..., None]).sum((0, 1))
            losses[loss] = imp.var(correction=0) / (imp.mean() ** 2 + 1e-10)
        elif loss == "load_loss":
            ranked = noisy.sort(-1, descending=True).values
            is_in = onehot.sum(1) > 0
            rival = torch.where(is_in, ranked[:, k : k + 1], ranked[:, k - 1 : k])
            tracked["load"] = load = torch.special.ndtr((logits - rival) / sigma).sum(0)
            losses[loss] = load.var(correction=0) / (load.mean() ** 2 + 1e-10)
    tracked |= {"y": y, "kept": kept, "indices": indices.masked_fill(~mask[:, None], -1)} | losses
    return tracked, losses


@every_case
def test_pytorch_finds_the_same(name, files, manifest):
    """Outputs, losses and every gradient of the stored files, to 1e-10 in float64 by autograd."""
    entry, arrays = manifest["cases"][name], load(files[f"{name}.npz"])
    t = {key: torch.tensor(arrays[key]) for key in entry["given"]}
    differentiated = [key for key in t if f"d{key}" in entry["expected"]]
    for key in differentiated:
        t[key].requires_grad_()
    mask = t.get("mask", torch.ones(len(t["x"]), dtype=torch.bool))
    tracked, losses = torch_layer(t, entry["convention"], mask)
    dy = t["dy"].masked_fill(~mask[:, None], 0.0)
    tracked["objective"] = (dy * tracked["y"]).sum() + sum(t[f"d{key}"] * loss for key, loss in losses.items())
    wanted = {f"d{key}": t[key] for key in differentiated}
    wanted |= {f"d{key}": tracked[key] for key in ("logits", "spread", "weights") if key in tracked}
    found = torch.autograd.grad(tracked["objective"], list(wanted.values()), materialize_grads=True, allow_unused=True)
    results = tracked | dict(zip(wanted, found, strict=True))
    assert set(entry["expected"]) == set(results) | {"order", "inverse", "offsets", "outputs"}
    for key, result in results.items():
        got, right = arrays[key], result.detach().numpy()
        assert (got.shape, got.dtype) == (right.shape, right.dtype), key
        unit = np.abs(right).max(initial=1 if key == "objective" else 1e-3)  # PyTorch finds 1e-16 where 0 is true
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-10 * unit, err_msg=key)
