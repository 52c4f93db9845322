# ---
# jupyter:
#   lesson:
#     title: A tour
#     chinese: 导览
#     builds: a language model with sparse experts, trained in seconds, and a look inside it
#     code:
#       - tinymoe/optim/trainer.py
#       - tinymoe/runs/settings.py
#       - tinymoe/data/sources.py
#       - tinymoe/ops/routing.py
#       - tinymoe/models/sampling.py
#     documents: [L7]
#     papers:
#       - "Shazeer et al. 2017, *Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer*, eq. 1"
#       - "Muennighoff et al. 2024, *OLMoE: Open Mixture-of-Experts Language Models*, §5"
#     terms:
#       language model: [语言模型, "a model that says how probable each possible next token of a text is"]
#       token: [词元, "one unit of text for a model; here a byte"]
#       expert: [专家, "one of several small networks, of which each token visits a few"]
#       router: [路由器, "the part of a model that chooses experts for each token"]
#       parameter: [参数, "a number of a model that training changes"]
#       corpus: [语料库, "the texts that a model is trained on"]
#       training: [训练, "changing the parameters, step by step, so that the loss falls"]
#       validation: [验证, "measuring a model on text that it was not trained on"]
#       optimiser: [优化器, "the rule by which a gradient changes the parameters"]
#       hyperparameter: [超参数, "a setting that is chosen by people and not by training"]
#       load: [负载, "the share of all visits that an expert gets"]
#       batch: [批次, "the examples that one step of training uses together"]
#       softmax: [归一化指数函数, "a rule that turns scores into positive weights which add up to 1"]
#       entropy: [熵, "the mean surprise of a source: what no model can predict"]
# ---

# %% [markdown]
# ## You will
#
# train a small language model with sparse experts in seconds, see which expert reads which letter, and let the model write.

# %% [markdown]
# ## You need
#
# Python and a little NumPy. You need not understand every line today: each has its own lesson later. No earlier lesson.

# %%

import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.data import toy
from tinymoe.data.sources import new_source
from tinymoe.data.windows import Batch
from tinymoe.gradcheck import check_gradients
from tinymoe.models import language
from tinymoe.models.accounting import active_parameters, parameters_by_part
from tinymoe.models.config import LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.models.sampling import generate
from tinymoe.ops import metrics
from tinymoe.runs.settings import resolve
from tinymoe.runs.state import new_state, new_trainer
from tinymoe.tree import named, with_leaves

# %% [markdown]
# ## Picture
#
# A **language model** (语言模型) reads a text and says how probable each possible next **token** (词元) is. Our tokens are
# bytes: letters, digits, signs. The model of this tour works in two layers, one after the other. Each has four **experts**
# (专家): small functions with numbers of their own. A token visits only two of them, and a **router** (路由器) chooses which.
#
# The document 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》, §9.6, names six steps of **training** (训练). We
# take all six.
#
# **Step 1: prepare the data** (准备数据集). The **corpus** (语料库) is a made-up text in five dialects: sums, brackets, words
# written backwards, clauses (small sentences), and rows of a table. One tenth of it is kept aside for step 5.

# %%
settings = resolve(
    {
        "preset": "quick",  # a small model: two layers, four experts in each
        "corpus": ("toy",),
        "steps": 240,
        "lr": 4e-3,
        "workers": 1,
    }
)
source = new_source(settings.data, settings.model.context, settings.run.seed)
print(source.size)
print(toy.generate(150, np.random.default_rng(0)).text)

# %% [markdown]
# **Step 2: design the model** (设计模型). Its **parameters** (参数) are the numbers that training changes. They start at
# random. Since a token visits two of four experts, only a part of the parameters works on it: that is what "sparse" means
# here. The parts that this lesson passes over (embedding, attention, head, norms) are built in lessons 3, 6 and 7.

# %%
state = new_state(settings)
parts = parameters_by_part(state.params)
for part, count in parts.items():
    if count:
        print(f"{part:16} {count:8,} parameters")
working = active_parameters(state.params, settings.model)
print(f"{'together':16} {sum(parts.values()):8,}, of which {working:,} work on each token")

# %% [markdown]
# **Step 3: choose optimiser, loss and measure** (编译模型). The loss (损失) is the mean surprise at the true next token: the
# less probable the model thought it, the more. It is measured in nats; formula (1) below. The **optimiser** (优化器) is the
# rule by which a gradient changes the parameters.
#
# **Step 4: train** (训练模型). Again and again: take some pieces of the text, a **batch** (批次) of windows; compute the loss
# and its gradient (梯度), which says for every parameter how the loss changes with it; move each a little downhill. Lesson
# 1 is about gradients, lesson 2 about how this one is computed.


