# ---
# jupyter:
#   lesson:
#     title: Sparse weights
#     chinese: 稀疏权重
#     builds: six ways to make weights sparse, tried on one small regression whose right answer is known
#     code:
#       - tinymoe/optim/sparsify.py
#       - tinymoe/sparse/prune.py
#       - tinymoe/sparse/decompose.py
#       - tinymoe/sparse/initialise.py
#     documents: [S4, S5, S6, S7, S8, S9, S10]
#     papers:
#       - "Han et al. 2015, *Learning both Weights and Connections for Efficient Neural Networks*"
#       - "Mishra et al. 2021, *Accelerating Sparse Deep Neural Networks* (N:M)"
#       - "Tibshirani 1996, *Regression Shrinkage and Selection via the Lasso*"
#       - "Blumensath & Davies 2009, *Iterative Hard Thresholding for Compressed Sensing*"
#       - "Zhou & Tao 2011, *GoDec: Randomized Low-rank & Sparse Matrix Decomposition in Noisy Case*"
#       - "Evci et al. 2020, *Rigging the Lottery: Making All Tickets Winners*"
#     terms:
#       sparsity: [稀疏度, "the share of zeros in a matrix"]
#       mask: [掩码, "an array of zeros and ones that says which weights may differ from zero"]
#       sparse initialisation: [稀疏初始化, "starting with most weights at zero and the rest scaled up"]
#       variance: [方差, "the mean square of the distance from the mean"]
#       standard deviation: [标准差, "the square root of the variance: a typical distance from the mean"]
#       pruning: [剪枝, "setting the least important weights to zero"]
#       sparse regularisation: [稀疏正则化, "a penalty on weights that favours zeros, such as the sum of sizes"]
#       subgradient: [次梯度, "a slope chosen at a kink, where there is no single one"]
#       proximal step: [近端步, "a step that minimises a penalty exactly, near the present point"]
#       soft threshold: [软阈值, "taking a fixed amount off the size of each number, down to zero"]
#       sparse decomposition: [稀疏分解, "writing a matrix as a sparse one plus a simple dense one"]
#       singular value decomposition: [奇异值分解, "a matrix as a sum of columns times rows, the largest first"]
#       low rank: [低秩, "said of a matrix that is a product of two narrow ones"]
#       iterative hard thresholding: [迭代硬阈值, "gradient steps, after each of which only the largest weights are kept"]
# ---

# %% [markdown]
# ## You will
#
# make the weights of a model sparse in six ways, and find out which of them make true zeros and which find the right ones.

# %% [markdown]
# ## You need
#
# Lesson 1 (gradients), lesson 4 (sparse matrices and the gradient of their values), and what a variance is.

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients
from tinymoe.optim.sparsify import Sparsity, constrain, drop_and_grow, penalize
from tinymoe.sparse import CSR, magnitude_mask, prune_n_m, sparse_normal, sparse_plus_low_rank

# %% [markdown]
# ## Picture
#
# A regression with a known answer. There are 40 inputs, but only 6 of them matter: the true weights are zero elsewhere. The
# targets are $t = Xw + \text{noise}$. Gradient descent looks for $w$ and doesn't know that most of it is zero.

# %%
rng = np.random.default_rng(7)
n_inputs, n_true = 40, 6
true_places = np.sort(rng.choice(n_inputs, n_true, replace=False))
truth = np.zeros(n_inputs)
truth[true_places] = rng.choice([-1, 1], n_true) * rng.uniform(0.6, 2, n_true)
X, X_test = rng.standard_normal((2, 60, n_inputs))
targets = X @ truth + 0.7 * rng.standard_normal(len(X))


def gradient(w):  # of the mean of (Xw − t)² / 2
    return X.T @ (X @ w - targets) / len(X)


def test_error(w):
    return float(((X_test @ (w - truth)) ** 2).mean())


dense, rate = np.zeros(n_inputs), 0.1
for _ in range(1000):
    dense = dense - rate * gradient(dense)

# %%
figure, axes = new_figure()
place = np.arange(n_inputs)
axes.bar(place, truth, width=0.8, color="0.75", label="the truth: 6 weights")
axes.plot(place, dense, "ko", markersize=4, label="found by gradient descent")
axes.set(xlabel="weight number", ylabel="value")
axes.legend()
show(
    figure,
    alt="Six bars are the true weights. Dots, the weights found, are near the bars, and near zero elsewhere, but not at it.",
)
print("weights that are exactly zero:", np.count_nonzero(dense == 0), "of", n_inputs)

