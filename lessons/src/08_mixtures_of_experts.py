# ---
# jupyter:
#   lesson:
#     title: Mixtures of experts
#     chinese: 混合专家模型
#     builds: a mixture of experts that divides a task among its experts by itself, dense and sparse
#     code:
#       - tinymoe/ops/likelihood.py
#       - tinymoe/ops/routing.py
#       - tinymoe/estimator/network.py
#       - tinymoe/documents/feature_experts.py
#     documents: [M1, M2, M3, M4, M9, M12, M13]
#     papers:
#       - "Jacobs, Jordan, Nowlan & Hinton 1991, *Adaptive Mixtures of Local Experts*"
#       - "Shazeer et al. 2017, *Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer*, eq. 1"
#     terms:
#       gate: [门控, "the part that gives each expert its weight for an input"]
#       mixture of experts: [混合专家模型, "several models whose answers a gate weighs and adds up"]
#       weighted sum: [加权求和, "a sum in which each term is first multiplied by its weight"]
#       sparse: [稀疏, "of a mixture or matrix: only a small part is computed or stored"]
#       likelihood: [似然, "how probable the data are according to a model"]
#       prior: [先验概率, "a probability before the outcome has been seen"]
#       posterior: [后验概率, "a probability after the outcome has been seen"]
#       responsibility: [责任度, "the posterior probability that it was this expert that made the target"]
# ---

# %% [markdown]
# ## You will
#
# let three small models share one task, see that the loss decides whether they divide it or only blur together, and then run
# only those that a row needs.

# %% [markdown]
# ## You need
#
# Gradients and their check (lesson 1), the chain rule (lesson 2) and the slope of softmax (lesson 6). Also the logarithm:
# $\ln(ab) = \ln a + \ln b$.

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import SparseMoeModel, ops
from tinymoe.documents import feature_experts as d0
from tinymoe.documents.layers import new_expert
from tinymoe.gradcheck import check_gradients

# %% [markdown]
# ## Picture
#
# The dots below follow three rules: up on the left, down in the middle, up again on the right. No straight line fits them. But
# three lines do, if something says which line holds where. Each line is an **expert** (专家). What weighs them is the **gate**
# (门控). Both together are a **mixture of experts** (混合专家模型).


# %%
def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


rng = np.random.default_rng(0)
x = rng.uniform(-3, 3, 240)
t = np.where(x < -1, 2 * x + 4, np.where(x < 1, -2 * x, 2 * x - 4)) + 0.2 * rng.standard_normal(240)
inputs = np.stack([x, np.ones_like(x)], axis=1)  # (N, 2): the number, and a 1 for the offset
lines = np.array([[2.0, -2, 2], [4, 0, -4]])  # (2, E): slope and offset of each expert, chosen by eye
gate = np.array([[-6.0, 0, 6], [-6, 0, -6]])  # (2, E): likewise of each expert's score
names = ["expert 0", "expert 1", "expert 2"]

# %%
grid = np.linspace(-3, 3, 241)
points = np.stack([grid, np.ones_like(grid)], axis=1)
one_line = np.linalg.lstsq(inputs, t, rcond=None)[0]  # the slope and offset of the smallest squared error
figure, (above, below) = new_figure(2, height=4.2, sharex=True, height_ratios=[2, 1])
mixed = (softmax(points @ gate) * (points @ lines)).sum(1)
above.plot(grid, mixed, color="0.8", linewidth=8, label="three lines and a gate")
above.plot(x, t, ".", color="0.5", markersize=4, label="data")
above.plot(grid, points @ one_line, "k:", label="the best single line")
above.set(ylabel="target t", ylim=(-2.6, 4.6))
above.legend(loc="upper center", ncols=3, fontsize=9)
for name, line, weight in zip(names, (points @ lines).T, softmax(points @ gate).T, strict=True):
    curve = below.plot(grid, weight, label=name)[0]
    seen = np.where(abs(line) < 3, line, np.nan)
    above.plot(grid, seen, color=curve.get_color(), linestyle=curve.get_linestyle(), linewidth=1)
below.set(xlabel="input x", ylabel="weight")
below.legend(loc="center right")
show(figure, alt="A zigzag that one line misses and three gated lines follow; each weight is near 1 in its third of x.")

# %% [markdown]
# Lines and gate are drawn by hand here. The question of this lesson is how they are learned from the dots alone. Nobody
# tells the model that there are three rules, nor where one ends.