# %% tags=["trained"]
def train(settings, state):
    """Train `state` in place. Returns the loss of each step, and for each step and layer the tokens of each expert."""
    losses, counts = [], []
    with new_trainer(state, settings) as trainer:
        while state.step < settings.run.steps:
            report = trainer.step(source.batch(state.step + 1, settings.training.batch_size))
            losses.append(report.loss)
            counts.append([layer.counts for layer in report.details.layers])
        return np.array(losses), np.array(counts), trainer.evaluate(source.evaluation(100))[0]


losses, counts, validation_loss = train(settings, state)
print(f"optimiser {settings.training.optimizer}, {settings.run.steps} steps of {settings.training.batch_size} windows")
print(f"training loss: first step {losses[0]:.2f}, mean of the last twenty {losses[-20:].mean():.2f} nats per byte")

# %% [markdown]
# **Step 5: evaluate** (评估模型), with the text that was kept aside. A low loss there, the **validation** (验证) loss, shows
# that the model has learnt the rules of the text, and not the text by heart. This corpus has a floor that no model can beat:
# its
# **entropy** (熵), the part that is pure chance. Here it is known exactly, because we know how the text is made.

# %% tags=["trained"]
figure, axes = new_figure()
axes.plot(np.arange(1, len(losses) + 1), losses, label="training loss")
axes.plot([settings.run.steps], [validation_loss], "ko", label="validation loss")
axes.axhline(np.log(256), color="0.5", ls=":", label="knows nothing: ln 256")
axes.axhline(source.entropy, color="#4393c3", ls="-.", label="entropy of the text")
axes.set(xlabel="step", ylabel="loss in nats per byte", ylim=(0, None))
axes.legend()
show(
    figure, alt="The training loss starts at ln 256, falls fast, then slowly, and stays above the entropy of the text."
)
print(f"validation loss {validation_loss:.2f}, entropy {source.entropy:.2f} nats per byte")

# %% [markdown]
# **Step 6: adjust** (调整参数). What training doesn't learn, we must choose: the **hyperparameters** (超参数), such as the
# number of experts, or the learning rate (学习率), which says how far each step goes. The way is to try. Here are three
# learning rates, for a few steps each.

# %% tags=["trained"]
for rate in (1e-4, 4e-3, 3e-1):
    trial = settings.but(lr=rate, steps=40)
    _, _, loss = train(trial, new_state(trial))
    print(f"learning rate {rate:6g}: validation loss {loss:.2f} after {trial.run.steps} steps")

# %% [markdown]
# Too small is slow; too large overshoots. Now look inside. Is the work shared evenly? The **load** (负载) of an expert is its
# share of the tokens' visits.

# %%
figure, axes = new_figure(1, 2, sharey=True)
for layer, panel in enumerate(axes):
    share = counts[:, layer] / counts[:, layer].sum(1, keepdims=True)
    smooth = share.reshape(-1, 10, settings.model.experts).mean(1)  # over ten steps each
    for expert in range(settings.model.experts):
        panel.plot(np.arange(10, settings.run.steps + 1, 10), smooth[:, expert], label=f"expert {expert}")
    panel.set(xlabel="step", ylim=(0, 0.6), title=f"layer {layer}")
axes[0].set(ylabel="share of the visits")
axes[1].legend(ncols=2)
show(figure, alt="Load of four experts in two layers over the steps: uneven at first, then near a quarter each.")

# %% [markdown]
# The danger is that a few experts get nearly all the work, and the others never learn. A second loss keeps the load near a
# quarter each; lesson 11 is about it.
#
# Which expert reads what? Here is a fresh text, never seen in training. Each letter has the shade of the expert that the
# router of the last layer put first for it. A ¶ ends a line.

# %%
fresh = toy.generate(64 * 60, np.random.default_rng(5))
ids = np.frombuffer(fresh.text[: 64 * 60].encode(), np.uint8).astype(int).reshape(60, 64)
(_, _, routed), _ = language.forward(state.params, settings.model, ids)
indices = routed[-1].indices  # the two experts of each token in the last layer, the best first

shades = np.array([1.0, 0.8, 0.5, 0.15])
first = indices[: 6 * 64, 0].reshape(6, 64)
figure, axes = new_figure(height=2.4)
axes.imshow(shades[first], cmap="gray", vmin=0, vmax=1, aspect="auto")
for (row, column), expert in np.ndenumerate(first):
    letter = fresh.text[64 * row + column].replace("\n", "¶")
    ink = "black" if shades[expert] > 0.6 else "white"
    axes.text(column, row, letter, ha="center", va="center", family="monospace", fontsize=8, color=ink)
