# ---
# jupyter:
#   lesson:
#     title: Attention and positions
#     chinese: 注意力与位置
#     builds: causal attention with heads and groups, three ways to say where a word stands, and all their gradients
#     code: [tinymoe/ops/attention.py, tinymoe/ops/positions.py, tinymoe/models/blocks.py]
#     documents: [L5]
#     papers:
#       - "Vaswani et al. 2017, *Attention Is All You Need*, eq. 1 and §3.5"
#       - "Ainslie et al. 2023, *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*"
#       - "Su et al. 2021, *RoFormer: Enhanced Transformer with Rotary Position Embedding*, eq. 34"
#     terms:
#       self-attention: [自注意力, "each position of a text takes what it needs from other positions"]
#       query: [查询, "what a position looks for, a row to be compared with keys"]
#       key: [键, "what a position can be found by, a row to be compared with queries"]
#       value: [值, "what a position gives to those that attend to it"]
#       attention weight: [注意力权重, "the share with which one position's value counts for another"]
#       causal mask: [因果掩码, "the rule that keeps each position from looking at later ones"]
#       attention head: [注意力头, "one of several attentions side by side, each with queries of its own"]
#       grouped-query attention: [分组查询注意力, "attention in which several query heads share one key and value head"]
#       position encoding: [位置编码, "what tells a model where in the text a word stands"]
#       sinusoidal: [正弦, "of positions: told by sines and cosines of several speeds"]
#       rotary: [旋转, "of positions: told by turning queries and keys, further at later ones"]
# ---

# %% [markdown]
# ## You will
#
# build the part of a language model by which words look at each other, tell it where each word stands, and find the
# gradients of both by hand.

# %% [markdown]
# ## You need
#
# [Lesson 1](01_numbers_and_gradients.ipynb), for `y, backward` and the gradient check; from lesson 2 the chain rule, and
# softmax, the $p$ of its formula (5).

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients

# %% [markdown]
# ## Picture
#
# A model reads the letters of *abracadabra* and is to guess the next one. Each letter is by itself a poor guide. It has
# to look back at others: that is **self-attention** (自注意力). The row of numbers that stands for a letter (lesson 3) is
# multiplied by three matrices, which are learned. So every position gets three rows of its own:
#
# - a **query** (查询): what it looks for;
# - a **key** (键): what it can be found by;
# - a **value** (值): what it gives to those who find it.
#
# Where query and key fit, their scalar product is large, and the one position takes more of the other's value. How much
# is the **attention weight** (注意力权重). Here are the weights for three sets of queries and keys, made by hand.


# %%
def weights_of(q, k):  # formulas (1) and (2), which come next
    scores = q @ k.T / np.sqrt(q.shape[1])
    scores[np.triu_indices(len(scores), 1)] = -np.inf  # above the diagonal
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


text = "abracadabra"
place = np.eye(len(text))  # row t says: I am position t
letter = np.array([[a == b for b in "abcdr"] for a in text], float)  # row t says: I am this letter
previous = np.roll(place, -1, axis=1)  # row t says: I look for position t - 1
before = np.vstack([np.zeros(5), letter[:-1]])  # row t says: the letter before me is this
heads = {
    "everything alike": weights_of(0 * place, place),
    "one back": weights_of(20 * previous, place),  # with 20, what fits gets nearly all the weight
    "what came after\nthis letter": weights_of(20 * letter, before),
}

# %%
figure, axes = new_figure(1, 3, height=2.9)
for ax, (name, weights) in zip(axes, heads.items(), strict=True):
    ax.imshow(np.where(np.tri(11) > 0, weights, np.nan), "cividis_r", vmin=0, vmax=1)  # nan is left white
    ax.set(title=name, xlabel="key at", xticks=range(11), xticklabels=text, yticks=range(11), yticklabels=text)
    ax.set_ylabel("query at")
    ax.grid(visible=False)
show(
    figure,
    alt="Three triangles of weights: even rows, a line below the diagonal, and spots after earlier equal letters.",
)

# %% [markdown]
# Each row is one query; its weights add up to 1. The darkest is 1, the lightest 0. White is forbidden: nobody looks at
# what comes later, or guessing the next letter would be no guess.
#
# The third picture is clever, and trained models do find it; it is called an induction head. The query says "I am an
# *a*"; the key says "the letter *before* me is an *a*". So each *a* finds what came after the earlier ones. (A letter
# that is new finds nothing. But weights must add up to 1, so it looks at everything alike.) If the value is the letter
# itself, the weights are the guess. Here it is for what follows the last *a*:

