# ---
# jupyter:
#   lesson:
#     title: Teacher and student
#     chinese: 教师与学生
#     builds: a student that learns from a teacher's probabilities, and a dense model turned into a mixture of experts
#     code:
#       - tinymoe/ops/distillation.py
#       - tinymoe/recipes/distill.py
#       - tinymoe/recipes/upcycle.py
#       - tinymoe/recipes/prune.py
#     documents: [O2, M10]
#     papers:
#       - "Hinton, Vinyals & Dean 2015, *Distilling the Knowledge in a Neural Network*, §2"
#       - "Komatsuzaki et al. 2022, *Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints*"
#       - "Sukhbaatar et al. 2024, *Branch-Train-MiX: Mixing Expert LLMs into a Mixture-of-Experts LLM*"
#     terms:
#       knowledge distillation: [知识蒸馏, "training a model on the probabilities that another model gives"]
#       teacher: [教师模型, "the trained model whose probabilities another learns"]
#       student: [学生模型, "the model that learns from a teacher"]
#       KL divergence: [KL 散度, "how much one distribution of probabilities differs from another"]
#       temperature: [温度, "a divisor of the scores; above 1 it makes probabilities more even"]
#       upcycling: [稀疏升级, "making a mixture of experts out of copies of a dense layer"]
#       fine-tuning: [微调, "training a trained model further, usually for something special"]
# ---

# %% [markdown]
# ## You will
#
# let a small sparse model learn from a trained dense one, turn a dense model into a mixture that computes the same,
# and find out by measuring what each is worth.

# %% [markdown]
# ## You need
#
# Softmax and cross-entropy of [lesson 2](02_chain_rule.ipynb), the top-k gate of [lesson 9](09_top_k_gates.ipynb), and a
# little of the transformer of [lesson 7](07_transformer_by_hand.ipynb).

# %%
from dataclasses import replace

import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.data import corpora
from tinymoe.gradcheck import check_gradients
from tinymoe.models.language import forward
from tinymoe.recipes.distill import distill
from tinymoe.recipes.fit import Model, evaluate, fit, for_steps, new_model, with_shape
from tinymoe.recipes.independent import connect, dense_shape, train_apart
from tinymoe.recipes.prune import damage, usage
from tinymoe.recipes.upcycle import upcycle
from tinymoe.runs.settings import resolve

# %% [markdown]
# ## Picture
#
# A text tells a model which letter came. A **teacher** (教师模型), a model that has been trained, can tell more: how
# probable *every* letter was. To learn from that is called **knowledge distillation** (知识蒸馏), and who learns is
# the **student** (学生模型). Here a dense teacher is trained on the text of lesson 0, and asked what follows "some
# kin".

# %%
base = resolve({"preset": "quick", "corpus": ("toy",), "lr": 4e-3, "workers": 1, "steps": 300})
text = corpora.load_split(base.data.corpus, base.model.context, base.run.seed)
sparse_config = base.model  # two layers of four experts, of which a token visits two
dense_config = dense_shape(sparse_config)  # the same, with one wider network in each layer


def train(model, steps, seed, tokens=text.train) -> Model:
    return fit(model, with_shape(for_steps(base.but(seed=seed), steps), model.config), tokens)


def loss_of(model):
    return evaluate(model, text.val, 100)


# %% tags=["trained"]
teacher = train(new_model(dense_config, 0), 240, 0)
(logits, _, _), _ = forward(*teacher, np.frombuffer(b"\nsome kin", np.uint8).astype(int)[None])
figure, axes = new_figure(1, 3, height=2.4, sharey=True)
best = np.argsort(-logits[-1])[:8]
for panel, T in zip(axes, (1, 2, 4), strict=True):
    panel.bar([repr(chr(i))[1:-1] for i in best], ops.softmax(logits[-1:] / T)[0][0, best], color="0.4")
    panel.set(title=f"T = {T}", xlabel="next letter", yscale="log", ylim=(1e-4, 1))
