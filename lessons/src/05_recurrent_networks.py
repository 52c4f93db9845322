# ---
# jupyter:
#   lesson:
#     title: Recurrent networks
#     chinese: 循环神经网络
#     builds: a simple network, a GRU and an LSTM that go backward through time, and a picture of how far a gradient reaches
#     code: [tinymoe/ops/recurrent.py, tinymoe/models/long_text.py, tinymoe/documents/lstm_experts.py]
#     documents: [L6, L8, L9]
#     papers:
#       - "Elman 1990, *Finding Structure in Time*"
#       - "Hochreiter & Schmidhuber 1997, *Long Short-Term Memory*"
#       - "Gers, Schmidhuber & Cummins 2000, *Learning to Forget: Continual Prediction with LSTM*"
#       - "Cho et al. 2014, *Learning Phrase Representations using RNN Encoder–Decoder*, eq. 5–8"
#     terms:
#       recurrent network: [循环神经网络, "a network that reads a text step by step and carries a state along"]
#       hidden state: [隐藏状态, "the numbers in which a recurrent network keeps what it has read"]
#       gated recurrent unit: [门控循环单元, "a recurrent network with two gates and one state"]
#       long short-term memory: [长短时记忆网络, "a recurrent network with three gates and a cell that is added to"]
#       forget gate: [遗忘门, "the gate that says how much of the old cell stays"]
#       back-propagation through time: [随时间反向传播, "the backward pass of a recurrent network, from last position to first"]
#       vanishing gradient: [梯度消失, "a gradient that shrinks exponentially on its way back"]
#       chunk: [分块, "one of the pieces into which a long text is cut"]
#       expert choice: [专家选择, "each expert takes the tokens that fit it best, so all are equally busy"]
# ---

# %% [markdown]
# ## You will
#
# build three networks that read a text word by word, send a gradient back through time by hand, and measure where it
# dies.

# %% [markdown]
# ## You need
#
# [Lesson 1](01_numbers_and_gradients.ipynb), for `y, backward` and the gradient check, and the chain rule of lesson 2.

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients

# %% [markdown]
# ## Picture
#
# A **recurrent network** (循环神经网络) reads a text one word at a time. It carries a **hidden state** (隐藏状态) along:
# a row of numbers, always of the same size, that has to hold all it remembers. At each position the new state is made of
# the word and the old state. A text of any length fits, and the work for a word is always the same.
#
# What does such a state forget? Take a state of one number, $h$. Let it hear a single pulse, $x = 1$, and then silence.
# In a simple network the old state is multiplied by a weight $u$ and squeezed by tanh, an S-shaped curve that turns any
# number into one between −1 and 1. In an LSTM, the third network below, the state is called cell; it is multiplied by a
# gate $f$, a number between 0 and 1, and nothing else.

# %%
pulse = np.eye(1, 40)[0]  # 1, then zeros


def state_over_time(update):
    states, h = [], 0.0
    for x in pulse:
        h = update(x, h)
        states.append(h)
    return states


figure, ax = new_figure()
ax.plot(state_over_time(lambda x, h: np.tanh(x + 0.5 * h)), label="simple, u = 0.5")
ax.plot(state_over_time(lambda x, h: np.tanh(x + 0.9 * h)), label="simple, u = 0.9")
ax.plot(state_over_time(lambda x, c: x + 0.9 * c), label="cell, f = 0.9")
ax.plot(state_over_time(lambda x, c: x + 0.99 * c), label="cell, f = 0.99")
ax.set(xlabel="positions since the pulse", ylabel="state: what is left of it")
ax.legend()
show(
    figure,
    alt="Four falling curves: the simple network with u = 0.9 falls faster than the cell with f = 0.9; f = 0.99 stays up.",
)

# %% [markdown]
# With the same factor the squeezed state falls faster. And $u$ is one weight for all texts, while the network sets $f$
# anew at each position. What is forgotten going forward can't be learned going backward: the same factors come up
# again. That is the subject of this lesson.