# %% [markdown]
# ## Formula
#
# There are $E$ experts. For one input, expert $i$ answers $o_i$, and the gate gives it a score $z_i$. Weights that are
# positive and add up to 1 come from the scores by softmax:
#
# $$p_i = \frac{e^{z_i}}{\sum_{j=1}^{E} e^{z_j}} \tag{1}$$
#
# The answer of the mixture is the **weighted sum** (加权求和) of the answers:
#
# $$y = \sum_{i=1}^{E} p_i\, o_i \tag{2}$$
#
# How wrong is it? With the target $t$ there are two ways to count. The first looks at the sum:
#
# $$L_{\text{mean}} = \tfrac12 (y - t)^2 \tag{3}$$
#
# The second judges each expert alone, by $\ell_i = \frac12 (o_i - t)^2$. It tells a story: the gate first draws *one*
# expert, number $i$ with probability $p_i$. That expert then makes $t$, which is near $o_i$: its probability is proportional
# to $e^{-\ell_i}$, a bell around $o_i$. How probable the target is in this story is the **likelihood** (似然), a sum over
# all who may have been drawn. The loss is minus its logarithm:
#
# $$L_{\text{like}} = -\ln \sum_{i=1}^{E} p_i\, e^{-\ell_i} \tag{4}$$
#
# Before the target is seen, expert $i$ is drawn with probability $p_i$, the **prior** (先验概率). Once it is seen, we know
# better who it was. This is the **posterior** (后验概率), and here it is called the **responsibility** (责任度) of the expert:
#
# $$h_i = \frac{p_i\, e^{-\ell_i}}{\sum_j p_j\, e^{-\ell_j}} \tag{5}$$
#
# A mixture is **sparse** (稀疏) if only the $k$ experts with the highest scores run. Call them $S$. Their weights are made
# of their scores alone, so that they add up to 1:
#
# $$w_i = \frac{e^{z_i}}{\sum_{j \in S} e^{z_j}}, \qquad y = \sum_{i \in S} w_i\, o_i \tag{6}$$
#
# *Where it stands.* (2) is in 《稀疏专家模型》 §4.2, under the name 输出融合, and in the document on vision and language, §4.4
# ([M1, M3](DOCUMENTS.md)). (4) and (5) are Jacobs et al. 1991; the document on a new view of the language model means them in
# its §4, without a formula ([M12](DOCUMENTS.md)). (6) is Shazeer et al. 2017, whose gate is the subject of the next lesson.

# %% [markdown]
# ## By hand
#
# - **Weighted sum.** 《稀疏专家模型》 §4.3 lets expert 1 read $x_1$ and expert 2 read $x_2$. They answer 0.6 and 0.8, with
#   weights of a half: $0.5 \cdot 0.6 + 0.5 \cdot 0.8 = 0.7$. The document on vision and language has
#   $0.6 \cdot 10 + 0.4 \cdot 20$. That is $6 + 8 = 14$; printed is 16.
# - **Sparse.** Let $e^{z} = (3, 2, 1)$, so $p = (\frac12, \frac13, \frac16)$, and $o = (10, 20, -40)$. All three:
#   $y = 5 + \frac{20}{3} - \frac{40}{6} = 5$. The best two: $w = (\frac35, \frac25)$, and $y = 14$ again. The third expert,
#   which was far off, isn't asked.
# - **Responsibility.** Let $p = (\frac34, \frac14)$ and $e^{-\ell} = (\frac16, \frac12)$. The gate prefers the first expert,
#   the target fits the second. The products are $\frac18$ and $\frac18$. So $h = (\frac12, \frac12)$, and
#   $L_{\text{like}} = -\ln\frac14 = \ln 4$.

# %%
z, o = np.log([[3.0, 2, 1]]), np.array([[10.0, 20, -40]])
print("the documents' two sums:", 0.5 * 0.6 + 0.5 * 0.8, "and", 0.6 * 10 + 0.4 * 20)
print("dense:", (softmax(z) * o).sum(), " best two:", (softmax(z[:, :2]) * o[:, :2]).sum())
p, likely = np.array([3, 1]) / 4, np.array([1 / 6, 1 / 2])
print(
    "responsibilities:", p * likely / (p * likely).sum(), " loss:", -np.log((p * likely).sum()), "= ln 4 =", np.log(4)
)

# %% [markdown]
# ## Code
#
# One row at a time. The experts that are not chosen are never computed: that is all there is to sparsity.