# %%
guess = heads["what came after\nthis letter"][-1] @ letter
print({name: float(share.round(3)) for name, share in zip("abcdr", guess, strict=True)})

# %% [markdown]
# So far *b* came twice after *a*, *c* and *d* once. Nobody counted: a weighted mean did.

# %% [markdown]
# ## Formula
#
# There are $T$ positions, counted from 0; $q_i$, $k_i$ and $v_i$ are the query, key and value of position $i$, rows of
# $P$ numbers.
#
# $$s_{ij} = \frac{q_i \cdot k_j}{\sqrt P} \;\text{ for } j \le i, \qquad s_{ij} = -\infty \;\text{ for } j > i \tag{1}$$
#
# $$a_{ij} = \frac{e^{s_{ij}}}{\sum_m e^{s_{im}}} \tag{2}$$
#
# $$y_i = \sum_j a_{ij}\, v_j \tag{3}$$
#
# The $-\infty$ is the **causal mask** (因果掩码): $e^{-\infty} = 0$, so later positions get no weight. (2) is the softmax
# of each row.
#
# **Heads.** One set of queries looks in one way only, so a model has $H$ of them side by side, each an **attention head**
# (注意力头) with its own queries. Keys and values may be shared: with $G$ of them, $G$ a divisor of $H$, query head $h$
# reads key and value head (counted from 0)
#
# $$g(h) = \lfloor h\, G / H \rfloor \tag{4}$$
#
# $G = H$ shares nothing, $G = 1$ shares everything, and between them it is called **grouped-query attention**
# (分组查询注意力). A model that writes text keeps all earlier keys and values in memory; with fewer heads of them it
# keeps less.
#
# **Positions.** (1) to (3) never ask how far $j$ is from $i$. So somebody must say where a word stands: the
# **position encoding** (位置编码). Three ways are common. Two add a row of a table to every word, $x_t + p_t$. In the
# learned way the table is made of weights. In the **sinusoidal** (正弦) way it is fixed. For $D$ columns and
# $i = 0, 1, \dots$:
#
# $$p_{t,\,2i} = \sin\frac{t}{b^{2i/D}}, \qquad p_{t,\,2i+1} = \cos\frac{t}{b^{2i/D}}, \qquad b = 10\,000 \tag{5}$$
#
# The third way is **rotary** (旋转). It takes the numbers of a query or key in pairs $(u, w)$ and turns pair $i$ by an
# angle that grows with the position $t$:
#
# $$\begin{pmatrix} u' \\ w' \end{pmatrix} =
# \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{pmatrix}
# \begin{pmatrix} u \\ w \end{pmatrix}, \qquad \theta = t\, b^{-2i/P} \tag{6}$$
#
# Call this whole turn $R_t$. Turning two arrows by the same angle leaves their scalar product as it is. So turn both back
# by $t$: a score depends on how far apart two words are, and not on where in the text they stand:
#
# $$(R_s\, q) \cdot (R_t\, k) = (R_{s-t}\, q) \cdot k \tag{7}$$
#
# *Where it stands.* The article cited as 《稀疏专家模型》 names 自注意力机制 and 位置编码 in §2.1 and draws them in §2.3,
# without a formula ([L5](DOCUMENTS.md)). (1) to (3) are eq. 1 of Vaswani et al. 2017, (5) is its §3.5; (4) is Ainslie et
# al. 2023; (6) is eq. 34 of Su et al. 2021, but for which numbers make a pair: theirs are neighbours, ours are halves
# apart, $x_i$ and $x_{i+P/2}$.

# %% [markdown]
# ## By hand
#
# Two positions and $P = 1$, so queries, keys and values are plain numbers: $q = (1, 1)$, $k = (0, \ln 3)$, $v = (4, 8)$.
#
# - Position 0 sees only itself: its weight is 1, and $y_0 = 4$.
# - Position 1 sees both. Scores: $1 \cdot 0 = 0$ and $1 \cdot \ln 3$. Then $e^0 = 1$ and $e^{\ln 3} = 3$, together 4. Weights
#   $\frac14$ and $\frac34$. So $y_1 = \frac14 \cdot 4 + \frac34 \cdot 8 = 7$.
# - Without the mask, position 0 would find 7 as well. It would have read the future.
#
# Rotary, with one pair ($P = 2$, so $\theta = t$): $(1, 0)$ at position $t$ becomes $(\cos t, \sin t)$. A query $(1, 0)$
# at 5 and a key $(1, 0)$ at 3 have the product $\cos 5 \cos 3 + \sin 5 \sin 3 = \cos(5 - 3) = \cos 2$. Only the distance
# is left.