axes[0].set(ylabel="probability")
show(
    figure, alt="Bars for the eight likeliest letters: very unlike at T = 1, more even at T = 2, nearly even at T = 4."
)
print(f"the teacher's loss: {loss_of(teacher):.2f}")

# %% [markdown]
# The axis has powers of ten. All scores are divided by a **temperature** (温度) $T$ before the softmax. At $T = 1$ the
# teacher says what it thinks. At a larger $T$, the small bars grow at the cost of the largest: what it thinks of the
# letters that didn't come gets a voice. All 256 bytes share in that, of which eight are shown.

# %% [markdown]
# ## Formula
#
# With the student's scores $z$ and the teacher's $t$, rows of a number for each letter:
#
# $$p = \operatorname{softmax}(z / T), \qquad q = \operatorname{softmax}(t / T) \tag{1}$$
#
# The loss is the divergence of Kullback and Leibler, the **KL divergence** (KL 散度): how much more surprise $p$ has
# than $q$ itself, where $q$ is true. The factor $T^2$ is explained below.
#
# $$D = T^2 \sum_v q_v\, (\ln q_v - \ln p_v) \tag{2}$$
#
# $D$ is 0 if $p = q$ and never below. A student usually learns from both the teacher and the text, with a share $\alpha$:
#
# $$L = (1 - \alpha)\, (-\ln p^{T=1}_{\text{true}}) + \alpha\, D \tag{3}$$
#
# **Upcycling** (稀疏升级) goes another way: every expert $f_i$ starts as a copy of the dense layer $f$. The mixture is then
#
# $$y = \sum_{i \in S} w_i\, f_i(x) = f(x) \sum_{i \in S} w_i \tag{4}$$
#
# and that is $f(x)$ if the weights add up to 1.
#
# *Where it stands.* 《稀疏专家模型》 names 知识蒸馏 in §8.2, without a formula ([O2](DOCUMENTS.md)); (1) to (3) are
# §2 of Hinton, Vinyals & Dean 2015. (4) is the idea of Komatsuzaki et al. 2022. The same document, §3.2, trains
# experts apart and then connects them ([M10](DOCUMENTS.md)); that comes at the end of *Code*.

# %% [markdown]
# ## By hand
#
# Two letters, $T = 2$. The teacher's scores are $(2\ln 3, 0)$ and the student's $(0, 0)$. Divided by 2, the teacher's
# become $(\ln 3, 0)$, so $q = (\frac34, \frac14)$, and $p = (\frac12, \frac12)$.
#
# - $D = 4 \left(\frac34 \ln \frac{3/4}{1/2} + \frac14 \ln \frac{1/4}{1/2}\right) = 4 \left(\frac34 \ln 3 - \ln 2\right)$,
#   about 0.523.
# - The gradient of $z$, from (5) below, is $T(p - q) = (-\frac12, \frac12)$: the first score is to rise.

# %% [markdown]
# ## Code
#
# Formula (2) for each row and letter, and its gradient.


# %%
def distillation(z, *, teacher, T):
    (N, V), y, dz = z.shape, 0.0, np.zeros(z.shape, z.dtype)
    for n in range(N):
        p, q = np.exp(z[n] / T), np.exp(teacher[n] / T)
        p, q = p / p.sum(), q / q.sum()  # (1)
        for v in range(V):
            y = y + T**2 * q[v] * (np.log(q[v]) - np.log(p[v])) / N  # (2), the mean over rows
            dz[n, v] = T * (p[v] - q[v]) / N  # (5), below

    def backward(dy):
        return (dy * dz,)

    return y, backward


y, backward = distillation(np.zeros((1, 2)), teacher=np.array([[2 * np.log(3), 0]]), T=2)
print("D", y, " on paper", 4 * (0.75 * np.log(3) - np.log(2)), " gradient", backward(1.0)[0][0])

# %% [markdown]
# **A sparse student of a dense teacher.** Three students with the same first weights and the same text: one alone,
# two with the teacher, by (3) with $\alpha = 0.9$. Two seeds each, since one tells little.

