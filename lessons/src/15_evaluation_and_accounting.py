# ---
# jupyter:
#   lesson:
#     title: How good, how big, how fast
#     chinese: 评估与核算
#     builds: an honest account of a mixture and of its rivals, in loss, parameters, operations, seconds and bytes
#     code:
#       - tinymoe/evaluate/text.py
#       - tinymoe/models/accounting.py
#       - tinymoe/systems/all_reduce.py
#       - tinymoe/systems/dispatchers.py
#       - tinymoe/recipes/search.py
#     documents: [O1, O3, O4, S11, S12]
#     papers:
#       - "Kaplan et al. 2020, *Scaling Laws for Neural Language Models*, §2.1"
#       - "Jiang et al. 2024, *Mixtral of Experts*, table 1"
#       - "Patarasuk & Yuan 2009, *Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations*, §3"
#       - "Jamieson & Talwalkar 2016, *Non-stochastic Best Arm Identification and Hyperparameter Optimization*"
#     terms:
#       perplexity: [困惑度, "how many equally likely tokens would be as hard to guess"]
#       bits per byte: [每字节比特数, "the loss of a text in bits, divided by its bytes"]
#       accuracy: [准确率, "the share of predictions whose first guess is right"]
#       standard error: [标准误, "how far a mean of a sample typically lies from the true mean"]
#       generalisation: [泛化能力, "how well a model does on text that it was not trained on"]
#       active parameters: [激活参数, "the parameters that work on one token"]
#       floating-point operations: [浮点运算, "additions and multiplications; a product of two numbers, added up, counts two"]
#       data parallelism: [数据并行, "every machine has the whole model and a share of the batch"]
#       all-reduce: [全归约, "an exchange after which every machine has the sum of all arrays"]
#       architecture search: [神经架构搜索, "trying shapes of a model by a rule"]
#       successive halving: [逐次减半, "train all, drop the worse half, train the rest twice as long, repeat"]
#       Pareto front: [帕累托前沿, "the candidates that no other one beats in every respect"]
# ---

# %% [markdown]
# ## You will
#
# say of a model how good, how big and how fast it is, with numbers that you can defend, and find out what each kind of
# sparsity saves.

# %% [markdown]
# ## You need
#
# The loss (lesson 0), the way of tokens to their experts (lesson 10), sparse weights (lesson 13), mean and standard deviation.

# %%
from itertools import product
from time import perf_counter

import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.data import corpora
from tinymoe.data.windows import TrainingWindows, evaluation_batches
from tinymoe.gradcheck import check_gradients
from tinymoe.models import accounting, language
from tinymoe.models.config import LanguageConfig
from tinymoe.models.evaluation import measure
from tinymoe.models.initialise import initialize
from tinymoe.models.sampling import generate
from tinymoe.optim import sparsify
from tinymoe.optim.one_core import one_core
from tinymoe.recipes import fit as recipe
from tinymoe.recipes import search
from tinymoe.runs.settings import resolve
from tinymoe.sparse import magnitude_mask
from tinymoe.systems import dispatchers
from tinymoe.systems.all_reduce import ring_all_reduce
from tinymoe.tree import named, with_leaves, with_role

# %% [markdown]
# ## Picture
#
# Two things are called sparse: a layer of which a token visits only some experts, and a matrix that is mostly zeros. What
# does each make of a small dense model?

# %%
base = resolve({"preset": "quick", "corpus": ("toy",), "layers": 1, "width": 32, "context": 32, "batch_size": 16})
base = base.but(lr=6e-3, final_lr=1.0)  # final_lr: the learning rate stays where it is
SHAPES = {
    "mixture": {"experts": 8, "top_k": 2, "expert_width": 64, "dense_layers": ()},
    # one expert is a dense layer; the first is as wide as the two that a token visits, the second as all eight
    "dense, equal work": {"experts": 1, "top_k": 1, "expert_width": 128, "dense_layers": (0,)},
    "dense, equal size": {"experts": 1, "top_k": 1, "expert_width": 512, "dense_layers": (0,)},
}
sizes, points = {}, {}
for name, shape in SHAPES.items():
    config = base.but(**shape).model
    leaves = named(params := initialize(config, np.random.default_rng(0)))
    sizes[name] = sum(leaf.size for leaf in leaves.values())
    points[name] = float(sizes[name]), accounting.flops_per_token(config, 32)
    if name == "dense, equal work":
        gone = 0.9 * sum(leaves[leaf].size for leaf in with_role(params, "sparsifiable"))
        points["the same, 90 % zeros"] = points[name][0] - gone, points[name][1] - 2 * gone

# %%
figure, axes = new_figure(height=2.8)
for (name, point), marker in zip(points.items(), "soD^", strict=True):
    axes.loglog(*point, marker, color="k", markersize=8)
    axes.annotate(name, point, (0, -18 if "zeros" in name else 11), textcoords="offset points", ha="center")
    if name in ("mixture", "the same, 90 % zeros"):
        arrow = {"arrowstyle": "->", "color": "0.4", "shrinkA": 8, "shrinkB": 8}
        axes.annotate("", point, points["dense, equal work"], arrowprops=arrow)
