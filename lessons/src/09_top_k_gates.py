# ---
# jupyter:
#   lesson:
#     title: Top-k gates
#     chinese: Top-k 稀疏门控
#     builds: gates that choose experts for each token, by softmax, with noise or by sigmoid, and their sparse gradients
#     code: [tinymoe/ops/top_k_gate.py, tinymoe/ops/gates.py, tinymoe/ops/scores.py, tinymoe/documents/sparse_gate.py]
#     documents: [M5, M6, M7, M8]
#     papers:
#       - "Shazeer et al. 2017, *Outrageously Large Neural Networks*, eq. 3–5 and appendix A"
#       - "Fedus et al. 2021, *Switch Transformers*, eq. 1–2"
#       - "Jiang et al. 2024, *Mixtral of Experts*, §2.1"
#       - "DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, §2.1.2"
#     terms:
#       top-k gate: [Top-k稀疏门控, "a gate that keeps the K best experts of each token"]
#       score: [匹配程度, "how well an expert suits a token, before it becomes a weight"]
#       tie: [并列, "equal scores, between which a fixed rule must choose"]
#       margin: [间隔, "how far the last chosen score is above the first that is not"]
#       threshold: [阈值, "the score that an expert must reach to be chosen"]
#       noise: [噪声, "random numbers added to scores in training, so that other experts are tried"]
# ---

# %% [markdown]
# ## You will
#
# choose K experts for every token and weigh them, and find out which numbers hear from that choice in the backward pass
# and which don't.

# %% [markdown]
# ## You need
#
# The gradient check of lesson 1, the chain rule and the softmax of lesson 2, and from lesson 8 that a mixture of experts
# adds up what its experts return, each times a weight.

# %%
from math import erf

import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.documents.sparse_gate import Parameters, SparseExpertModel, network
from tinymoe.gradcheck import MarginError, check_gradients
from tinymoe.ops import gates, shared_gates

# %% [markdown]
# ## Picture
#
# Four experts, tokens with two numbers each. Every expert has a vector, and its **score** (匹配程度) is how far the token
# reaches in that direction. The **top-k gate** (Top-k稀疏门控) takes the K best scores, here K = 2, and gives their experts
# weights that add up to 1. The part of a model that does all this is called its **router** (路由器).
#
# On the left, the plane of all tokens: each shade is a pair of chosen experts. On the right, a token walks once around a
# circle, and we look at the weights it gives.


# %%
def dense(weights, indices):
    """(N, 4): each weight in the column of its expert, 0 where it was not chosen."""
    spread_out = np.zeros((len(weights), 4))
    np.put_along_axis(spread_out, indices, weights, 1)
    return spread_out


# %%
angles = np.array([0.3, 1.5, 2.9, 4.6])
directions = np.array([np.cos(angles), np.sin(angles)])  # (D, E): column i belongs to expert i
side = np.linspace(-2, 2, 160)
plane = np.stack(np.meshgrid(side, side), 2).reshape(-1, 2)
pairs = np.sort(ops.top_k_gate(plane @ directions, 2)[0][1], 1) @ [4, 1]
walk = np.linspace(0, 2 * np.pi, 721)
circle = 2 * np.stack([np.cos(walk), np.sin(walk)], 1)
around = dense(*ops.top_k_gate(circle @ directions, 2)[0])
figure, (left, right) = new_figure(1, 2)
shades = np.unique(pairs, return_inverse=True)[1].reshape(160, 160)
left.imshow(shades, extent=(-2, 2, -2, 2), origin="lower", cmap="cividis", alpha=0.5)
left.grid(visible=False)
for i, (x1, x2) in enumerate(directions.T):
    left.annotate(f"expert {i}", (0, 0), (1.5 * x1, 1.5 * x2), ha="center", arrowprops={"arrowstyle": "<-"})
    right.plot(np.degrees(walk), around[:, i], label=f"expert {i}")
for pair in np.unique(pairs):
    left.text(*plane[pairs == pair].mean(0), f"{pair // 4} and {pair % 4}", ha="center", style="italic")
left.set(xlabel="token, first number", ylabel="token, second number")
right.set(xlabel="direction of the token in degrees", ylabel="weight", ylim=(0, 1.45))
right.legend(ncols=2, loc="upper right")
show(
    figure,
    alt="Left: the plane falls into wedges, one for each pair. Right: weights move smoothly, and jump where pairs change.",
)

# %% [markdown]
# Inside a wedge the weights are smooth. At its edge one expert leaves and another takes its place, at once. There the two
# had the same score, so the weight that is lost is the weight that is won: the lines jump, but they jump to the same height.
# These two facts are the lesson: *the weights can be taught by gradients, the choice can't*. The choice only follows, since
# it is made by the same scores as the weights.