# %% tags=["trained"]
for seed in (1, 2):
    student = new_model(sparse_config, seed)
    settings = with_shape(for_steps(base.but(seed=seed), 60), sparse_config)
    alone = loss_of(train(student, 60, seed))
    taught = [loss_of(distill(teacher, student, settings, text.train, 0.9, T)) for T in (1.0, 2.0)]
    print(f"seed {seed}: alone {alone:.3f}, taught at T = 1 {taught[0]:.3f}, at T = 2 {taught[1]:.3f}")

# %% [markdown]
# In our runs the teacher helped at $T = 1$, and did harm at $T = 2$, for both seeds. That is not what one reads
# everywhere. Our guess: these students learn for a short time, and the softened $q$ asks them to get the small bars right
# before they know the large ones. Temperature is a setting to be tried, not a law.
#
# **Upcycling.** The teacher becomes a mixture: its layer is copied into four experts, with a random router. By (4)
# the loss should be the same, if weights add up to 1. And if they don't?

# %% tags=["trained"]
copies = upcycle(*teacher, 4, 2, np.random.default_rng(0))
raw = Model(copies.params, replace(copies.config, renormalize=False))  # weights as they come from the softmax
print(f"dense {loss_of(teacher):.6f}, copies {loss_of(copies):.6f}, copies with raw weights {loss_of(raw):.2f}")
assert np.isclose(loss_of(teacher), loss_of(copies), rtol=1e-4)  # float32

# %% [markdown]
# Equal, as promised. With raw weights, whose sum over the chosen is below 1, each layer says too little, and the loss is
# higher before any training. Exercise 3 computes by how much a layer is too quiet.
#
# The experts are the same at the start. Do they ever part ways? They do if they see different tokens. Train on, and
# measure how far apart they are: the mean distance of two experts, relative to their size.


# %%
def distance(model):
    """The mean distance of two experts of a layer, over their mean length; one number for each layer."""
    found = []
    for block in model.params.blocks:
        flat = block.mixture.experts.up.reshape(4, -1)
        pairs = [np.linalg.norm(flat[i] - flat[j]) for i in range(4) for j in range(i)]
        found.append(np.mean(pairs) / np.linalg.norm(flat, axis=1).mean())
    return np.array(found)


noisy = upcycle(*teacher, 4, 2, np.random.default_rng(0), noise=0.1)
steps, curves = [0, 5, 15, 40], {}
for name, start in (("copies", copies), ("copies with noise", noisy)):
    curves[name] = [distance(train(start, n, 3) if n else start).mean() for n in steps]
figure, axes = new_figure(height=2.6)
for name, curve in curves.items():
    axes.plot(steps, curve, marker="o", label=name)
axes.set(xlabel="steps of training", ylabel="distance of two experts", ylim=(0, None))
axes.legend()
show(figure, alt="Distance between experts rises from 0 for plain copies, and from a higher start for noisy ones.")

# %% tags=["trained"]
further = train(copies, 60, 3)
print(f"after 60 more steps: dense {loss_of(train(teacher, 60, 3)):.3f}, upcycled {loss_of(further):.3f}, ", end="")
print(f"a mixture from scratch after 300 {loss_of(train(new_model(sparse_config, 3), 300, 3)):.3f}")

# %% [markdown]
# Identical experts part without any noise, because the router sends them different tokens. Upcycling keeps what the
# dense model knew, and costs no step. Whether that is worth more than a mixture which was one from the start, the
# last line tells for this text: all three have then trained for equally many steps. The
# [tables of the library](../docs/recipes.md) have longer runs.
#
# **Which experts can go?** Leave each one out in turn and measure how much the loss rises. The cheap guess would be
# that the least used one is missed least.

# %% tags=["trained"]
rise, used = damage(further, text.val, 40), usage(further, text.val, 40)
figure, axes = new_figure(height=2.6)
for layer, marker in enumerate("os"):
    axes.plot(used[layer] / used[layer].sum(), rise[layer], marker, ls="", label=f"layer {layer}")
