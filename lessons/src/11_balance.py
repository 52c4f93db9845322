# ---
# jupyter:
#   lesson:
#     title: Balance
#     chinese: 负载均衡
#     builds: a router that collapses, three cures for it, and the numbers that tell whether one works
#     code: [tinymoe/ops/balance.py, tinymoe/ops/capacity.py, tinymoe/ops/metrics.py]
#     documents: [M11]
#     papers:
#       - "Shazeer et al. 2017, *Outrageously Large Neural Networks*, eq. 6–7"
#       - "Fedus et al. 2021, *Switch Transformers*, eq. 3–6"
#       - "Zoph et al. 2022, *ST-MoE*, eq. 5"
#       - "Wang et al. 2024, *Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts*, algorithm 1"
#     terms:
#       balance: [负载均衡, "an even load of the experts"]
#       collapse: [坍塌, "a few experts get nearly all tokens, and the others never learn"]
#       auxiliary loss: [辅助损失, "a second loss beside the main one, such as one for an even load"]
#       coefficient of variation: [变异系数, "how far numbers lie from their mean, in units of the mean"]
# ---

# %% [markdown]
# ## You will
#
# watch a router send nearly everything to a few experts, and cure it in three ways, one of them without a loss.

# %% [markdown]
# ## You need
#
# The gates of lesson 9, and from lesson 10 the way of the tokens to their experts and back.

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients
from tinymoe.ops import metrics

# %% [markdown]
# ## Picture
#
# Here is a small mixture: eight linear experts, one for each token, chosen by the sigmoid gate of lesson 9. The **load** (负载)
# of an expert is the number of tokens that it gets. `keys` are the router's weights. `bias` has a say in the choice, and is 0
# until further down.


# %%
def layer(x, keys, experts, bias):
    logits, scores_back = ops.linear(x, keys)
    (weights, indices), gate_back = ops.sigmoid_gate(logits, 1, bias=bias, normalize=False)
    assignment = ops.group_by_expert(indices, len(experts))
    rows, _ = ops.dispatch(x, assignment)
    outputs, experts_back = ops.grouped_linear(rows, experts, assignment.counts)
    y, combine_back = ops.combine(outputs, weights, assignment)

    def backward(dy, dweights, dlogits):  # the last two are what balancing adds
        doutputs, dgate = combine_back(dy)
        _, dexperts = experts_back(doutputs)
        (dscores,) = gate_back(dgate + dweights)
        _, dkeys = scores_back(dscores + dlogits)
        return dkeys, dexperts

    return (y, logits, weights, indices), backward


# %% [markdown]
# The tokens come from eight clusters of equal size, and each cluster has its own linear map to learn. So a perfect division of
# the work exists: one expert for each cluster. We train for 300 steps. `cure` is for later: it returns what balancing adds to
# the gradients of weights and scores, and the next bias.


# %%
def train(cure, steps=300, seed=0):
    rng = np.random.default_rng(seed)
    centres, maps = rng.standard_normal((8, 8)) + 0.7, rng.standard_normal((8, 8, 2)) / np.sqrt(8)
    keys, experts, bias = 0.1 * rng.standard_normal((8, 8)), 0.1 * rng.standard_normal((8, 8, 2)), np.zeros(8)
    loads, losses = [], []
    for _ in range(steps):
        cluster = rng.integers(8, size=256)
        x = centres[cluster] + 0.3 * rng.standard_normal((256, 8))
        targets = (x[:, None] @ maps[cluster])[:, 0]  # each token times the map of its cluster
        (y, logits, weights, indices), backward = layer(x, keys, experts, bias)
        error = y - targets
        dweights, dlogits, bias = cure(logits, weights, indices, bias)
        dkeys, dexperts = backward(error / 256, dweights, dlogits)
        keys, experts = keys - 0.05 * dkeys, experts - 0.4 * dexperts
        loads.append(np.bincount(indices[:, 0], minlength=8))
        losses.append((error**2).sum() / 512)
    return np.array(loads), np.array(losses), (logits, weights, indices)


def nothing(logits, weights, indices, bias):
    return 0, 0, bias


runs = {"nothing": train(nothing)}