for expert, shade in enumerate(shades):
    box = {"facecolor": str(shade), "edgecolor": "black", "pad": 3}
    ink = "black" if shade > 0.6 else "white"
    axes.text(10 * expert, -1.3, f"expert {expert}", fontsize=9, color=ink, bbox=box)
axes.axis("off")
show(figure, alt="A text of sums, brackets, words and sentences; long runs of letters of one kind have the same shade.")

# %% [markdown]
# Nobody told the model that there are dialects. The shades follow them all the same. In numbers: of the tokens of each
# dialect, which share has an expert among its two? A row adds up to 200%, and by chance alone each number would be 50%.

# %%
table = metrics.specialisation(indices, fresh.domains[: ids.size].astype(int), settings.model.experts, len(fresh.names))
figure, axes = new_figure(height=2.8)
axes.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
axes.grid(False)
for (dialect, expert), share in np.ndenumerate(table):
    axes.text(expert, dialect, f"{share:.0%}", ha="center", va="center", color="black" if share > 0.5 else "white")
axes.set(xticks=range(settings.model.experts), yticks=range(len(fresh.names)), yticklabels=fresh.names)
axes.set(xlabel="expert of the last layer", ylabel="dialect of the token")
show(
    figure,
    alt="Five dialects by four experts: most dialects have one or two experts which nearly all their tokens visit.",
)

# %% [markdown]
# And now let it write. It draws one byte, reads what it has written, draws the next, and so on.

# %% tags=["trained"]
start, length = np.array([ord("\n")]), 220
boldness, kept = 0.7, 0.95  # below 1 it likes the likely more; of all bytes, only the likeliest 95% count
written = generate(state.params, settings.model, start, length, boldness, kept, np.random.default_rng(0))
print(bytes(written).decode("ascii", "replace"))

# %% [markdown]
# After so few steps the form is mostly right: the dialects, their lines, their brackets. The arithmetic is not. Longer
# training and a larger model help; `python -m tinymoe.train` takes minutes and a real text.

# %% [markdown]
# ## Formula
#
# The loss of a text of $N$ tokens. $p_n$ is the probability that the model gave to the token which came, and $\ln$ the
# natural logarithm, so the unit is the nat:
#
# $$L = -\frac1N \sum_{n=1}^{N} \ln p_n \tag{1}$$
#
# The layer of experts. For a token, the router has a score $s_i$ for each expert $i$. The $K$ best form the set $S$ (here $K$
# is 2). Their scores become weights $w_i$ that add up to 1, and the answer $y$ is the weighted sum of what these experts
# return, $o_i$:
#
# $$w_i = \frac{e^{s_i}}{\sum_{j \in S} e^{s_j}} \tag{2}$$
#
# $$y = \sum_{i \in S} w_i \, o_i \tag{3}$$
#
# The others don't run at all. (2) is called **softmax** (归一化指数函数). *Where it stands.* The six steps are in the
# document named above, §9.6 ([L7](DOCUMENTS.md)). (3) is eq. 1 of Shazeer et al. 2017. The table of dialects and experts is
# made as in Muennighoff et al. 2024, §5.

# %% [markdown]
# ## By hand
#
# - (1): a model that knows nothing gives each of the 256 bytes the same probability. $L = -\ln \frac{1}{256} = \ln 256$,
#   about 5.55. The curve above begins there.
# - (2): three experts with the scores $\ln 3$, $0$ and $-2$, and $K = 2$. The first two are chosen. $e^{\ln 3} = 3$ and
#   $e^0 = 1$, so the weights are $\frac34$ and $\frac14$.
# - (3): the first returns 8, the second 4. $y = \frac34 \cdot 8 + \frac14 \cdot 4 = 7$.

# %% [markdown]
# ## Code
#
# The layer for one token, as a loop. The backward pass is explained further down.


# %%
def choose(scores, k):
    """The k best experts of one token, and their weights."""
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
    total = sum(np.exp(scores[i]) for i in best)
    return best, np.array([np.exp(scores[i]) / total for i in best])


def mix(weights, outputs):
    """weights (K,), outputs (K, D): what each of K chosen experts returned, D numbers."""
    y = np.zeros(outputs.shape[1], outputs.dtype)
    for w, o in zip(weights, outputs, strict=True):
        y += w * o

    def backward(dy):
        dweights = np.array([dy @ o for o in outputs])
        doutputs = np.array([w * dy for w in weights])
        return dweights, doutputs

    return y, backward


