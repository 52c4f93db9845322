# ---
# jupyter:
#   lesson:
#     title: A transformer by hand
#     chinese: 手写 Transformer 语言模型
#     builds: a transformer language model, put together from small operations, trained on a text, all gradients checked
#     code: [tinymoe/models/language.py, tinymoe/models/blocks.py, tinymoe/ops/norm.py, tinymoe/optim/updates.py]
#     documents: [L4, L5]
#     papers:
#       - "Vaswani et al. 2017, *Attention Is All You Need*, eq. 2 and §3.1"
#       - "He et al. 2016, *Identity Mappings in Deep Residual Networks*, eq. 3–5"
#       - "Zhang & Sennrich 2019, *Root Mean Square Layer Normalization*, eq. 4"
#       - "Xiong et al. 2020, *On Layer Normalization in the Transformer Architecture*, §3"
#     terms:
#       transformer: [Transformer, "a network of blocks, each with attention and a feed-forward layer"]
#       input layer: [输入层, "the part of a model that turns text into numbers"]
#       block: [块, "a unit of layers that a model repeats; here attention, then a feed-forward layer"]
#       feed-forward layer: [前馈层, "two linear maps with an activation between them, for each position alone"]
#       residual connection: [残差连接, "a layer's output is added to its input and doesn't replace it"]
#       normalisation: [归一化, "bringing the numbers of a row to a common size"]
# ---

# %% [markdown]
# ## You will
#
# put embedding, attention, norms and feed-forward layers together into a transformer, check all its gradients, and train it
# until it writes.

# %% [markdown]
# ## You need
#
# The chain rule and the operations of [lesson 2](02_chain_rule.ipynb), the embedding of
# [lesson 3](03_words_as_vectors.ipynb), and attention and positions of [lesson 6](06_attention_and_positions.ipynb).

# %%
from dataclasses import dataclass

import numpy as np
from matplotlib.patches import Circle

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.data import toy
from tinymoe.data.windows import Batch
from tinymoe.gradcheck import check_gradients
from tinymoe.models import config, initialise, language
from tinymoe.optim import adamw, new_slots
from tinymoe.tree import named, with_leaves

# %% [markdown]
# ## Picture
#
# A **transformer** (Transformer) is a main road with detours. Each position of the text has a row of numbers, and it travels
# along the road from the embedding to the prediction. A **block** (块) has two detours. In the first, positions look at each
# other: attention. In the second, each position thinks for itself: a **feed-forward layer** (前馈层), which is the network
# of lesson 2. What comes back from a detour is *added* to what is on the road. That is a **residual connection**
# (残差连接).


# %%
def arrow(axes, start, end, bend=0.0):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "connectionstyle": f"arc3,rad={bend}"})


figure, axes = new_figure(height=2.4)
axes.plot([0.7, 8.6], [0, 0], color="0.8", linewidth=9, solid_capstyle="butt", zorder=0)
for x, name in [(0.2, "embedding\n+ position"), (8.9, "norm,\nlinear")]:
    axes.text(x, 0, name, ha="center", va="center", bbox={"facecolor": "white", "boxstyle": "round"})
for x, name in [(1.2, "attention"), (2.95, "feed-forward"), (4.9, "attention"), (6.65, "feed-forward")]:
    axes.text(x + 0.65, 1.3, f"norm,\n{name}", ha="center", fontsize=9, bbox={"facecolor": "white"})
    arrow(axes, (x, 0.1), (x + 0.3, 1.15), -0.2)
    arrow(axes, (x + 1.0, 1.15), (x + 1.3, 0.13), -0.2)
    axes.text(x + 1.3, 0, "+", ha="center", va="center", fontsize=14)
for x, name in [(2.9, "block 0"), (6.55, "block 1")]:
    axes.text(x, -0.75, name, ha="center")
axes.annotate("", (0.8, -0.35), (8.2, -0.35), arrowprops={"arrowstyle": "->", "ls": "--", "ec": "#b2182b"})
axes.text(4.72, -0.75, "gradient", ha="center", color="#b2182b")
axes.set(xlim=(-0.5, 9.5), ylim=(-1, 2))
axes.axis("off")
show(
    figure,
    alt="A straight road from embedding to prediction with four detours that are added to it; a gradient goes back.",
)

# %% [markdown]
# Look at the dashed arrow. On the way back, a plus sign hands its message on unchanged, to the road and to the detour alike
# (fan-out, lesson 2). So the road carries the gradient from the loss to the embedding undiminished, however many blocks
# there are. How much that matters, you see when the road is closed. Here the gradient goes back through thirty layers, each a
# matrix of random weights and a ReLU: with the road and without it, and with weights of two sizes.

# %%
rng = np.random.default_rng(0)