axes.set(xlabel="parameters stored", ylabel="operations per token", xlim=(1.3e4, 1.2e5), ylim=(1.5e4, 2e5))
axes.set_xticks([2e4, 4e4, 8e4], ["20,000", "40,000", "80,000"])
axes.set_yticks([2e4, 5e4, 1e5], ["20,000", "50,000", "100,000"])
axes.minorticks_off()
show(figure, alt="From the small dense model, experts lead right at equal work; zeros lead left and down.")

# %% [markdown]
# Experts add parameters at the same work. Zeros remove parameters, and operations *on paper*. Whether loss, clock and wire
# agree must be measured.

# %% [markdown]
# ## Formula
#
# **How good.** The loss $L$ is the mean surprise over $N$ tokens, in nats; $p_n$ is the model's probability for the $n$-th.
# The **perplexity** (困惑度) says the same as a number of equally likely choices; **bits per byte** (每字节比特数) compares
# models with different tokens:
#
# $$L = \frac1N \sum_n -\ln p_n, \qquad \mathrm{PPL} = e^L, \qquad
# \mathrm{bpb} = \frac{L}{\ln 2} \cdot \frac{\text{tokens}}{\text{bytes}} \tag{1}$$
#
# How far a mean typically lies from the true one is its **standard error** (标准误). For $W$ independent windows, with losses
# $\ell_w$ and their mean $\bar\ell$, it is
#
# $$\mathrm{SE} = \frac{s}{\sqrt W}, \qquad s^2 = \frac{1}{W - 1} \sum_w (\ell_w - \bar\ell)^2 \tag{2}$$
#
# To compare two models, put the *difference* $d_w = \ell'_w - \ell_w$ on the same window in place of $\ell_w$. Believe a mean
# difference of more than two standard errors.
#
# **How big.** $\lambda$ layers of width $D$; $E$ experts, $K$ for each token; an expert has three matrices $D \times F$, so
# $m = 3DF$. All else is $R$. Total, and **active parameters** (激活参数):
#
# $$P = R + \lambda E m, \qquad A = R + \lambda K m \tag{3}$$
#
# The **floating-point operations** (浮点运算, FLOPs) per token, forward, over $T$ positions. $C$ is the width of keys and of
# values, $V$ the vocabulary; what acts on one number at a time is left out:
#
# $$2 \left[ \lambda \left( 2D^2 + 2DC + D(T+1) + DE + K(m + D) \right) + DV \right] \tag{4}$$
#
# The terms are: queries and outputs, keys and values, scores and means over $\frac{T+1}{2}$ positions on average, router,
# experts and their weights, head. Training takes three times as much, since backward costs twice the forward.
#
# **Bytes.** In **data parallelism** (数据并行) each of $r$ machines has the whole model and $N$ tokens of the batch. Every
# machine needs the sum of all gradients: an **all-reduce** (全归约). In expert parallelism (lesson 10) the tokens travel
# instead: there, back, and both again in the backward pass. With $b$ bytes a number, a machine sends
#
# $$\text{all-reduce: } 2 \left(1 - \tfrac1r\right) b\, E m, \qquad
# \text{all-to-all: } 4 \left(1 - \tfrac1r\right) b\, N K D \tag{5}$$
#
# for the experts of one layer, if the load is even. The two are equal at $N = 3EF / 2K$ tokens per machine.
#
# *Where it stands.* 《稀疏专家模型》, §9.5, asks for accuracy (准确率), complexity (计算复杂度) and generalisation (泛化能力),
# without a formula ([O1](DOCUMENTS.md)). (4) is after Kaplan et al. 2020, §2.1; the all-reduce, Patarasuk & Yuan 2009, §3.

# %% [markdown]
# ## By hand
#
# - (1): the tokens that came had probabilities $\frac12, \frac14, \frac18, \frac18$: $1 + 2 + 3 + 3 = 9$ bits over 4 bytes,
#   so 2.25 bits per byte. The perplexity is $2^{2.25} \approx 4.76$.
# - (2): two models on four windows, losses 1.0 1.4 2.0 1.6 and 1.1 1.6 2.1 1.6. Each mean has an error of 0.2, twice their
#   difference of 0.1. But the differences are 0.1 0.2 0.1 0, with $s = 0.082$ and an error of 0.041: believable.
# - (3): Mixtral 8x7B has $D = 4096$, $F = 14336$, 32 layers, $E = 8$, $K = 2$, $C = 1024$, $V = 32000$. An expert is
#   $3 \cdot 4096 \cdot 14336$, about 176 million. Times $8 \cdot 32$: 45.1 billion. The rest is 1.6: 46.7 together. Active are
#   $2 \cdot 32$ experts, 11.3, and the rest: 12.9. Both are the published numbers.
# - (5): Mixtral's all-to-all sends less below $3 \cdot 8 \cdot 14336 / 4 = 86016$ tokens per machine and step, that of this
#   lesson's layer below $3 \cdot 8 \cdot 64 / 4 = 384$.


# %%
def count(D, F, E, K, layers, C, V):  # (3); R: projections, router, two norms a layer; embedding, head, last norm
    rest = layers * (2 * D * D + 2 * D * C + D * E + 2 * D) + 2 * V * D + D
    return rest + layers * E * 3 * D * F, rest + layers * K * 3 * D * F