# %% [markdown]
# ## Formula
#
# A token $x$ is a row of $D$ numbers. Expert $i$ of $E$ has a vector, column $i$ of the router's weights $W$:
#
# $$z_i = \sum_d x_d W_{di} \tag{1}$$
#
# These scores are often called logits. The $K$ largest are chosen. Of equals, the lowest index comes first:
#
# $$S = \mathrm{TopK}(z, K) \tag{2}$$
#
# The weights come from a softmax. Over all experts and then divided by the sum of the chosen, or over the chosen alone?
# It makes no difference, since the sum over all cancels:
#
# $$w_i = \frac{p_i}{\sum_{j \in S} p_j} = \frac{e^{z_i}}{\sum_{j \in S} e^{z_j}}, \quad i \in S, \qquad
# p_i = \frac{e^{z_i}}{\sum_{j=1}^{E} e^{z_j}} \tag{3}$$
#
# Some models don't divide: $w_i = p_i$, with a sum below 1. That does make a difference, also in the gradient. Let $G_i$ be
# the gradient of the loss for the weight $w_i$. Then
#
# $$\text{divided:} \quad \frac{\partial L}{\partial z_i} = w_i \Big(G_i - \sum_{j \in S} w_j G_j\Big)
# \text{ for } i \in S, \quad \text{exactly 0 for all others} \tag{4}$$
#
# $$\text{not divided:} \quad \frac{\partial L}{\partial z_i} = p_i \Big([i \in S]\, G_i - \sum_{j \in S} p_j G_j\Big)
# \text{ for all } i \tag{5}$$
#
# $[i \in S]$ is 1 if $i$ is chosen, else 0. Read (4): a chosen expert that helps more than the average of the chosen
# gets a higher score. An expert that was not chosen hears nothing.
#
# **Noise** (噪声) gives it a chance. In training, add a normal random number $\varepsilon_i$ times a learned spread
# $\sigma_i$, and choose by the sum. $V$ are more weights of the router. softplus$(a) = \ln(1 + e^a)$ is positive, and 0.01
# keeps $\sigma$ away from 0, since (7) divides by it:
#
# $$h_i = z_i + \varepsilon_i \sigma_i, \qquad \sigma_i = \mathrm{softplus}\Big(\sum_d x_d V_{di}\Big) + 0.01 \tag{6}$$
#
# Then even the **load** (负载) can be taught, the number of tokens that an expert gets. Draw the noise of expert $i$ once
# more and keep that of the others. It is chosen if it beats the **threshold** (阈值) $\tau_i$, the K-th largest $h$ of the
# *other* experts: if its noise is above $(\tau_i - z_i) / \sigma_i$. Let $\Phi(u)$ be the probability that a normal random
# number is below $u$, or, by symmetry, above $-u$. Then the load to expect is
#
# $$\mathrm{load}_i = \sum_{\text{tokens}} \Phi\Big(\frac{z_i - \tau_i}{\sigma_i}\Big), \qquad
# \tau_i = \text{the } K\text{-th largest of the } h_j \text{ with } j \neq i \tag{7}$$
#
# **Sigmoid** is the newer way. No competition in the scores, and a bias $b_i$ that has a say in the choice only:
#
# $$s_i = \frac{1}{1 + e^{-z_i}}, \qquad S = \mathrm{TopK}(s + b, K), \qquad w_i = \frac{s_i}{\sum_{j \in S} s_j} \tag{8}$$
#
# *Where it stands.* The untitled document on the sparse gate (稀疏门控), §4, writes $w_i = f(x, e_i)$ with "$f$ computes how
# well they match (匹配程度)" and $A = \mathrm{TopK}(W, K)$ ([M5](DOCUMENTS.md), [M6](DOCUMENTS.md)); (1) is one such $f$. Its
# §3.2 says that only activated experts are updated ([M7](DOCUMENTS.md)). In papers: (2), (3), (6) and (7) are Shazeer et al.
# 2017, eq. 3–5 and appendix A; (3) is also Mixtral's; not divided, with K = 1, is the Switch Transformer's; (8) is
# DeepSeek-V3's.