# %% [markdown]
# The large weights are about right. All others are small, and not one is zero: they have learnt the noise. The share of zeros
# is called the **sparsity** (稀疏度). How do we get the right zeros?

# %% [markdown]
# ## Formula
#
# Let $s$ be the sparsity we want, $\rho = 1 - s$ the density, $m$ a **mask** (掩码) of ones and zeros, $g$ the gradient of
# the loss and $\eta$ the learning rate. Six ways:
#
# **Sparse initialisation** (稀疏初始化): most weights are zero from the start. Then fewer terms are added up, so each must be
# larger. With $n$ inputs and weights of **standard deviation** (标准差) $\sigma$, the output keeps its **variance** (方差) if,
# with $E[x^2]$ for the mean of $x^2$,
#
# $$\operatorname{Var}(y) = n\,\rho\,\sigma_\text{sparse}^2\, E[x^2] = n\,\sigma^2 E[x^2]
# \quad\Rightarrow\quad \sigma_\text{sparse} = \sigma / \sqrt\rho \tag{1}$$
#
# **Pruning** (剪枝): train, then set the smallest weights to zero. Of all $n$ weights, or of every $M$ neighbours:
#
# $$m_i = 1 \text{ if } |w_i| \text{ is one of the } n - \operatorname{round}(s n) \text{ largest} \tag{2}$$
#
# $$\text{N:M:}\quad m_i = 1 \text{ if } |w_i| \text{ is one of the } N \text{ largest of its group of } M \tag{3}$$
#
# **Sparse regularisation** (稀疏正则化): add the penalty $\lambda \sum_i |w_i|$ to the loss. Its slope is $\lambda$ on one side
# of zero, $-\lambda$ on the other, and at zero any slope between may be taken: that is a **subgradient** (次梯度). Two
# algorithms for one penalty:
#
# $$w \leftarrow w - \eta\,(g + \lambda \operatorname{sign} w) \tag{4}$$
#
# $$w \leftarrow \operatorname{soft}(w - \eta g,\; \eta\lambda), \qquad
# \operatorname{soft}(v, t) = \operatorname{sign}(v)\, \max(|v| - t,\, 0) \tag{5}$$
#
# (5) is the **proximal step** (近端步), with the **soft threshold** (软阈值). It is the exact minimum of
# $\tfrac12 (w - v)^2 + t\,|w|$: close to $v$, but cheap.
#
# **Iterative hard thresholding** (迭代硬阈值): after every step, keep the $k$ largest weights. $H_k$ is (2) with $k$ kept:
#
# $$w \leftarrow H_k(w - \eta g) \tag{6}$$
#
# **RigL**: keep a mask, train what it lets through, and now and then move a few places:
#
# $$\text{drop the active places of smallest } |w_i|, \qquad \text{grow as many inactive ones, of largest } |g_i|,
# \text{ beginning at } 0 \tag{7}$$
#
# **Sparse decomposition** (稀疏分解): a matrix as a sparse part plus one of **low rank** (低秩), a product $UV$ of thin
# matrices, $r$ columns times $r$ rows. A **singular value decomposition** (奇异值分解) writes a matrix as a sum of such
# columns times rows, the largest first. The first $r$ of them are the nearest matrix of rank $r$. Two steps by turns:
#
# $$W \approx S + UV, \qquad UV \leftarrow \text{the nearest of rank } r \text{ to } W - S, \qquad
# S \leftarrow \text{the largest entries of } W - UV \tag{8}$$
#
# *Where it stands.* The document 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》, §4, names initialisation,
# regularisation and decomposition ([S5, S6, S7](DOCUMENTS.md));
# 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》, §3.3, prunes ([S4](DOCUMENTS.md)). Neither has a formula. In
# papers: (2) Han et al. 2015, (3) Mishra et al. 2021, the penalty of (4) and (5) Tibshirani 1996, (6) Blumensath & Davies
# 2009, (7) Evci et al. 2020, (8) Zhou & Tao 2011.