# %%
def draw_loads(axes, loads):
    tens = loads.reshape(-1, 10, 8).sum(1)  # ten steps together
    order = np.argsort(-tens[-5:].sum(0), kind="stable")  # the busiest at the bottom
    shades = [str(shade) for shade in np.linspace(0.15, 0.95, 8)]
    bands = tens[:, order].T / tens.sum(1)
    axes.stackplot(10 * np.arange(len(tens)) + 5, bands, colors=shades, edgecolor="white", linewidth=0.3)
    axes.set(xlabel="step", ylabel="share of the tokens", ylim=(0, 1))
    axes.grid(visible=False)


figure, axes = new_figure(height=2.8)
draw_loads(axes, runs["nothing"][0])
show(
    figure,
    alt="Eight bands, one for each expert: one takes most at first, later two share it; several are hardly there.",
)

# %% [markdown]
# Each band is an expert, the darkest the one that is busiest at the end; even would be bands of equal height. All tokens have
# something in common (the `+ 0.7` of the centres), so in the first steps one expert scores best for most of them. It learns
# from them and becomes good at them. Slowly a second one takes over a part. Others get next to nothing to the end: an expert
# that gets nothing learns nothing, and the choice has no gradient to bring it in.
#
# This is **collapse** (坍塌). The parameters of idle experts are dead weight; and where each expert sits on its own machine,
# all machines wait for the busiest. The cure is called **balance** (负载均衡).

# %% [markdown]
# ## Formula
#
# $N$ tokens, $E$ experts, $K$ choices for each token, scores $z_{ni}$ and $p = \mathrm{softmax}(z)$ over the experts. Let $c_i$
# be the number of tokens that chose expert $i$, and $\bar c$ the mean of $c$.
#
# **1. A loss on the shares.** An **auxiliary loss** (辅助损失) is added to the main one with a small factor. $f_i$ is a count:
# it has no gradient. $P_i$ has one:
#
# $$L = E \sum_i f_i P_i, \qquad f_i = \frac{c_i}{NK}, \qquad P_i = \frac1N \sum_n p_{ni} \tag{1}$$
#
# $$\frac{\partial L}{\partial z_{nj}} = \frac{E}{N}\, p_{nj} \Big(f_j - \sum_i f_i p_{ni}\Big) \tag{2}$$
#
# Read (2): an expert whose share is larger than what the token expects is pushed down; the others are pushed up, also
# those that nobody chose.
#
# **2. A loss on the variation.** $v_i$ is the sum of the gate weights of expert $i$, its *importance*, and $m$ is the mean of
# $v$. The **coefficient of variation** (变异系数), CV, says how far the $v_i$ lie from $m$, in units of $m$. Its square is
#
# $$\mathrm{CV}^2 = \frac{\frac1E \sum_i (v_i - m)^2}{m^2} \tag{3}$$
#
# **3. A loss on the size of the scores**, the *z-loss*. It doesn't balance, but is often used beside (1), because large scores
# are rounded coarsely:
#
# $$L_z = \frac1N \sum_n \Big(\ln \sum_i e^{z_{ni}}\Big)^2 \tag{4}$$
#
# **4. No loss.** A bias $b_i$ is added to the scores for the choice only. After each step, with a rate $\gamma$:
#
# $$b_i \leftarrow b_i + \gamma \operatorname{sign}(\bar c - c_i) \tag{5}$$
#
# **5. A limit.** No expert takes more than its capacity (容量) of tokens. With a capacity factor $\kappa$, a little above 1
# (lesson 10 called it $f$, which here is a share):
#
# $$C = \lceil \kappa K N / E \rceil \tag{6}$$
#
# What is too much is dropped: such a token gets nothing from this expert. It is no cure, only a ceiling.
#
# **Two numbers** say how even the load is. MaxVio, the maximal violation, is by how much the busiest expert exceeds the mean:
# 0 if all is even. The **entropy** (熵), divided by its maximum, is then 1:
#
# $$\mathrm{MaxVio} = \frac{\max_i c_i - \bar c}{\bar c}, \qquad
# H = \frac{-\sum_i f_i \ln f_i}{\ln E} \quad (0 \ln 0 = 0) \tag{7}$$
#
# *Where it stands.* The untitled document on the sparse gate (稀疏门控), §8 and §9, names the difficulty: some experts are
# overused (过度使用), others ignored (忽视). It offers no cure ([M11](DOCUMENTS.md)). (1) is Fedus et al. 2021, eq. 4–6,
# and (6) its eq. 3, both with K = 1; (3) is Shazeer et al. 2017, eq. 7; (4) is Zoph et al. 2022, eq. 5; (5) and MaxVio
# are Wang et al. 2024.