# %% [markdown]
# ## By hand
#
# One token, four experts, $e^z = (6, 1, 2, 1)$, K = 2. The sum is 10.
#
# - Softmax over all: $p = (0.6, 0.1, 0.2, 0.1)$. Chosen are experts 0 and 2. Divided by $0.6 + 0.2$: $w = (0.75, 0.25)$.
# - Softmax over the chosen: $6 / (6 + 2) = 0.75$ and $2 / 8 = 0.25$. The same.
# - Let $G = (1, 5)$ for the two. Their mean by weight is $0.75 \cdot 1 + 0.25 \cdot 5 = 2$. By (4) the gradients are
#   $0.75 \cdot (1 - 2) = -0.75$ for expert 0 and $0.25 \cdot (5 - 2) = 0.75$ for expert 2. They add up to 0.
# - Not divided, by (5): $\sum p_j G_j = 0.6 + 1 = 1.6$, and the gradients are $0.6 \cdot (1 - 1.6) = -0.36$, $-0.16$,
#   $0.2 \cdot (5 - 1.6) = 0.68$ and $-0.16$. Now all four hear something.
# - With K = 3 experts 1 and 3 have equal scores, a **tie** (并列). The lower index, 1, is chosen.

# %% [markdown]
# ## Code
#
# A loop over the tokens. Python's `sorted` leaves equals in their order, so ties go to the lowest index.


# %%
def gate_by_loop(logits, k, softmax_first):
    all_weights, all_chosen = [], []
    for z in logits:
        chosen = sorted(range(len(z)), key=lambda i: -z[i])[:k]
        if softmax_first:
            p = np.exp(z) / np.exp(z).sum()
            weights = p[chosen] / p[chosen].sum()
        else:
            weights = np.exp(z[chosen]) / np.exp(z[chosen]).sum()
        all_weights.append(weights)
        all_chosen.append(chosen)
    return np.array(all_weights), np.array(all_chosen)


z = np.log([[6.0, 1, 2, 1]])
print("softmax over all, then divide:", *gate_by_loop(z, 2, softmax_first=True))
print("softmax over the chosen:      ", *gate_by_loop(z, 2, softmax_first=False))
print("three choices, with a tie:    ", gate_by_loop(z, 3, softmax_first=False)[1])
for divided in (True, False):
    _, backward = ops.top_k_gate(z, 2, renormalize=divided)
    print(f"divided: {divided!s:5}  gradients of the scores:", backward(np.array([[1.0, 5]]))[0][0])

# %% [markdown]
# The numbers from paper. (A serious program subtracts the row's largest score first, so that no exponential
# overflows; it cancels, too.)
#
# **K = 1 is special.** Divided by itself, the one weight is 1, whatever the score. A constant has no gradient: put $w_i = 1$
# into (4) and it is $G_i - G_i = 0$. Such a router learns nothing, and nothing says so. It happened to
# davidmrau/mixture-of-experts (issue 27) and to minimind (issue 858). That is why the Switch Transformer, with its K = 1,
# doesn't divide.

# %%
logits = np.random.default_rng(0).standard_normal((6, 4))  # the scores of six tokens
for renormalize in (True, False):
    (weights, _), backward = ops.top_k_gate(logits, 1, renormalize=renormalize)
    (dlogits,) = backward(np.ones_like(weights))
    print(f"divided: {renormalize!s:5}  weights {weights[:3, 0]} …  largest gradient {np.abs(dlogits).max():.3f}")

# %% [markdown]
# **Margins.** At a tie the choice jumps, and there is no slope to measure. So the distance of the K-th score from the next, the
# **margin** (间隔), decides whether a gradient check makes sense. The library's checker sees that the indices change
# under its steps, and refuses. In training ties are no problem: with float scores they practically never happen, but for
# tokens that are all zeros.

# %%
for gap in (1e-1, 1e-9):
    nearly_tied = np.array([[2.0, 1.0 + gap, 1.0, 0.0]])
    try:
        print(f"margin {gap:.0e}:", check_gradients(ops.top_k_gate, nearly_tied, 2))
    except MarginError as error:
        print(f"margin {gap:.0e}: MarginError: {error}")

# %% [markdown]
# **Noise.** Here is what (7) is for. Ask how many of 40 tokens choose expert 0, as we raise its score. The count has
# steps, and a slope of 0 between them. The load is smooth.

# %%
rng = np.random.default_rng(1)
clean, noise, spread = rng.standard_normal((40, 4)), rng.standard_normal((40, 4)), np.zeros((40, 4))
raised = np.linspace(-3, 3, 241)
counts, loads = [], []
for shift in raised:
    moved = clean + shift * np.eye(4)[0]
    (_, indices, load), _ = ops.noisy_top_k_gate(moved, spread, 2, noise=noise)
    counts.append((indices == 0).sum())
    loads.append(load[0])
figure, axes = new_figure()
axes.step(raised, counts, where="mid", label="count of the tokens that chose it")
axes.plot(raised, loads, label="load (7): what it can expect")
axes.set(xlabel="added to the score of expert 0", ylabel="tokens of expert 0")
axes.legend()
show(
    figure, alt="Count and load rise together from few tokens to nearly all 40; the count in steps, the load smoothly."
)