def standard_error(values):  # (2)
    return np.std(values, ddof=1) / np.sqrt(len(values))


p = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])
loss = -np.log(p).mean()
print(f"(1) {loss / np.log(2):.2f} bits per byte, perplexity {np.exp(loss):.2f}")
one, other = np.array([1.0, 1.4, 2.0, 1.6]), np.array([1.1, 1.6, 2.1, 1.6])
print("(2)", *(f"{standard_error(v):.3f}" for v in (one, other, other - one)))
print("(3) Mixtral: {:,} parameters, {:,} active".format(*count(4096, 14336, 8, 2, 32, 1024, 32000)))

# %% [markdown]
# ## Code
#
# **How good.** First, rivals to judge: three models of the picture, from four seeds each. They train in turns, ten steps at a
# time, so that a busy moment of the machine hits all alike. The small one goes on for longer. `one_core()` means one thread.

# %%
texts = corpora.load_split(("toy",), 32)
states = {}
models, window_losses, curves, seconds = ({name: [] for name in SHAPES} for _ in range(4))
with one_core():
    for seed, step in product(range(4), range(10, 201, 10)):
        for name, shape in SHAPES.items():
            if step > 120 and name != "dense, equal work":
                continue
            run = base.but(seed=seed, **shape)
            if step == 10:
                states[name] = recipe.start(recipe.new_model(run.model, seed), run)
                models[name].append(recipe.Model(states[name].params, run.model))
            began = perf_counter()
            recipe.advance(states[name], run.model, run, texts.train, step)
            seconds[name].append((perf_counter() - began) / 10)
            if step % 20 == 0:
                curves[name].append(recipe.evaluate(models[name][-1], texts.val, 100))
            if step == 120:
                window_losses[name].append(recipe.token_losses(models[name][-1], texts.val, 400).mean(1))

# %% [markdown]
# To judge one of them, take for each window the mean loss, and the **accuracy** (准确率), the share of tokens that were the
# model's first guess.


# %%
def bits_per_byte(logits, targets):  # (1); a token is a byte here
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = np.arange(len(targets))
    y = -np.log(p[rows, targets]).mean() / np.log(2)

    def backward(dy):
        dlogits = p.copy()
        dlogits[rows, targets] -= 1
        return (dy * dlogits / (len(targets) * np.log(2)),)

    return y, backward


def judge(model, windows):
    losses, hits = [], []
    for batch in windows:  # each of one window
        (logits, _, _), _ = language.forward(model.params, model.config, batch.ids)
        losses.append(bits_per_byte(logits, batch.targets[0])[0] * np.log(2))
        hits.append((logits.argmax(1) == batch.targets[0]).mean())
    return np.array(losses), np.array(hits)


# %% tags=["trained"]
mixture = models["mixture"][0]
losses, hits = judge(mixture, evaluation_batches(texts.val, 32, 1, 400))  # 400 windows of 32 bytes, one at a time
tokens = recipe.token_losses(mixture, texts.val, 400).ravel()
print(f"loss {losses.mean():.3f} ± {standard_error(losses):.3f} nats, {losses.mean() / np.log(2):.3f} bits per byte")
print(f"perplexity {np.exp(losses.mean()):.2f}, accuracy {hits.mean():.3f} ± {standard_error(hits):.3f}")
print(f"if every token were a witness of its own: ± {standard_error(tokens):.3f}")

# %% [markdown]
# Why windows and not tokens? Neighbours aren't independent: who has understood a line predicts all of it.
#
# **How large must a difference be?** Two models on the same windows:

# %% tags=["trained"]
pair = window_losses["dense, equal size"][0], window_losses["mixture"][0]
figure, axes = new_figure(height=2.8)
axes.plot(*pair, ".", color="0.4", markersize=4)
axes.plot([0.8, 2.7], [0.8, 2.7], "k-", linewidth=1)
axes.set(xlabel="window's loss, large dense model", ylabel="the same, mixture", aspect="equal")
axes.set(xticks=[1, 1.5, 2, 2.5], yticks=[1, 1.5, 2, 2.5])
show(figure, alt="A window that is hard for one model is hard for the other: the dots lie along the diagonal.")
print("errors of the means:", *(f"{standard_error(values):.4f}" for values in pair), end="; ")
print(f"of the mean difference: {standard_error(pair[1] - pair[0]):.4f}")

# %% [markdown]
# A window is hard or easy for both. In the difference that cancels. Now all seeds, after equally many steps:

# %% tags=["trained"]
gains = {}
for rival in ("dense, equal work", "dense, equal size"):
    gaps = [m - d for m, d in zip(window_losses["mixture"], window_losses[rival], strict=True)]
    gains[rival] = np.array([gap.mean() for gap in gaps])
    print(f"mixture − {rival}:", *(f"{gap.mean():+.3f}±{standard_error(gap):.3f}" for gap in gaps))
    print(f"{'mean over seeds':>27}: {gains[rival].mean():+.3f}±{standard_error(gains[rival]):.3f}")