axes.set(xlabel="share of the visits", ylabel="rise of the loss in nats", ylim=(0, None))
axes.legend()
show(figure, alt="Eight experts as points: share of visits against the rise of the loss without the expert.")
print(
    "correlation of use and damage, by layer:",
    [round(float(np.corrcoef(u, r)[0, 1]), 2) for u, r in zip(used, rise, strict=True)],
)

# %% [markdown]
# In our run the guess was not bad: who is visited more is missed more. Four points a layer prove little, though. In the longer
# runs of the [tables](../docs/recipes.md) it was worse than chance, because a balanced load tells nothing: all experts are used
# alike, and are not missed alike. So measure. It costs one evaluation for each expert.
#
# **Experts trained apart.** 《稀疏专家模型》 §3.2 trains each expert by itself, connects some, and trains on, which
# is called **fine-tuning** (微调). In small: from one dense start, four copies train their feed-forward layers on a
# quarter of the text each. Then they are experts behind a new router. (Sukhbaatar et al. 2024 do so at full size.)

# %% tags=["trained"]
start = train(new_model(dense_config, 4), 60, 4)
settings = with_shape(for_steps(base.but(seed=4), 40), dense_config)
apart = train_apart(start, settings, np.array_split(text.train, 4))
connected = connect(apart, 2, np.random.default_rng(4))
joint = train(upcycle(*start, 4, 2, np.random.default_rng(4)), 80, 4)
print(f"start {loss_of(start):.3f}; connected, before it trains on: {loss_of(connected):.3f}; ", end="")
print(f"fine-tuned for 40 steps: {loss_of(train(connected, 40, 4)):.3f}")
print(f"trained jointly for 80 steps, from the same start: {loss_of(joint):.3f}")

# %% [markdown]
# Training apart costs each expert 40 steps, and the whole then 40 more. With a machine for each expert, and no word
# between them, that takes about as long as the joint training; with one machine, longer. In our run, of one seed, the
# recipe lost, as it does in the longer runs of the tables. What it saves is the talk between machines. The document
# names no router; without one nobody could tell which expert to ask.

# %% [markdown]
# ## The same in tinymoe
#
# `ops.distillation` is (2) for all rows at once; (3) adds the cross-entropy, and (4) is a gate with equal experts.

# %%
rng = np.random.default_rng(0)
z, t = rng.standard_normal((2, 5, 4))
for T in (0.5, 1.0, 3.0):
    (mine, back), (its, its_back) = distillation(z, teacher=t, T=T), ops.distillation(z, teacher=t, temperature=T)
    assert np.isclose(mine, its, rtol=1e-12) and np.allclose(back(1.0), its_back(1.0), rtol=1e-10, atol=1e-15)
print("the loss (2) and its gradient: equal at three temperatures")

targets = np.array([0, 3, 1, 2, 2])
p = ops.softmax(z)[0][np.arange(5), targets]
mixed = 0.1 * ops.cross_entropy(z, targets)[0] + 0.9 * ops.distillation(z, teacher=t, temperature=2.0)[0]
assert np.isclose(mixed, 0.1 * -np.log(p).mean() + 0.9 * distillation(z, teacher=t, T=2.0)[0])  # (3)

(weights, chosen), _ = ops.top_k_gate(z, 2, renormalize=False)  # z as the scores of four equal experts
f = np.tanh(t)  # any function of the rows will do
assignment = ops.group_by_expert(chosen, 4)
y, _ = ops.combine(ops.dispatch(f, assignment)[0], weights, assignment)
assert np.allclose(y, f * weights.sum(1, keepdims=True))  # (4)
print("the mixed loss (3), and a mixture of copies (4): equal, too")