# %% [markdown]
# ## By hand
#
# Two experts.
#
# - All tokens go to expert 0, with $p = (0.9, 0.1)$: $f = (1, 0)$, $P = (0.9, 0.1)$, and $L = 2 \cdot 1 \cdot 0.9 = 1.8$.
# - Half each, with $P = (0.5, 0.5)$: $L = 2 \cdot (0.25 + 0.25) = 1$.
# - 1 is not the least value. Three tokens with $p = (0.6, 0.4), (0.6, 0.4), (0, 1)$: $f = (2/3, 1/3)$, $P = (0.4, 0.6)$, and
#   $L = 2 \cdot (0.8 + 0.6) / 3 = 0.933$. Shares and probabilities disagree.
# - $v = (3, 1)$: $m = 2$, both are 1 from it, $\mathrm{CV}^2 = 1 / 4$.
# - $c = (3, 1)$: $\mathrm{MaxVio} = (3 - 2) / 2 = 0.5$, and $H = (0.75 \ln \frac43 + 0.25 \ln 4) / \ln 2 = 0.811$. The bias
#   moves by $(-\gamma, +\gamma)$. With $\kappa = 1$ the capacity is $4 / 2 = 2$, so one of the three is dropped.

# %% [markdown]
# ## Code
#
# (1), the entropy of (7), and what a limit keeps, as loops.


# %%
def share_loss(p, choices):  # (1), K = 1
    n_tokens, n_experts = p.shape
    total = 0.0
    for i in range(n_experts):
        f = sum(choice == i for choice in choices) / n_tokens
        total += f * sum(p[n][i] for n in range(n_tokens)) / n_tokens
    return n_experts * total


def entropy(counts):  # (7)
    shares = [c / sum(counts) for c in counts if c > 0]
    return -sum(f * np.log(f) for f in shares) / np.log(len(counts))


def keep(choices, room):  # who finds a place, in the order of the tokens
    taken, kept = {}, []
    for choice in choices:
        taken[choice] = taken.get(choice, 0) + 1
        kept.append(taken[choice] <= room)
    return kept


# %%
odd = np.array([[0.6, 0.4], [0.6, 0.4], [0.0, 1.0]])
print("all at one:   ", share_loss(np.array([[0.9, 0.1]] * 4), [0, 0, 0, 0]))
print("half each:    ", share_loss(np.array([[0.5, 0.5]] * 4), [0, 1, 0, 1]))
print("they disagree:", share_loss(odd, [0, 0, 1]))
print("entropy:      ", entropy([3, 1]))
print("kept:         ", keep([0, 0, 1, 0], room=2))

# %% [markdown]
# ## The same in tinymoe
#
# First the values and the gradient of (1), then the rest.

# %%
rng = np.random.default_rng(1)
logits = rng.standard_normal((12, 4))
p, indices = ops.softmax(logits)[0], logits.argmax(1)[:, None]
loss, backward = ops.load_balance(logits, indices)
f = np.bincount(indices[:, 0], minlength=4) / 12
assert np.isclose(loss, share_loss(p, indices[:, 0]), rtol=1e-12)
assert np.allclose(backward(1.0)[0], 4 / 12 * p * (f - (p @ f)[:, None]), rtol=1e-12)  # (2)

counts = np.array([3, 1])
assert np.isclose(ops.squared_variation(counts.astype(float))[0], 1 / 4)  # (3)
assert np.isclose(ops.z_loss(logits)[0], np.mean(np.log(np.exp(logits).sum(1)) ** 2))  # (4)
assert np.allclose(ops.bias_update(np.zeros(2), counts, 0.01), [-0.01, 0.01])  # (5)
assert ops.capacity(4, 2, 1, 1.0) == 2  # (6)
kept = ops.keep_within_capacity(np.array([[0], [0], [1], [0]]), 2, 2)
assert kept[:, 0].tolist() == keep([0, 0, 1, 0], 2)
assert np.isclose(metrics.max_violation(counts), 0.5) and np.isclose(
    metrics.load_entropy(counts), entropy(counts)
)  # (7)
print("all the same")

# %% [markdown]
# Now the cures, on the layer from above. Each is a few lines:


# %%
def shares(logits, weights, indices, bias):
    _, backward = ops.load_balance(logits, indices)
    return 0, backward(0.3)[0], bias  # 0.3 is the factor of the loss