# %% [markdown]
# ## By hand
#
# - (1): 100 inputs, $\sigma = 0.1$, $\rho = \frac14$. Dense: $100 \cdot 0.01 = 1$. Sparse, 25 weights of deviation
#   $0.1 / \sqrt{0.25} = 0.2$: $25 \cdot 0.04 = 1$.
# - (2) and (3): weights 3 −2 4 1 and 0.5 −0.2 0.1 0.4, half of them to go. All together: 3 −2 4 1 stay, the second group is
#   empty. As 2:4: 3 and 4 stay of the first group, 0.5 and 0.4 of the second.
# - (5): $\operatorname{soft}$ with $t = 0.5$ makes 3 −2 4 1 into 2.5 −1.5 3.5 0.5, and 0.5 −0.2 0.1 0.4 into 0 0 0 0.
# - (7): active weights 3, 0.2, −1; two more places are inactive. The gradient is 0 0 0 −4 1. Move one: 0.2 is dropped, and
#   the fourth place grows, because 4 is larger than 1.

# %% [markdown]
# ## Code
#
# All ways to cut need one function: the places of the largest numbers.


# %%
def largest(size, count):
    mask = np.zeros(len(size), bool)
    mask[np.argsort(-size, kind="stable")[:count]] = True  # of equals, the earlier
    return mask


def soft(v, t):
    return np.sign(v) * np.maximum(np.abs(v) - t, 0)


def two_of_four(w):
    return np.concatenate([largest(np.abs(group), 2) for group in w.reshape(-1, 4)])


by_hand = np.array([3, -2, 4, 1, 0.5, -0.2, 0.1, 0.4])
print("half:", by_hand * largest(np.abs(by_hand), 4) + 0)  # + 0 makes −0 a 0
print("2:4: ", by_hand * two_of_four(by_hand) + 0)
print("soft:", soft(by_hand, 0.5) + 0)
near = np.linspace(-5, 5, 100_001)  # is (5) the minimum? look at many points
for v in by_hand:
    assert abs(near[np.argmin((near - v) ** 2 / 2 + 0.5 * abs(near))] - soft(v, 0.5)) < 2e-4

# %% [markdown]
# **From the start**, (1). How far do the outputs of a random layer spread?

# %%
inputs, sigma = rng.standard_normal((1000, 256)), 1 / np.sqrt(256)
for name, density, scale in (("dense", 1, 1), ("sparse", 0.05, 1), ("sparse, scaled by (1)", 0.05, 1 / np.sqrt(0.05))):
    mask = rng.random((256, 256)) < density
    outputs = inputs @ (scale * sigma * rng.standard_normal((256, 256)) * mask)
    print(f"{name:22} density {mask.mean():.2f}   standard deviation of the outputs {outputs.std():.2f}")
    assert abs(outputs.std() / (scale * np.sqrt(density)) - 1) < 0.05

# %% [markdown]
# Without the scaling the signal shrinks in each layer, and after a few layers nothing is left of it.
#
# **The penalty**, (4) against (5). It is the same penalty, the same strength $\lambda$, the same number of steps. "True" are
# weights at the places of the truth.


# %%
def report(name, w):
    small = np.abs(w[w != 0]).min()
    right = np.count_nonzero(w[true_places])
    print(f"{name:18} {np.count_nonzero(w):2} not zero, {right} of them true, smallest {small:.0e},", end="")
    print(f" error {test_error(w):.3f}")


strength = 0.15
by_subgradient, by_proximal = np.zeros((2, n_inputs))
for _ in range(1000):
    w = by_subgradient
    by_subgradient = w - rate * (gradient(w) + strength * np.sign(w))
    by_proximal = soft(by_proximal - rate * gradient(by_proximal), rate * strength)
report("dense", dense)
report("L1, subgradient", by_subgradient)
report("L1, proximal", by_proximal)
assert not (by_subgradient == 0).any() and (by_proximal == 0).sum() > n_inputs / 2

# %% [markdown]
# Both make the test error smaller. But the subgradient makes no zeros: near zero its step is too long, it jumps to the
# other side and back, forever. The proximal step stops at zero, because it knows that the slope changes there. So "add L1
# to the loss" gives small weights, and you must still cut; with (5) you get zeros. The price: the penalty also pulls on the
# large weights.
#
# **Cut and move.** Pruning cuts once and trains on. Iterative hard thresholding cuts after every step, and every weight may
# come back. A fixed random mask, for comparison, and RigL start from the same random places.