# %% [markdown]
# ## Backward by hand
#
# In (2) only $\ln p_v = z_v / T - \ln \sum_u e^{z_u / T}$ depends on $z$. It rises with $z_v$ at the rate $1/T$, and
# falls with each $z_u$ at the rate $p_u / T$. Since the $q_v$ add up to 1,
#
# $$dz_u = T^2 \cdot \frac1T \Big( p_u \sum_v q_v - q_u \Big) = T\,(p_u - q_u) \tag{5}$$
#
# Why the factor $T^2$? For small $a$, $e^a$ is about $1 + a$. So for a large $T$, $p_u$ is about
# $\frac1V (1 + z_u / T)$ if the scores of a row add up to 0. Then $p - q$ is about $(z - t) / (V T)$, and
#
# $$dz_u \approx \frac{z_u - t_u}{V} \tag{6}$$
#
# without $T$. The gradient keeps its size, whatever the temperature, and so $\alpha$ in (3) keeps its meaning.

# %%
print(check_gradients(distillation, z, teacher=t, T=2.0))
z0, t0 = (scores - scores.mean(1, keepdims=True) for scores in (z, t))
temperatures = np.array([1, 2, 4, 8, 16, 32, 64.0])
sizes = [np.abs(ops.distillation(z0, teacher=t0, temperature=T)[1](1.0)[0]).mean() for T in temperatures]
figure, axes = new_figure(height=2.5)
axes.loglog(temperatures, sizes, marker="o", label="with the factor T²")
axes.loglog(temperatures, sizes / temperatures**2, marker="s", label="without")
axes.axhline(np.abs(z0 - t0).mean() / 4 / 5, color="0.5", ls=":", label="(6)")
axes.set(xlabel="temperature T", ylabel="size of the gradient")
axes.legend()
show(figure, alt="With the factor the size of the gradient becomes level; without, it falls as one over T squared.")
assert np.isclose(sizes[-1], np.abs(z0 - t0).mean() / 4 / 5, rtol=0.05)

# %% [markdown]
# ## Spot the bug
#
# A well-known collection of annotated papers (labmlai/annotated_deep_learning_paper_implementations, issue 66) had
# this for a while, after its code had been tidied up. With it, training runs, the loss falls, and the student is no
# better than one without a teacher. Find the bug by reading.


# %%
def distillation_loss(small_logits, targets, *, large_logits, T=2.0, alpha=0.9):
    soft_targets, _ = ops.softmax(large_logits / T)
    soft_student, _ = ops.softmax(large_logits / T)
    soft = T**2 * (soft_targets * (np.log(soft_targets) - np.log(soft_student))).sum(1).mean()
    hard, _ = ops.cross_entropy(small_logits, targets)
    return alpha * soft + (1 - alpha) * hard


# %% [markdown]
# <details><summary>The bug</summary>
#
# The "student" is made of the teacher's scores. The two are equal, their divergence is 0, and so is its gradient.
# Only the hard part is left, with a tenth of its weight; Adam hardly notices such a factor, so the student learns as
# if alone. The author's comment: it "completely stops doing the distillation". The test that finds it moves the
# student and looks whether the loss moves.
#
# </details>

# %% tags=["guess"]
students = z, z + rng.standard_normal(z.shape)
published = [float(distillation_loss(student, targets, large_logits=t, alpha=1.0)) for student in students]
right = [float(ops.distillation(student, teacher=t, temperature=2.0)[0]) for student in students]
print("the teacher's part of the loss, for two students:", published, " and right:", np.round(right, 3).tolist())

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it.
#
# ### 1 · Soften
#
# Write (1): the probabilities of each row of scores at temperature `T`. They must not overflow for large scores.
#
# <details><summary>Hint</summary>
#
# Divide first, then take the largest score of each row off, then `np.exp`.
#
# </details>


# %% tags=["exercise"]
def soften(z, T):
    return ...


# %% tags=["solution"]
def soften(z, T):
    s = z / T
    e = np.exp(s - s.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# %% tags=["wrong"]
def soften(z, T):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True) / T  # the probabilities are divided, not the scores