# %% [markdown]
# ## Code
#
# One head, in a loop. The mask needs no $-\infty$: position $i$ just doesn't ask beyond itself.


# %%
def attend(q, k, v):
    y = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        scores = np.array([q[i] @ k[j] / np.sqrt(q.shape[1]) for j in range(i + 1)])  # (1)
        weights = np.exp(scores - scores.max())
        weights = weights / weights.sum()  # (2)
        for j in range(i + 1):
            y[i] += weights[j] * v[j]  # (3)
    return y


one = np.array([[1.0], [1.0]]), np.array([[0.0], [np.log(3)]]), np.array([[4.0], [8.0]])
print("y on paper 4 and 7, in the loop", attend(*one)[:, 0])

# %% [markdown]
# The maximum is taken off as in lesson 2.
#
# **Why $\sqrt P$?** Take queries and keys of random numbers with spread (standard deviation) 1. Their scalar product is
# a sum of $P$ such terms. For independent terms the *squares* of the spreads add up, so its spread is $\sqrt P$.
# Without the division, wide heads have huge scores, and the softmax gives nearly all to one key. Then small changes of
# the scores change nothing, and little is learned.

# %%
rng = np.random.default_rng(0)
for P in (4, 64, 1024):
    q, k = rng.standard_normal((2000, P)), rng.standard_normal((16, P))  # 2000 queries look at 16 keys
    raw = q @ k.T
    raw_best, best = (ops.softmax(s)[0].max(1).mean() for s in (raw, raw / np.sqrt(P)))
    print(f"P = {P:4}   spread of q·k {raw.std():5.1f}   largest weight: {raw_best:.2f} undivided, {best:.2f} divided")


# %% [markdown]
# **Heads**, with (4): a loop around the loop. All heads of a sequence lie in one array: $B$ sequences, $H$ or $G$ heads,
# $T$ positions, $P$ numbers.


# %%
def attend_all(q, k, v):
    (B, H), G = q.shape[:2], k.shape[1]
    y = np.zeros(q.shape)
    for b in range(B):
        for h in range(H):
            g = h * G // H  # (4)
            y[b, h] = attend(q[b, h], k[b, g], v[b, g])
    return y


q = rng.standard_normal((2, 4, 6, 8))  # B = 2, H = 4, T = 6, P = 8
k, v = rng.standard_normal((2, 2, 2, 6, 8))  # two of (B, G, T, P), G = 2: heads 0 and 1 share, and so do 2 and 3
later = k.copy()
later[:, :, 4:] += 1  # other keys at positions 4 and 5
same = (attend_all(q, k, v) == attend_all(q, later, v)).all((0, 1, 3))
print("same y at each position when keys 4 and 5 change:", same.tolist())

# %% [markdown]
# The mask works: positions before 4 don't notice.
#
# **Without positions, order is lost.** Take the mask away. Shuffle keys and values together: every query finds the same
# pairs, and takes the same mean.

# %%
order = rng.permutation(6)
y, _ = ops.full_attention(q, k, v)  # the same without a mask
shuffled, _ = ops.full_attention(q, k[:, :, order], v[:, :, order])
print("order of the words:", order.tolist(), "  does any y change?", not np.allclose(y, shuffled))

# %% [markdown]
# To such a model "dog bites man" and "man bites dog" are the same. (The mask tells a little: how many came before.) So
# the position is added. First the sinusoidal table, (5), in a loop.