# %%
def mixture(inputs, gate, lines, k):
    """(1), (2) and (6): with k = E the mixture is dense. Also says how many times an expert ran."""
    answers, runs = [], 0
    for row in inputs:
        scores = row @ gate
        best = np.argsort(-scores, kind="stable")[:k]
        e = np.exp(scores[best] - scores.max())
        y = 0.0
        for weight, i in zip(e / e.sum(), best, strict=True):
            y += weight * (row @ lines[:, i])  # expert i runs
            runs += 1
        answers.append(y)
    return np.array(answers), runs


for k in (3, 2, 1):
    y, runs = mixture(inputs, gate, lines, k)
    print(f"k = {k}: mean squared error {((y - t) ** 2).mean():.4f}, an expert ran {runs} times for {len(x)} rows")

# %% [markdown]
# A third of the work, and the error is no larger. That is because the gate is sharp: on most rows one weight is almost 1.
# Where two experts share a row, at the borders, the dense mixture rounds off the corners of the zigzag.

# %% [markdown]
# ## The same in tinymoe
#
# The library sorts the rows by expert, gives each expert all its rows at once, and adds up what comes back. The four steps are
# `top_k_gate`, `dispatch`, an operation for the experts, and `combine`. Lesson 10 says why this is a sparse matrix.


# %%
def library_mixture(inputs, gate, lines, k):
    scores, scores_back = ops.linear(inputs, gate)
    (weights, chosen), gate_back = ops.top_k_gate(scores, k)
    assignment = ops.group_by_expert(chosen, gate.shape[1])
    rows, dispatch_back = ops.dispatch(inputs, assignment)
    weight = lines.T[:, :, None]  # (E, 2, 1): one small matrix for each expert
    answers, experts_back = ops.grouped_linear(rows, weight, assignment.counts)
    y, combine_back = ops.combine(answers, weights, assignment)

    def backward(dy):  # read upwards
        danswers, dweights = combine_back(dy[:, None])
        drows, dweight = experts_back(danswers)
        (dx,) = dispatch_back(drows)
        dx_gate, dgate = scores_back(*gate_back(dweights))
        return dx + dx_gate, dgate, dweight[:, :, 0].T

    return y[:, 0], backward


# %% [markdown]
# Compare with our loop, forward and backward. The loop has no `backward`, so its slopes are measured, one weight at a time,
# as in lesson 1. The gate is a softer one, since the gradients of a sharp gate are almost 0.


# %%
def measured(f, w, h=1e-5):
    gradient = np.zeros_like(w)
    for index in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[index] = h
        gradient[index] = (f(w + step) - f(w - step)) / (2 * h)
    return gradient


some, soft_gate = inputs[:12], gate / 6


def compare(k):
    y, backward = library_mixture(some, soft_gate, lines, k)
    _, dgate, dlines = backward(np.ones_like(y))
    assert np.isclose(y, mixture(some, soft_gate, lines, k)[0], rtol=1e-12).all()
    assert np.isclose(dgate, measured(lambda w: mixture(some, w, lines, k)[0].sum(), soft_gate), atol=1e-7).all()
    assert np.isclose(dlines, measured(lambda w: mixture(some, soft_gate, w, k)[0].sum(), lines), atol=1e-7).all()
    print(f"k = {k}: y, dgate and dlines agree; the largest |dgate| is {np.abs(dgate).max():.3f}")


for k in (3, 2, 1):
    compare(k)

# %% [markdown]
# With $k = 1$ the gate gets no gradient at all. Its only weight is $e^{z}/e^{z} = 1$, whatever the score. The next lesson has
# the remedy.