best, weights = choose([np.log(3), 0.0, -2.0], 2)
print("chosen", best, " weights", weights, " y", mix(weights, np.array([[8.0], [4.0]]))[0])
# equal scores for all 256 bytes; the one that came is 65, the letter A
print("a model that knows nothing:", ops.cross_entropy(np.zeros((1, 256)), np.array([65]))[0], np.log(256))

# %% [markdown]
# ## The same in tinymoe
#
# The library does it for all tokens at once: `top_k_gate` chooses, `group_by_expert` sorts the tokens by expert, so that each
# expert has one large product to compute, and `combine` adds up what comes back. The same numbers, forward and backward:

# %%
rng = np.random.default_rng(0)
scores, outputs, dy = rng.standard_normal((6, 4)), rng.standard_normal((6, 2, 3)), rng.standard_normal((6, 3))
(weights, chosen), _ = ops.top_k_gate(scores, 2)
assignment = ops.group_by_expert(chosen, 4)
rows = outputs.reshape(12, 3)[assignment.order]  # grouped by expert
y, combine_back = ops.combine(rows, weights, assignment)
drows, dweights = combine_back(dy)
doutputs = drows[assignment.inverse].reshape(6, 2, 3)  # back in the order of the tokens
for n in range(6):
    best, w = choose(scores[n], 2)
    mine, back = mix(w, outputs[n])
    assert best == chosen[n].tolist() and np.allclose(w, weights[n], rtol=1e-12)
    assert np.allclose(mine, y[n], rtol=1e-12)
    assert np.allclose(back(dy[n])[0], dweights[n], rtol=1e-12)
    assert np.allclose(back(dy[n])[1], doutputs[n], rtol=1e-12)
print("six tokens: equal choices, weights, answers and gradients")

# %% [markdown]
# ## Backward by hand
#
# Training needs to know how the loss changes with each number. Let $dy$ say how it changes with $y$. In (3), $y$ changes with
# $o_i$ at the rate $w_i$, and with $w_i$ at the rate $o_i$. So
#
# $$do_i = w_i \, dy \qquad dw_i = dy \cdot o_i \tag{4}$$
#
# The first says: an expert learns in proportion to its weight, and not at all if it wasn't chosen. The second is how a router
# learns: if what an expert returned would have lowered the loss, its weight goes up. A check against measured slopes
# (lesson 1 explains it; here look for the `ok`):

# %%
print(check_gradients(mix, weights[0], outputs[0]))

# %% [markdown]
# And this is the same check for a router inside a whole model, small enough to be quick. Its gradient passes through the
# loss, the output, the experts and the choice, and every step back is written by hand, as above.

# %%
shape = LanguageConfig(11, context=6, layers=2, width=8, heads=2, kv_heads=2, experts=3, expert_width=4)
params = initialize(shape, np.random.default_rng(1), np.float64)
ids, targets = np.random.default_rng(2).integers(0, 11, (2, 3, 6))


def loss_of_router(router):
    changed = with_leaves(params, named(params) | {"blocks.0.mixture.router.weight": router})
    (loss, _), backward = language.loss(changed, shape, Batch(ids, targets))
    return loss, lambda dloss: (named(backward(dloss))["blocks.0.mixture.router.weight"],)


print(check_gradients(loss_of_router, named(params)["blocks.0.mixture.router.weight"]))

# %% [markdown]
# ## Spot the bug
#
# A gate from public code (jingyaogong/minimind, issue 858, mended by pull request 859; davidmrau/mixture-of-experts, issue
# 27, had the same fault). It takes the softmax of the scores of all experts, keeps the $k$ best, and divides them by their
# sum, so that they add up to 1. For $k = 2$ it gives (2): the sum over all experts cancels. For which $k$ does the router
# learn nothing from it?


# %%
def gate(scores, k):
    p, _ = ops.softmax(scores)
    indices = np.argsort(-p, 1)[:, :k]
    weights = np.take_along_axis(p, indices, 1)
    return weights / weights.sum(1, keepdims=True), indices


# %% [markdown]
# <details><summary>The bug</summary>
#
# For $k = 1$. A number divided by itself is 1, whatever the router says. A weight that is always 1 has the slope 0, and the
# choice has no slope either, so no gradient reaches the router. With one choice the weight must stay undivided.
#
# </details>

# %% tags=["guess"]
for k in (2, 1):
    weights, _ = gate(scores, k)
    (_, _), gate_back = ops.top_k_gate(scores, k, renormalize=True)
    (dscores,) = gate_back(rng.standard_normal((6, k)))
    print(f"k = {k}: first weights {weights[:3, 0].round(2)}, largest gradient of a score {np.abs(dscores).max():.2f}")