# %% [markdown]
# ## Formula
#
# Words are rows $x_t$ of $D$ numbers, states $h_t$ are rows of $H$ numbers, $t = 1, \dots, T$; $h_0$ is given, zeros at
# the start of a text. $W$, `(D, H)`, and $U$, `(H, H)`, are weights and $b$ is a bias. The slope of tanh is
# $1 - \tanh^2$: 1 at 0, and smaller everywhere else. The simple network:
#
# $$h_t = \tanh(x_t W + h_{t-1} U + b) \tag{1}$$
#
# The other two have gates: numbers between 0 and 1 made by the logistic function $\sigma$, one for each number of the
# state. Each gate has $W$, $U$ and $b$ of its own, marked by an index; $\odot$ multiplies number by number. In a
# **gated recurrent unit** (门控循环单元, GRU) the gate $z$ says how much of the old state stays, and $r$ how much of it
# the new one, $n$, sees; $b'$ is one more bias:
#
# $$r = \sigma(x_t W_r + h_{t-1} U_r + b_r), \quad z = \sigma(x_t W_z + h_{t-1} U_z + b_z), \quad
# n = \tanh(x_t W_n + b_n + r \odot (h_{t-1} U_n + b')) \tag{2}$$
#
# $$h_t = (1 - z) \odot n + z \odot h_{t-1} \tag{3}$$
#
# A **long short-term memory** (长短时记忆网络, LSTM) has a second state, the cell $c_t$. The input gate $i$ says what
# is added to it, the **forget gate** (遗忘门) $f$ what stays in it, the output gate $o$ what is shown. The dot stands
# for $i$, $f$ or $o$:
#
# $$i, f, o = \sigma(x_t W_\bullet + h_{t-1} U_\bullet + b_\bullet), \qquad g = \tanh(x_t W_g + h_{t-1} U_g + b_g) \tag{4}$$
#
# $$c_t = f \odot c_{t-1} + i \odot g, \qquad h_t = o \odot \tanh(c_t) \tag{5}$$
#
# *Where it stands.* The untitled document on the sparse gate names recurrent networks in §2.1.
# 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 names all three in §2, and the **vanishing gradient** (梯度消失) as
# the reason for the other two, without a formula ([L6](DOCUMENTS.md)). (1) is Elman 1990; (4) and (5) are Hochreiter &
# Schmidhuber 1997 with the forget gate of Gers et al. 2000. (3) is Cho et al. 2014; in their (2), $r$ acts before the
# product, $(r \odot h_{t-1}) U_n$. Ours is the form of `torch.nn.GRU`.

# %% [markdown]
# ## By hand
#
# *An LSTM whose weights are all 0.* All gates are $\sigma(0) = \frac12$, and $g = \tanh(0) = 0$. With $c_0 = 1$ the cell
# is $\frac12, \frac14, \frac18$: it halves at each position.
#
# *A simple network of one number* with $u = \frac12$, silence ($x = 0$), and $h_0 = 0$. All states are 0, where the slope
# of tanh is 1. So a small change of $h_0$ halves at each position. After 10 positions its effect is
# $2^{-10} = \frac{1}{1024}$. After 100 it is below $10^{-30}$.
#
# *A forget gate of 0.9*: $0.9^{10} \approx 0.35$. It stays noticeable. $\sigma(b) = 0.9$ for $b = \ln 9 \approx 2.2$: a
# bias that is well above 0 keeps the gate open.

# %% [markdown]
# ## Code
#
# One position of each network, for one text. Gates stand side by side in the columns of $W$, $U$ and $b$: those of the
# GRU in the order $r, z, n$, those of the LSTM in the order $i, f, g, o$.


# %%
def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def rnn_step(x, h, W, U, b):
    return np.tanh(x @ W + h @ U + b)  # (1)


def gru_step(x, h, W, U, b, b_more):
    (a_r, a_z, a_n), (u_r, u_z, u_n) = np.split(x @ W + b, 3), np.split(h @ U, 3)
    r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
    n = np.tanh(a_n + r * (u_n + b_more))  # (2)
    return (1 - z) * n + z * h  # (3)


def lstm_step(x, h, c, W, U, b):
    a_i, a_f, a_g, a_o = np.split(x @ W + h @ U + b, 4)
    c = sigmoid(a_f) * c + sigmoid(a_i) * np.tanh(a_g)  # (4)
    return sigmoid(a_o) * np.tanh(c), c  # (5)