# %% [markdown]
# ## Backward by hand
#
# **The loss of the mean.** From (1), as in lesson 6, $\partial p_j / \partial z_i = p_j(1[i{=}j] - p_i)$, where $1[\cdot]$ is
# 1 if the condition holds, else 0. Put into (2):
#
# $$\frac{\partial y}{\partial o_i} = p_i, \qquad
# \frac{\partial y}{\partial z_i} = \sum_j o_j\, p_j(1[i{=}j] - p_i) = p_i\,(o_i - y)$$
#
# and by (3), with the common error $y - t$ in front:
#
# $$\frac{\partial L_{\text{mean}}}{\partial o_i} = p_i\,(y - t), \qquad
# \frac{\partial L_{\text{mean}}}{\partial z_i} = (y - t)\, p_i\,(o_i - y) \tag{7}$$
#
# **The likelihood.** By (1), $p_i e^{-\ell_i} = e^{z_i - \ell_i} / \sum_j e^{z_j}$. So (4) is
# $L_{\text{like}} = \ln\sum_j e^{z_j} - \ln\sum_j e^{z_j - \ell_j}$. The derivative of $\ln\sum_j e^{u_j}$ along $u_i$ is
# $e^{u_i} / \sum_j e^{u_j}$, softmax again. Along $z_i$ the first term gives $p_i$ and the second
# $-h_i$. Along $\ell_i$ only the second counts, and gives $h_i$. With $\partial\ell_i / \partial o_i = o_i - t$:
#
# $$\frac{\partial L_{\text{like}}}{\partial z_i} = p_i - h_i, \qquad
# \frac{\partial L_{\text{like}}}{\partial o_i} = h_i\,(o_i - t) \tag{8}$$
#
# Compare the two. In (7) every expert is pushed by the same error, that of the sum. It is asked to make up for what the others
# do. In (8) an expert is pushed by its own error, as far as it is responsible; and the gate moves from what it believed, $p$,
# to what turned out, $h$. An expert that is a little better on a row gets more of it, and becomes better still.


# %%
def mean_loss(z, o, t):
    """(3), mean over rows. z, o (N, E); t (N,)"""
    p = softmax(z)
    y = (p * o).sum(1)
    off = y - t
    loss = (off * off).mean() / 2

    def backward(dloss):
        dy = (dloss * off / len(t))[:, None]
        do = p * dy  # (7)
        return do * (o - y[:, None]), do, -dy[:, 0]

    return loss, backward


# %%
def likelihood_loss(z, o, t):
    """(4), mean over rows."""
    off = o - t[:, None]
    p, likely = softmax(z), np.exp(-off * off / 2)
    total = (p * likely).sum(1, keepdims=True)
    h = p * likely / total  # (5)
    loss = -np.log(total).mean()

    def backward(dloss):
        do = dloss / len(t) * h * off  # (8)
        return dloss / len(t) * (p - h), do, -do.sum(1)

    return loss, backward


# %%
z, o = np.random.default_rng(1).standard_normal((2, 5, 3))
targets = t[:5]
print(check_gradients(mean_loss, z, o, targets))
print(check_gradients(likelihood_loss, z, o, targets))

# %% [markdown]
# The library's `mixture_likelihood` takes the losses $\ell_i$ of the experts, whatever kind they are. `half_squared_errors`
# makes them here. The result is ours, forward and backward.

# %%
ours, ours_back = likelihood_loss(z, o, targets)
losses, losses_back = ops.half_squared_errors(o.reshape(-1, 1), np.repeat(targets, 3)[:, None])
loss, loss_back = ops.mixture_likelihood(z, losses.reshape(5, 3))
dz, dlosses = loss_back(1.0)
do, _ = losses_back(dlosses.reshape(-1))
dz_ours, do_ours, _ = ours_back(1.0)
assert np.isclose(ours, loss, rtol=1e-12)
assert np.isclose(dz, dz_ours, rtol=1e-10).all() and np.isclose(do.reshape(5, 3), do_ours, rtol=1e-10).all()
print("ours:", ours, " tinymoe:", loss)

y = (ops.softmax(z)[0] * o).sum(1, keepdims=True)  # (1) and (2)
assert np.isclose(
    ops.half_squared_errors(y, targets[:, None])[0].mean(), mean_loss(z, o, targets)[0], rtol=1e-12
)  # (3)

# %% [markdown]
# Now train: from the same random start, with the same steps, once by (3) and once by (4).


# %%
def train(loss, seed, steps=3000, rate=0.3):
    rng = np.random.default_rng(seed)
    gate, lines = 0.1 * rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    for _ in range(steps):
        _, backward = loss(inputs @ gate, inputs @ lines, t)
        dz, do, _ = backward(1.0)
        gate, lines = gate - rate * inputs.T @ dz, lines - rate * inputs.T @ do
    return gate, lines


def errors(gate, lines):
    """Mean squared error of the mixture, and of each row's favourite expert alone."""
    p, o = softmax(inputs @ gate), inputs @ lines
    alone = o[np.arange(len(t)), p.argmax(1)]
    return (((p * o).sum(1) - t) ** 2).mean(), ((alone - t) ** 2).mean()


trained = {"loss of the mean (3)": train(mean_loss, 0), "likelihood (4)": train(likelihood_loss, 0)}
for title, parameters in trained.items():
    print(
        f"{title:21} error of the mixture {errors(*parameters)[0]:.3f}, of the favourite alone {errors(*parameters)[1]:.3f}"
    )