def sizes_on_the_way_back(road, strength, depth=30, width=64):
    """The length of the gradient at each layer, from the last to the first."""
    h, backs = rng.standard_normal((1, width)), []
    for _ in range(depth):
        u, up_back = ops.linear(h, strength * rng.standard_normal((width, width)) / np.sqrt(width))
        a, relu_back = ops.relu(u)
        h = h + a if road else a
        backs.append((relu_back, up_back))
    dh, sizes = rng.standard_normal((1, width)), []
    for relu_back, up_back in reversed(backs):
        detour, _ = up_back(*relu_back(dh))
        dh = dh + detour if road else detour
        sizes.append(np.linalg.norm(dh))
    return np.array(sizes) / np.sqrt(width)


# %%
figure, axes = new_figure(height=2.8)
for strength in (1.0, 0.3):
    for road in (True, False):
        label = f"weights × {strength}, {'with' if road else 'without'} the road"
        axes.semilogy(range(1, 31), sizes_on_the_way_back(road, strength), label=label)
axes.set(xlabel="layers passed on the way back", ylabel="size of the gradient")
axes.legend(loc="lower left", fontsize=8)
show(figure, alt="Without the road the gradient shrinks by many powers of ten, with it, it keeps its size or grows.")

# %% [markdown]
# Without the road the message fades from layer to layer, and a deep network is deaf at its beginning, as in lesson 5. (Only
# weights of just the right size keep it alive: try $\sqrt2$.) With the road, small weights do no harm. Large ones can make the
# message grow, and that is what the norms are for.

# %% [markdown]
# ## Formula
#
# The rows of a text: $h^{(0)}$ has for each position $t$ the embedding of its letter and the row of its position,
#
# $$h^{(0)}_t = E[\text{id}_t] + p_t \tag{1}$$
#
# A block makes $h^{(l+1)}$ of $h^{(l)}$. $N$ is the norm, $A$ attention, $F$ the feed-forward layer:
#
# $$m = h^{(l)} + A(N(h^{(l)})), \qquad h^{(l+1)} = m + F(N(m)) \tag{2}$$
#
# $$A(x) = \operatorname{attend}(x W_q,\, x W_k,\, x W_v)\, W_o, \qquad F(x) = \max(0,\, x U)\, V \tag{3}$$
#
# and behind the last block stand one more norm and a matrix, which make a score for each letter that may come next:
#
# $$s = N(h)\, W, \qquad L = \text{cross-entropy of } s \text{ and the next letters} \tag{4}$$
#
# **Normalisation** (归一化). $N$ brings each row to one size: the mean of its squares becomes 1. A learned gain $g$ gives
# each column a size of its own again. For a row $x$ of $D$ numbers:
#
# $$n = \frac{x}{r}, \quad r = \sqrt{\textstyle\frac1D \sum_i x_i^2 + \varepsilon}, \qquad y_i = g_i\, n_i \tag{5}$$
#
# $\varepsilon$ is tiny and keeps a row of zeros from dividing by 0. This is the *RMS norm* (root mean square). The older
# *layer norm* takes the mean of the row off first; it is an exercise.
#
# *Where it stands.* The document 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 has in §3.1 the whole model as
# pseudocode of four lines: an **input layer** (输入层) turns text into numbers, then 嵌入层 (embedding), 隐藏层 (hidden
# layers), 输出层 (output layer). It leaves open what a hidden layer is ([L4](DOCUMENTS.md)). The attention in (3) is lesson
# 6 with four matrices around it, the rest is eq. 2 and §3.1 of Vaswani et al. 2017. There the norm stands on the road,
# behind each plus; in (2) it stands in the detour, where Xiong et al. 2020 found it easier to train. (5) is eq. 4 of
# Zhang & Sennrich 2019.

# %% [markdown]
# ## By hand
#
# The norm of the row $x = (1, 7)$, with $\varepsilon = 0$ and gains 1: the mean of squares is $\frac{1 + 49}{2} = 25$, so
# $r = 5$ and $y = (0.2,\, 1.4)$. The row $(10, 70)$ has $r = 50$, and the same $y$: the norm forgets how long a row was.
#
# A gradient $dy = (1, 0)$ comes back. If $r$ were a constant, $dx$ would be $(0.2, 0)$. It isn't: a larger $x_1$ makes $r$
# larger, which makes both numbers smaller. The formula comes below; the answer is $dx = (0.196,\, -0.028)$. Multiply it by
# $x$: $0.196 \cdot 1 - 0.028 \cdot 7 = 0$. Of course: making $x$ longer changes nothing, so the gradient has no part along
# $x$.
#
# The road, by plain numbers: three layers $f(h) = 0.1\, h$. In a row, their slopes multiply to $0.1^3 = 0.001$. With the road,
# $h + 0.1\,h$ has the slope $1.1$, and three of them $1.1^3 = 1.331$.