# %%
def moved(w, mask, g, count):
    kept = largest(np.where(mask, np.abs(w), -1), mask.sum() - count)
    grown = largest(np.where(mask, -1, np.abs(g)), count)  # not what has just been dropped
    return kept | grown


by_hand, active = np.array([3, 0.2, -1, 0, 0]), np.array([True, True, True, False, False])
print(f"active before: {active}\nactive after:  {moved(by_hand, active, np.array([0, 0, 0, -4, 1]), 1)}")

# %%
kept, n_steps = 8, 300
start, everywhere = largest(np.random.default_rng(3).random(n_inputs), kept), np.ones(n_inputs, bool)
masks = {"dense": everywhere, "pruned at step 100": everywhere, "hard threshold": everywhere}
masks |= {"fixed mask": start, "RigL": start}
weights, errors = {name: np.zeros(n_inputs) for name in masks}, {name: [] for name in masks}
for step in range(1, n_steps + 1):
    for name, w in weights.items():
        w = (w - rate * gradient(w)) * masks[name]
        if name == "hard threshold":
            w = w * largest(np.abs(w), kept)
        elif name == "pruned at step 100" and step == 100:
            masks[name] = largest(np.abs(w), kept)
        elif name == "RigL" and step % 20 == 0 and step <= 0.75 * n_steps:  # in the last quarter it only trains
            masks[name] = moved(w, masks[name], gradient(w), 2)
        weights[name] = w * masks[name]
        errors[name].append(test_error(weights[name]))

# %%
figure, axes = new_figure(height=3.8)
colours, styles = ("k", "k", "#b2182b", "0.6", "#4393c3"), (":", "-", "--", "-.", "-")
for (name, curve), colour, style in zip(errors.items(), colours, styles, strict=True):
    axes.semilogy(range(1, n_steps + 1), curve, color=colour, linestyle=style, label=name)
axes.set(xlabel="step", ylabel="test error", ylim=(0.02, 100))
axes.legend(ncols=3, loc="upper right")
show(figure, alt="Test error against step: the fixed mask stays high; pruning, thresholding and RigL end below dense.")
for name, w in weights.items():
    report(name, w)

# %% [markdown]
# A fixed mask is as good as its luck: what it left out can't be learnt. RigL starts at the same places, and every move
# bends its curve. In the end it stands at the true ones, because the gradient of an absent weight says how much it is
# missed. The teeth: two of its eight places are spare. What grows there learns the noise, until the next move drops it. (We
# move two places each time. Evci et al. move a share that falls to zero, and so does the library.)
#
# Hard thresholding is not always so lucky. With the seed 4 in place of 7, in the cell of the first picture, it stops short of
# the truth: a new weight has one step to overtake the smallest that is kept, so $\eta |g_i|$ must be larger than that. The
# library cuts only every so many steps, which leaves a new weight time to grow.
#
# With fewer weights than the dense model all three have a smaller error: here, where the truth *is* sparse. A language model
# makes no such promise; what it costs there is [measured](../docs/sparse.md).
#
# **Sparse plus low rank**, (8). A matrix with a broad structure of rank 3, a few large entries, and noise:


# %%
def split(W, rank, kept, rounds=10):
    S = np.zeros_like(W)
    for _ in range(rounds):
        left, sigma, right = np.linalg.svd(W - S, full_matrices=False)
        low = (left[:, :rank] * sigma[:rank]) @ right[:rank]  # the first terms of the sum
        S = ((W - low).ravel() * largest(np.abs(W - low).ravel(), kept)).reshape(W.shape)
    return S, low


size = 48
spikes = sparse_normal(rng, (size, size), 0.04, std=1.0, dtype=np.float64).to_dense()
W = rng.standard_normal((size, 3)) @ rng.standard_normal((3, size)) + spikes + 0.1 * rng.standard_normal((size, size))
ranks, shares = range(9), np.array([0, 1, 2, 4, 6, 8, 12, 16]) / 100
error = [[np.linalg.norm(W - sum(split(W, r, round(p * W.size), 5))) for r in ranks] for p in shares]
error = np.array(error) / np.linalg.norm(W)
figure, axes = new_figure(height=3.8)
image = axes.imshow(error, origin="lower", aspect="auto", norm="log", cmap="cividis")
axes.grid(False)
axes.set(xlabel="rank of U V", ylabel="entries of S, share of all", yticks=range(len(shares)))
axes.set_yticklabels([f"{p:.0%}" for p in shares])
figure.colorbar(image, label="‖W − S − UV‖ / ‖W‖")
show(figure, alt="Error as a map: it falls steeply up to rank 3 and 4 percent of entries, and little beyond either.")