# %%
figure, axes = new_figure(2, 2, height=4.6, sharex=True, sharey="row", height_ratios=[2, 1])
for (above, below), (title, parameters) in zip(axes.T, trained.items(), strict=True):
    above.plot(x, t, ".", color="0.8")
    above.set(title=title, ylim=(-4, 4))
    for name, line, weight in zip(names, (points @ parameters[1]).T, softmax(points @ parameters[0]).T, strict=True):
        curve = above.plot(grid, line, linewidth=1)[0]
        most = np.where(weight >= softmax(points @ parameters[0]).max(1), line, np.nan)  # where it is the favourite
        above.plot(grid, most, color=curve.get_color(), linestyle=curve.get_linestyle(), linewidth=3.5)
        below.plot(grid, weight, label=name)
    below.set(xlabel="input x")
axes[0, 0].set(ylabel="answer of the expert")
axes[1, 0].set(ylabel="weight")
axes[1, 1].legend(fontsize=8)
show(
    figure,
    alt="Left: three lines that miss the dots, and smooth weights. Right: each line lies on its third, weights jump.",
)

# %% [markdown]
# The thick part of a line is where the gate prefers that expert. Both mixtures fit the dots about equally well. But on the
# left no line lies on them: only the sum is right, most rows need several experts, and none can be left out. On the
# right the experts have divided the task. Each handles one part of the input and can be used without the others, which is
# what a sparse mixture needs.
#
# Does it always go so well? Try a dozen starts, and look closely at one that failed:

# %%
for title, loss in zip(trained, (mean_loss, likelihood_loss), strict=True):
    alone = np.array([errors(*train(loss, seed))[1] for seed in range(12)])
    print(f"{title:21} error of the favourite alone below 0.1: {(alone < 0.1).sum()} of {len(alone)} starts")

for steps in (3000, 30_000):
    gate_3, lines_3 = train(likelihood_loss, 3, steps)
    p = softmax(inputs @ gate_3)
    print(f"\nstart 3, {steps} steps: rows per favourite expert {np.bincount(p.argmax(1), minlength=3)}", end=" ")
    print("mean weights", p.mean(0).round(4).tolist())
    print(f"loss (4) {likelihood_loss(inputs @ gate_3, inputs @ lines_3, t)[0]:.3f}", end=" ")
    print(f"and error of the mixture {errors(gate_3, lines_3)[0]:.3f}")
error = ((inputs @ one_line - t) ** 2).mean()
print(f"\nthe best single line: loss (4) {error / 2:.3f} and error {error:.3f}")

# %% [markdown]
# The loss of the mean never divides the task; the likelihood does, from most starts. In start 3 one expert is the
# favourite on every row, and one is hardly heard. Longer training doesn't free them. (The loss is below that of the
# best single line, and the error above: (4) doesn't ask for a good sum.) By (8) an expert learns as far as it is
# responsible, and by (5) its responsibility is near 0 where its weight is. Who has nothing gets nothing to learn from:
# the rule that divides the task can also end in a monopoly. How to balance the experts is the subject of lesson 11.

# %% [markdown]
# ## What the document gets wrong
#
# Four of the documents have a mixture of experts, and each errs in its own way. (The one on the sparse gate waits for the
# next lesson.) The 16 in place of 14 is above. In the same document stands `mix_of_experts`, §3.2 ([M4](DOCUMENTS.md)). It
# takes a weight `w` out of each output. Nobody has put one there.


# %%
def mix_of_experts(input_vector, expert_models):  # as printed, but for `.forward`
    expert_outputs = [model(input_vector) for model in expert_models]
    return sum(w * output for w, output in expert_outputs)


twice = [lambda v: v, lambda v: v]  # two experts that return their input
print("two rows:  ", mix_of_experts(np.array([[1.0, 2], [3, 4]]), twice))
try:
    mix_of_experts(np.ones((3, 2)), twice)
except ValueError as error:
    print("three rows:", error)

# %% [markdown]
# With two rows, the first is taken for the weights of the second, and they are multiplied. With any other number it stops.
# What is missing is the gate.
#
# Second, the `SparseExpertModel` of 《稀疏专家模型》 §5.2 ([M9](DOCUMENTS.md)). Expert $i$ reads feature $i$ and the outputs
# are added, without weights. (As printed, `inputs[:, i]` has one axis where a dense layer needs two, so it doesn't run at
# all.) Such a model is a sum of functions of one feature each, say $f(x_1) + g(x_3)$, whatever the experts are. Then this
# difference is 0 for all values $a, a'$ of $x_1$ and $b, b'$ of $x_3$:
#
# $$y(a, b) - y(a', b) - y(a, b') + y(a', b') = 0 \tag{9}$$
#
# The working model of the library has a gate that reads all features, and so a feature can decide what another means.