# %% [markdown]
# **Sigmoid.** The bias of (8) has a say in who is chosen, and none in the weights. So it can be moved by a plain rule, without
# a loss: up for experts with few tokens, down for those with many. That rule is in lesson 11.

# %%
s = 1 / (1 + np.exp(-z[0]))
for bias in (np.zeros(4), np.array([0, 0.5, 0, 0])):
    (weights, indices), _ = ops.sigmoid_gate(z, 2, bias=bias)
    print(f"bias {bias}: experts {indices[0]} with weights {weights[0]}")
    assert set(indices[0]) == set(np.argsort(s + bias)[-2:])  # (8)
    assert np.allclose(weights[0], s[indices[0]] / s[indices[0]].sum())

# %% [markdown]
# On the second line the favoured expert stands first, and has the smaller weight: chosen by bias, weighed by score.

# %% [markdown]
# ## The same in tinymoe
#
# `top_k_gate` is the gate of (3), `top_k_softmax` the same written the other way. Loop, library and both orders agree, forward
# and backward.


# %%
def gradient_by_formula(p, indices, g, divided):  # (4) and (5), for one token
    dz = np.zeros_like(p)
    w = p / p[indices].sum() if divided else p
    mean = (w[indices] * g).sum()
    if not divided:
        dz -= p * mean
        mean = 0
    dz[indices] += w[indices] * (g - mean)
    return dz


g = np.random.default_rng(2).standard_normal((6, 2))
for divided in (True, False):
    (weights, indices), backward = ops.top_k_gate(logits, 2, renormalize=divided)
    expected = [gradient_by_formula(*row, divided) for row in zip(ops.softmax(logits)[0], indices, g, strict=True)]
    np.testing.assert_allclose(backward(g)[0], expected, rtol=1e-12, atol=1e-15)
(weights, indices), backward = ops.top_k_gate(logits, 2)
(other_weights, _), other_backward = ops.top_k_softmax(logits, 2)
for loop_weights, loop_chosen in (gate_by_loop(logits, 2, True), gate_by_loop(logits, 2, False)):
    assert np.array_equal(loop_chosen, indices) and np.allclose(loop_weights, weights, rtol=1e-12)
assert np.allclose(other_weights, weights) and np.allclose(other_backward(g)[0], backward(g)[0])
print("one gate, written four times:", weights[0])

# %% [markdown]
# **Other scores.** The document leaves $f(x, e_i)$ open. The library has three: the dot product (1); the cosine of the angle
# between token and expert, times a learned scale, which doesn't see how long a token is; and a small network. Whatever the
# score, the gate behind it stays the same.

# %%
rng = np.random.default_rng(3)
x, w, hidden, out = (rng.standard_normal(shape) for shape in ((6, 3), (3, 4), (3, 5), (5, 4)))
scale = np.array(4.0)
by_loop = [[sum(x[n, d] * w[d, i] for d in range(3)) for i in range(4)] for n in range(6)]
assert np.allclose(ops.linear(x, w)[0], by_loop)  # (1)
print(check_gradients(ops.cosine_scores, x, w, scale, method="complex"))
print(check_gradients(ops.mlp_scores, x, hidden, out, method="complex"))
same = np.allclose(ops.cosine_scores(x, w, scale)[0], ops.cosine_scores(10 * x, w, scale)[0])
print("tokens ten times as long have the same cosine scores:", same)

# %% [markdown]
# **Promises.** A gate may look at more than one token. Does a token's choice depend on the tokens after it? If so, a
# language model would read its own future. And does the weight teach the router when K = 1? Ask six gates of the library, as
# its models use them in training. Three are new: Sinkhorn evens out the scores and BASE the tokens, so that all experts get
# about as many; and in expert-choice, known from lesson 5, the experts choose.

# %%
rng = np.random.default_rng(4)
scores, noise = rng.standard_normal((2, 12, 4))
ROUTERS = {
    "softmax": lambda z: ops.top_k_gate(z, 1, renormalize=False),
    "noisy": lambda z: ops.noisy_top_k_gate(z, 0 * z, 1, noise=noise),
    "sigmoid": lambda z: ops.sigmoid_gate(z, 1, normalize=False),
    "sinkhorn": lambda z: shared_gates.sinkhorn_gate(z, 1),
    "base": shared_gates.base_gate,
    "expert-choice": lambda z: shared_gates.expert_choice_gate(z, 3),
}
other_ends = [
    np.vstack([scores[:9], 2 * rng.standard_normal((3, 4))]) for _ in range(20)
]  # the last three tokens differ
for name, gate in ROUTERS.items():
    (weights, indices, *_), backward = gate(scores)
    first = dense(weights, indices)[:9]
    moved = any((dense(*gate(z)[0][:2])[:9] != first).any() for z in other_ends)
    dload = [np.zeros(4)] if name == "noisy" else []
    dscores, *_ = backward(np.ones_like(weights), *dload)
    print(
        f"{name:13} looks ahead: {'yes' if moved else 'no':3}   its router learns: {'yes' if dscores.any() else 'no'}"
    )