# %% [markdown]
# The corner is where it should be: at rank 3 and 4 % of the entries. Left of it no reasonable number of entries helps,
# below it no reasonable rank does. Neither form alone is good at what the other is made for.

# %% [markdown]
# ## The same in tinymoe
#
# The library changes an array of weights in place, after the optimiser's step. `{}` stands for an optimiser without memory.

# %%
first = sparse_normal(np.random.default_rng(1), (256, 256), 0.05, std=1 / np.sqrt(256))
assert abs((inputs @ first).std() - 1) < 0.05  # (1)

w, matrix = np.random.default_rng(4).standard_normal((2, 8, 8))
assert np.array_equal(magnitude_mask(w, 0.5).ravel(), largest(np.abs(w).ravel(), 32))  # (2)
assert np.array_equal(prune_n_m(w, 2, 4).ravel(), two_of_four(w))  # (3)

stepped = w.copy()
constrain(stepped, {}, Sparsity(sparsity="l1-proximal", l1=0.5), step=1, end=10, lr=0.3)
assert np.allclose(stepped, soft(w, 0.3 * 0.5), rtol=1e-12)  # (5)

cut, slope = w.copy(), matrix.copy()
constrain(cut, {}, Sparsity(sparsity="iht", level=0.5, every=1), step=1, end=10, lr=0.3)
penalize(w, slope, Sparsity(sparsity="l1", l1=0.5))
assert np.array_equal(cut.ravel(), w.ravel() * largest(np.abs(w).ravel(), 32))  # (6), after its step
assert np.allclose(slope, matrix + 0.5 * np.sign(w), rtol=1e-12)  # (4)

mask = magnitude_mask(matrix, 0.75)
revised, slots = w * mask, {"mask": mask.copy()}
drop_and_grow(revised, matrix, slots, share=0.25)  # a quarter of the 16 active
assert np.array_equal(slots["mask"].ravel(), moved(w.ravel(), mask.ravel(), matrix.ravel(), 4))  # (7)

# %%
S, low = split(W, 3, round(0.04 * W.size))
theirs = sparse_plus_low_rank(W, 3, 1 - 0.04, iterations=10)
assert np.allclose(theirs.sparse.to_dense(), S, atol=1e-8) and np.allclose(theirs.left @ theirs.right, low, atol=1e-8)
assert (np.diff(theirs.errors) <= 0).all()
print(f"error after each round, (8): {theirs.errors[0]:.4f} … {theirs.errors[-1]:.4f}, never rising")
print(theirs.sparse, f"\nall parts: {theirs.nbytes} bytes of {W.nbytes}")

# %% [markdown]
# ## Backward by hand
#
# A masked layer is $Y = X\,(W \circ M)$, where $\circ$ multiplies place by place. A weight acts through $w_{ij} m_{ij}$, so
# with the chain rule its gradient has the mask as a factor:
#
# $$dX = dY\,(W \circ M)^\top, \qquad dW = (X^\top dY) \circ M \tag{9}$$
#
# A masked weight has no gradient, so it stays: this is what §6.4 of 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》
# means by weights that are trained and stay sparse ([S9](DOCUMENTS.md)). RigL needs the one *before* the mask,
# $X^\top dY$. Stored as CSR the layer is `sparse_linear` of lesson 4: what the mask hides isn't there.


# %%
def masked_linear(x, w, *, mask):
    y = x @ (w * mask)

    def backward(dy):
        return dy @ (w * mask).T, (x.T @ dy) * mask

    return y, backward


x, dy = np.random.default_rng(5).standard_normal((2, 5, 8))
print(check_gradients(masked_linear, x, w, mask=mask, method="complex"))
y, backward = masked_linear(x, w, mask=mask)
stored = CSR.from_dense(w, where=mask)
y2, backward2 = ops.sparse_linear(x, stored.data, stored)
assert np.allclose(y, y2, rtol=1e-12) and np.allclose(backward(dy)[0], backward2(dy)[0], rtol=1e-12)
assert np.allclose(backward(dy)[1][mask], backward2(dy)[1], rtol=1e-12)
assert not backward(dy)[1][~mask].any()

