"""A sparse mixture-of-experts language model in one file: NumPy alone, every gradient by hand. Read it downwards.

    python lessons/one_file.py        trains on the documentation of Python itself, in under a minute

An operation returns its result and `backward`, which takes the gradient of the loss with respect to the result and returns
those with respect to the inputs: `dx` is ∂loss/∂x and has the shape of x. Shapes stand beside the code, in these letters:

    N tokens (bytes, of V kinds) in windows of T · D width · H heads of width P · E experts of width F, K of them for a token
"""

import math
import os
import sys
from itertools import chain
from pydoc_data.topics import topics

os.environ["OMP_NUM_THREADS"] = "1"  # these products are too small to be shared by threads
import numpy as np

T, H, K = 64, 2, 2  # the sizes that no array's shape tells


def softmax(x):
    """p_i = exp(x_i) / Σ_j exp(x_j)        dx = p ⊙ (dp − Σ_j dp_j p_j)"""
    e = np.exp(x - x.max(-1, keepdims=True))  # less the maximum, or it might overflow
    p = e / e.sum(-1, keepdims=True)

    def backward(dp):
        return p * (dp - (dp * p).sum(-1, keepdims=True))

    return p, backward


def rms_norm(x):
    """y = x / r,  r = √(mean(x²) + ε)        dx = (dy − y mean(dy ⊙ y)) / r"""
    r = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)  # (N, 1)
    y = x / r  # (N, D)

    def backward(dy):
        return (dy - y * (dy * y).mean(-1, keepdims=True)) / r

    return y, backward


def rotary(x, direction=1):
    """Turn pairs of numbers by an angle that grows with the position. Gradients are turned back: direction −1."""
    half = x.shape[-1] // 2
    angles = np.arange(T)[:, None] * 10_000.0 ** (-np.arange(half) / half)  # (T, P/2)
    cos, sin = np.cos(angles).astype(x.dtype), direction * np.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]  # (N/T, H, T, P/2)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(x, qkv, output):
    """y = x + (a v) output,  a = softmax(q kᵀ / √P) up to the diagonal,  q, k, v = norm(x) qkv, in H heads"""
    n, norm_back = rms_norm(x)
    P = x.shape[1] // H
    q, k, v = (n @ qkv).reshape(-1, T, 3, H, P).transpose(2, 0, 3, 1, 4)  # each (N/T, H, T, P)
    q, k = rotary(q), rotary(k)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(P)  # (N/T, H, T, T), query × key
    a, softmax_back = softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf))  # no query sees a later key
    read = (a @ v).swapaxes(1, 2).reshape(x.shape)  # (N, D)

    def backward(dy):
        dread = (dy @ output.T).reshape(-1, T, H, P).swapaxes(1, 2)  # (N/T, H, T, P)
        dv = a.swapaxes(-1, -2) @ dread
        dscores = softmax_back(dread @ v.swapaxes(-1, -2)) / math.sqrt(P)  # (N/T, H, T, T)
        dq, dk = rotary(dscores @ k, -1), rotary(dscores.swapaxes(-1, -2) @ q, -1)
        dqkv = np.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4).reshape(len(x), -1)  # (N, 3D)
        return dy + norm_back(dqkv @ qkv.T), n.T @ dqkv, read.T @ dy

    return x + read @ output, backward


def moe(x, router, up, down):
    """y = x + Σ_{i∈S} w_i expert_i(n),  expert_i(n) = relu(n up_i) down_i,  n = norm(x),  S the token's K best"""
    n, norm_back = rms_norm(x)
    z = n @ router  # (N, E) how well each expert suits each token
    N, E = z.shape
    token = np.arange(N)[:, None]  # (N, 1)
    chosen = np.argsort(-z, axis=1, kind="stable")[:, :K]  # (N, K) the top K
    w, w_back = softmax(z[token, chosen])  # (N, K) the gate: how much each of them counts

    # Left to itself, a router soon uses few experts. Switch's balance loss E Σ_i f_i P_i is 1 when all get the same.
    f = np.bincount(chosen.ravel(), minlength=E) / chosen.size  # (E,) share of the choices
    p, p_back = softmax(z)  # (N, E); P is its mean over the tokens
    balance = E * (f @ p.mean(0))

    y, visits = x.copy(), []
    for i in range(E):
        rows, j = np.nonzero(chosen == i)  # (M,) the tokens that chose expert i, each as its j-th
        h = np.maximum(n[rows] @ up[i], 0)  # (M, F)
        answer = h @ down[i]  # (M, D)
        y[rows] += w[rows, j, None] * answer
        visits.append((rows, j, h, answer))

    def backward(dy, dbalance):
        dn, dw, dup, ddown = (np.zeros_like(a) for a in (n, w, up, down))
        for i, (rows, j, h, answer) in enumerate(visits):
            dw[rows, j] = (dy[rows] * answer).sum(1)
            danswer = w[rows, j, None] * dy[rows]
            dh = danswer @ down[i].T * (h > 0)
            dup[i], ddown[i] = n[rows].T @ dh, h.T @ danswer
            dn[rows] += dh @ up[i].T
        dz = p_back(dbalance * E * f / N)  # (N, E); f is a count, which has no gradient
        dz[token, chosen] += w_back(dw)  # nor has the choice
        dn += dz @ router.T  # the experts have read n, and so has the router
        return dy + norm_back(dn), n.T @ dz, dup, ddown

    return (y, balance, chosen), backward