# %% [markdown]
# The seeds differ by far more than the errors of the windows, which are about *two trained models*. Whether one *kind* of model
# is better, only more seeds can tell: the second line of each pair. With one seed, as in many tables, you may prove what
# you like.
#
# **Generalisation** (泛化能力) is how well a model does on what it hasn't seen. We need a bad example, the same mixture trained
# on 3,000 bytes again and again, and text of another kind, the documentation of Python.

# %% tags=["trained"]
with one_core():
    run = base.but(**SHAPES["mixture"])
    crammer = recipe.start(recipe.new_model(run.model, 0), run)
    recipe.advance(crammer, run.model, run, texts.train[:3000], 240)
order = TrainingWindows(texts.train, 32, 0)  # of the windows in the training of seed 0, 16 a step
read = [order.batch(n, 1) for n in range(1, 120 * 16, 5)]  # every fifth of those that the mixture has read
other_kind = np.frombuffer(corpora.load("pydoc").text.encode(), np.uint8)
print(f"{'':24} {'own training':>13} {'validation':>13} {'Python docs':>13}")
for name, model, own in [
    ("has read much once", mixture, read),
    ("has read little often", recipe.Model(crammer.params, run.model), evaluation_batches(texts.train[:3000], 32, 1)),
]:
    new = [evaluation_batches(text, 32, 1, 400) for text in (texts.val, other_kind)]
    judged = [judge(model, windows)[0] for windows in (own, *new)]
    print(f"{name:24}", *(f"{j.mean():7.2f} ± {standard_error(j):.2f}" for j in judged))

# %% [markdown]
# Validation less training is the gap. Who has read each byte once has none to speak of; who has read little often knows much of
# it by heart. On text of another kind both fail.
#
# **How big.** Count by walking: one token goes through the arrays of a model and pays for each product.


# %%
def walk(model, position):
    """(operations, active parameters) of the token at this position."""
    params, config = model
    products, asleep = 2 * config.width * (position + 1), 0  # a score with, and a share of, each position so far
    for block in params.blocks:  # here only one
        products += sum(matrix.size for matrix in named(block.attention).values())
        chosen = 1
        if block.mixture.router is not None:
            chosen = config.top_k
            products += block.mixture.router.weight.size + chosen * config.width  # the last: to weigh answers
        for matrices in named(block.mixture.experts).values():
            products += chosen * matrices[0].size
            asleep += (len(matrices) - chosen) * matrices[0].size
    products += params.head.size
    return 2 * products, sum(leaf.size for leaf in named(params).values()) - asleep


for name in SHAPES:
    steps = [walk(models[name][0], position) for position in range(32)]
    work, active = np.mean(steps, axis=0)
    print(f"{name:18} {sizes[name]:7,} parameters, {active:7,.0f} active, {work:9,.0f} operations per token")

# %% [markdown]
# **How fast.** Let each run once before you count, as a warm-up. Take turns. Report the median: one disturbed run hardly
# moves it.


# %% tags=["timed"]
def in_turns(calls, rounds=9):
    for call in calls:
        call()  # warm-up
    times = np.zeros((len(calls), rounds))
    for turn in range(rounds):
        for i, call in enumerate(calls):
            began = perf_counter()
            call()
            times[i, turn] = perf_counter() - began
    return times


step_time = {name: np.median(values) for name, values in seconds.items()}
for name, values in seconds.items():
    ms = 1e3 * np.array(values)
    print(f"{name:18} median {np.median(ms):5.2f} ms per step; least {ms.min():5.2f}, most {ms.max():5.2f}")
ratio = step_time["mixture"] / step_time["dense, equal work"]
print(f"equal work per token, yet the mixture's step takes {ratio:.2f} times as long")

# %% [markdown]
# The operations are equal, the times aren't: sorting and gathering count no operation, and eight small products run slower
# than one large one. What the mixture wins depends on what you hold equal:

# %% tags=["timed"]
figure, (left, right) = new_figure(1, 2, height=2.9, sharey=True)
for name, shade in zip(SHAPES, ("0", "0.35", "0.55"), strict=True):
    curve = np.reshape(curves[name], (4, -1)).mean(0)[1:]
    steps = 20 * np.arange(2, len(curve) + 2)
    left.plot(steps, curve, color=shade, label=name)
    right.plot(steps * step_time[name], curve, color=shade)
left.set(xlabel="step", ylabel="validation loss, mean of seeds")
right.set(xlabel="seconds of training on this machine")
left.legend()
show(figure, alt="By steps the mixture comes down to the large dense model; by seconds the small dense model leads.")

affordable = min(120 * ratio, 200)  # steps of the small dense model in the mixture's time
small = np.reshape(curves["dense, equal work"], (4, -1))
longer = [np.interp(affordable, range(20, 201, 20), curve) for curve in small]
gains["equal time"] = np.reshape(curves["mixture"], (4, -1))[:, -1] - longer
for name, gain in gains.items():
    print(f"{name:18} {gain.mean():+.3f}±{standard_error(gain):.3f}")
print(f"equal time is {affordable:.0f} steps of the small dense model")