# %% [markdown]
# The noisy gate divides, so at K = 1 only its load could teach it. The last three must see the whole batch. In evaluation
# Sinkhorn and BASE give that up. [All routers, and more promises](../docs/routers.md).

# %% [markdown]
# ## Backward by hand
#
# For (4), let $S$ be fixed, and $w_i = e^{z_i} / T$ with $T = \sum_{j \in S} e^{z_j}$.
#
# 1. If $i$ is not in $S$, $z_i$ stands nowhere in the weights. Its gradient is 0: not small, but exactly 0.
# 2. If it is, it stands in its own numerator and in $T$ of all: $\dfrac{\partial w_j}{\partial z_i} = w_j ([i = j] - w_i)$.
# 3. Add up over the chosen: $\sum_{j \in S} G_j w_j ([i = j] - w_i) = w_i (G_i - \sum_{j \in S} w_j G_j)$.
#
# Step 1 leans on "let $S$ be fixed". That is true for all small steps, unless there is a tie. In (5) the sum $T$ runs over
# all experts, so nobody is left out in step 1; steps 2 and 3 stay.


# %%
def my_gate(logits, k):
    indices = np.argsort(-logits.real, axis=1, kind="stable")[:, :k]
    e = np.exp(np.take_along_axis(logits, indices, 1))
    weights = e / e.sum(1, keepdims=True)

    def backward(dweights):
        mean = (weights * dweights).sum(1, keepdims=True)
        dlogits = np.zeros_like(logits)
        np.put_along_axis(dlogits, indices, weights * (dweights - mean), 1)
        return (dlogits,)

    return (weights, indices), backward


print(check_gradients(my_gate, logits, 2, method="complex"))

# %% [markdown]
# The picture of (4) and (5), for six tokens and K = 2. A dot marks a chosen expert:

# %%
(_, indices), _ = ops.top_k_gate(logits, 2)
dlogits = [ops.top_k_gate(logits, 2, renormalize=divided)[1](g)[0] for divided in (True, False)]
top = np.abs(dlogits).max()
figure, both = new_figure(1, 2, height=2.9, sharey=True)
for axes, values, title in zip(both, dlogits, ["divided: zeros are blank", "not divided"], strict=True):
    image = axes.imshow(
        np.where(values == 0, np.nan, np.abs(values)), vmin=0, vmax=top, cmap="cividis_r", aspect="auto"
    )
    axes.plot(indices, np.arange(6), "o", color="white", markeredgecolor="black", markersize=5)
    axes.set(xlabel="expert", title=title, xticks=range(4))
    axes.grid(visible=False)
both[0].set_ylabel("token")
figure.colorbar(image, ax=both, label="size of the gradient")
show(
    figure,
    alt="Divided, two of four gradients in each row are there and the rest blank; not divided, all four are there.",
)

# %% [markdown]
# On the left the two gradients of a row have the same size, because they add up to 0, as on paper.
#
# **Only activated experts are updated.** The same zeros reach the experts themselves. The layer below is that of the document
# with a gate that can learn. One token, two of five experts: the others' parameters get a gradient of exactly 0. So does
# the column of the router that scores them.

# %%
rng = np.random.default_rng(5)
layer = Parameters(keys=rng.standard_normal((3, 5)), weight=rng.standard_normal((5, 3, 2)), bias=np.zeros((5, 2)))
(y, _, chosen), backward = network(rng.standard_normal((1, 3)), layer, k=2)
_, dlayer = backward(np.ones_like(y), 0.0)  # 0 for its second loss, which keeps the experts evenly busy
print("chosen:", np.sort(chosen[0]))
for i in range(5):
    parts = [dlayer.weight[i], dlayer.bias[i], dlayer.keys[:, i]]
    print(f"expert {i}: largest gradient of weight, bias, key ", *(f"{np.abs(part).max():.3f}" for part in parts))
assert all(dlayer.weight[i].any() == dlayer.keys[:, i].any() == (i in chosen) for i in range(5))