def variation(logits, weights, indices, bias):
    sums, sums_back = ops.importance(weights, indices, 8)
    _, backward = ops.squared_variation(sums)
    return sums_back(*backward(0.3))[0], 0, bias


def small_scores(logits, weights, indices, bias):
    return 0, ops.z_loss(logits)[1](0.01)[0], bias


def moving_bias(logits, weights, indices, bias):
    return 0, 0, ops.bias_update(bias, np.bincount(indices[:, 0], minlength=8), rate=0.01)


runs |= {cure.__name__: train(cure) for cure in (small_scores, variation, shares, moving_bias)}
print(f"{'cure':13} MaxVio  entropy  main loss")
for name, (loads, losses, _) in runs.items():
    late = loads[-50:].sum(0)
    print(f"{name:13} {metrics.max_violation(late):6.2f} {metrics.load_entropy(late):8.3f} {losses[-50:].mean():10.3f}")

# %%
figure, panels = new_figure(2, 2, height=5, sharex=True, sharey=True)
for axes, name in zip(panels.flat, ["nothing", "variation", "shares", "moving_bias"], strict=True):
    draw_loads(axes, runs[name][0])
    axes.set_title(name.replace("_", " "))
    axes.label_outer()
show(
    figure,
    alt="Without a cure two bands take most; with the loss on variation five are even; with shares or bias all eight.",
)

# %%
figure, (left, right) = new_figure(1, 2)
for name in ("nothing", "variation", "shares", "moving_bias"):
    loads, losses, _ = runs[name]
    steps = 10 * np.arange(30) + 5
    left.plot(steps, metrics.max_violation(loads.reshape(30, 10, 8).sum(1)), label=name.replace("_", " "))
    right.plot(steps, losses.reshape(30, 10).mean(1))
left.set(xlabel="step", ylabel="MaxVio of ten batches", ylim=(0, 6.5))
right.set(xlabel="step", ylabel="main loss, half the squared error", ylim=(0, 0.6))
left.legend(ncols=2)
show(figure, alt="MaxVio stays high without a cure and is lower with each; the main loss ends highest without a cure.")

# %% [markdown]
# What to see:
#
# - The main loss ends *lower* with balance, although it is no longer all that counts: more experts work on it.
# - The loss on the variation helps less here. It acts through the gate weights, and an expert that was not chosen has none: (3)
#   can hold the chosen ones back, not bring the others in. Shazeer et al. use it with noise, which does that.
# - The loss on the shares acts through $P$, which all experts have.
# - The bias adds nothing to any gradient: those that are there are all of the main loss.
# - The loss on the size of the scores, in the table, balances nothing.
# - The way is not always straight: with the loss on the shares this run loses its balance half-way, and finds it again.
#   Another seed has no such relapse; try `train(shares, seed=1)`. One run proves little.
#
# **Capacity.** With buffers of fixed length, what would be dropped from the last batch? With the factor 1.25 there is some
# room to spare, but a single batch is never quite even:

# %%
room = ops.capacity(256, 8, 1, factor=1.25)
for name, (_, _, (_, _, indices)) in runs.items():
    kept = ops.keep_within_capacity(indices, 8, room)
    print(f"{name:13} room for {room} tokens each; share dropped {metrics.dropped_fraction(kept):.3f}")

# %% [markdown]
# ## Backward by hand
#
# In (1) only $P$ depends on the scores, since $f$ counts.
#
# 1. $L$ changes with $p_{ni}$ at the rate $E f_i / N$.
# 2. The softmax passes a gradient $g$ on as $p_j (g_j - \sum_i g_i p_i)$ (lesson 6).
# 3. With $g_i = E f_i / N$ this is (2).
#
# The rates add up to 0 over the experts: a token's scores can't all rise.


# %%
def my_balance(logits, indices):
    n_tokens, n_experts = logits.shape
    p, softmax_back = ops.softmax(logits)
    f = np.bincount(indices.reshape(-1), minlength=n_experts) / indices.size
    loss = n_experts * (f * p.mean(0)).sum()

    def backward(dloss):
        rates = np.broadcast_to(dloss * n_experts / n_tokens * f, p.shape)
        return softmax_back(rates)

    return loss, backward