# %% [markdown]
# ## What the document gets wrong
#
# **Pruning** ([S4](DOCUMENTS.md)). The document 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》, §3.3, gives this:


# %%
def printed_sparse_matrix(matrix, sparsity_level):
    sparse_matrix = []
    for row in matrix:
        sparse_row = [value for value in row if value != 0]
        sparse_matrix.append(sparse_row)
    return sparse_matrix


one, other = [[0, 5, 0], [7, 0, 8]], [[5, 0, 0], [0, 7, 8]]
print("two matrices, one result:", printed_sparse_matrix(one, 0.5), printed_sparse_matrix(other, 0.5))
print("a level of 90 % keeps:   ", printed_sparse_matrix([[1, 2], [3, 4]], 0.9))
first = np.array(one)
print("pruned, as it should be: ", CSR.from_dense(first, magnitude_mask(first, 0.5)).to_triples())
assert printed_sparse_matrix(one, 0.5) == printed_sparse_matrix(other, 0.5)

# %% [markdown]
# It keeps the values and throws their columns away, so nobody can rebuild the matrix, let alone multiply by it. And
# `sparsity_level` is never used: it removes only what is zero already.
#
# **"Sparse gradient descent"** ([S8](DOCUMENTS.md)). The untitled document that calls sparse experts a new view (全新的视角),
# §3, wants sparse weights from an algorithm it abbreviates SGD. The S of SGD is *stochastic* (随机): the batch is drawn at
# random. That makes no weight zero, no more than the descent of the first picture. What was wanted is (6).

# %% [markdown]
# ## Spot the bug
#
# The document 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》, §6.6, implements "a language model based on sparse
# experts" ([S10](DOCUMENTS.md)). `V` is the number of words, `H` of experts, `W` a standard deviation. There are two bugs;
# find both by reading.
#
# ```python
# def create_sparse_embedding(V, D, W):
#     embedding = tf.random.normal((V, D), stddev=W)
#     return embedding
#
# def create_sparse_experts(V, H, W):
#     experts = []
#     for _ in range(H):
#         expert = create_sparse_embedding(V, D, W)
#         experts.append(expert)
#     return experts
# ```
#
# <details><summary>The bugs</summary>
#
# Nobody gives `D` to `create_sparse_experts`. In a notebook it takes whatever `D` an earlier cell has left behind, which is
# worse than an error. And nothing is sparse: a normal distribution has no zeros. A name doesn't make a matrix sparse.
#
# </details>


# %% tags=["guess"]
def create_sparse_embedding(V, D, W):
    return W * rng.standard_normal((V, D))


def create_sparse_experts(V, H, W):
    return [create_sparse_embedding(V, D, W) for _ in range(H)]  # type: ignore[name-defined]  # noqa: F821 (the linter sees it too)


try:
    create_sparse_experts(50, 4, 0.1)
except NameError as missing:
    print("NameError:", missing)
print("zeros in the 'sparse' embedding:", np.count_nonzero(create_sparse_embedding(50, 16, 0.1) == 0))
print("mended:", sparse_normal(rng, (50, 16), 0.25, std=0.1))

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · The soft threshold as an operation
#
# $y = \operatorname{soft}(v, t)$ for an array $v$ and a number $t$, both learnt. Write both passes.
#
# <details><summary>Hint</summary>
#
# Where $|v| \le t$, nothing depends on anything. Elsewhere $y = v \mp t$: the slope along $v$ is 1, along $t$ it is
# $-\operatorname{sign} v$. One $t$ acts on all places, so its gradient is a sum.
#
# </details>


# %% tags=["exercise"]
def soft_threshold(v, t):
    y = ...

    def backward(dy):
        dv = ...
        dt = ...
        return dv, dt

    return y, backward


# %% tags=["solution"]
def soft_threshold(v, t):
    sign = np.sign(v) * (np.abs(v) > t)  # 0 where the result is 0
    y = sign * (np.abs(v) - t)

    def backward(dy):
        return dy * np.abs(sign), -(dy * sign).sum()

    return y, backward