# %% [markdown]
# Below 0 the mixture is better. When we ran it, it won at equal work, drew at equal size with under half of the operations,
# and *lost* at equal time: the dense model used the time for more steps. A [longer study](../docs/accounting.md) on real
# text came to much the same.
#
# **Zeros against the clock.** A product with a CSR matrix skips zeros, but must look up where the others stand. In lesson 4
# that paid at low densities only. And in a whole pruned model? This mixture is larger, and untrained, which doesn't
# matter here. It writes four bytes, with the zeros filled in, and as CSR, as `python -m tinymoe.generate --csr` does.

# %% tags=["timed"]
config = LanguageConfig(layers=2, heads=2, kv_heads=2, experts=8, expert_width=192, tied=False)
leaves = named(full := initialize(config, np.random.default_rng(0)))
pruned = {}


def write(params):
    return list(generate(params, config, np.full(40, 10), 4, 0.8, 0.95, np.random.default_rng(0)))


with one_core():
    for level in (0.5, 0.9, 0.99):
        cut = {name: leaves[name] * magnitude_mask(leaves[name], level) for name in with_role(full, "sparsifiable")}
        filled = with_leaves(full, leaves | cut)
        csr = with_leaves(full, leaves | {name: sparsify.as_csr(w) for name, w in cut.items()})
        assert write(filled) == write(csr)
        times = in_turns([lambda p=filled: write(p), lambda p=csr: write(p)])
        size = sparsify.summary(cut)
        pruned[level] = size["csr_bytes"] / size["dense_bytes"], np.median(times[1] / times[0])
        print(f"{level:.0%} zeros: {pruned[level][0]:6.1%} of the bytes, {pruned[level][1]:.1f} times as long to write")

# %% [markdown]
# Half zeros save no byte, since an index costs as much as a number. 90 % save most of the bytes, but no time: an expert
# gets only a few rows here, and they pay for all the looking up.
#
# **Bytes between machines.** The all-reduce as a ring: cut each array into $r$ blocks. In each step, every worker sends one to
# the next, which at first *adds* it to its own. After $r - 1$ steps each worker has one finished block; in $r - 1$ more,
# these go round.


# %%
def ring(parts):
    workers = len(parts)
    blocks = [np.array_split(part, workers) for part in parts]
    sent = np.zeros(workers, int)
    for step in range(2 * workers - 2):
        moving = [blocks[w][(w - step) % workers] for w in range(workers)]
        for w, block in enumerate(moving):
            place, following = (w - step) % workers, blocks[(w + 1) % workers]
            following[place] = following[place] + block if step < workers - 1 else block
            sent[w] += block.nbytes
    return [np.concatenate(own) for own in blocks], sent