# %% [markdown]
# A gradient of 0 does not yet mean that a weight stays: an optimiser with a memory, such as Adam, goes on for a while in the
# direction of earlier steps. The library's `lazy` optimisers leave experts without tokens alone, to the last bit.
#
# **The threshold has a gradient too.** In (7) $z_i$ and $\sigma_i$ are easy to see. But $\tau_i$ is the noisy score of
# *another* expert, $\tau_i = h_j$. If that one rises, expert $i$ is less likely to be chosen. Let
# $u_i = (z_i - \tau_i) / \sigma_i$. The slope of $\Phi$ at $u$ is $\varphi(u) = e^{-u^2/2} / \sqrt{2\pi}$. With
# $q_i = \varphi(u_i) / \sigma_i$ times the gradient for $\mathrm{load}_i$, one token adds
#
# $$q_i \text{ to } \frac{\partial L}{\partial z_i}, \qquad -q_i u_i \text{ to } \frac{\partial L}{\partial \sigma_i},
# \qquad -q_i \text{ to } \frac{\partial L}{\partial h_j} \tag{9}$$
#
# From $h_j$ it flows on by (6): as it is into $z_j$, times $\varepsilon_j$ into $\sigma_j$. Leave this path out, as if $\tau$
# were a constant, and ask the checker, with K = 2:


# %%
def load_of_scores(clean, sigma, *, noise, constant_threshold):
    noisy, load, parts = clean + noise * sigma, np.zeros(clean.shape[1]), []
    for n, i in np.ndindex(clean.shape):
        others = np.delete(np.arange(clean.shape[1]), i)
        j = others[np.argsort(-noisy[n, others])[1]]  # second best of the others, since K = 2
        u = (clean[n, i] - noisy[n, j]) / sigma[n, i]
        load[i] += (1 + erf(u / np.sqrt(2))) / 2
        parts.append((n, i, j, u))

    def backward(dload):
        dclean, dsigma = np.zeros_like(clean), np.zeros_like(sigma)
        for n, i, j, u in parts:
            q = np.exp(-u * u / 2) / np.sqrt(2 * np.pi) / sigma[n, i] * dload[i]
            dclean[n, i] += q
            dsigma[n, i] -= q * u
            if not constant_threshold:
                dclean[n, j] -= q
                dsigma[n, j] -= q * noise[n, j]
        return dclean, dsigma

    return load, backward


# %%
rng = np.random.default_rng(6)
clean, noise, spread = rng.standard_normal((3, 6, 5))
sigma = np.log(1 + np.exp(spread)) + 0.01
for constant in (False, True):
    print("threshold taken for a constant:", constant)
    print(check_gradients(load_of_scores, clean, sigma, noise=noise, constant_threshold=constant))

# %% [markdown]
# It is no small term: the relative error says so. With it, load and gradient are the library's, and the whole gate (6) is
# right.

# %%
ours, our_back = load_of_scores(clean, sigma, noise=noise, constant_threshold=False)
(weights, indices, load), back = ops.noisy_top_k_gate(clean, spread, 2, noise=noise)
print("load by loop:     ", ours, "\nload of tinymoe:  ", load)
print("tokens that chose:", np.bincount(indices.reshape(-1), minlength=5), "with this draw of the noise")
assert np.allclose(ours, load) and np.allclose(weights, gate_by_loop(clean + noise * sigma, 2, True)[0])  # (6), (7)
dclean, dsigma = our_back(np.arange(5.0))
assert np.allclose(back(0 * weights, np.arange(5.0)), [dclean, dsigma / (1 + np.exp(-spread))])  # (9)
print(check_gradients(ops.noisy_top_k_gate, clean, spread, 2, noise=noise))

# %% [markdown]
# ## What the document gets wrong
#
# The document on the sparse gate, §5, prints a model in PyTorch ([M8](DOCUMENTS.md)). Here it is in NumPy, without the offsets
# of its linear layers, and with the printed lines beside it:

# %%
rng = np.random.default_rng(17)
x, experts = rng.standard_normal((5, 3)), rng.standard_normal((4, 3, 2))


def printed_model(x, k=2):
    weights = [(x @ expert).sum() for expert in experts]  # weights = [expert(x).sum() for expert in self.experts]
    topk = np.argsort(-np.array(weights), kind="stable")[:k]  # _, topk = torch.topk(torch.tensor(weights), self.k)
    return sum(x @ experts[i] for i in topk)  # output = sum(self.experts[i](x) for i in topk)


for neighbours in (1, 2, 5):
    print(f"row 0 in a batch of {neighbours}: {printed_model(x[:neighbours])[0]}")

# %% [markdown]
# Four things are wrong.
#
# 1. Every expert runs, in order to be scored. Nothing is saved.
# 2. `.sum()` adds up the rows of the batch too, so the whole batch gets the same experts, and the result for a row
#    depends on its neighbours. That is what the cell shows.
# 3. `torch.tensor(weights)` copies the numbers out of the computation: no gradient goes through.
# 4. The weights are not used in the sum either. So nothing teaches the choice.
#
# Moreover, in its §4 $w_i$ is first an expert's score; further on, under the same name, an expert's parameters are updated.
# With a choice for each row, and with gate weights in the sum (not divided, since K = 1), the same four arguments make a
# model that learns $|x|$. The printed one can't: once its experts are chosen, the whole batch goes through one line, and
# the best line is far off.