# %%
printed = [new_expert(np.random.default_rng(i), 1, 64, 1) for i in range(3)]  # Dense(64, relu), Dense(1)


def as_printed(v):
    return sum(expert.forward(v[:, i : i + 1])[0] for i, expert in enumerate(printed))


working = d0.SparseExpertModel(num_experts=3)
sample, wanted = d0.example(np.random.default_rng(0), 400)
curve = working.train(sample, wanted, epochs=80)
corners = np.array([[0.25, 0.5, 0.9], [0.75, 0.5, 0.9], [0.25, 0.5, 0.1], [0.75, 0.5, 0.1]])  # x₁ and x₃ change
truth = np.array([1 + 0.5, -1 + 0.5, -0.1, -0.1])  # d0.example: sin 2πx₁ + x₂ if x₃ > ½, else −x₃
for title, y in [("target", truth), ("as printed", as_printed(corners)[:, 0]), ("with a gate", working(corners)[:, 0])]:
    print(f"{title:12} difference (9): {y[0] - y[1] - y[2] + y[3]:5.2f}")
print(f"loss of the working model in training: {curve[0]:.2f} → {curve[-1]:.2f}")

# %% [markdown]
# Third, the document on a new view of the language model, §4 ([M12](DOCUMENTS.md)): softmax activates the sub-model with the
# smallest loss. Softmax prefers the *largest* number, so it must be given $-\ell$. And a loss needs the label. In training
# that is the responsibility (5). In prediction nobody knows $t$, and for one and the same $x$ the rule picks any expert,
# depending on the label that one wants to predict:

# %%
gate_now, lines_now = trained["likelihood (4)"]
here = np.array([[0.5, 1.0]])
print(
    "answers of the experts at x = 0.5:", (here @ lines_now).round(1)[0], " gate:", softmax(here @ gate_now).round(2)[0]
)
for label in (-1.0, 5.0, -3.0):
    losses = (here @ lines_now - label) ** 2 / 2
    print(
        f"label {label:4}: softmax(loss) takes expert {softmax(losses).argmax()}, softmax(−loss) {softmax(-losses).argmax()}"
    )

# %% [markdown]
# The gate alone must decide. It has learned from the responsibilities to say where which expert will be good.
#
# That document ends with three calls of a library which it only imagines, `SparseMoeModel`, `train` and `predict`
# ([M13](DOCUMENTS.md)). Here they work: training by (4) over the chosen experts, prediction by (6). The small table has two
# columns; the sign of $x_1$ decides which of two rules holds.


# %%
def table(seed):
    data = np.random.default_rng(seed).uniform(-3, 3, (300, 2))
    return data, np.where(data[:, 0] > 0, np.sin(2 * data[:, 1]), 3 + data[:, 1])


data, labels = table(0)
model = SparseMoeModel(experts=3, k=2, hidden=16)
model.train(data, labels, epochs=100, learning_rate=0.01)
fresh, truth = table(1)
predictions = model.predict(fresh)
chosen, _ = model.route(fresh)  # (N, 2): best first
print(f"R² on rows it has not seen: {model.score(fresh, truth):.2f}")
for expert in range(3):
    first, second = (chosen == expert).T
    right = (fresh[first, 0] > 0).sum()
    print(f"expert {expert}: first choice of {first.sum():3} rows, {right:3} with x₁ > 0; second of {second.sum():3}")

# %%
figure, axes = new_figure(height=3.2)
for expert, (marker, shade) in enumerate(zip("s^o", ["0.3", "k", "0.6"], strict=True)):
    mine = chosen[:, 0] == expert
    axes.scatter(*fresh[mine].T, s=20, marker=marker, color=shade, label=f"expert {expert}")
axes.axvline(0, color="k", linestyle=":")
axes.set(xlabel="feature x₁", ylabel="feature x₂")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(figure, alt="Rows left of zero go first to one expert, rows right of zero to another: the gate found the border.")

# %% [markdown]
# Each row is drawn as its first choice. The gate has found the border between the rules, the dotted line, from the labels
# alone. One expert is nobody's first choice; it stands second to both others. ($R^2$ is 1 if every prediction is right, and
# 0 for a model that always says the mean.)