def travelling(choices, experts, ranks):  # rows that must leave their machine, by machine
    leaving = np.zeros(ranks, int)
    for token, row in enumerate(choices):
        home = token * ranks // len(choices)
        leaving[home] += sum(expert * ranks // experts != home for expert in row)
    return leaving


# sums and bytes sent: by (5), 2 (1 − 1/3) · 8 · 3
print(*ring([np.array([1.0, 2, 3]), np.array([10.0, 20, 30]), np.array([100.0, 200, 300])]), sep="\n")

# %%
rng, ranks = np.random.default_rng(3), 4
gradients = list(rng.standard_normal((ranks, 8 * 3 * 32 * 64)).astype(np.float32))
sums, sent = ring(gradients)
assert (sent == 2 * (1 - 1 / ranks) * 4 * 8 * 3 * 32 * 64).all()  # (5)
counts, counted = np.array([64, 128, 256, 384, 512, 768]), []
for n in counts:
    (_, choices), _ = ops.top_k_gate(rng.standard_normal((ranks * n, 8)), 2)
    counted.append(4 * travelling(choices, 8, ranks).mean() * 4 * 32)
formula = 4 * (1 - 1 / ranks) * 4 * counts * 2 * 32
assert np.allclose(counted, formula, rtol=0.1) and formula[3] == sent[0]  # at 384 = 3 E F / 2 K
figure, axes = new_figure(height=2.7)
axes.plot(counts, np.full(len(counts), sent[0]) / 1e3, label="all-reduce of the experts' gradients")
axes.plot(counts, formula / 1e3, color="0.5", label="all-to-all, by (5)")
axes.plot(counts, np.array(counted) / 1e3, "ko", label="all-to-all, counted")
axes.set(xlabel="tokens per machine and step", ylabel="kB sent by a machine", ylim=(0, 700))
axes.legend()
show(figure, alt="The all-reduce is a level line; the all-to-all rises with the tokens and crosses it at 384.")

# %% [markdown]
# Large batches favour the all-reduce, large experts the all-to-all.
#
# **Which shape?** The documents name **architecture search** (神经架构搜索) as a trend ([O3](DOCUMENTS.md)). One way is
# **successive halving** (逐次减半; Jamieson & Talwalkar 2016): train all candidates for a few steps, drop the worse half, train
# the rest to twice as many, and so on. Here all have $K \cdot F = 128$, so nearly equal work per token. Left to weigh is size
# against loss. The **Pareto front** (帕累托前沿) holds the candidates that nobody beats: none other is at most as large and at
# most as bad, and better in one of the two.

# %% tags=["trained"]
with one_core():
    results, _ = search.search(base.but(steps=30), search.shapes(128, 16), texts.train, texts.val, rungs=3)
work = [accounting.flops_per_token(search.with_candidate(base, r.shape).model, 32) for r in results]
print(f"operations per token: {min(work):,.0f} to {max(work):,.0f}")
figure, panels = new_figure(1, 2, height=2.8)
for axes, steps in zip(panels, (30, 60), strict=True):
    rung = sorted((r for r in results if r.steps == steps), key=lambda r: (r.total, r.loss))
    costs, values = np.array([r.total for r in rung]), np.array([r.loss for r in rung])
    best = search.pareto(costs, values)
    axes.step(costs[best], values[best], where="post", color="0.5", label="front")
    for k, mark in ((1, "o"), (2, "s"), (4, "^")):
        mine = [r for r in rung if r.shape.top_k == k]
        axes.plot([r.total for r in mine], [r.loss for r in mine], f"k{mark}", markersize=5, label=f"K = {k}")
    axes.set(title=f"{steps} steps", xlabel="parameters", ylabel="validation loss", xscale="log", xlim=(2.5e4, 3e5))
    axes.set_xticks([3e4, 6e4, 12e4, 24e4], ["30k", "60k", "120k", "240k"])
    axes.minorticks_off()
panels[1].legend(loc="upper right", fontsize=8)
show(figure, alt="Ten candidates, then five: loss against parameters, with the front as a falling staircase.")
for r in results[-2:]:
    print(f"after {r.steps} steps: {r.loss:.3f}, {r.shape}")

# %% [markdown]
# But you know what one seed is worth: the few hundredths on the left that decide who goes on may well be luck.

# %% [markdown]
# ## The same in tinymoe
#
# `python -m tinymoe.evaluate DIR` reports all of this for a trained model. Its parts against ours:

# %%
found = measure(mixture.params, mixture.config, evaluation_batches(texts.val, 32, 16, 400))
assert np.isclose(found.loss, losses.mean(), rtol=1e-4)
assert abs(found.accuracy - hits.mean()) < 1e-3  # in float32 a near tie may fall either way

logits, targets = np.random.default_rng(4).standard_normal((6, 5)), np.array([0, 4, 1, 1, 2, 3])
ours, back = bits_per_byte(logits, targets)
theirs, their_back = ops.cross_entropy(logits, targets)
assert np.isclose(ours, theirs / np.log(2), rtol=1e-12)
assert np.allclose(back(1.0)[0], their_back(1 / np.log(2))[0], rtol=1e-12)

for model, *_ in models.values():
    steps = [walk(model, position) for position in range(32)]
    assert np.isclose(np.mean([w for w, _ in steps]), accounting.flops_per_token(model.config, 32), rtol=1e-12)  # (4)
    assert steps[0][1] == accounting.active_parameters(*model)  # (3)

sums_of_library, sent_of_library = ring_all_reduce(gradients)
assert all(np.array_equal(a, b) for a, b in zip(sums, sums_of_library, strict=True))
assert np.array_equal(sent, sent_of_library)
sent_rows = dispatchers.exchanged_bytes(choices, 8, 1, ranks=ranks).sum(1)  # with a byte to a row
assert np.array_equal(sent_rows, travelling(choices, 8, ranks))

# %% [markdown]
# And (3) and (4) for Mixtral, which no notebook can hold:

# %%
mixtral = LanguageConfig(32000, 32768, 32, 4096, 32, 8, 8, 2, 14336, tied=False)
D, C, F, T = 4096, 1024, 14336, 1024
by_formula = 2 * (32 * (2 * D**2 + 2 * D * C + D * (T + 1) + D * 8 + 2 * (3 * D * F + D)) + D * 32000)
assert by_formula == accounting.flops_per_token(mixtral, T)
total, active = count(D, F, 8, 2, 32, C, 32000)
assert round(total / 1e9, 1) == 46.7 and round(active / 1e9, 1) == 12.9  # published
print(f"{by_formula / 1e9:.1f} billion operations per token: {by_formula / active:.2f} per active parameter")

# %% [markdown]
# ## Backward by hand
#
# **Bits per byte.** The loss of one token is $-z_t + \ln \sum_i e^{z_i}$, whose derivative is $p_i$ for a token that didn't
# come and $p_i - 1$ for the one that did. Divide by $N \ln 2$, and you have `bits_per_byte` above.
#
# **All-reduce.** The result at worker $w$ is $s_w = \sum_v g_v$. Each $g_v$ reaches all $s_w$ with the factor 1, so
# $dg_v = \sum_w ds_w$: the gradient of an all-reduce is an all-reduce.


# %%
def all_reduced(parts):  # (W, n): a row for each worker
    y = np.stack(ring(list(parts))[0])

    def backward(dy):
        return (np.stack(ring(list(dy))[0]),)

    return y, backward


print(check_gradients(bits_per_byte, logits, targets, method="complex"))
print(check_gradients(all_reduced, np.random.default_rng(5).standard_normal((3, 7)), method="complex"))

# %% [markdown]
# ## What the document gets wrong
#
# Sparse experts reduce the number of parameters (减少参数数量), speed up training (加速训练速度) and lower the cost: so say
# 《稀疏专家模型》, §1 and §3.3, and 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》, §3 and §6.5; the document on vision
# and language, §2.5, defines sparsity as parameters that are mostly zero ([S11](DOCUMENTS.md)). Here are both kinds, each as a
# multiple of the dense model it began with (for zeros, of the matrices that were cut):

# %% tags=["timed"]
more = sizes["mixture"] / sizes["dense, equal work"]
bytes_left, slower = pruned[0.9]
print("                    experts, 2 of 8    90 % zeros, as CSR")
print(f"bytes to store      {more:15.2f} {bytes_left:21.2f}")
print(f"time to train/write {ratio:15.2f} {slower:21.2f}")
zero = sum(int((leaf == 0).sum()) for name, leaf in named(mixture.params).items() if ".experts." in name)
print("zeros among the experts' parameters:", zero)
assert more > 1 and zero == 0 and bytes_left < 1

# %% [markdown]
# A mixture has *more* parameters, none of them zero; what is less is its work, compared with a dense model *of its size*. Zeros
# do reduce the bytes, and the time only at low densities, in large products. The second document, §6.7, adds less
# communication ([S12](DOCUMENTS.md)): true below the crossing of (5), false above it. Always ask what is held equal.
#
# ## Spot the bug
#
# Speed is often given as operations per second. This is how MaxText (AI-Hypercomputer/maxtext) counted those of a training step
# before its pull request 678, retold with our names. Find the mistake.


# %%
def training_tflops(c, T):  # of one text of T tokens
    P = c.width // c.heads
    ffn = 2 * T * c.width * c.expert_width * 2 + 2 * T * c.expert_width * c.width  # two matrices in, one out
    gate = 2 * T * c.width * c.experts
    ffn = gate + c.experts * ffn
    qkv = 2 * T * c.width * (c.heads + 2 * c.kv_heads) * P
    attention = 4 * T**2 * c.heads * P
    projection = 2 * T * c.width * c.heads * P
    head = 2 * T * c.width * c.vocabulary
    return 3 * (c.layers * (ffn + qkv + attention + projection) + head) / 1e12


# %% [markdown]
# <details><summary>The bug</summary>
#
# `c.experts * ffn` counts all experts, but a token visits `c.top_k`. The same seconds looked like several times
# the speed. (`gate` is right: the router scores all.)
#
# </details>

# %% tags=["guess"]
before = training_tflops(mixtral, 1024)
after = 3 * 1024 * sum(accounting.flops_by_part(mixtral, 1024, masked=True).values()) / 1e12
print(f"Mixtral, 1024 tokens, in 10¹² operations: {before:.2f}; by tinymoe {after:.2f}")
assert round(before, 2) == 287.78 and round(after, 2) == 79.98

# %% [markdown]
# The pull request gives these very numbers, as before and after. (It names no length; with 1024 tokens, counting scores that
# the mask hides, both come out.) Hold your count against a published one.

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it.
#
# ### 1 · Perplexity of unequal batches
#
# A text was evaluated in batches. `means` (B,) has the mean loss of each, `counts` (B,) its number of tokens. Return the
# perplexity of the whole text, and the gradient of `means`. (facebookresearch/ParlAI reported 155.8 with one example in a
# batch, and 65.1 with 128, for the same model: pull request 623.)
#
# <details><summary>Hint</summary>
#
# First the mean loss over all tokens, with the counts as weights, then *one* exponential.
#
# </details>


# %% tags=["exercise"]
def text_perplexity(means, counts):
    y = ...

    def backward(dy):
        dmeans = ...
        return (dmeans,)

    return y, backward


# %% tags=["solution"]
def text_perplexity(means, counts):
    share = counts / counts.sum()
    y = np.exp((share * means).sum())

    def backward(dy):
        return (dy * y * share,)

    return y, backward


# %% tags=["wrong"]
def text_perplexity(means, counts):
    share = counts / counts.sum()
    y = (share * np.exp(means)).sum()  # the mean of exponentials, which is larger

    def backward(dy):
        return (dy * share * np.exp(means),)

    return y, backward


# %% tags=["wrong"]
def text_perplexity(means, counts):
    y = np.exp(means.mean())  # a short batch counts as much as a long one

    def backward(dy):
        return (dy * y * np.full(len(means), 1 / len(means)),)

    return y, backward


# %% tags=["check"]
def whole_text(means, counts):
    each = np.repeat(means, counts)  # every token with the loss of its batch
    return np.exp(each.mean()), None


check_exercise(1, text_perplexity, np.array([1.0, 2.5, 1.7]), np.array([32, 3, 17]), like=whole_text)

# %% [markdown]
# ### 2 · Is the difference real?
#
# From the losses `a` and `b` of two models on the same windows, return the mean of $b - a$, its standard error, and whether you
# believe it.
#
# <details><summary>Hint</summary>
#
# Subtract first; `standard_error` does the rest. The gap may be negative.
#
# </details>


# %% tags=["exercise"]
def compared(a, b):
    gap = ...
    error = ...
    believed = ...
    return gap, error, believed


# %% tags=["solution"]
def compared(a, b):
    d = b - a
    gap, error = d.mean(), np.std(d, ddof=1) / np.sqrt(len(d))
    return gap, error, abs(gap) > 2 * error


# %% tags=["wrong"]
def compared(a, b):
    gap = b.mean() - a.mean()
    error = np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a))  # as if they had read different texts
    return gap, error, abs(gap) > 2 * error