# %% [markdown]
# ## Code
#
# A model is a handful of arrays. We give them names in two small classes; a gradient is an object of the same class, so no
# array can be forgotten.


# %%
@dataclass
class Block:
    attention_norm: np.ndarray  # (D,)
    query: np.ndarray  # (D, D), and so are the next three
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    feed_norm: np.ndarray  # (D,)
    up: np.ndarray  # (D, F)
    down: np.ndarray  # (F, D)


@dataclass
class Transformer:
    embedding: np.ndarray  # (V, D): a row for each letter
    positions: np.ndarray  # (T, D): a row for each position
    blocks: tuple[Block, ...]
    norm: np.ndarray  # (D,)
    head: np.ndarray  # (D, V)


# %% [markdown]
# The forward pass of one text, row by row, with nothing but sums and products. Read it against (1) to (5).

# %%
HEADS = 4


def norm_of(row, gain):
    return gain * row / np.sqrt((row * row).mean() + 1e-6)  # (5)


def scores_in_loops(p, ids):
    h = [p.embedding[i] + p.positions[t] for t, i in enumerate(ids)]  # (1)
    for b in p.blocks:
        n = [norm_of(row, b.attention_norm) for row in h]
        for t in range(len(h)):
            answers = []
            for own in np.split(np.arange(len(n[0])), HEADS):  # the columns of each head
                q, keys, values = (n[t] @ b.query)[own], [], []
                for earlier in n[: t + 1]:
                    keys.append((earlier @ b.key)[own])
                    values.append((earlier @ b.value)[own])
                weights = np.exp([q @ k / np.sqrt(len(own)) for k in keys])
                answers.append(weights @ np.array(values) / weights.sum())
            m = h[t] + np.concatenate(answers) @ b.output  # (2), first half; (3)
            h[t] = m + np.maximum(0, norm_of(m, b.feed_norm) @ b.up) @ b.down  # (2), second half
    return np.array([norm_of(row, p.norm) @ p.head for row in h])  # (4)


# %% [markdown]
# Now for a batch of texts at once, with a backward pass. First the two new parts. Each `backward` reads from its last forward
# line up to its first.


# %%
def rms_norm(x, gain, eps=1e-6):
    r = np.sqrt((x * x).mean(1, keepdims=True) + eps)
    n = x / r
    y = gain * n

    def backward(dy):
        dgain = (dy * n).sum(0)
        dn = dy * gain
        dx = (dn - n * (dn * n).mean(1, keepdims=True)) / r  # formula (6), below
        return dx, dgain

    return y, backward


# %%
def feed_forward(x, up, down):
    u, up_back = ops.linear(x, up)
    a, relu_back = ops.relu(u)
    y, down_back = ops.linear(a, down)

    def backward(dy):
        da, ddown = down_back(dy)
        (du,) = relu_back(da)
        dx, dup = up_back(du)
        return dx, dup, ddown

    return y, backward


# %% [markdown]
# Attention has three ways in for the same rows: as queries, as keys and as values. On the way back, three messages are added.