# %% [markdown]
# ## Spot the bug
#
# A sparse layer is to save work. This one, after a public Switch Transformer (a model with $k = 1$;
# kyegomez/SwitchTransformers, issue 17), gives the right answers, but it saves nothing. Find the reason before you open the
# answer.


# %%
def switch_layer(inputs, gate, lines, count):
    scores = inputs @ gate
    mask = scores == scores.max(1, keepdims=True)  # (N, E): one True in each row
    y = np.zeros(len(inputs))
    for i in range(gate.shape[1]):
        answer = inputs @ lines[:, i]
        count.append(len(inputs))
        y += answer * mask[:, i]
    return y


# %% [markdown]
# <details><summary>The bug</summary>
#
# Every expert receives the whole batch, and what isn't for it is multiplied by 0 *afterwards*. The mask must choose the rows
# before the expert runs: `y[mask[:, i]] = inputs[mask[:, i]] @ lines[:, i]`. No test of the result finds this. One must count
# the rows of work, as the next cell does.
#
# </details>

# %% tags=["guess"]
count: list[int] = []
same = np.allclose(switch_layer(inputs, gate, lines, count), mixture(inputs, gate, lines, 1)[0])
print("right answers:", same, " rows of work:", sum(count), " needed:", mixture(inputs, gate, lines, 1)[1])

# %% [markdown]
# The [museum](../tinymoe/systems/museum/layers.py) has it as "every expert runs on every token".

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it.
#
# ### 1 · Only the best
#
# Write (6) for many rows without the loop over rows. `z` and `o` have the shape (N, E). Return the answers (N,).
#
# <details><summary>Hint</summary>
#
# `np.argsort(-z, axis=1)[:, :k]` has the best `k` of each row, and `np.take_along_axis(z, best, 1)` their scores. The
# `softmax` of this lesson works on what is left.
#
# </details>


# %% tags=["exercise"]
def sparse_answers(z, o, k):
    best = np.argsort(-z, axis=1)[:, :k]
    weights = ...  # (N, k)
    answers = ...  # (N, k)
    return (weights * answers).sum(1)  # type: ignore[operator]


# %% tags=["solution"]
def sparse_answers(z, o, k):
    best = np.argsort(-z, axis=1)[:, :k]
    weights = softmax(np.take_along_axis(z, best, 1))
    answers = np.take_along_axis(o, best, 1)
    return (weights * answers).sum(1)


# %% tags=["wrong"]
def sparse_answers(z, o, k):
    best = np.argsort(-z, axis=1)[:, :k]
    weights = np.take_along_axis(softmax(z), best, 1)  # they don't add up to 1
    answers = np.take_along_axis(o, best, 1)
    return (weights * answers).sum(1)


# %% tags=["wrong"]
def sparse_answers(z, o, k):
    best = np.argsort(-z, axis=1)[:, :k]
    weights = softmax(np.take_along_axis(z, best, 1))
    return (weights * o[:, :k]).sum(1)  # always the first k experts


# %% tags=["check"]
def by_sorting(z, o, k):
    (w, best), _ = ops.top_k_gate(z, k)
    return (w * np.take_along_axis(o, best, 1)).sum(1)


z, o = np.random.default_rng(2).standard_normal((2, 6, 4))
check_exercise(1, sparse_answers, z, o, 2, like=by_sorting, gradients=False)

# %% [markdown]
# ### 2 · Do the experts agree?
#
# The weighted sum hides whether the experts agree. Their disagreement on a row is $v = \sum_i p_i\,(o_i - y)^2$ with $y$
# from (2). Write it and the gradient for the answers, with `p` (N, E) fixed and its rows adding up to 1.
#
# <details><summary>Hint</summary>
#
# $y$ depends on $o_i$, too. But $v$ changes with $y$ at the rate $-2\sum_i p_i(o_i - y)$, and that sum is 0.
#
# </details>


# %% tags=["exercise"]
def disagreement(o, *, p):
    y = (p * o).sum(1, keepdims=True)
    v = ...  # (N,)

    def backward(dv):
        do = ...  # (N, E)
        return (do,)

    return v, backward


# %% tags=["solution"]
def disagreement(o, *, p):
    y = (p * o).sum(1, keepdims=True)
    v = (p * (o - y) ** 2).sum(1)

    def backward(dv):
        do = 2 * dv[:, None] * p * (o - y)
        return (do,)

    return v, backward