# %% tags=["wrong"]
def compared(a, b):
    d = b - a
    gap, error = d.mean(), np.std(d, ddof=1)  # the spread of one window, not the error of the mean
    return gap, error, abs(gap) > 2 * error


# %% tags=["check"]
def compared_by_formula(a, b):
    gap = sum(y - x for x, y in zip(a, b, strict=True)) / len(a)
    error = np.sqrt(sum((y - x - gap) ** 2 for x, y in zip(a, b, strict=True)) / (len(a) - 1) / len(a))
    return gap, error, bool(abs(gap) > 2 * error)


check_exercise(2, compared, other, one, like=compared_by_formula, gradients=False)  # the second is better: b − a < 0
check_exercise(2, compared, one, np.array([1.5, 1.3, 2.5, 1.6]), like=compared_by_formula, gradients=False)

# %% [markdown]
# ### 3 · A shared expert
#
# Many models have $S$ shared experts beside the $E$ routed ones: of the same size, visited by every token, simply added (no
# router, no weight). For one such layer return all parameters, the active ones, and the operations per token, router included.
#
# <details><summary>Hint</summary>
#
# The router has $DE$ parameters, all active. For the operations, begin with $2 (DE + K(m + D))$ of (4). What does a shared
# expert add, that has no weight?
#
# </details>