# %%
def attention(x, query, key, value, output, *, batch):
    def split(rows):  # (B·T, D) to (B, H, T, P)
        return rows.reshape(batch, -1, HEADS, x.shape[1] // HEADS).swapaxes(1, 2)

    def join(heads):  # and back
        return heads.swapaxes(1, 2).reshape(x.shape)

    q, query_back = ops.linear(x, query)
    k, key_back = ops.linear(x, key)
    v, value_back = ops.linear(x, value)
    a, attend_back = ops.causal_attention(split(q), split(k), split(v))  # lesson 6
    y, output_back = ops.linear(join(a), output)

    def backward(dy):
        da, doutput = output_back(dy)
        dq, dk, dv = attend_back(split(da))
        dx_v, dvalue = value_back(join(dv))
        dx_k, dkey = key_back(join(dk))
        dx_q, dquery = query_back(join(dq))
        return dx_q + dx_k + dx_v, dquery, dkey, dvalue, doutput

    return y, backward


# %% [markdown]
# The block. See how each plus of the forward pass comes back as a plus: what arrives goes into the detour *and* stays on the
# road.


# %%
def block(h, p, *, batch):
    n, first_norm_back = rms_norm(h, p.attention_norm)
    a, attention_back = attention(n, p.query, p.key, p.value, p.output, batch=batch)
    m = h + a
    n2, second_norm_back = rms_norm(m, p.feed_norm)
    f, feed_back = feed_forward(n2, p.up, p.down)
    y = m + f

    def backward(dy):
        dn2, dup, ddown = feed_back(dy)
        dm_detour, dfeed_norm = second_norm_back(dn2)
        dm = dy + dm_detour
        dn, dquery, dkey, dvalue, doutput = attention_back(dm)
        dh_detour, dattention_norm = first_norm_back(dn)
        dh = dm + dh_detour
        return dh, Block(dattention_norm, dquery, dkey, dvalue, doutput, dfeed_norm, dup, ddown)

    return y, backward


# %% [markdown]
# And the model: the four lines of the document, and their way back. `norm` can be exchanged; we shall need that.


# %%
def model(p, ids, targets, norm=rms_norm):
    """ids and targets (B, T). Returns (loss, scores), backward."""
    e, embedding_back = ops.embedding(ids.ravel(), p.embedding)
    placed, positions_back = ops.add_positions(e.reshape(*ids.shape, -1), p.positions)
    h, backs = placed.reshape(e.shape), []
    for b in p.blocks:
        h, block_back = block(h, b, batch=len(ids))
        backs.append(block_back)
    n, norm_back = norm(h, p.norm)
    scores, head_back = ops.linear(n, p.head)
    loss, loss_back = ops.cross_entropy(scores, targets.ravel())

    def backward(dloss):
        dn, dhead = head_back(*loss_back(dloss))
        dh, dnorm = norm_back(dn)
        dblocks = []
        for block_back in reversed(backs):
            dh, dblock = block_back(dh)
            dblocks.insert(0, dblock)
        de, dpositions = positions_back(dh.reshape(placed.shape))
        (dembedding,) = embedding_back(de.reshape(e.shape))
        return Transformer(dembedding, dpositions, tuple(dblocks), dnorm, dhead)

    return (loss, scores), backward


# %% [markdown]
# At the start all weights are random, of a size that keeps numbers at the size of 1; what is added to the road is made
# smaller. Two texts of five letters through the model and through the loops:


# %%
def new_transformer(rng, letters, length, width, hidden, layers, dtype=float):
    def normal(rows, columns, size=None):
        return (rng.standard_normal((rows, columns)) * (size or rows**-0.5)).astype(dtype)

    def new_block():
        query, key, value = (normal(width, width) for _ in range(3))
        out, up, down = normal(width, width) / 2, normal(width, hidden), normal(hidden, width) / 2
        return Block(np.ones(width, dtype), query, key, value, out, np.ones(width, dtype), up, down)

    table, positions = normal(letters, width, 1.0), normal(length, width, 0.3)
    blocks = tuple(new_block() for _ in range(layers))
    return Transformer(table, positions, blocks, np.ones(width, dtype), normal(width, letters, 0.02))


small = new_transformer(np.random.default_rng(1), letters=7, length=5, width=8, hidden=12, layers=2)
ids, targets = np.random.default_rng(2).integers(0, 7, (2, 2, 5))
(loss, scores), backward = model(small, ids, targets)
for text in range(2):
    assert np.allclose(scores.reshape(2, 5, 7)[text], scores_in_loops(small, ids[text]), rtol=1e-10)
print(
    f"loss {loss:.4f}; the scores equal those of the loops. (1, 7) normed:", norm_of(np.array([1.0, 7.0]), 1).round(4)
)

# %% [markdown]
# ## The same in tinymoe
#
# In the library this is a model whose layers are all *dense*: not a choice of experts, but one for all. We give it our
# arrays, and ask for the same loss and the same gradient, array by array.

# %%
shape = config.LanguageConfig(
    vocabulary=7, context=5, layers=2, width=8, heads=4, kv_heads=4, experts=1, top_k=1, expert_width=12,
    expert_kind="relu", dense_layers=(0, 1), position="learned", tied=False,
)  # fmt: skip
RENAMED = {"attention_norm": "attention_norm.gain", "feed_norm": "mixture_norm.gain", "norm": "norm.gain"}
RENAMED |= {name: f"attention.{name}" for name in ("query", "key", "value", "output")}
RENAMED |= {name: f"mixture.experts.{name}" for name in ("up", "down")}


def library_names(tree):
    """Our arrays by the names that they have in the library, where up and down have an axis for the experts."""
    arrays = {}
    for name, array in named(tree).items():
        *front, last = name.split(".")
        arrays[".".join([*front, RENAMED.get(last, last)])] = array[None] if last in ("up", "down") else array
    return arrays


library = with_leaves(initialise.initialize(shape, rng), library_names(small))
(its_loss, _), its_backward = language.loss(library, shape, Batch(ids, targets))
mine, its = library_names(backward(1.0)), named(its_backward(1.0))
assert np.isclose(loss, its_loss, rtol=1e-12) and mine.keys() == its.keys()
assert all(np.allclose(mine[name], its[name], rtol=1e-9, atol=1e-13) for name in its)
print(f"equal: the loss and the gradients of {len(its)} arrays")

# %% [markdown]
# ## Backward by hand
#
# **The norm.** In (5) $x_i$ acts in two ways: on its own $n_i$, at the rate $1/r$, and through $r$ on all $n_j = x_j / r$.
# Since $r^2 = \frac1D \sum_i x_i^2 + \varepsilon$, $r$ changes with $x_i$ at the rate $\frac{x_i}{D r} = \frac{n_i}{D}$;
# and $n_j$ with $r$ at the rate $-\frac{x_j}{r^2} = -\frac{n_j}{r}$. Both ways together:
#
# $$dx_i = \frac1r \Big( dn_i - n_i \cdot \frac1D \sum_j dn_j\, n_j \Big), \qquad dn_j = g_j\, dy_j \tag{6}$$
#
# The bracket is $dn$ without its part along $n$. For $(1, 7)$ and $dy = (1, 0)$: the mean of $dn_j n_j$ is $0.1$, and
# $dx = \frac15 \big(1 - \frac{1}{50},\; -\frac{7}{50}\big)$, as promised. In two dimensions one can see it:

# %%
x, dy = np.array([[1.0, 7.0]]), np.array([[1.0, 0.0]])
y, norm_back = rms_norm(x, np.ones(2), eps=0)
(dx, _) = norm_back(dy)
print("y", y[0], " dx", dx[0].round(6), " dx·x is 0:", np.isclose(dx[0] @ x[0], 0))
print(check_gradients(rms_norm, rng.standard_normal((4, 6)), rng.standard_normal(6)))

# %%
figure, axes = new_figure(height=3.2)
axes.add_patch(Circle((0, 0), np.sqrt(2), fill=False, color="0.6"))
row = np.array([0.9, 1.3])
n, back = rms_norm(row[None], np.ones(2))
for color, dn in (("black", np.array([0.9, 0.2])), ("#b2182b", np.array([-0.3, 0.5]))):
    tip = n[0] + dn
    kept = n[0] + np.sqrt((row * row).mean()) * back(dn[None])[0][0]
    axes.annotate("", tip, n[0], arrowprops={"arrowstyle": "->", "ec": color, "ls": "--"})
    axes.annotate("", kept, n[0], arrowprops={"arrowstyle": "->", "ec": color, "lw": 2})
    axes.plot(*zip(tip, kept, strict=True), color="0.6", ls=":", lw=1)
    axes.text(*tip, " dn", color=color)
axes.plot([0, n[0, 0]], [0, n[0, 1]], color="0.6", ls="-", lw=1)
axes.text(*n[0] / 2, "n  ", ha="right")
axes.set(xlim=(-0.3, 2.3), ylim=(-0.1, 2), aspect="equal", xlabel="first number", ylabel="second number")
show(figure, alt="From a point on a circle, two dashed arrows dn, and what is left of each: its part along the circle.")

# %% [markdown]
# All normed rows of two numbers lie on this circle. Dashed is what comes in, $dn$; thick is what the norm lets through (but
# for $1/r$): the part along the circle. What points outwards is lost, since no change of $x$ can move $n$ off the circle.
#
# **The road.** (2) is $y = h + f(h)$ twice. If the detour alone would send back $J^\top dy$, then
#
# $$dh = dy + J^\top dy \tag{7}$$
#
# through every block. Multiplied out over many blocks, one term is $dy$ itself: the straight way. In plain numbers, and then
# for the whole model, array by array:

# %%
dh_road = dh_row = 1.0
for _ in range(3):  # f(h) = 0.1 h
    dh_road, dh_row = dh_road + 0.1 * dh_road, 0.1 * dh_row
assert np.isclose(dh_road, 1.1**3)  # (7), three times
print("three layers: with the road", round(dh_road, 6), " without", round(dh_row, 6))


def as_operation(*arrays):
    """The model as a function of all its arrays, as `check_gradients` wants it."""
    changed = with_leaves(small, dict(zip(named(small), arrays, strict=True)))
    (loss, _), backward = model(changed, ids, targets)
    return loss, lambda dloss: tuple(named(backward(dloss)).values())


report = check_gradients(as_operation, *named(small).values())
for name, entry in list(zip(named(small), report.inputs, strict=True))[:6]:
    print(f"{name:26} relative error {entry.error:.0e}")
print("every array right:", report.ok, " how many:", len(report.inputs))

# %% [markdown]
# Every gradient is checked, so training can begin. The text is the one of lesson 0: five dialects, of which the entropy is
# known. Plain gradient descent is slow here; the library's `adamw` gives each weight a step of its own, by how large its
# gradients have been lately.

# %% tags=["trained"]
text = toy.generate(300_000, np.random.default_rng(0)).text
letters = sorted(set(text))
numbers = np.array([letters.index(letter) for letter in text])
LENGTH = 48


def train(steps, norm=rms_norm, rate=1e-2, seed=0):
    rng = np.random.default_rng(seed)
    p = new_transformer(rng, len(letters), LENGTH, width=48, hidden=192, layers=2, dtype=np.float32)
    memory, losses = {name: new_slots("adamw", array) for name, array in named(p).items()}, []
    for step in range(1, steps + 1):
        at = rng.integers(0, len(numbers) - LENGTH, 16)[:, None] + np.arange(LENGTH)
        (loss, _), backward = model(p, numbers[at], numbers[at + 1], norm)
        gradient = named(backward(1.0))
        for name, array in named(p).items():
            lr = rate * min(1, step / 20) * (1 - 0.9 * step / steps)  # warm up, then slow down
            adamw(array, gradient[name], memory[name], lr=lr, step=step)
        losses.append(loss)
    return p, np.array(losses)


trained, losses = train(800)
print(
    f"{sum(array.size for array in named(trained).values()):,} numbers, loss {losses[0]:.2f} → {losses[-20:].mean():.2f}"
)


# %% [markdown]
# What has it learnt? Here is a fresh text, cut into rows. The darker a letter's ground, the more it surprised the model, which
# had seen what stands before it in its row, and one letter more. A ¶ ends a line of the text.

# %%
fresh = toy.generate(1000, np.random.default_rng(7)).text[: 8 * (LENGTH + 1)]
windows = np.array([letters.index(letter) for letter in fresh]).reshape(8, LENGTH + 1)
(_, scores), _ = model(trained, windows[:, :-1], windows[:, 1:])
p, _ = ops.softmax(scores)
surprise = -np.log(p[np.arange(len(p)), windows[:, 1:].ravel()]).reshape(8, LENGTH)

figure, axes = new_figure(height=2.2)
image = axes.imshow(surprise, "Greys", vmin=0, vmax=7, aspect="auto")
for (row, column), value in np.ndenumerate(surprise):
    letter = fresh[row * (LENGTH + 1) + column + 1].replace("\n", "¶")
    ink = "white" if value > 4 else "black"
    axes.text(column, row, letter, ha="center", va="center", family="monospace", fontsize=8, color=ink)
axes.axis("off")
figure.colorbar(image, label="surprise −ln p in nats")
show(figure, alt="A text in five dialects; the first letters of words and numbers are dark, most others are light.")

# %% [markdown]
# Look at what must follow: a bracket that closes, the end of an English word. There the ground is light: the model has found
# the rule. The results of sums follow, too, and so does the second half of a word that is written forwards and then backwards;
# there it is often grey still. Where chance decides, at the start of a made-up word or in the numbers of a sum, it is dark,
# and no model can do better.
#
# Now let it write: it draws a letter by the probabilities, reads what it has written, and draws the next.

# %% tags=["trained"]
rng = np.random.default_rng(1)
written = [letters.index("\n")]
for _ in range(200):
    window = np.array([written[-LENGTH:]])
    (_, scores), _ = model(trained, window, window)  # the loss against these targets means nothing
    p, _ = ops.softmax(scores[-1:].astype(float))
    written.append(rng.choice(len(letters), p=p[0]))
print("".join(letters[number] for number in written))

# %% [markdown]
# The form is mostly right: lines, brackets, words. The sums are mostly wrong, and sentences slip: so few steps are not enough.

# %% [markdown]
# ## Spot the bug
#
# In two machine learning libraries (paiml/aprender, pull request 2196; huggingface/candle, issue 2168) the norms computed the
# right numbers, but the record of operations didn't know where these came from. No gradient passed back through a norm, nor
# to its gain; nothing crashed, and nothing warned. In our form, the mistake is this norm behind the last block. Which arrays of
# the model still learn? How far does the loss fall? Guess before you run the next cell.


# %%
def norm_without_history(x, gain):
    y, _ = rms_norm(x, gain)

    def backward(dy):
        return np.zeros_like(x), np.zeros_like(gain)

    return y, backward


# %% [markdown]
# <details><summary>The bug</summary>
#
# Everything reaches the loss through the last norm, so everything below it gets the gradient 0: blocks, embedding and
# positions stay as random as they began. Only the head learns. That is a linear model on random features of the text; it
# learns how frequent letters are, and something of what follows what. The loss falls, a test that "training lowers the loss"
# passes, and so does any test of the norm's output. A gradient check finds it at once.
#
# </details>

# %% tags=["guess"]
_, cut_losses = train(300, norm_without_history)
_, whole_losses = train(300)
counts = np.bincount(numbers) / len(numbers)
figure, axes = new_figure(height=2.8)
for label, curve in (("right", whole_losses), ("norm without history", cut_losses)):
    axes.plot(np.arange(10, 301, 10), curve.reshape(-1, 10).mean(1), label=label)
axes.axhline(-(counts * np.log(counts)).sum(), color="#4393c3", ls="-.", label="letters by frequency alone")
axes.axhline(toy.entropy_rate(), color="0.5", ls=":", label="entropy of the text")
axes.set(xlabel="step", ylabel="loss in nats per letter", ylim=(0, 5.6))
axes.legend(fontsize=8, ncols=2, loc="upper right")
show(figure, alt="Both losses fall; the right one much further, toward the entropy of the text.")

(_, scores), cut_back = model(small, ids, targets, norm_without_history)
print("arrays that learn:", [name for name, array in named(cut_back(1.0)).items() if array.any()])

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it.
#
# ### 1 · How many numbers?
#
# Count the numbers of a `Transformer` from its shape: `V` letters, `T` positions, width `D`, hidden width `F`, `L` blocks. The
# classes at the beginning of *Code* have all shapes.
#
# <details><summary>Hint</summary>
#
# A block has two gains of `D`, four squares of `D`, and two matrices of `D` times `F`.
#
# </details>


# %% tags=["exercise"]
def count(V, T, D, F, L):
    return ...


# %% tags=["solution"]
def count(V, T, D, F, L):
    return V * D + T * D + L * (2 * D + 4 * D * D + 2 * D * F) + D + D * V


# %% tags=["wrong"]
def count(V, T, D, F, L):
    return V * D + T * D + L * (2 * D + 4 * D * D + 2 * D * F)  # without the last norm and the head


# %% tags=["wrong"]
def count(V, T, D, F, L):
    return V * D + T * D + L * (2 * D + 3 * D * D + 2 * D * F) + D + D * V  # without the output matrix of attention


# %% tags=["check"]
def counted(V, T, D, F, L):
    p = new_transformer(np.random.default_rng(0), V, T, D, F, L)
    return sum(array.size for array in named(p).values())


check_exercise(1, count, 11, 6, 8, 20, 3, like=counted, gradients=False)

# %% [markdown]
# ### 2 · The layer norm
#
# The layer norm first takes the mean of the row off, $c = x - \bar x$, and then does the same as (5) with $c$. The
# forward pass is given, without gains. Write the backward pass.
#
# <details><summary>Hint</summary>
#
# First the way back from `y` to `c`, which is (6). Then from $c_i = x_i - \frac1D \sum_j x_j$ to $x$: each $x_i$ acts on
# its own $c_i$ with the factor 1, and on all of them with $-\frac1D$.
#
# </details>


# %% tags=["exercise"]
def layer_norm(x, eps=1e-5):
    c = x - x.mean(1, keepdims=True)
    r = np.sqrt((c * c).mean(1, keepdims=True) + eps)
    y = c / r

    def backward(dy):
        dc = ...
        dx = ...
        return (dx,)

    return y, backward


# %% tags=["solution"]
def layer_norm(x, eps=1e-5):
    c = x - x.mean(1, keepdims=True)
    r = np.sqrt((c * c).mean(1, keepdims=True) + eps)
    y = c / r

    def backward(dy):
        dc = (dy - y * (dy * y).mean(1, keepdims=True)) / r
        dx = dc - dc.mean(1, keepdims=True)
        return (dx,)

    return y, backward


# %% tags=["wrong"]
def layer_norm(x, eps=1e-5):
    c = x - x.mean(1, keepdims=True)
    r = np.sqrt((c * c).mean(1, keepdims=True) + eps)
    y = c / r

    def backward(dy):
        dc = (dy - y * (dy * y).mean(1, keepdims=True)) / r
        return (dc,)  # the mean is forgotten

    return y, backward


# %% tags=["wrong"]
def layer_norm(x, eps=1e-5):
    c = x - x.mean(1, keepdims=True)
    r = np.sqrt((c * c).mean(1, keepdims=True) + eps)
    y = c / r

    def backward(dy):
        dc = dy / r  # r taken for a constant
        return (dc - dc.mean(1, keepdims=True),)

    return y, backward


# %% tags=["check"]
def reference(x):
    return ops.layer_norm(x, np.ones(x.shape[1]), np.zeros(x.shape[1]))[0], None


check_exercise(2, layer_norm, np.random.default_rng(3).standard_normal((4, 5)), like=reference)

# %% [markdown]
# ### 3 · Both detours at once
#
# Some large models (GPT-J, PaLM) save time with a parallel block: one norm, and both detours start from it,
# $y = h + A(N(h)) + F(N(h))$. Write its backward pass. Here `A` and `F` are both feed-forward layers, so that all stays
# small.
#
# <details><summary>Hint</summary>
#
# `n` is used twice and `h` is used twice. What is used twice gets the sum of two messages.
#
# </details>


# %% tags=["exercise"]
def parallel_block(h, gain, up, down, up2, down2):
    n, norm_back = rms_norm(h, gain)
    a, a_back = feed_forward(n, up, down)
    f, f_back = feed_forward(n, up2, down2)
    y = h + a + f

    def backward(dy):
        dn_a, dup, ddown = a_back(dy)
        dn_f, dup2, ddown2 = f_back(dy)
        dh, dgain = ..., ...
        return dh, dgain, dup, ddown, dup2, ddown2

    return y, backward


# %% tags=["solution"]
def parallel_block(h, gain, up, down, up2, down2):
    n, norm_back = rms_norm(h, gain)
    a, a_back = feed_forward(n, up, down)
    f, f_back = feed_forward(n, up2, down2)
    y = h + a + f

    def backward(dy):
        dn_a, dup, ddown = a_back(dy)
        dn_f, dup2, ddown2 = f_back(dy)
        dh_detour, dgain = norm_back(dn_a + dn_f)
        return dy + dh_detour, dgain, dup, ddown, dup2, ddown2

    return y, backward


# %% tags=["wrong"]
def parallel_block(h, gain, up, down, up2, down2):
    n, norm_back = rms_norm(h, gain)
    a, a_back = feed_forward(n, up, down)
    f, f_back = feed_forward(n, up2, down2)
    y = h + a + f

    def backward(dy):
        dn_a, dup, ddown = a_back(dy)
        dn_f, dup2, ddown2 = f_back(dy)
        dh_detour, dgain = norm_back(dn_a + dn_f)
        return dh_detour, dgain, dup, ddown, dup2, ddown2  # the road is closed

    return y, backward


# %% tags=["wrong"]
def parallel_block(h, gain, up, down, up2, down2):
    n, norm_back = rms_norm(h, gain)
    a, a_back = feed_forward(n, up, down)
    f, f_back = feed_forward(n, up2, down2)
    y = h + a + f

    def backward(dy):
        dn_a, dup, ddown = a_back(dy)
        dn_f, dup2, ddown2 = f_back(dy)
        dh_detour, dgain = norm_back(dn_f)  # the first detour is forgotten
        return dy + dh_detour, dgain, dup, ddown, dup2, ddown2

    return y, backward


# %% tags=["check"]
def parallel_reference(h, gain, up, down, up2, down2):
    n, _ = ops.rms_norm(h, gain)
    return h + np.maximum(0, n @ up) @ down + np.maximum(0, n @ up2) @ down2, None


rng = np.random.default_rng(4)
shapes = [(3, 4), (4,), (4, 5), (5, 4), (4, 5), (5, 4)]
check_exercise(3, parallel_block, *[rng.standard_normal(shape) for shape in shapes], like=parallel_reference)

# %% [markdown]
# ### 4 · One table, used twice
#
# The head needs a column for each letter, the embedding has a row for each. Many models use one table for both: the scores are
# $s = E[\text{ids}]\, E^\top$ if nothing stands between. Write the gradient of the table.
#
# <details><summary>Hint</summary>
#
# `linear(e, table.T)` sends back the gradient of `e` and that of `table.T`, which must be transposed. The gradient of `e` goes
# on through the embedding to the same table.
#
# </details>


# %% tags=["exercise"]
def tied(table, *, ids):
    e, embedding_back = ops.embedding(ids, table)
    s, head_back = ops.linear(e, table.T)

    def backward(ds):
        de, dtransposed = head_back(ds)
        dtable = ...
        return (dtable,)

    return s, backward


# %% tags=["solution"]
def tied(table, *, ids):
    e, embedding_back = ops.embedding(ids, table)
    s, head_back = ops.linear(e, table.T)

    def backward(ds):
        de, dtransposed = head_back(ds)
        (dtable,) = embedding_back(de)
        return (dtable + dtransposed.T,)

    return s, backward


# %% tags=["wrong"]
def tied(table, *, ids):
    e, embedding_back = ops.embedding(ids, table)
    s, head_back = ops.linear(e, table.T)

    def backward(ds):
        de, _ = head_back(ds)
        return embedding_back(de)  # as embedding only

    return s, backward


# %% tags=["wrong"]
def tied(table, *, ids):
    e, embedding_back = ops.embedding(ids, table)
    s, head_back = ops.linear(e, table.T)

    def backward(ds):
        _, dtransposed = head_back(ds)
        return (dtransposed.T,)  # as head only: letters that don't occur would still be right

    return s, backward


# %% tags=["check"]
def tied_reference(table, *, ids):
    return table[ids] @ table.T, None


check_exercise(4, tied, np.random.default_rng(5).standard_normal((5, 3)), like=tied_reference, ids=np.array([1, 4, 1]))

# %% [markdown]
# ## Next
#
# Most of a transformer's numbers stand in its feed-forward layers, and every letter uses all of them. Lesson 8, mixtures of
# experts, puts several in the place of one, and lets each letter use a few.