# %% tags=["wrong"]
def soft_threshold(v, t):
    keep = np.abs(v) > t
    y = v * keep  # the hard threshold: what stays isn't moved

    def backward(dy):
        return dy * keep, 0.0

    return y, backward


# %% tags=["wrong"]
def soft_threshold(v, t):
    keep = np.abs(v) > t
    y = np.sign(v) * (np.abs(v) - t) * keep

    def backward(dy):
        return dy * keep, -(dy * keep).sum()  # without the sign

    return y, backward


# %% tags=["check"]
def soft_reference(v, t):
    return soft(v, t), None


check_exercise(1, soft_threshold, np.array([3, -2, 4, 1, 0.2, -0.2]), np.array(0.5), like=soft_reference)

# %% [markdown]
# ### 2 · N:M for any N and M
#
# A mask for a weight vector whose length is a multiple of $M$, without a loop over groups. `group` has one group in each row.
#
# <details><summary>Hint</summary>
#
# `np.argsort(-np.abs(group), axis=1)` has the places of the largest first. Set those of the first $N$ columns to True with
# `np.put_along_axis(mask, places, True, axis=1)`.
#
# </details>


# %% tags=["exercise"]
def n_of_m(w, n, m):
    group = w.reshape(-1, m)
    mask = ...
    return mask


# %% tags=["solution"]
def n_of_m(w, n, m):
    group = w.reshape(-1, m)
    mask = np.zeros(group.shape, bool)
    np.put_along_axis(mask, np.argsort(-np.abs(group), axis=1)[:, :n], True, axis=1)
    return mask.reshape(-1)


# %% tags=["wrong"]
def n_of_m(w, n, m):
    group = w.reshape(-1, m)
    mask = np.zeros(group.shape, bool)
    np.put_along_axis(mask, np.argsort(-group, axis=1)[:, :n], True, axis=1)  # without the magnitude
    return mask.reshape(-1)


# %% tags=["wrong"]
def n_of_m(w, n, m):
    return largest(np.abs(w), len(w) * n // m)  # the right number, over all groups together


# %% tags=["check"]
check_exercise(2, n_of_m, np.random.default_rng(6).standard_normal(24), 2, 4, like=prune_n_m, gradients=False)
check_exercise(2, n_of_m, np.random.default_rng(7).standard_normal(24), 1, 3, like=prune_n_m, gradients=False)

# %% [markdown]
# ### 3 · Hard thresholding finds the truth
#
# Write (6): $k$ weights, a number of steps, beginning at zero. It takes `gradient`, a function of $w$.
#
# <details><summary>Hint</summary>
#
# Step first, cut after. `largest(np.abs(w), k)` is the mask. It is a new one after every step.
#
# </details>


# %% tags=["exercise"]
def hard_thresholding(gradient, k, rate, n_steps):
    w = np.zeros(n_inputs)
    for _ in range(n_steps):
        w = ...
    return w


# %% tags=["solution"]
def hard_thresholding(gradient, k, rate, n_steps):
    w = np.zeros(n_inputs)
    for _ in range(n_steps):
        w = w - rate * gradient(w)
        w = w * largest(np.abs(w), k)
    return w


# %% tags=["wrong"]
def hard_thresholding(gradient, k, rate, n_steps):
    w = np.zeros(n_inputs)
    for _ in range(n_steps):
        w = w - rate * gradient(w)
    return w * largest(np.abs(w), k)  # once, at the end: that is pruning


# %% tags=["wrong"]
def hard_thresholding(gradient, k, rate, n_steps):
    w = np.zeros(n_inputs)
    for _ in range(n_steps):
        g = gradient(w)
        w = w - rate * g * largest(np.abs(g), k)  # cuts the gradient: the weights fill up all the same
    return w


# %% tags=["check"]
def thresholded(gradient, k, rate, n_steps):
    w = np.zeros(n_inputs)
    for _ in range(n_steps):
        w -= rate * gradient(w)
        w[np.argsort(-np.abs(w), kind="stable")[k:]] = 0
    return w


check_exercise(3, hard_thresholding, gradient, n_true, rate, 100, like=thresholded, gradients=False)

# %% [markdown]
# ## Next
#
# Sparse weights save parameters and little time; sparse choices of experts save work and no parameters. Lesson 15 counts both.
# Before it, lesson 14 gives the model eyes.