# %%
x = np.random.default_rng(8).uniform(-1, 1, (200, 1))
model = SparseExpertModel(num_experts=4, input_dim=1, output_dim=1, k=1)
model.train(x, np.abs(x), epochs=40)
columns = np.column_stack([x, np.ones(200)])
best_line = columns @ np.linalg.lstsq(columns, np.abs(x), rcond=None)[0]
print(f"mean squared error of the best line:   {np.mean((best_line - np.abs(x)) ** 2):.5f}")
print(f"mean squared error of the gated model: {np.mean((model(x) - np.abs(x)) ** 2):.5f}")

# %% [markdown]
# ## Spot the bug
#
# A widely read implementation of the noisy gate (davidmrau/mixture-of-experts, issue 31) computes the load (7) like the
# function below. Find the bug by reading. The gradient check won't help: both passes agree.


# %% tags=["guess"]
def load_as_published(clean, noisy, sigma, k):
    scores, softmax_back = ops.softmax(noisy)  # so that the gate weights need only be divided
    load, load_back = gates.smooth_load(clean, scores, sigma, k)

    def backward(dload):
        dclean, dscores, dsigma = load_back(dload)
        return dclean, *softmax_back(dscores), dsigma

    return load, backward


print(check_gradients(load_as_published, clean, clean + noise * sigma, sigma, 2))

# %% [markdown]
# <details><summary>The bug</summary>
#
# Softmax was moved in front of top-k. For the weights of (3) that is the same. But the threshold is now a *probability*,
# between 0 and 1, and it is compared with `clean`, which is a *score*. A score of 3 beats every threshold, one of −3 none,
# whoever is chosen. The gradient is right, of the wrong function.
#
# </details>
#
# What finds it is a property that the true load must have. Add 10 to all scores: nobody's choice changes, so no load may
# change.

# %% tags=["guess"]
for load in (gates.smooth_load, load_as_published):
    before, after = (load(clean + up, clean + noise * sigma + up, sigma, 2)[0] for up in (0, 10))
    print(f"{load.__name__:18} before {before.round(2)}  after {after.round(2)}")

# %% [markdown]
# The true load stays. In the other, every expert now expects every token. The library keeps it as the exhibit "units mixed in
# the load" of its [museum](../tinymoe/systems/museum/gates.py), beside other bugs of gates.

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · The choice
#
# Return the indices (N, K) of the K largest scores of each row, best first. Of equals, the lowest index first.
#
# <details><summary>Hint</summary>
#
# Sort by the negative score, so that the largest comes first. `kind="stable"` leaves equals in their order.
#
# </details>


# %% tags=["exercise"]
def choose(scores, k):
    return ...


# %% tags=["solution"]
def choose(scores, k):
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


# %% tags=["wrong"]
def choose(scores, k):
    return np.argsort(scores, axis=1, kind="stable")[:, ::-1][:, :k]  # turns equals around, too


# %% tags=["wrong"]
def choose(scores, k):
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.sort(best, 1)  # the right experts, in the order of their names


# %% tags=["check"]
tied = np.array([[0.0, 2, 1, 2, 1], [1, 1, 1, 1, 1], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5]])
check_exercise(1, choose, tied, 3, like=ops.choose, gradients=False)
many_ties = np.random.default_rng(9).integers(0, 5, (8, 60)).astype(float)  # short rows are sorted stably anyway
check_exercise(1, choose, many_ties, 30, like=ops.choose, gradients=False)

# %% [markdown]
# ### 2 · A gate for K = 1
#
# The gate that doesn't divide: $w_i = p_i$, and the gradient (5), which reaches *all* experts.
#
# <details><summary>Hint</summary>
#
# Two steps that you have: softmax over all, then pick the chosen. Backward, first put `dweights` at the chosen places of an
# array of zeros. Then apply the backward pass of the softmax.
#
# </details>


# %% tags=["exercise"]
def raw_gate(logits, k):
    indices = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    weights = ...  # from ops.softmax(logits)

    def backward(dweights):
        dlogits = ...  # (N, E)
        return (dlogits,)

    return (weights, indices), backward


# %% tags=["solution"]
def raw_gate(logits, k):
    indices = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    p, softmax_back = ops.softmax(logits)
    weights = np.take_along_axis(p, indices, 1)

    def backward(dweights):
        dp = np.zeros_like(p)
        np.put_along_axis(dp, indices, dweights, 1)
        (dlogits,) = softmax_back(dp)
        return (dlogits,)

    return (weights, indices), backward