def model(params, ids, targets, balance_weight=0.01):
    """Cross-entropy of the targets, plus a little of the layers' mean balance; ids and targets (N,)"""
    (embedding,), *blocks, (head,) = params
    x, layers = embedding[ids], []  # (N, D)
    for qkv, output, *experts in blocks:
        x, attention_back = attention(x, qkv, output)
        (x, balance, chosen), moe_back = moe(x, *experts)
        layers.append((balance, chosen, attention_back, moe_back))
    n, norm_back = rms_norm(x)
    p, _ = softmax(n @ head)  # (N, V) of the byte that follows
    cross_entropy = -np.log(p[np.arange(len(ids)), targets]).mean()
    loss = cross_entropy + balance_weight * np.mean([balance for balance, *_ in layers])

    def backward():
        one_hot = np.eye(len(embedding), dtype=x.dtype)  # (V, V), row v for byte v
        dlogits = (p - one_hot[targets]) / len(ids)  # (N, V)
        dx, gradient = norm_back(dlogits @ head.T), [[n.T @ dlogits]]
        for _, _, attention_back, moe_back in reversed(layers):
            dx, *dexperts = moe_back(dx, balance_weight / len(layers))
            dx, *dattention = attention_back(dx)
            gradient.insert(0, [*dattention, *dexperts])
        return [[one_hot[ids].T @ dx], *gradient]

    return (loss, cross_entropy, [chosen for _, chosen, *_ in layers], p), backward


def init(rng, V, L, D, E, F, dtype):
    """Lists of arrays, one list for each part: normal, with variance 1/inputs, so that products keep the size of x."""
    shapes = [[(V, D)], *L * [[(D, 3 * D), (D, D), (D, E), (E, D, F), (E, F, D)]], [(D, V)]]  # in the order of `model`
    params = [[(rng.standard_normal(s) / math.sqrt(s[-2])).astype(dtype) for s in part] for part in shapes]
    params[0][0] *= math.sqrt(V)  # a lookup has one input
    return params


def adamw(w, dw, m, v, t, rate, decay=0.3):
    """In place, for t = 1, 2, …: m, v ← running means of dw, dw²;  w ← w − rate (m̂ / (√v̂ + ε) + decay w)"""
    m += 0.1 * (dw - m)
    v += 0.05 * (dw * dw - v)
    w -= rate * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + decay * w)


def check_gradients(step=1e-5):
    """In a small model: the largest error of a gradient against slopes of the loss, as a share of its array's largest."""
    rng, worst = np.random.default_rng(0), 0.0
    params = init(rng, V=8, L=2, D=8, E=4, F=4, dtype=np.float64)
    ids, targets = rng.integers(0, 8, (2, 2 * T))
    (_, _, choices, _), backward = model(params, ids, targets)
    for w, dw in zip(chain(*params), chain(*backward()), strict=True):
        for i, value in np.ndenumerate(w.copy()):
            w[i] = value + step
            (right, _, right_choices, _), _ = model(params, ids, targets)
            w[i] = value - step
            (left, _, left_choices, _), _ = model(params, ids, targets)
            w[i] = value
            assert np.array_equal([left_choices, right_choices], [choices, choices])  # else the loss has jumped
            worst = max(worst, abs((right - left) / (2 * step) - dw[i]) / abs(dw).max())
    return worst


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    text = np.frombuffer("\n\n".join(topics[key] for key in sorted(topics)).encode(), np.uint8)
    train, validation = np.split(text, [-700 * T - 1])  # about the last tenth, never trained on
    rng = np.random.default_rng(0)
    params = init(rng, V=256, L=2, D=64, E=8, F=128, dtype=np.float32)
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in chain(*params)]
    print(f"{sum(w.size for w in chain(*params)):,} parameters, {len(train):,} bytes of Python's documentation")
    for t in range(1, steps + 1):
        windows = train[rng.integers(0, len(train) - T, (12, 1)) + np.arange(T + 1)]  # (12, T + 1)
        (_, cross_entropy, _, _), backward = model(params, windows[:, :-1].ravel(), windows[:, 1:].ravel())
        gradients = list(chain(*backward()))
        clip = min(1, 1 / math.sqrt(sum((dw * dw).sum() for dw in gradients)))  # the norm is then at most 1
        rate = 6e-3 * min(t / 50, (1 + math.cos(math.pi * t / steps)) / 2)  # warm-up, then half a cosine
        for w, dw, (m, v) in zip(chain(*params), gradients, moments, strict=True):
            adamw(w, clip * dw, m, v, t, rate)
        if t == 1 or t % 400 == 0:
            print(f"step {t:4}: {cross_entropy:.3f} nats per byte")
    (_, cross_entropy, choices, _), _ = model(params, validation[:-1], validation[1:])
    print(f"on the last tenth, which it has not seen: {cross_entropy:.3f}")
    for layer, chosen in enumerate(choices):
        print(f"layer {layer}: of 100 choices, its experts get", *np.bincount(chosen.ravel()) * 100 // chosen.size)
    written = list(validation[:T])  # to be continued
    for _ in range(300):
        (_, _, _, p), _ = model(params, written[-T:], written[-T:])  # whatever the targets
        sharper = p[-1].astype(float) ** 1.25  # a temperature of 0.8
        written.append(rng.choice(256, p=sharper / sharper.sum()))
    print("\n" + bytes(written[T:]).decode(errors="replace") + "\n")
    print(f"worst relative error of a gradient: {check_gradients():.1e}")