# %% [markdown]
# The numbers from paper. The cell starts at 1, and the first state of the simple network is changed a little:

# %%
none, c, change = np.zeros(2), np.ones(1), np.full(1, 1e-6)
for _ in range(3):
    _, c = lstm_step(none, np.zeros(1), c, np.zeros((2, 4)), np.zeros((1, 4)), np.zeros(4))
h = change
for _ in range(10):
    h = rnn_step(none, h, np.zeros((2, 1)), np.full((1, 1), 0.5), np.zeros(1))
print("the cell after 3 positions:", c[0], "  one over the effect of h0 after 10:", round(change[0] / h[0], 3))
print("0.9 to the 10th:", round(0.9**10, 2), "  sigmoid of ln 9:", round(sigmoid(np.log(9)), 2))

# %% [markdown]
# A text is read by a loop that hands the state on:

# %%
rng = np.random.default_rng(0)
B, T, D, H = 2, 6, 3, 4  # 2 texts of 6 words


def draw(gates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # W, U, b
    return rng.standard_normal((D, gates * H)), rng.standard_normal((H, gates * H)) / 2, rng.standard_normal(gates * H)


x = rng.standard_normal((B, T, D))
rnn_weights, gru_weights, lstm_weights = draw(1), draw(3), draw(4)
gru_weights = *gru_weights, rng.standard_normal(H)  # b'
by_hand = np.zeros((3, B, T, H))
for text in range(B):
    h_rnn, h_gru, h_lstm, cell = np.zeros((4, H))
    for t in range(T):
        h_rnn = rnn_step(x[text, t], h_rnn, *rnn_weights)
        h_gru = gru_step(x[text, t], h_gru, *gru_weights)
        h_lstm, cell = lstm_step(x[text, t], h_lstm, cell, *lstm_weights)
        by_hand[:, text, t] = h_rnn, h_gru, h_lstm
print("states of the LSTM after each word of the first text:")
print(by_hand[2, 0].round(2))

# %% [markdown]
# ## The same in tinymoe
#
# `rnn`, `gru` and `lstm` read whole texts, many at once. They return all states and the last one; `lstm` the last cell,
# too. Their `backward` takes one message for each of these.

# %%
h0 = np.zeros((B, H))
(rnn_states, rnn_last), _ = ops.rnn(x, *rnn_weights, h0)
(gru_states, _), _ = ops.gru(x, *gru_weights, h0)
(lstm_states, _, _), _ = ops.lstm(x, *lstm_weights, h0, h0)
for ours, theirs in zip(by_hand, (rnn_states, gru_states, lstm_states), strict=True):
    assert np.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
print("the states are equal\n")
print(check_gradients(ops.rnn, x, *rnn_weights, h0))
print(check_gradients(ops.gru, x, *gru_weights, h0))
print(check_gradients(ops.lstm, x, *lstm_weights, h0, h0))

# %% [markdown]
# ## Backward by hand
#
# Read the text backward and carry $dh$ along: how much the loss changes per unit of the state. A state is used twice,
# by whoever reads $h_t$ and by the next position, so $dh$ is the sum of what the two say. This is
# **back-propagation through time** (随时间反向传播). For the simple network, with $a_t$ the sum inside the tanh and
# $\mathit{dstates}_t$ the message from those who read $h_t$:
#
# $$dh \mathrel{+}= \mathit{dstates}_t, \qquad da_t = dh \odot (1 - h_t^2), \qquad
# dh = da_t U^\top \;\text{(now of } h_{t-1}) \tag{6}$$
#
# $$dx_t = da_t W^\top, \quad dW = \sum_t x_t^\top da_t, \qquad dU = \sum_t h_{t-1}^\top da_t, \qquad db = \sum_t da_t \tag{7}$$
#
# The weights are the same at every position, so their gradients add up.


# %%
def rnn(x, W, U, b, h0):  # one text: x (T, D), h0 (H,)
    h = np.zeros((len(x) + 1, len(h0)))  # h[t + 1] is the state after row t
    h[0] = h0
    for t in range(len(x)):
        h[t + 1] = rnn_step(x[t], h[t], W, U, b)

    def backward(dstates):
        dx, dW, dU, db = (np.zeros_like(a) for a in (x, W, U, b))
        dh = np.zeros_like(h0)
        for t in reversed(range(len(x))):
            dh = dh + dstates[t]  # (6)
            da = dh * (1 - h[t + 1] ** 2)
            dh = da @ U.T
            dx[t] = da @ W.T  # (7)
            dW += np.outer(x[t], da)
            dU += np.outer(h[t], da)
            db += da
        return dx, dW, dU, db, dh

    return h[1:], backward


# %%
print(check_gradients(rnn, x[0], *rnn_weights, h0[0]))
dstates = rng.standard_normal((T, H))
_, library_back = ops.rnn(x[:1], *rnn_weights, h0[:1])
_, back = rnn(x[0], *rnn_weights, h0[0])
for ours, theirs in zip(back(dstates), library_back(dstates[None], h0[:1]), strict=True):
    assert np.allclose(ours, theirs.reshape(ours.shape), rtol=1e-10, atol=1e-14)
print("all gradients are equal to the library's")

# %% [markdown]
# **Where the gradient dies.** By (6), each step back multiplies $dh$ by the slopes of tanh, which are at most 1, and by
# $U^\top$. With $\mathrm{diag}(s)$ for the matrix that has $s$ on its diagonal and 0 elsewhere, the way from the end to
# the start is a product of $2T$ matrices:
#
# $$dh_0 = dh_T \cdot \mathrm{diag}(1 - h_T^2)\, U^\top \cdots \mathrm{diag}(1 - h_1^2)\, U^\top \tag{8}$$
#
# If $U^\top$ shortens every row to at most a share $s < 1$, then $dh_0$ is at most $s^T$ times $dh_T$: the vanishing
# gradient. With a large $U$ it can grow as fast, until it explodes. In the LSTM, (5) takes $dc_t$ back as
# $dc_{t-1} = f \odot dc_t$, beside what goes through the gates. With $U = 0$ that is all:
#
# $$dc_0 = dc_T \odot f_T \odot \dots \odot f_1 \tag{9}$$
#
# No matrix, no tanh, and each $f$ may be as near to 1 as it likes.

# %%
W, U, b = rnn_weights
product = np.eye(H)
for t in reversed(range(T)):
    product = product @ np.diag(1 - rnn_states[0, t] ** 2) @ U.T  # (8)
_, back = ops.rnn(x[:1], W, U, b, h0[:1])
dlast = rng.standard_normal((1, H))  # the only message: it comes to the last state
assert np.allclose(back(np.zeros((1, T, H)), dlast)[-1], dlast @ product, rtol=1e-10, atol=1e-14)

W, _, b = lstm_weights
_, back = ops.lstm(x[:1], W, np.zeros((H, 4 * H)), b, h0[:1], h0[:1])
f = sigmoid(x[0] @ W + b)[:, H : 2 * H]  # the second block of columns
dc0 = back(np.zeros((1, T, H)), 0 * dlast, dlast)[-1]
assert np.allclose(dc0, dlast * f.prod(0), rtol=1e-10)  # (9)
print("(8) and (9) hold")

# %% [markdown]
# Now measure it in networks with more numbers. $U$ is a random rotation (`np.linalg.qr` makes one) times a factor, so
# it shortens every row by just that factor. A random message comes in at the end, and we ask `backward` how much of it
# reaches each word.

# %%
H, T = 16, 80
rotation = np.linalg.qr(rng.standard_normal((H, H)))[0]
x, h0 = rng.standard_normal((1, T, D)), np.zeros((1, H))
dlast, nothing = rng.standard_normal((1, H)), np.zeros((1, T, H))


def reach(op, factor, forget=0.0):
    gates = {ops.rnn: 1, ops.gru: 3, ops.lstm: 4}[op]
    W = 0.3 * np.random.default_rng(1).standard_normal((D, gates * H))
    b = np.zeros((gates, H))
    if gates > 1:
        b[1] = forget  # z of the GRU, f of the LSTM
    extra = {ops.rnn: (h0,), ops.gru: (np.zeros(H), h0), ops.lstm: (h0, h0)}[op]  # what the network starts from
    messages = (nothing, dlast, h0) if op is ops.lstm else (nothing, dlast)  # none to the states or the cell
    _, back = op(x, W, np.tile(factor * rotation, gates), b.reshape(-1), *extra)
    return np.linalg.norm(back(*messages)[0][0], axis=1)  # the length of each row of dx


# %%
figure, ax = new_figure(height=3.6)
ax.semilogy(reach(ops.rnn, 0.5), label="simple, U shortens to 0.5")
ax.semilogy(reach(ops.rnn, 0.9), label="simple, U shortens to 0.9")
ax.semilogy(reach(ops.lstm, 0.1), label="LSTM, forget gates half open")
ax.semilogy(reach(ops.lstm, 0.1, forget=5), label="LSTM, forget gates wide open")
ax.set(xlabel="position of the word", ylabel="length of its gradient", ylim=(1e-32, 1e3))
ax.legend(loc="lower right")
show(
    figure,
    alt="Straight lines on a log scale fall towards early words; only the LSTM with open forget gates stays level.",
)

# %% [markdown]
# Read it from right to left, as the message travels. A straight line on this scale is an exponential. In three of the
# four so little reaches the early words that training can't find out that they mattered. Mark the third:
# **an LSTM does not cure the vanishing gradient by its form**, but by open gates. That is why the bias of the forget gate
# should start well above 0. (In the LSTMs the factor of $U$ is small, so that what one sees is the path along the cell.)
# The GRU is no different:

# %%
for name, op in (("GRU", ops.gru), ("LSTM", ops.lstm)):
    for bias in (0.0, 5.0):
        far = reach(op, 0.1, forget=bias)
        print(
            f"{name:4}  bias of the gate {bias}: of the gradient at the last word, {far[0] / far[-1]:.0e} is at the first"
        )

# %% [markdown]
# **Long texts.** One reads a long text in pieces; each is a **chunk** (分块). The state at the end of one chunk can be
# the start of the next. Then it is as if the text were read whole. 《…通过稀疏MoE扩展视觉语言模型》, §9.5, encodes each
# chunk by itself and puts the results in a row ([L8](DOCUMENTS.md)). (It calls 分块 "batching". A batch is something
# else: texts side by side.) What does that forget?

# %%
W, U = 0.5 * rng.standard_normal((D, 4 * H)), 0.1 * rng.standard_normal((H, 4 * H))
b = np.repeat([0.0, 1.0, 0.0, 0.0], H)
(whole, _, _), whole_back = ops.lstm(x, W, U, b, h0, h0)
apart, carried, state, backs = [], [], (h0, h0), []
for chunk in np.split(x, 4, axis=1):
    apart.append(ops.lstm(chunk, W, U, b, h0, h0)[0][0])
    (states, *state), chunk_back = ops.lstm(chunk, W, U, b, *state)
    carried.append(states)
    backs.append(chunk_back)
assert np.allclose(np.concatenate(carried, 1), whole, rtol=1e-10, atol=1e-14)

figure, ax = new_figure(height=2.6)
ax.plot(np.linalg.norm((np.concatenate(apart, 1) - whole)[0], axis=1), label="chunks apart")
ax.plot(np.linalg.norm((np.concatenate(carried, 1) - whole)[0], axis=1), label="state carried")
ax.set(xlabel="position", ylabel="length of the error")
ax.legend()
show(
    figure, alt="With chunks apart the error jumps at each border and fades; with the state carried it is 0 throughout."
)

# %% [markdown]
# At each border the state begins from nothing and has to find its way again. The next words are predicted by a model
# that has read nothing. What that costs a trained model is measured by `chunk_losses` of
# [`models/long_text.py`](../tinymoe/models/long_text.py).
#
# Backward, $dh$ and $dc$ are handed from the last chunk to the first. If they aren't, training is cheaper, but no chunk
# learns what it should have kept for a later one. This is called truncated back-propagation. `read_on` of
# [`models/language.py`](../tinymoe/models/language.py) does so: it hands the state on and stops the gradient there, since a
# text may have no end.

# %%
dstates = rng.standard_normal(whole.shape)
dW = whole_back(dstates, h0, h0)[1]
full, truncated, message = 0, 0, (h0, h0)
for chunk_back, dchunk in zip(reversed(backs), reversed(np.split(dstates, 4, axis=1)), strict=True):
    truncated = truncated + chunk_back(dchunk, h0, h0)[1]
    _, chunk_dW, _, _, *message = chunk_back(dchunk, *message)
    full = full + chunk_dW
assert np.allclose(full, dW, rtol=1e-10, atol=1e-12)
print(
    "handed on: equal.  truncated: relative error of dW", (np.linalg.norm(truncated - dW) / np.linalg.norm(dW)).round(2)
)

# %% [markdown]
# ## What the document gets wrong
#
# 《…通过稀疏MoE扩展视觉语言模型》, §5.2, mixes experts that are an embedding, an LSTM and a softmax (the $p$ of lesson
# 2, formula 5; [L9](DOCUMENTS.md)). The three layers are made once, outside of `expert_model`, so every expert uses the
# same ones. The weights of the experts are never defined; say they are 0.5, 0.3 and 0.2. Here are its lines, with
# NumPy:

# %%
texts = np.random.default_rng(2).standard_normal((4, 5, D))  # 4 texts of 5 words
expert_weights = (0.5, 0.3, 0.2)
output_layer = np.random.default_rng(3).standard_normal((H, 7))  # 7 words to choose from


def expert_model(x):
    start = np.zeros((len(x), H))
    (states, _, _), _ = ops.lstm(x, W, U, b, start, start)
    return ops.softmax(states @ output_layer)[0]


experts = [expert_model(texts) for _ in range(3)]
outputs = [(expert * weight).sum(axis=0) for expert, weight in zip(experts, expert_weights, strict=True)]
mixture = np.mean(outputs, axis=0)
print("all experts are one:", all(np.array_equal(expert, experts[0]) for expert in experts))
print("texts that went in:", len(texts), "  shape that came out:", mixture.shape)
print("the probabilities of a word add up to", mixture.sum(1).round(3))

# %% [markdown]
# The sum over axis 0 adds up the *texts*. The weights add up to 1 already, and the mean divides by the number of
# experts once more, so a word is left with texts / experts. The model with experts of their own and a gate is
# [`documents/lstm_experts.py`](../tinymoe/documents/lstm_experts.py).

# %% [markdown]
# ## Spot the bug
#
# A recurrent model can be read in chunks, because nothing in it looks ahead. Now a sparse mixture of experts is put
# between two of its layers. Each expert takes the tokens of the text that fit it best (**expert choice**, 专家选择), so
# that all experts are equally busy. OLMoE was trained with this for comparison, and a user asked about it
# (allenai/OLMoE, issue 46). What goes wrong?


# %%
def visits(scores, k):  # scores (N, E) of N tokens for E experts; True where an expert takes a token
    taken = np.zeros(scores.shape, bool)
    each = len(scores) * k // scores.shape[1]  # tokens for each expert
    best = np.argsort(-scores, axis=0, kind="stable")[:each]
    np.put_along_axis(taken, best, True, axis=0)
    return taken


# %% [markdown]
# <details><summary>The bug</summary>
#
# Whether an expert takes a token depends on all other tokens, also on those that come *after* it. In training the model
# sees the future. When it writes, there is none, and it is another model. A chunk read by itself gives other results than
# the same chunk within the text. No gradient check sees it. An author answers that a model hardly learns to cheat by it,
# and that theirs was evaluated only on tasks without generation.
#
# </details>

# %% tags=["guess"]
scores = np.random.default_rng(4).standard_normal((12, 4))
whole_text, chunks = visits(scores, 2), np.concatenate([visits(part, 2) for part in np.split(scores, 2)])
print(
    "expert choice: tokens whose experts differ when the text is read in two chunks:",
    (whole_text != chunks).any(1).sum(),
)


def experts_of_tokens(scores):
    return np.sort(ops.top_k_gate(scores, 2)[0][1])  # each token takes its best 2 experts


chunks = np.concatenate([experts_of_tokens(part) for part in np.split(scores, 2)])
print("token choice: likewise", (experts_of_tokens(scores) != chunks).any(1).sum())

# %% [markdown]
# The library keeps it as the exhibit "experts that see the future" of its [museum](../tinymoe/systems/museum/gates.py).

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · Through time
#
# A network without words, $h_t = \tanh(h_{t-1} U)$ for 5 positions; only the last state is the result. Fill in the way
# back: the gradients of $h_0$ and of $U$.
#
# <details><summary>Hint</summary>
#
# (6) and (7). In the loop, `h[t + 1]` came out of position `t`, and `h[t]` went in. $U$ was used at every position.
#
# </details>


# %% tags=["exercise"]
def echo(h0, U):
    h = [h0]
    for _ in range(5):
        h.append(np.tanh(h[-1] @ U))

    def backward(dh):
        dU = np.zeros(U.shape)
        for t in reversed(range(5)):
            da = ...
            dU = dU + np.outer(h[t], da)  # type: ignore[call-overload]
            dh = ...
        return dh, dU

    return h[-1], backward


# %% tags=["solution"]
def echo(h0, U):
    h = [h0]
    for _ in range(5):
        h.append(np.tanh(h[-1] @ U))

    def backward(dh):
        dU = np.zeros(U.shape)
        for t in reversed(range(5)):
            da = dh * (1 - h[t + 1] ** 2)
            dU = dU + np.outer(h[t], da)
            dh = da @ U.T
        return dh, dU

    return h[-1], backward


# %% tags=["wrong"]
def echo(h0, U):
    h = [h0]
    for _ in range(5):
        h.append(np.tanh(h[-1] @ U))

    def backward(dh):
        dU = np.zeros(U.shape)
        for t in reversed(range(5)):
            da = dh * (1 - h[t] ** 2)  # the state that went in
            dU = dU + np.outer(h[t], da)
            dh = da @ U.T
        return dh, dU

    return h[-1], backward


# %% tags=["wrong"]
def echo(h0, U):
    h = [h0]
    for _ in range(5):
        h.append(np.tanh(h[-1] @ U))

    def backward(dh):
        dU = np.zeros(U.shape)
        for t in reversed(range(5)):
            da = dh * (1 - h[t + 1] ** 2)
            dU = dU + np.outer(h[t], da)
            dh = da @ U  # not transposed: the shapes fit all the same
        return dh, dU

    return h[-1], backward


# %% tags=["check"]
def reference(h0, U):
    for _ in range(5):
        h0 = np.tanh(h0 @ U)
    return h0, None


rng = np.random.default_rng(5)
check_exercise(1, echo, rng.standard_normal(3), rng.standard_normal((3, 3)), like=reference)

# %% [markdown]
# ### 2 · The cell
#
# One position of an LSTM after its gates are known, (5). The results are $h$ and the new cell, so `backward` gets two
# messages, `dh` and `dnew`. Find the gradients of $f$, of the old cell, of $i$, $g$ and $o$.
#
# <details><summary>Hint</summary>
#
# The new cell is used twice: it is a result, and it goes into $h$. So first add to `dnew` what comes through
# $h = o \odot \tanh(c)$, whose slope along $c$ is $o \odot (1 - \tanh^2 c)$. The rest are products.
#
# </details>


# %% tags=["exercise"]
def cell(f, old, i, g, o):
    new = f * old + i * g
    q = np.tanh(new)

    def backward(dh, dnew):
        dc = ...
        return ..., ..., ..., ..., dh * q

    return (o * q, new), backward


# %% tags=["solution"]
def cell(f, old, i, g, o):
    new = f * old + i * g
    q = np.tanh(new)

    def backward(dh, dnew):
        dc = dnew + dh * o * (1 - q * q)
        return dc * old, dc * f, dc * g, dc * i, dh * q

    return (o * q, new), backward


# %% tags=["wrong"]
def cell(f, old, i, g, o):
    new = f * old + i * g
    q = np.tanh(new)

    def backward(dh, dnew):
        dc = dh * o * (1 - q * q)  # what comes from the next position is lost
        return dc * old, dc * f, dc * g, dc * i, dh * q

    return (o * q, new), backward


# %% tags=["wrong"]
def cell(f, old, i, g, o):
    new = f * old + i * g
    q = np.tanh(new)

    def backward(dh, dnew):
        dc = dnew + dh * o * (1 - q * q)
        return dc * old, dc, dc * g, dc * i, dh * q  # the old cell was multiplied by f

    return (o * q, new), backward


# %% tags=["check"]
def reference(f, old, i, g, o):
    new = f * old + i * g
    return (o * np.tanh(new), new), None


check_exercise(2, cell, *np.random.default_rng(6).standard_normal((5, 4)), like=reference)

# %% [markdown]
# ### 3 · Two chunks
#
# Read `x`, `(B, T, D)`, in two halves with `ops.rnn`, so that all is as if it were read at once, backward too. The result
# is the last state.
#
# <details><summary>Hint</summary>
#
# `ops.rnn` returns `(states, last), backward`, and its backward takes `(dstates, dlast)` and returns the gradients of x,
# W, U, b and h0; `np.concatenate` joins the two dx. The gradient of the second half's h0 is the `dlast` of the first
# half. Weights were used in both.
#
# </details>


# %% tags=["exercise"]
def in_two(x, W, U, b, h0):
    halves = np.split(x, 2, axis=1)
    last = ...  # after two calls of ops.rnn

    def backward(dlast):
        none = np.zeros((len(x), x.shape[1] // 2, len(U)))  # dstates: no state is used but the last
        return ...  # dx, dW, dU, db, dh0

    return last, backward


# %% tags=["solution"]
def in_two(x, W, U, b, h0):
    left, right = np.split(x, 2, axis=1)
    (states, middle), left_back = ops.rnn(left, W, U, b, h0)
    (_, last), right_back = ops.rnn(right, W, U, b, middle)

    def backward(dlast):
        none = np.zeros(states.shape)
        dright, *dweights, dmiddle = right_back(none, dlast)
        dleft, *more, dh0 = left_back(none, dmiddle)
        dW, dU, db = (one + other for one, other in zip(dweights, more, strict=True))
        return np.concatenate([dleft, dright], axis=1), dW, dU, db, dh0

    return last, backward


# %% tags=["wrong"]
def in_two(x, W, U, b, h0):
    left, right = np.split(x, 2, axis=1)
    (states, _), left_back = ops.rnn(left, W, U, b, h0)
    (_, last), right_back = ops.rnn(right, W, U, b, h0)  # begins anew

    def backward(dlast):
        none = np.zeros(states.shape)
        dright, *dweights, dmiddle = right_back(none, dlast)
        dleft, *more, dh0 = left_back(none, dmiddle)
        dW, dU, db = (one + other for one, other in zip(dweights, more, strict=True))
        return np.concatenate([dleft, dright], axis=1), dW, dU, db, dh0

    return last, backward


# %% tags=["wrong"]
def in_two(x, W, U, b, h0):
    left, right = np.split(x, 2, axis=1)
    (states, middle), left_back = ops.rnn(left, W, U, b, h0)
    (_, last), right_back = ops.rnn(right, W, U, b, middle)

    def backward(dlast):
        none = np.zeros(states.shape)
        dright, *dweights, _ = right_back(none, dlast)
        dleft, *more, dh0 = left_back(none, np.zeros(dlast.shape))  # truncated: the first half learns nothing
        dW, dU, db = (one + other for one, other in zip(dweights, more, strict=True))
        return np.concatenate([dleft, dright], axis=1), dW, dU, db, dh0

    return last, backward


# %% tags=["check"]
def reference(x, W, U, b, h0):
    (_, last), _ = ops.rnn(x, W, U, b, h0)
    return last, None


shapes = (2, 6, 3), (3, 4), (4, 4), (4,), (2, 4)
check_exercise(3, in_two, *(np.random.default_rng(7).standard_normal(shape) for shape in shapes), like=reference)

# %% [markdown]
# ## Next
#
# A state of fixed size must hold the whole past. Lesson 6, attention and positions, drops it: each word looks back at
# all earlier words directly, and a gradient reaches the first word in one step.