# %% tags=["wrong"]
def raw_gate(logits, k):
    indices = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    p, _ = ops.softmax(logits)
    weights = np.take_along_axis(p, indices, 1)

    def backward(dweights):
        dlogits = np.zeros_like(p)
        inner = (weights * dweights).sum(1, keepdims=True)
        np.put_along_axis(dlogits, indices, weights * (dweights - inner), 1)  # only the chosen hear of it
        return (dlogits,)

    return (weights, indices), backward


# %% tags=["wrong"]
def raw_gate(logits, k):
    indices = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    p, _ = ops.softmax(logits)
    weights = np.take_along_axis(p, indices, 1)
    weights = weights / weights.sum(1, keepdims=True)  # divided: with K = 1 it is always 1

    def backward(dweights):
        return (np.zeros_like(p),)

    return (weights, indices), backward


# %% tags=["check"]
def reference(logits, k):
    return ops.top_k_gate(logits, k, renormalize=False)


for k in (1, 2):
    check_exercise(2, raw_gate, logits, k, like=reference)

# %% [markdown]
# ### 3 · Choose by bias, weigh by score
#
# The gate (8), forward only. The bias (E,) is added for the choice.
#
# <details><summary>Hint</summary>
#
# Make two arrays: the sigmoids $s$, and $s + b$. Sort the one, pick from the other.
#
# </details>


# %% tags=["exercise"]
def sigmoid_with_bias(logits, bias, k):
    s = 1 / (1 + np.exp(-logits))
    indices = ...
    weights = ...
    return weights, indices


# %% tags=["solution"]
def sigmoid_with_bias(logits, bias, k):
    s = 1 / (1 + np.exp(-logits))
    indices = np.argsort(-(s + bias), axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(s, indices, 1)
    weights = chosen / chosen.sum(1, keepdims=True)
    return weights, indices


# %% tags=["wrong"]
def sigmoid_with_bias(logits, bias, k):
    s = 1 / (1 + np.exp(-logits)) + bias  # now the bias is in the weights, too
    indices = np.argsort(-s, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(s, indices, 1)
    weights = chosen / chosen.sum(1, keepdims=True)
    return weights, indices


# %% tags=["wrong"]
def sigmoid_with_bias(logits, bias, k):
    s = 1 / (1 + np.exp(-(logits + bias)))  # inside the sigmoid
    indices = np.argsort(-s, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(s, indices, 1)
    weights = chosen / chosen.sum(1, keepdims=True)
    return weights, indices


# %% tags=["check"]
def reference(logits, bias, k):
    return ops.sigmoid_gate(logits, k, bias=bias)[0]


check_exercise(3, sigmoid_with_bias, logits, np.array([0.3, 0, -0.3, 0]), 2, like=reference, gradients=False)

# %% [markdown]
# ### 4 · Scores with noise
#
# Formula (6), both passes. `noise` is drawn by the caller and has no gradient; `clean` and `spread` have one each.
#
# <details><summary>Hint</summary>
#
# The derivative of softplus is the logistic function, $1 / (1 + e^{-a})$. And $\sigma$ is multiplied by the noise.
#
# </details>


# %% tags=["exercise"]
def noisy_scores(clean, spread, *, noise):
    h = ...

    def backward(dh):
        dclean = ...
        dspread = ...
        return dclean, dspread

    return h, backward


# %% tags=["solution"]
def noisy_scores(clean, spread, *, noise):
    h = clean + noise * (np.log1p(np.exp(spread)) + 0.01)

    def backward(dh):
        dclean = dh
        dspread = dh * noise / (1 + np.exp(-spread))
        return dclean, dspread

    return h, backward


# %% tags=["wrong"]
def noisy_scores(clean, spread, *, noise):
    h = clean + noise * (np.log1p(np.exp(spread)) + 0.01)

    def backward(dh):
        return dh, dh / (1 + np.exp(-spread))  # without the noise

    return h, backward


# %% tags=["wrong"]
def noisy_scores(clean, spread, *, noise):
    h = clean + noise * np.log1p(np.exp(spread))  # without the 0.01

    def backward(dh):
        return dh, dh * noise / (1 + np.exp(-spread))

    return h, backward


# %% tags=["check"]
def reference(clean, spread, *, noise):
    return clean + noise * (ops.softplus(spread)[0] + 0.01), None


check_exercise(4, noisy_scores, logits, logits[::-1], like=reference, noise=np.linspace(-1, 1, 24).reshape(6, 4))

# %% [markdown]
# ## Next
#
# The gate says which expert each token visits. Lesson 10 brings the tokens there and back: a routing decision is a sparse
# matrix, and dispatch and combine are its products.