# %%
def sine_table(length, width, base=10_000.0):
    table = np.zeros((length, width))
    for t in range(length):
        for i in range(width // 2):
            angle = t / base ** (2 * i / width)
            table[t, 2 * i], table[t, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


table = sine_table(64, 32)
figure, axes = new_figure(1, 2, height=3.0)
for ax, values in zip(axes, (table, table @ table.T), strict=True):
    image = ax.imshow(values, "cividis", aspect="auto")
    figure.colorbar(image, ax=ax)
    ax.grid(visible=False)
axes[0].set(title="the table", xlabel="column", ylabel="position t")
axes[1].set(title="scalar product of two rows", xlabel="position s", ylabel="position t")
show(
    figure,
    alt="Left: stripes, fast in the first columns, slow in the last. Right: a bright diagonal between parallel stripes.",
)

# %% [markdown]
# Left: each pair of columns is a clock, the two numbers being where its hand points. The first clocks run fast, the
# last hardly move. So together they tell the time both finely and over long stretches. Right: two rows fit best where
# $s = t$, and less, but in waves, further off. Along each diagonal nothing changes: the product depends on $s - t$
# alone, since each clock adds $\sin s \sin t + \cos s \cos t = \cos(s - t)$, with $s$ and $t$ at its own speed.
#
# Rotary positions go one step further. They don't add the clock to the word: they turn the query and the key by it.


# %%
def turn(x, t, base=10_000.0):  # x: one query or key, P numbers
    half = len(x) // 2
    y = np.zeros(len(x))
    for i in range(half):
        angle = t * base ** (-2 * i / len(x))  # (6)
        u, w = x[i], x[i + half]
        y[i], y[i + half] = u * np.cos(angle) - w * np.sin(angle), w * np.cos(angle) + u * np.sin(angle)
    return y


figure, axes = new_figure(1, 2, height=3.4)
for i, ax in enumerate(axes):
    for t in range(5):
        turned = turn(np.array([1.0, 1, 0, 0]), t, base=16.0)  # two pairs, both (1, 0); a small base
        u, w = turned[i], turned[i + 2]
        ax.annotate("", (u, w), (0, 0), arrowprops={"arrowstyle": "->", "color": str(0.12 * t)})
        ax.annotate(f"t = {t}", (1.3 * u, 1.2 * w), ha="center", va="center")
    ax.set(xlim=(-1.6, 1.6), ylim=(-1.4, 1.4), aspect="equal", xlabel="first number", ylabel="second number")
    ax.set_title(f"pair {i}: {'a fast' if i == 0 else 'a slow'} clock")
show(figure, alt="An arrow at five positions: pair 0 turns by one radian at each step, pair 1 by a quarter of that.")

# %% [markdown]
# Now (7). A query and a key of equal content meet at many distances, once early in the text and once far on. The curves
# coincide. On the whole, equal words attend to each other best when they are near.

# %%
content, distances = np.ones(64) / 8, np.arange(0, 61)
figure, ax = new_figure(height=2.8)
for start, style in ((0, {"color": "0.75", "linewidth": 6}), (1000, {"color": "black", "linestyle": "--"})):
    key = turn(content, start)
    ax.plot(distances, [turn(content, start + d) @ key for d in distances], label=f"key at {start}", **style)
ax.set(xlabel="distance from key to query", ylabel="scalar product")
ax.legend()
show(figure, alt="Two curves lie on each other: the product falls from 1, with waves, as the distance grows.")

a, b = rng.standard_normal((2, 8))
s, t = 9, 4
print("(7):", turn(a, s) @ turn(b, t), turn(a, s - t) @ b)
assert np.isclose(turn(a, s) @ turn(b, t), turn(a, s - t) @ b, rtol=1e-10)

# %% [markdown]
# ## The same in tinymoe
#
# `causal_attention` does (1) to (4) with three matrix products for all heads at once. `sinusoidal` and `rotary` are (5)
# and (6); `rotary` wants the positions before the heads, `(B, T, H, P)`.

# %%
y, attention_back = ops.causal_attention(q, k, v)
assert np.allclose(y, attend_all(q, k, v), rtol=1e-12, atol=1e-14)

assert np.allclose(ops.sinusoidal(64, 32), table, rtol=1e-12, atol=1e-14)

x = rng.standard_normal((2, 6, 4, 8))  # B, T, H, P
turned, rotary_back = ops.rotary(x, np.arange(6))
for b, t, h in np.ndindex(2, 6, 4):
    assert np.allclose(turned[b, t, h], turn(x[b, t, h], t), rtol=1e-12, atol=1e-14)
print("attention, the sine table and the rotation are equal to the loops")

print(check_gradients(ops.causal_attention, q, k, v))
print(check_gradients(ops.rotary, x, np.arange(6)))

# %% [markdown]
# In a model, $q = x W_q$ and so on; queries and keys are turned; then they attend; and a fourth matrix mixes what the
# heads return. See `attention` in [`models/blocks.py`](../tinymoe/models/blocks.py).

# %% [markdown]
# ## Backward by hand
#
# One head. We are given $dy_i$, how much the loss changes per unit of $y_i$. Go back through (3), (2), (1).
#
# 1. In (3), $v_j$ reaches every $y_i$ with the factor $a_{ij}$, and $a_{ij}$ reaches $y_i$ with the factor $v_j$:
#    $$dv_j = \sum_i a_{ij}\, dy_i, \qquad da_{ij} = dy_i \cdot v_j \tag{8}$$
# 2. In (2), $s_{ij}$ is in the numerator of $a_{ij}$ and in the denominator of every weight of its row. So $a_{im}$
#    changes at the rate $a_{im}(1[m{=}j] - a_{ij})$, where $1[\cdot]$ is 1 if the condition holds, else 0. Times
#    $da_{im}$, and added up over $m$, this is
#    $$ds_{ij} = a_{ij}\,(da_{ij} - \delta_i), \qquad \delta_i = \sum_m a_{im}\, da_{im} \tag{9}$$
#    Training goes downhill: a key whose $da_{ij}$ is below the mean $\delta_i$ gains weight, one above it loses. And where
#    $a_{ij} = 0$, at the mask, the gradient is 0.
# 3. (1) is a product:
#    $$dq_i = \frac{1}{\sqrt P} \sum_j ds_{ij}\, k_j, \qquad dk_j = \frac{1}{\sqrt P} \sum_i ds_{ij}\, q_i \tag{10}$$
#
# One gift: $\delta_i = \sum_j a_{ij}\,(dy_i \cdot v_j) = dy_i \cdot \sum_j a_{ij} v_j = dy_i \cdot y_i$. The mean over
# all keys is one scalar product. Fast programs for graphics cards, such as FlashAttention, use it.
#
# On paper, with the numbers from above and $dy = (0, 1)$: $dv = (\frac14, \frac34)$. For position 1, $da = (4, 8)$ and
# $\delta = 1 \cdot 7$, so $ds = \left(\frac14 (4 - 7), \frac34 (8 - 7)\right) = (-\frac34, \frac34)$, which is $dk$ too
# since $q_1 = 1$. And $dq_1 = \frac34 \ln 3$. In words: the second value is above the mean, so more weight on it raises
# $y$, and the loss with it. A step downhill looks less at it.


# %%
def attention(q, k, v):
    a = weights_of(q, k)
    y = a @ v

    def backward(dy):
        dv = a.T @ dy  # (8)
        da = dy @ v.T
        delta = (dy * y).sum(1, keepdims=True)
        ds = a * (da - delta)  # (9)
        dq = ds @ k / np.sqrt(q.shape[1])  # (10)
        dk = ds.T @ q / np.sqrt(q.shape[1])
        return dq, dk, dv

    return y, backward


y, backward = attention(*one)
for name, gradient in zip("qkv", backward(np.array([[0.0], [1.0]])), strict=True):
    print(f"d{name} =", gradient[:, 0])
print("3/4 ln 3 =", np.log(3) * 3 / 4)
print(check_gradients(attention, q[0, 0], k[0, 0], v[0, 0]))

# %% [markdown]
# **Shared keys.** A key that two query heads read is told by both how to change. What they say adds up: whatever is used
# twice gets the sum of two gradients.

# %%
dy = rng.standard_normal(q.shape)
dq, dk, dv = attention_back(dy)  # the library's
dk_by_hand = np.zeros(k.shape)
for b, h in np.ndindex(2, 4):
    g = h * 2 // 4
    _, back = attention(q[b, h], k[b, g], v[b, g])
    one_dq, one_dk, _ = back(dy[b, h])
    assert np.allclose(dq[b, h], one_dq, rtol=1e-10, atol=1e-14)
    dk_by_hand[b, g] += one_dk
assert np.allclose(dk, dk_by_hand, rtol=1e-10, atol=1e-14)
print("gradients of grouped heads: equal")

# %% [markdown]
# **Positions.** The matrix of the rotation in (6), transposed, is the rotation by $-\theta$. So the gradient is turned
# *back*: $dx = R_{-t}\, dy$. For an added table, $y_{bt} = x_{bt} + p_t$ in text $b$, there is nothing to turn:
# $dx = dy$, and a learned row hears all texts at once, $dp_t = \sum_b dy_{bt}$.

# %%
dturned = rng.standard_normal(x.shape)
(dx,) = rotary_back(dturned)
for b, t, h in np.ndindex(2, 6, 4):
    assert np.allclose(dx[b, t, h], turn(dturned[b, t, h], -t), rtol=1e-12, atol=1e-14)

words, learned = rng.standard_normal((3, 4, 5)), rng.standard_normal((7, 5))  # 3 texts, 4 positions; a table for 7
_, add_back = ops.add_positions(words, learned)
dsum = rng.standard_normal(words.shape)
dwords, dlearned = add_back(dsum)
assert np.array_equal(dwords, dsum)
assert np.allclose(dlearned[:4], dsum.sum(0))
print("rows of the table that were taught something:", dlearned.any(1).tolist())

# %% [markdown]
# The last rows learned nothing, because no text was that long. A learned table says nothing about positions that training
# never reached. Sines and rotations exist for every position; whether a model makes good use of them there is another
# question.

# %% [markdown]
# ## Spot the bug
#
# makeMoE (AviSoori1x/makeMoE, file `makeMoE.py`) is a well-known sparse mixture of experts to learn from. In it, a row
# of the text has 128 numbers, and each of its 8 heads is 16 wide. This is its attention head, in NumPy, for one text,
# without dropout (random zeros in training); the comments on shapes are the original's, but for the batch. One line is
# wrong, and the comments help to hide it.


# %% tags=["guess"]
def head(x, w_key, w_query, w_value):
    T, C = x.shape
    k = x @ w_key  # (T,C)
    q = x @ w_query  # (T,C)
    wei = q @ k.T * C**-0.5  # (T, C) @ (C, T) -> (T, T)
    wei[np.triu_indices(T, 1)] = -np.inf
    wei, softmax_back = ops.softmax(wei)
    v = x @ w_value  # (T,C)
    y = wei @ v  # (T, T) @ (T, C) -> (T, C)

    def backward(dy):
        dwei, dv = dy @ v.T, wei.T @ dy
        ds = softmax_back(dwei)[0] * C**-0.5
        dq, dk = ds @ k, ds.T @ q
        return dk @ w_key.T + dq @ w_query.T + dv @ w_value.T, x.T @ dk, x.T @ dq, x.T @ dv

    return y, backward


rows, matrices = rng.standard_normal((6, 128)), rng.standard_normal((3, 128, 16)) / np.sqrt(128)
print(check_gradients(head, rows, *matrices))

# %% [markdown]
# <details><summary>The bug</summary>
#
# `C` is the width of `x`, 128. Queries and keys are $P = 16$ wide, whatever the comments say. The scores are divided by
# $\sqrt{128}$ in place of $\sqrt{16}$: they are too small by $\sqrt H$, where $H = 8$ is the number of heads. It must be
# `k.shape[-1] ** -0.5`.
#
# </details>
#
# The gradient check finds nothing! Each gradient is right, of the wrong function. It trains, too, since the matrices can
# grow to make up for it; but it begins with attention that is nearly even. What finds it is a comparison with another
# implementation.

# %% tags=["guess"]
k, q, v = (rows @ m for m in matrices)
found, _ = head(rows, *matrices)
expected = ops.causal_attention(q[None, None], k[None, None], v[None, None])[0][0, 0]
print("largest difference from the library:", np.abs(found - expected).max().round(3))
scores = q @ k.T
print(
    "spread of the scores: as found there",
    (scores / np.sqrt(128)).std().round(2),
    " by (1)",
    (scores / 4).std().round(2),
)

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it.
#
# ### 1 · The mask
#
# From scores $s$, `(T, T)`, make weights: (2) with the causal mask. Then the backward pass, (9). `ops.softmax` returns
# two things: the softmax of each row, and its backward.
#
# <details><summary>Hint</summary>
#
# `allowed` is True where $j \le i$, and `np.where(allowed, s, -np.inf)` puts the mask in. Write (9), or use the backward
# that you have. Where $a_{ij} = 0$ the gradient becomes 0 by itself.
#
# </details>


# %% tags=["exercise"]
def causal_weights(s):
    allowed = np.tril(np.ones(s.shape, bool))
    a = ...

    def backward(da):
        return (...,)

    return a, backward


# %% tags=["solution"]
def causal_weights(s):
    allowed = np.tril(np.ones(s.shape, bool))
    a, softmax_back = ops.softmax(np.where(allowed, s, -np.inf))

    def backward(da):
        return softmax_back(da)

    return a, backward


# %% tags=["wrong"]
def causal_weights(s):
    allowed = np.tril(np.ones(s.shape, bool))
    a, softmax_back = ops.softmax(s * allowed)  # a score of 0 is not a weight of 0

    def backward(da):
        return (softmax_back(da)[0] * allowed,)

    return a, backward


# %% tags=["wrong"]
def causal_weights(s):
    allowed = np.tril(np.ones(s.shape, bool))
    p, softmax_back = ops.softmax(s)  # masked afterwards: the rows don't add up to 1, and the future is in their sum
    a = p * allowed

    def backward(da):
        return softmax_back(da * allowed)

    return a, backward


# %% tags=["wrong"]
def causal_weights(s):
    allowed = np.tril(np.ones(s.shape, bool))
    a, _ = ops.softmax(np.where(allowed, s, -np.inf))

    def backward(da):
        return (a * da,)  # without δ

    return a, backward


# %% tags=["check"]
def reference(s):
    e = np.tril(np.exp(s))
    return e / e.sum(1, keepdims=True), None


check_exercise(1, causal_weights, np.random.default_rng(1).standard_normal((5, 5)), like=reference)

# %% [markdown]
# ### 2 · Shared keys
#
# Give each of $H$ query heads its key head by (4): from $k$, `(G, T, P)`, make `(H, T, P)`. Then backward.
#
# <details><summary>Hint</summary>
#
# The heads of a group are neighbours: for $G = 2$ and $H = 6$ you need 0, 0, 0, 1, 1, 1. Look at `np.repeat` and `np.tile`
# and take care which does that. Backward, `dy.reshape(G, H // G, T, P)` has the heads of a group along axis 1.
#
# </details>


# %% tags=["exercise"]
def share(k, heads):
    y = ...

    def backward(dy):
        dk = ...
        return (dk,)

    return y, backward


# %% tags=["solution"]
def share(k, heads):
    G, T, P = k.shape
    y = np.repeat(k, heads // G, axis=0)

    def backward(dy):
        dk = dy.reshape(G, heads // G, T, P).sum(1)
        return (dk,)

    return y, backward


# %% tags=["wrong"]
def share(k, heads):
    G, T, P = k.shape
    y = np.tile(k, (heads // G, 1, 1))  # 0, 1, 0, 1, 0, 1: all shapes fit, and all heads but two read the wrong key

    def backward(dy):
        dk = dy.reshape(heads // G, G, T, P).sum(0)
        return (dk,)

    return y, backward


# %% tags=["wrong"]
def share(k, heads):
    G, T, P = k.shape
    y = np.repeat(k, heads // G, axis=0)

    def backward(dy):
        dk = dy.reshape(G, heads // G, T, P).mean(1)  # the gradients add up; this is their mean
        return (dk,)

    return y, backward


# %% tags=["check"]
def reference(k, heads):
    return np.stack([k[h * len(k) // heads] for h in range(heads)]), None


check_exercise(2, share, np.random.default_rng(2).standard_normal((2, 4, 3)), like=reference, heads=6)

# %% [markdown]
# ### 3 · Rotary positions
#
# Turn all rows of $x$, `(T, P)`, row $t$ by the angles of (6), without a loop. Then turn the gradient back.
#
# <details><summary>Hint</summary>
#
# Call the left half of the columns $u$ and the right half $w$. The angles are an array `(T, P/2)`: positions in a
# column times powers of the base in a row. Put the halves together with `np.concatenate([…, …], axis=1)`. For the way
# back write $-\theta$ for $\theta$: the cosine stays, the sine changes its sign.
#
# </details>


# %% tags=["exercise"]
def my_rotary(x, base=10_000.0):
    angles = ...
    y = ...

    def backward(dy):
        dx = ...
        return (dx,)

    return y, backward


# %% tags=["solution"]
def my_rotary(x, base=10_000.0):
    T, P = x.shape
    angles = np.arange(T)[:, None] * base ** (-2 * np.arange(P // 2) / P)

    def turned(pairs, sign):
        u, w = np.split(pairs, 2, axis=1)
        cos, sin = np.cos(angles), sign * np.sin(angles)
        return np.concatenate([u * cos - w * sin, w * cos + u * sin], axis=1)

    y = turned(x, 1)

    def backward(dy):
        return (turned(dy, -1),)

    return y, backward


# %% tags=["wrong"]
def my_rotary(x, base=10_000.0):
    T, P = x.shape
    angles = np.arange(T)[:, None] * base ** (-2 * np.arange(P // 2) / P)
    cos, sin = np.cos(angles), np.sin(angles)

    def turned(pairs):
        u, w = np.split(pairs, 2, axis=1)
        return np.concatenate([u * cos - w * sin, w * cos + u * sin], axis=1)

    y = turned(x)

    def backward(dy):
        return (turned(dy),)  # turned on, not back

    return y, backward


# %% tags=["wrong"]
def my_rotary(x, base=10_000.0):
    T, P = x.shape
    angles = np.arange(T)[:, None] * base ** (-2 * np.arange(P // 2) / P)
    cos, sin = np.cos(angles), np.sin(angles)
    y = np.empty(x.shape)
    y[:, ::2] = (
        x[:, ::2] * cos - x[:, 1::2] * sin
    )  # neighbours are pairs, as in the paper: another layout of the columns
    y[:, 1::2] = x[:, 1::2] * cos + x[:, ::2] * sin

    def backward(dy):
        dx = np.empty(dy.shape)
        dx[:, ::2] = dy[:, ::2] * cos + dy[:, 1::2] * sin
        dx[:, 1::2] = dy[:, 1::2] * cos - dy[:, ::2] * sin
        return (dx,)

    return y, backward


# %% tags=["check"]
def reference(x):
    return ops.rotary(x[None, :, None], np.arange(len(x)))[0][0, :, 0], None


check_exercise(3, my_rotary, np.random.default_rng(3).standard_normal((5, 6)), like=reference)

# %% [markdown]
# A common mistake is to pair neighbours where halves are meant, or the reverse. Each is a good position encoding, and
# neighbours are the paper's own. But weights trained with the one are of no use with the other, and nothing crashes.
#
# ### 4 · A window
#
# For long texts, let each position see only itself and the `window - 1` before it. A program that leaves the masked
# places out then has work that grows with $T$, not with $T^2$. Only the mask changes, and the backward pass of the
# softmax takes care of the rest.
#
# <details><summary>Hint</summary>
#
# With `i = np.arange(T)[:, None]` and `j = np.arange(T)`, comparisons of `i - j` with numbers give an array `(T, T)` of
# truth values. You need two of them, joined by `&`, for `np.where`.
#
# </details>


# %% tags=["exercise"]
def window_weights(s, window):
    i, j = np.arange(len(s))[:, None], np.arange(len(s))
    mask = ...  # 0 where i may look at j, -np.inf elsewhere
    return ops.softmax(s + mask)


# %% tags=["solution"]
def window_weights(s, window):
    i, j = np.arange(len(s))[:, None], np.arange(len(s))
    mask = np.where((j <= i) & (i - j < window), 0, -np.inf)
    return ops.softmax(s + mask)


# %% tags=["wrong"]
def window_weights(s, window):
    i, j = np.arange(len(s))[:, None], np.arange(len(s))
    mask = np.where((j <= i) & (i - j <= window), 0, -np.inf)  # one too many
    return ops.softmax(s + mask)


# %% tags=["wrong"]
def window_weights(s, window):
    i, j = np.arange(len(s))[:, None], np.arange(len(s))
    mask = np.where(np.abs(i - j) < window, 0, -np.inf)  # the future as well
    return ops.softmax(s + mask)


# %% tags=["check"]
def reference(s, window):
    a = np.zeros(s.shape)
    for i in range(len(s)):
        first = max(0, i - window + 1)
        a[i, first : i + 1] = ops.softmax(s[i, first : i + 1])[0]
    return a, None


check_exercise(4, window_weights, np.random.default_rng(4).standard_normal((6, 6)), like=reference, window=3)

# %% [markdown]
# ## Next
#
# Words can now look at each other. Lesson 7, the transformer by hand, puts attention together with norms and
# feed-forward layers into a model that learns a text.