# %% [markdown]
# Nothing crashes, and the experts still learn: the loss falls, only less than it could. The library keeps this bug, with
# its check, as the exhibit "one choice, renormalised" of its [museum](../tinymoe/systems/museum/gates.py).

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · The loss
#
# `p` has a row for each of $N$ tokens, with the probabilities of all possible ones; `came` has the token that came. Compute
# (1).
#
# <details><summary>Hint</summary>
#
# `p[np.arange(len(p)), came]` picks one probability from each row. Then `np.log`, the mean, and the sign.
#
# </details>


# %% tags=["exercise"]
def loss_of(p, came):
    return ...


# %% tags=["solution"]
def loss_of(p, came):
    return -np.log(p[np.arange(len(p)), came]).mean()


# %% tags=["wrong"]
def loss_of(p, came):
    return -np.log(p[np.arange(len(p)), came]).sum()  # not per token


# %% tags=["wrong"]
def loss_of(p, came):
    return -np.log2(p[np.arange(len(p)), came]).mean()  # bits, not nats


# %% tags=["check"]
scores, came = np.random.default_rng(1).standard_normal((5, 4)), np.array([0, 3, 1, 1, 2])
expected, _ = ops.cross_entropy(scores, came)
check_exercise(1, loss_of, ops.softmax(scores)[0], came, like=lambda p, came: expected, gradients=False)

# %% [markdown]
# ### 2 · The load
#
# `indices` has a row for each token, with its $K$ experts. Which share of all visits does each of `n_experts` get? Experts
# that nobody visits count, too, with 0.
#
# <details><summary>Hint</summary>
#
# `np.bincount(…, minlength=…)` counts the numbers of a flat array. There are $N \cdot K$ visits, not $N$.
#
# </details>


# %% tags=["exercise"]
def load(indices, n_experts):
    return ...


# %% tags=["solution"]
def load(indices, n_experts):
    return np.bincount(indices.ravel(), minlength=n_experts) / indices.size


# %% tags=["wrong"]
def load(indices, n_experts):
    return np.bincount(indices.ravel(), minlength=n_experts) / len(indices)  # visits over tokens: adds up to K


# %% tags=["wrong"]
def load(indices, n_experts):
    return np.bincount(indices[:, 0], minlength=n_experts) / len(indices)  # first choices only


# %% tags=["check"]
visits = np.array([[0, 2], [2, 0], [3, 2], [2, 3], [0, 3]])  # nobody at 1, nor at 4
check_exercise(2, load, visits, 5, like=ops.expert_shares, gradients=False)

# %% [markdown]
# ### 3 · Two experts and one weight
#
# $y = w a + (1 - w) b$ for the rows $a$ and $b$ of two experts and one weight $w$ for each token. Write the three gradients.
#
# <details><summary>Hint</summary>
#
# `w` has the shape (N, 1): it is spread along the row, so its gradient is a sum along the row; `keepdims=True` keeps the
# shape. Write $y = b + w (a - b)$ to see at which rate $y$ changes with $w$.
#
# </details>


# %% tags=["exercise"]
def two_experts(a, b, w):
    y = w * a + (1 - w) * b

    def backward(dy):
        da = ...
        db = ...
        dw = ...
        return da, db, dw

    return y, backward


# %% tags=["solution"]
def two_experts(a, b, w):
    y = w * a + (1 - w) * b

    def backward(dy):
        da = w * dy
        db = (1 - w) * dy
        dw = (dy * (a - b)).sum(1, keepdims=True)
        return da, db, dw

    return y, backward


# %% tags=["wrong"]
def two_experts(a, b, w):
    y = w * a + (1 - w) * b

    def backward(dy):
        return w * dy, (1 - w) * dy, (dy * a).sum(1, keepdims=True)  # b depends on w, too

    return y, backward


# %% tags=["wrong"]
def two_experts(a, b, w):
    y = w * a + (1 - w) * b

    def backward(dy):
        return w * dy, (1 - w) * dy, dy * (a - b)  # not summed

    return y, backward


# %% tags=["check"]
rng = np.random.default_rng(2)
a, b, w = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), rng.random((4, 1))
check_exercise(3, two_experts, a, b, w, like=lambda a, b, w: (w * a + (1 - w) * b, None))

# %% [markdown]
# ## Next
#
# You have seen a whole model at work. The rest of the course builds each of its parts. Lesson 1, numbers and gradients,
# begins with the one question that training asks of every number.