# %% tags=["wrong"]
def disagreement(o, *, p):
    y = (p * o).sum(1, keepdims=True)
    v = (p * (o - y) ** 2).sum(1)

    def backward(dv):
        return (2 * dv[:, None] * p * (1 - p) * (o - y),)  # the other experts' terms move with y, too

    return v, backward


# %% tags=["wrong"]
def disagreement(o, *, p):
    y = o.mean(1, keepdims=True)  # all experts count the same
    v = (p * (o - y) ** 2).sum(1)

    def backward(dv):
        return (2 * dv[:, None] * p * (o - y),)

    return v, backward


# %% tags=["check"]
def expected_disagreement(o, *, p):
    return (p * o * o).sum(1) - (p * o).sum(1) ** 2, None


z, o = np.random.default_rng(3).standard_normal((2, 5, 3))
check_exercise(2, disagreement, o, like=expected_disagreement, p=softmax(z))

# %% [markdown]
# ### 3 · How wide is the bell?
#
# In (4) every bell has the width 1. Let it be learned: with the width $\sigma$ (a number above 0), one for all experts, and
# $d_i = o_i - t$, the loss of one row is
#
# $$L = -\ln \sum_i p_i\, \frac{1}{\sigma}\, e^{-d_i^2 / 2\sigma^2}$$
#
# and here the mean over rows. The forward pass and the gradient of the scores `z` are given. Find those of `d` and `sigma`.
#
# <details><summary>Hint</summary>
#
# As in (8), the loss of an expert, $\ell_i = \ln\sigma + d_i^2 / 2\sigma^2$, is passed on with the factor $h_i$. What is its
# derivative along $d_i$? And along $\sigma$, which all experts and all rows share?
#
# </details>


# %% tags=["exercise"]
def wide_likelihood(z, d, sigma):
    p, likely = softmax(z), np.exp(-d * d / (2 * sigma**2)) / sigma
    total = (p * likely).sum(1, keepdims=True)
    h = p * likely / total
    y = -np.log(total).mean()

    def backward(dy):
        dz = dy / len(z) * (p - h)
        dd = ...
        dsigma = ...
        return dz, dd, dsigma

    return y, backward


# %% tags=["solution"]
def wide_likelihood(z, d, sigma):
    p, likely = softmax(z), np.exp(-d * d / (2 * sigma**2)) / sigma
    total = (p * likely).sum(1, keepdims=True)
    h = p * likely / total
    y = -np.log(total).mean()

    def backward(dy):
        dz = dy / len(z) * (p - h)
        dd = dy / len(z) * h * d / sigma**2
        dsigma = dy / len(z) * (h * (1 / sigma - d * d / sigma**3)).sum()
        return dz, dd, dsigma

    return y, backward


# %% tags=["wrong"]
def wide_likelihood(z, d, sigma):
    p, likely = softmax(z), np.exp(-d * d / (2 * sigma**2)) / sigma
    total = (p * likely).sum(1, keepdims=True)
    h = p * likely / total
    y = -np.log(total).mean()

    def backward(dy):  # p in place of h: as if the target had not been seen
        dd = dy / len(z) * p * d / sigma**2
        dsigma = dy / len(z) * (p * (1 / sigma - d * d / sigma**3)).sum()
        return dy / len(z) * (p - h), dd, dsigma

    return y, backward


# %% tags=["wrong"]
def wide_likelihood(z, d, sigma):
    p, likely = softmax(z), np.exp(-d * d / (2 * sigma**2)) / sigma
    total = (p * likely).sum(1, keepdims=True)
    h = p * likely / total
    y = -np.log(total).mean()

    def backward(dy):
        dd = dy / len(z) * h * d / sigma**2
        dsigma = -dy / len(z) * (h * d * d / sigma**3).sum()  # ln σ is forgotten: the width would grow for ever
        return dy / len(z) * (p - h), dd, dsigma

    return y, backward


# %% tags=["check"]
def wide_reference(z, d, sigma):
    return ops.mixture_likelihood(z, d * d / (2 * sigma**2) + np.log(sigma))[0], None


z, d = np.random.default_rng(4).standard_normal((2, 5, 3))
check_exercise(3, wide_likelihood, z, d, np.array(0.7), like=wide_reference)

# %% [markdown]
# ## Next
#
# Here three experts looked at one number, and the gate was a line. In a language model the gate decides for every token of a
# text. Lesson 9, top-k gates, is about that decision: what it costs, what it teaches the gate, and how many ways there are
# to make it.