# %% tags=["exercise"]
def layer_with_shared(D, F, E, K, S):
    m = 3 * D * F
    total = ...
    active = ...
    operations = ...
    return total, active, operations


# %% tags=["solution"]
def layer_with_shared(D, F, E, K, S):
    m = 3 * D * F
    total = D * E + (E + S) * m
    active = D * E + (K + S) * m
    operations = 2 * (D * E + K * (m + D) + S * m)
    return total, active, operations


# %% tags=["wrong"]
def layer_with_shared(D, F, E, K, S):
    m = 3 * D * F
    return (E + S) * m, (K + S) * m, 2 * (K * (m + D) + S * m)  # the router is forgotten


# %% tags=["wrong"]
def layer_with_shared(D, F, E, K, S):
    m = 3 * D * F
    return D * E + (E + S) * m, D * E + (K + S) * m, 2 * (D * E + E * (m + D) + S * m)  # all experts run


# %% tags=["check"]
def counted_layer(D, F, E, K, S):
    c = LanguageConfig(width=D, expert_width=F, experts=E, top_k=K, shared_experts=S, layers=1, heads=1, kv_heads=1)
    params, names = initialize(c, np.random.default_rng(0)), ("routers", "experts", "shared experts")
    parts, flops = accounting.parameters_by_part(params), accounting.flops_by_part(c, 1)
    idle = sum(parts.values()) - accounting.active_parameters(params, c)
    total = sum(parts[name] for name in names)
    return total, total - idle, int(sum(flops[name] for name in names))


check_exercise(3, layer_with_shared, 8, 6, 4, 2, 1, like=counted_layer, gradients=False)
check_exercise(3, layer_with_shared, 10, 4, 9, 3, 2, like=counted_layer, gradients=False)

# %% [markdown]
# ### 4 · The Pareto front
#
# From `costs` and `losses` of $n$ candidates, return which are on the front, an array of $n$ booleans. Of two that are equal in
# both, neither beats the other.
#
# <details><summary>Hint</summary>
#
# For candidate $i$: `(costs <= costs[i]) & (losses <= losses[i])` are those that are no worse. Is one of them better?
#
# </details>


# %% tags=["exercise"]
def front(costs, losses):
    kept = np.zeros(len(costs), bool)
    for i in range(len(costs)):
        kept[i] = ...
    return ...


# %% tags=["solution"]
def front(costs, losses):
    kept = np.zeros(len(costs), bool)
    for i in range(len(costs)):
        no_worse = (costs <= costs[i]) & (losses <= losses[i])
        kept[i] = not (no_worse & ((costs < costs[i]) | (losses < losses[i]))).any()
    return kept


# %% tags=["wrong"]
def front(costs, losses):
    kept = np.zeros(len(costs), bool)
    for i in range(len(costs)):
        kept[i] = not ((costs < costs[i]) & (losses < losses[i])).any()  # who is beaten in one only stays
    return kept


# %% tags=["wrong"]
def front(costs, losses):
    kept = np.zeros(len(costs), bool)
    for i in range(len(costs)):
        kept[i] = ((costs <= costs[i]) & (losses <= losses[i])).sum() == 1  # of two equal ones, both go
    return kept


# %% tags=["check"]
some_costs, some_losses = np.array([3, 1, 2, 2, 4, 3, 3]), np.array([1.0, 3.0, 2.0, 2.5, 1.0, 0.9, 0.9])
check_exercise(4, front, some_costs, some_losses, like=search.pareto, gradients=False)

# %% [markdown]
# ## Next
#
# The same account can be asked of any use the documents name, from translation to recommendation ([O4](DOCUMENTS.md)), also of
# [a model for your own tables](../tinymoe/estimator/estimator.py). Lesson 16, teacher and student, fits a large model's
# knowledge into a small one.