indices = np.argsort(-logits, 1)[:, :1]
print(check_gradients(my_balance, logits, indices, method="complex"))
print(check_gradients(ops.squared_variation, np.array([3.0, 1.0, 0.5]), method="complex"))
print(check_gradients(ops.z_loss, logits, method="complex"))
print("sums over the experts:", np.abs(my_balance(logits, indices)[1](1.0)[0].sum(1)).max() < 1e-15)

# %% [markdown]
# ## Spot the bug
#
# In version 5.0.0 of a widely used library (huggingface/transformers, issue 45120, mended by pull request 45131) the balancing
# loss of several models was computed like this. The variable came from the router and was called `router_logits`. Find the bug
# by reading. The gradient check has no complaint.


# %% tags=["guess"]
def router(x, keys):
    logits, _ = ops.linear(x, keys)
    return ops.softmax(logits)


def published_balance(router_logits, indices):
    return ops.load_balance(router_logits, indices)


collapsed, to_first = np.log([[0.9, 0.1]] * 6), np.zeros((6, 1), int)
router_logits, _ = router(collapsed, np.eye(2))
print(check_gradients(published_balance, router_logits, to_first))
print("loss:", published_balance(router_logits, to_first)[0])

# %% [markdown]
# <details><summary>The bug</summary>
#
# The router returns *probabilities*, after a softmax, under the name of logits. `load_balance` applies softmax to them a second
# time. Probabilities differ by 1 at most, so with many experts the second softmax is nearly even, whatever the first was, and
# its slopes are near $1/E$. By hand this collapse gave 1.8.
#
# </details>
#
# How much is left of the gradient, as it reaches the real scores?

# %% tags=["guess"]
for n_experts in (8, 32, 128):
    scores = 2 * np.random.default_rng(2).standard_normal((500, n_experts))
    best = scores.argmax(1)[:, None]
    p, softmax_back = ops.softmax(scores)
    (twice,) = softmax_back(*ops.load_balance(p, best)[1](1.0))
    (once,) = ops.load_balance(scores, best)[1](1.0)
    left = np.linalg.norm(twice) / np.linalg.norm(once)
    print(f"{n_experts:3} experts: {left:.4f} of the gradient is left; 1/E = {1 / n_experts:.4f}")

# %% [markdown]
# So balancing was all but switched off, without a word. The library keeps it as the exhibit "double softmax" of its
# [museum](../tinymoe/systems/museum/losses.py). The check that catches it is the number by hand.

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · Two numbers
#
# From the counts (E,), return MaxVio and the entropy (7), in this order. Mind experts with nothing to do: $0 \ln 0$ is 0.
#
# <details><summary>Hint</summary>
#
# Leave the zeros out before you take the logarithm. But divide by the logarithm of the number of *all* experts.
#
# </details>


# %% tags=["exercise"]
def evenness(counts):
    violation = ...
    even = ...
    return violation, even


# %% tags=["solution"]
def evenness(counts):
    violation = counts.max() / counts.mean() - 1
    shares = counts[counts > 0] / counts.sum()
    even = -(shares * np.log(shares)).sum() / np.log(len(counts))
    return violation, even


# %% tags=["wrong"]
def evenness(counts):
    violation = counts.max() / counts.mean()  # this is 1 when even
    shares = counts[counts > 0] / counts.sum()
    return violation, -(shares * np.log(shares)).sum() / np.log(len(counts))


# %% tags=["wrong"]
def evenness(counts):
    shares = counts[counts > 0] / counts.sum()
    even = -(shares * np.log(shares)).sum() / np.log(len(shares))  # forgets the idle experts
    return counts.max() / counts.mean() - 1, even


# %% tags=["check"]
def reference(counts):
    return metrics.max_violation(counts), metrics.load_entropy(counts)


check_exercise(1, evenness, np.array([3, 1, 0, 4]), like=reference, gradients=False)
check_exercise(1, evenness, np.array([2, 4, 7, 1, 2, 5, 4, 7]), like=reference, gradients=False)

# %% [markdown]
# ### 2 · The bias
#
# One step of (5): the new bias (E,) from the old one and the counts. An expert with exactly the mean stays where it is.
#
# <details><summary>Hint</summary>
#
# `np.sign(0.0)` is 0. An expert with too few tokens goes up.
#
# </details>


# %% tags=["exercise"]
def move(bias, counts, rate):
    return ...