# %% tags=["wrong"]
def soften(z, T):
    s = z * T  # sharper, not softer
    e = np.exp(s - s.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# %% tags=["check"]
def reference(z, T):
    return ops.softmax(z / T)[0]


check_exercise(
    1, soften, 2000 + 2 * np.random.default_rng(1).standard_normal((3, 4)), 2.0, like=reference, gradients=False
)

# %% [markdown]
# ### 2 · The other direction
#
# The divergence isn't symmetric. Some use $\sum_v p_v (\ln p_v - \ln q_v)$, here at $T = 1$, the mean over rows: the
# student is punished for what the teacher thinks impossible. The forward pass is given. Write the gradient of `z`.
#
# <details><summary>Hint</summary>
#
# Along $p_v$ the sum changes at the rate $r_v = \ln p_v - \ln q_v + 1$. Then the way back through the softmax of a row:
# $dz_u = p_u\,(r_u - \sum_v p_v r_v)$. The 1 cancels.
#
# </details>


# %% tags=["exercise"]
def reverse(z, *, teacher):
    (p, _), (q, _) = ops.softmax(z), ops.softmax(teacher)
    r = np.log(p) - np.log(q)
    y = (p * r).sum(1).mean()

    def backward(dy):
        dz = ...
        return (dz,)

    return y, backward


# %% tags=["solution"]
def reverse(z, *, teacher):
    (p, _), (q, _) = ops.softmax(z), ops.softmax(teacher)
    r = np.log(p) - np.log(q)
    y = (p * r).sum(1).mean()

    def backward(dy):
        dz = dy / len(z) * p * (r - (p * r).sum(1, keepdims=True))
        return (dz,)

    return y, backward


# %% tags=["wrong"]
def reverse(z, *, teacher):
    (p, _), (q, _) = ops.softmax(z), ops.softmax(teacher)
    r = np.log(p) - np.log(q)
    y = (p * r).sum(1).mean()

    def backward(dy):
        return (dy / len(z) * (p - q),)  # that of the usual direction

    return y, backward


# %% tags=["wrong"]
def reverse(z, *, teacher):
    (p, _), (q, _) = ops.softmax(z), ops.softmax(teacher)
    r = np.log(p) - np.log(q)
    y = (p * r).sum(1).mean()

    def backward(dy):
        return (dy / len(z) * p * r,)  # not through the softmax

    return y, backward


# %% tags=["check"]
def reverse_reference(z, *, teacher):
    p, q = (np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (z, teacher))
    return (p * np.log(p / q)).sum() / len(z), None


z, t = np.random.default_rng(2).standard_normal((2, 5, 4))
check_exercise(2, reverse, z, like=reverse_reference, teacher=t)

# %% [markdown]
# ### 3 · By how much is it too small?
#
# By (4), a mixture of copies returns $f(x)$ times a factor. Compute the factor for each token of `scores` (N, E) if
# the weights are the probabilities of *all* experts, of which the best `k` are kept and not renormalised.
#
# <details><summary>Hint</summary>
#
# Softmax along the row, `np.sort`, and the sum of the last `k`.
#
# </details>


# %% tags=["exercise"]
def factor(scores, k):
    return ...


# %% tags=["solution"]
def factor(scores, k):
    return np.sort(ops.softmax(scores)[0], axis=1)[:, -k:].sum(1)


# %% tags=["wrong"]
def factor(scores, k):
    return np.sort(ops.softmax(scores)[0], axis=1)[:, :k].sum(1)  # the worst k


# %% tags=["wrong"]
def factor(scores, k):
    return ops.softmax(scores)[0].max(1)  # one expert only


# %% tags=["check"]
def measured(scores, k):
    (weights, chosen), _ = ops.top_k_gate(scores, k, renormalize=False)
    rows = np.full((chosen.size, 1), 7.0)  # each copy returns f(x) = 7
    return ops.combine(rows, weights, ops.group_by_expert(chosen, scores.shape[1]))[0][:, 0] / 7


check_exercise(3, factor, np.random.default_rng(3).standard_normal((6, 5)), 2, like=measured, gradients=False)

# %% [markdown]
# ## Next
#
# You have seen all parts. Lesson 17, seven interview questions, goes through them once more, from the other side of
# the table.