# %% tags=["solution"]
def move(bias, counts, rate):
    return bias + rate * np.sign(counts.mean() - counts)


# %% tags=["wrong"]
def move(bias, counts, rate):
    return bias + rate * np.sign(counts - counts.mean())  # makes the rich richer


# %% tags=["wrong"]
def move(bias, counts, rate):
    return bias + rate * (counts.mean() - counts)  # without the sign, steps grow with the batch


# %% tags=["check"]
old = np.array([0.1, 0.0, -0.1, 0.3])
check_exercise(2, move, old, np.array([5, 1, 7, 3]), 0.01, like=ops.bias_update, gradients=False)
check_exercise(2, move, old, np.array([4, 4, 4, 4]), 0.01, like=ops.bias_update, gradients=False)

# %% [markdown]
# ### 3 · Squared variation
#
# Formula (3), both passes. The mean $m$ depends on every $v_i$, too.
#
# <details><summary>Hint</summary>
#
# Let $V$ be the numerator and $y = V / m^2$. $V$ changes with $v_i$ at the rate $2 (v_i - m) / E$, since the deviations add
# up to 0. $m$ changes at the rate $1 / E$, and $y$ with $m$ at the rate $-2 V / m^3$.
#
# </details>


# %% tags=["exercise"]
def my_variation(v):
    y = ...

    def backward(dy):
        dv = ...
        return (dv,)

    return y, backward


# %% tags=["solution"]
def my_variation(v):
    m = v.mean()
    y = ((v - m) ** 2).mean() / m**2

    def backward(dy):
        dv = dy * (2 * (v - m) / m**2 - 2 * y / m) / len(v)
        return (dv,)

    return y, backward


# %% tags=["wrong"]
def my_variation(v):
    m = v.mean()
    y = ((v - m) ** 2).mean() / m**2

    def backward(dy):
        return (dy * 2 * (v - m) / m**2 / len(v),)  # takes the mean for a constant

    return y, backward


# %% tags=["wrong"]
def my_variation(v):
    m = v.mean()
    y = ((v - m) ** 2).sum() / (len(v) - 1) / m**2  # the variance of a sample, as some public code has it

    def backward(dy):
        return (dy * (2 * (v - m) / (len(v) - 1) / m**2 - 2 * y / m / len(v)),)

    return y, backward


# %% tags=["check"]
check_exercise(3, my_variation, np.array([3.0, 1.0, 0.5, 2.0]), like=ops.squared_variation)

# %% [markdown]
# ### 4 · The loss on the size of the scores
#
# Formula (4), both passes.
#
# <details><summary>Hint</summary>
#
# Let $l_n$ be the logarithm of token $n$. $L_z$ changes with $l_n$ at the rate $2 l_n / N$, and $l_n$ with $z_{ni}$ at the rate
# $p_{ni}$.
#
# </details>


# %% tags=["exercise"]
def my_z_loss(logits):
    loss = ...

    def backward(dloss):
        dlogits = ...
        return (dlogits,)

    return loss, backward


# %% tags=["solution"]
def my_z_loss(logits):
    e = np.exp(logits)
    total = e.sum(1, keepdims=True)
    loss = (np.log(total) ** 2).mean()

    def backward(dloss):
        dlogits = dloss * 2 / len(e) * np.log(total) * e / total
        return (dlogits,)

    return loss, backward


# %% tags=["wrong"]
def my_z_loss(logits):
    e = np.exp(logits)
    total = e.sum(1, keepdims=True)
    loss = (np.log(total) ** 2).mean()

    def backward(dloss):
        return (dloss * 2 / e.size * np.log(total) * e / total,)  # the mean is over tokens, not over all scores

    return loss, backward


# %% tags=["wrong"]
def my_z_loss(logits):
    total = np.exp(logits).sum(1, keepdims=True)
    loss = np.log(total).mean() ** 2  # the square of the mean

    def backward(dloss):
        return (dloss * 2 * np.log(total).mean() / len(logits) * np.exp(logits) / total,)

    return loss, backward


# %% tags=["check"]
check_exercise(4, my_z_loss, np.random.default_rng(3).standard_normal((5, 4)), like=ops.z_loss)

# %% [markdown]
# ## Next
#
# Public systems mean different things by the same names: the scale of (1), its counts, its pooling, the rounding of (6). Lesson
# 12 is about these conventions, and about bugs. Balance in a whole language model is [measured here](../docs/balance.md).
