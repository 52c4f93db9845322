# ---
# jupyter:
#   lesson:
#     title: Routing is a sparse matrix
#     chinese: 路由即稀疏矩阵
#     builds: the way of tokens to their experts and back, as sparse products and as gathers, with every gradient
#     code:
#       - tinymoe/ops/routing.py
#       - tinymoe/ops/sparse.py
#       - tinymoe/ops/moe.py
#       - tinymoe/ops/capacity.py
#       - tinymoe/systems/dispatchers.py
#     documents: [M14]
#     papers:
#       - "Shazeer et al. 2017, *Outrageously Large Neural Networks*, eq. 1"
#       - "Lepikhin et al. 2020, *GShard*, §2.2 and algorithm 1"
#       - "Gale et al. 2022, *MegaBlocks*, §4"
#     terms:
#       routing matrix: [路由矩阵, "the sparse matrix of experts by tokens whose entries are gate weights"]
#       assignment: [分配, "a pair of a token and an expert that it visits"]
#       dispatch: [分发, "sending copies of tokens to their experts"]
#       combine: [合并, "adding up, by weight, what a token's experts return"]
#       dropped: [丢弃, "said of an assignment for which its expert has no place left"]
#       capacity: [容量, "the most tokens that an expert takes from a batch"]
#       expert parallelism: [专家并行, "experts on several machines, to which tokens travel"]
#       all-to-all: [全交换, "an exchange in which every machine sends something else to every other"]
# ---

# %% [markdown]
# ## You will
#
# send three tokens to two experts and back, by hand and in six ways that give the same result, and see one sparse matrix
# behind them all.

# %% [markdown]
# ## You need
#
# Gather and scatter-add (lesson 3), the CSR form (lesson 4), and the top-k gate (lesson 9): it gives each token the numbers of
# $K$ experts and a weight for each.

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients
from tinymoe.sparse import COO
from tinymoe.systems import dispatchers

# %% [markdown]
# ## Picture
#
# A gate has chosen: token 0 goes to experts 2 and 0, token 1 to experts 2 and 3, and so on. Mark each choice in a table with
# a row for each expert and a column for each token. That is the **routing matrix** (路由矩阵), on the left; the darker, the
# larger the weight. It is sparse: each column has $K$ marks, here 2, however many experts there are.
#
# A mark is an **assignment** (分配): one token, one of its experts. On the right each assignment has a row of its own. The rows
# are sorted by expert, and lines separate the experts. This matrix tells which token to copy into which row.

# %%
rng = np.random.default_rng(0)
(weights, indices), _ = ops.top_k_gate(rng.standard_normal((12, 4)), 2)
assert indices[:2].tolist() == [[2, 0], [2, 3]]
assignment = ops.group_by_expert(indices, 4)
figure, axes = new_figure(1, 2, height=3.9)
routing = ops.routing_matrix(assignment, weights).to_dense()
axes[0].imshow(routing, cmap="Greys", vmin=0, vmax=1, aspect="auto")
axes[0].set(title="routing matrix", xlabel="token", ylabel="expert", yticks=range(4))
axes[1].imshow(ops.dispatch_matrix(assignment, 12).to_dense(), cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
for end in np.cumsum(assignment.counts)[:-1]:
    axes[1].axhline(end - 0.5, color="black", linestyle="-", linewidth=0.8)
axes[1].set(title="which token to copy", xlabel="token", ylabel="assignment")
for ax in axes:
    ax.set_xticks(range(12))
    ax.set_xticks(np.arange(11) + 0.5, minor=True)
    ax.tick_params(which="minor", length=0)
    ax.grid(visible=False)
    ax.grid(visible=True, axis="x", which="minor")
show(
    figure,
    alt="Left: two marks in each of 12 columns. Right: one in each of 24 rows; they form a staircase for each expert.",
)

# %% [markdown]
# The marks of both pictures are the same, in the same order. Read the left one row by row: that is how CSR stores it.

# %% [markdown]
# ## Formula
#
# There are $N$ tokens, rows $x_n$ of $D$ numbers; $E$ experts; and $K$ choices for each token. $i_{nj}$ is the number of the
# expert that token $n$ chose as its $j$-th, and $w_{nj}$ the weight. The layer returns
#
# $$y_n = \sum_{j} w_{nj}\, \mathrm{expert}_{i_{nj}}(x_n) \tag{1}$$
#
# The routing matrix $R$, experts × tokens, has $w_{nj}$ at row $i_{nj}$ and column $n$. Number its entries row by row:
# $m = 0, 1, …, M - 1$. Let entry $m$ stand in column $t_m$ and have the weight $g_m$. Two matrices follow from it:
#
# $$S_{mn} = 1 \text{ if } t_m = n, \text{ else } 0 \qquad\qquad C_{nm} = g_m \text{ if } t_m = n, \text{ else } 0 \tag{2}$$
#
# To **dispatch** (分发) is to copy tokens into the order of experts. To **combine** (合并) is to weigh what comes back and to
# add it up. Each is one product. With $X$ the rows $x_n$, and $Z$ the rows that the experts return:
#
# $$\text{rows} = S X \qquad\qquad Y = C Z \tag{3}$$
#
# The backward pass is the transposes, as for any product. $dY$ is what arrives:
#
# $$dX = S^\top\, d\text{rows} \qquad\qquad dZ = C^\top dY \qquad\qquad dg_m = dy_{t_m} \cdot z_m \tag{4}$$
#
# *Where it stands.* The documents say that only the experts that are needed run, and nothing about how tokens come to them
# ([M14](DOCUMENTS.md)). (1) is eq. 1 of Shazeer et al. 2017. That the layer is a matter of sparse matrices is the idea of
# MegaBlocks (Gale et al. 2022, §4), which makes the *experts* one block-sparse product; here the routing is the sparse one.

# %% [markdown]
# ## By hand
#
# Three tokens of one number each, $x = 1, 2, 3$. Two experts: expert 0 multiplies by 10, expert 1 by 100. The choices and their
# weights (whole numbers, to make it easy; those of a gate add up to 1) are
#
# | token | choices | weights | carried out |
# | --- | --- | --- | --- |
# | 0 | 1, 0 | 3, 1 | both |
# | 1 | 0, 1 | 2, 5 | the first |
# | 2 | 0, 1 | 4, 6 | the first |
#
# An assignment that is not carried out is **dropped** (丢弃): it adds nothing in (1), and $R$ has no entry for it. Why one
# would drop comes below. By (1),
#
# - $y_0 = 3 \cdot 100 \cdot 1 + 1 \cdot 10 \cdot 1 = 310$,
# - $y_1 = 2 \cdot 10 \cdot 2 = 40$,
# - $y_2 = 4 \cdot 10 \cdot 3 = 120$.
#
# Sorted by expert, expert 0 gets tokens 0, 1, 2 and expert 1 gets token 0. So $t = 0, 1, 2, 0$, and the weights are
# $g = 1, 2, 4, 3$.

# %% [markdown]
# ## Code
#
# First (1) as it stands: a loop over tokens and choices.

# %%
x = np.array([[1.0], [2.0], [3.0]])
indices = np.array([[1, 0], [0, 1], [0, 1]])
weights = np.array([[3.0, 1.0], [2.0, 5.0], [4.0, 6.0]])
kept = np.array([[True, True], [True, False], [True, False]])
up, down = np.ones((2, 1, 1)), np.array([[[10.0]], [[100.0]]])


def expert(e, row):
    return np.maximum(row @ up[e], 0) @ down[e]  # up, ReLU, down; here it multiplies by 10 or by 100


y = np.zeros_like(x)
for n in range(3):
    for j in range(2):
        if kept[n, j]:
            y[n] += weights[n, j] * expert(indices[n, j], x[n])
print("(1) y =", y[:, 0])

# %% [markdown]
# Then with matrices. Number the assignments as they stand in `indices`, row by row: number $a = nK + j$ belongs to token
# $n = \lfloor a / K \rfloor$. Sort them by expert; a stable sort leaves tokens in order within an expert. You know this from
# lesson 4: `indices` and `weights` hold a matrix tokens × experts row by row, and the sort makes $R$, its transpose.

# %%
numbers = np.flatnonzero(kept)  # where it is True: the assignments that are carried out
order = numbers[np.argsort(indices.reshape(-1)[numbers], kind="stable")]
tokens = order // 2
gates = weights.reshape(-1)[order]
counts = np.bincount(indices[kept], minlength=2)
print("order ", order, "\ntokens", tokens, "\ngates ", gates, "\ncounts", counts)

S = np.zeros((4, 3))
S[np.arange(4), tokens] = 1
C = np.zeros((3, 4))
C[tokens, np.arange(4)] = gates
print("(2) S =\n", S, "\n    C =\n", C)

# %% [markdown]
# With these, each expert has its tokens in one piece, and the layer is a product, one call for each expert, and a product.

# %%
rows = S @ x
parts = np.split(rows, np.cumsum(counts)[:-1])
outputs = np.concatenate([expert(e, part) for e, part in enumerate(parts)])
print("(3) rows =", rows[:, 0], " outputs =", outputs[:, 0], " y =", (C @ outputs)[:, 0])
assert np.array_equal(C @ outputs, y)

# %% [markdown]
# **Without a product.** Each row of $S$ has a single 1, so $SX$ is the gather `x[tokens]`. $C$ isn't so simple: it adds up.
# But it adds up exactly $K$ rows for each token, so it is a gather too, by the *inverse* order, and then a sum over $K$. A
# dropped assignment is sent to one more row, of zeros. No step writes a row twice.

# %%
inverse = np.full(indices.size, len(order))  # where each assignment stands; the row behind the last for a dropped one
inverse[order] = np.arange(len(order))
home = np.concatenate([outputs, np.zeros((1, 1))])[inverse].reshape(3, 2, 1)  # (N, K, D)
print("inverse", inverse)
print("what comes home, a row for each token:", home[:, :, 0].tolist())
assert np.array_equal(x[tokens], rows)
assert np.array_equal((np.where(kept, weights, 0)[:, :, None] * home).sum(1), y)

# %% [markdown]
# **Why drop?** Many systems give each expert a buffer of fixed length, so that all experts run as one product of equal blocks.
# The length is the **capacity** (容量). With a capacity factor $f$ it is
#
# $$\text{capacity} = \left\lceil f\,\frac{K N}{E} \right\rceil \tag{5}$$
#
# $KN/E$ is the mean number of tokens per expert, and $\lceil\;\rceil$ rounds up. Whoever finds no place is dropped; places that
# nobody takes are padding, computed for nothing. Here is how much of both there is, for a gate that is nearly even and for one
# that prefers some experts.

# %%
rng = np.random.default_rng(1)
factors, lost, empty = np.linspace(0.25, 3, 23), {}, {}
for name, preference in (("even", 0.1), ("uneven", 1.0)):
    logits = rng.standard_normal((1024, 16)) + preference * rng.standard_normal(16)
    (_, choices), _ = ops.top_k_gate(logits, 2)
    lost[name], empty[name] = [], []
    for factor in factors:
        places = ops.capacity(1024, 16, 2, factor)
        served = ops.keep_within_capacity(choices, 16, places)
        assert np.bincount(choices[served], minlength=16).max() <= places == np.ceil(factor * 2 * 1024 / 16)  # (5)
        lost[name].append(1 - served.mean())
        empty[name].append(1 - served.sum() / (16 * places))
figure, axes = new_figure(1, 2, sharey=True)
for ax, shares, title in zip(axes, (lost, empty), ("assignments dropped", "places left empty"), strict=True):
    for name, values in shares.items():
        ax.plot(factors, values, label=f"{name} gate")
    ax.set(title=title, xlabel="capacity factor")
axes[0].set_ylabel("share")
axes[0].legend()
show(
    figure,
    alt="With a larger factor fewer assignments are dropped and more places are empty; both are worse for an uneven gate.",
)

# %% [markdown]
# At no factor are both small, unless the load is even. That is why balance matters so much (lesson 11). The sorted form needs
# no buffers, no capacity, and no drops.
#
# **Many machines.** In **expert parallelism** (专家并行) the experts live on $r$ machines, and so do the tokens. Each machine
# sends each other one the rows for its experts, which is an **all-to-all** (全交换), and gets them back. With an even gate,
# about $1 - 1/r$ of all rows must travel: that is the share of experts that live elsewhere.

# %%
(_, choices), _ = ops.top_k_gate(np.random.default_rng(2).standard_normal((1024, 16)), 2)
row_bytes = 512 * 4  # 512 numbers in float32
for ranks in (2, 4, 8):
    sent = dispatchers.exchanged_bytes(choices, 16, row_bytes, ranks=ranks)
    share = sent.sum() / (choices.size * row_bytes)
    print(
        f"{ranks} machines: {sent.sum() / 1e6:.2f} MB one way, {share:.1%} of all rows; 1 - 1/r = {1 - 1 / ranks:.1%}"
    )
print(
    "the example on two, from row to column:", dispatchers.exchanged_bytes(indices, 2, 8, ranks=2, kept=kept).tolist()
)

# %% [markdown]
# In the example machine 0 has token 0 and expert 0, machine 1 the rest. Token 0 also travels to expert 1, a number of 8 bytes;
# tokens 1 and 2 travel to expert 0.
#
# A layer makes this journey four times in one step of training: there and back, forward and backward.

# %% [markdown]
# ## The same in tinymoe
#
# The library keeps the sorted form in an `Assignment`: `order`, `inverse`, `tokens`, `counts`, the arrays you have just made.
# The matrices of (2) can be made from it, and so can $R$, the transpose of what the gate says.

# %%
assignment = ops.group_by_expert(indices, 2, kept)
for name, value in (("order", order), ("inverse", inverse), ("tokens", tokens), ("counts", counts)):
    assert np.array_equal(getattr(assignment, name), value)
assert np.array_equal(ops.dispatch_matrix(assignment, 3).to_dense(), S)
assert np.array_equal(ops.combine_matrix(assignment, weights).to_dense(), C)

routing = ops.routing_matrix(assignment, weights)
by_token = COO.from_triples([(n, indices[n, j], weights[n, j]) for n, j in np.argwhere(kept)], (3, 2)).to_csr()
assert all(np.array_equal(a, b) for a, b in zip(routing.arrays, by_token.T.arrays, strict=True))
print("R =\n", routing.to_dense())
print("indptr ", routing.indptr, " where each expert's tokens begin")
print("indices", routing.indices, " the tokens")
print("data   ", routing.data, " their weights")

# %% [markdown]
# `tinymoe.systems.dispatchers` has six ways to do it. `loop`, `grouped` (sorted, with gathers) and `csr` you know. `one_hot`
# runs each expert on all tokens and masks; `padded` has the buffers; `all_to_all` has the machines, as lists. All six return
# the same layer, and the same gradients: of $x$, of the weights, and of the experts' two matrices.

# %%
dy = np.ones((3, 1))
for name, way in dispatchers.DISPATCHERS.items():
    y_of_way, backward = way(x, weights, up, down, indices=indices, kept=kept)
    dx, dweights, dup, ddown = backward(dy)
    print(f"{name:10}", *(a.reshape(-1).tolist() for a in (y_of_way, dx, dweights, dup, ddown)))
    assert np.array_equal(y_of_way, y)
    assert dx[:, 0].tolist() == [310, 20, 40]
    assert dweights.tolist() == [[100, 10], [20, 0], [30, 0]]

# %% [markdown]
# The last two are the gradients of `up` and `down`: expert 0 gets $10 \cdot (1 \cdot 1 + 2 \cdot 2 + 4 \cdot 3) = 170$ for its
# `up`. A test with one number per token could miss a transposed axis. So once more, larger and random.

# %%
rng = np.random.default_rng(3)
(gate_weights, choices), _ = ops.top_k_gate(rng.standard_normal((40, 6)), 3)
served = ops.keep_within_capacity(choices, 6, 15)
large = (rng.standard_normal((40, 5)), gate_weights, rng.standard_normal((6, 5, 7)), rng.standard_normal((6, 7, 5)))
arriving = rng.standard_normal((40, 5))
first = None
for name, way in dispatchers.DISPATCHERS.items():
    y_of_way, backward = way(*large, indices=choices, kept=served)
    results = [y_of_way, *backward(arriving)]
    first = first or results
    worst = max(np.abs(a - b).max() for a, b in zip(results, first, strict=True))
    print(f"{name:10} within 1e-12 of the loop: {worst < 1e-12}")
    assert worst < 1e-12
print("assignments dropped:", (~served).sum(), "of", served.size)

# %% [markdown]
# ## Backward by hand
#
# For the example, with $dY = (1, 1, 1)$, read (4) from right to left through the layer.
#
# 1. $dZ = C^\top dY$: each output gets its weight, $1, 2, 4, 3$.
# 2. $dg_m = dy_{t_m} \cdot z_m$: each weight gets what its expert returned, $10, 20, 30, 100$. The dropped ones, with
#    the weights 5 and 6, get 0: nothing depends on them.
# 3. The experts multiply by 10, 10, 10 and 100 on the way back too: $d\text{rows} = 10, 20, 40, 300$.
# 4. $dX = S^\top d\text{rows}$: token 0 was copied twice and gets $10 + 300$; the others get 20 and 40.
#
# These are the numbers that all six have printed. As an operation, with gathers only:


# %%
def routed(x, weights, up, down, indices):
    (n, k), flat = indices.shape, indices.reshape(-1)
    order = np.argsort(flat, kind="stable")
    inverse = np.argsort(order)  # the shortest way to write it: what sorts `order` is where each assignment stands
    tokens, gates = order // k, weights.reshape(-1)[order]
    counts = np.bincount(flat, minlength=len(up))
    outputs, experts_back = ops.experts(x[tokens], up, down, counts=counts)  # up, ReLU, down
    home = outputs[inverse].reshape(n, k, -1)
    y = (weights[:, :, None] * home).sum(1)

    def backward(dy):
        dweights = (home * dy[:, None]).sum(2)
        doutputs = gates[:, None] * dy[tokens]  # Cᵀ dY: a gather, since a column of C has a single entry
        drows, dup, ddown = experts_back(doutputs)
        dx = drows[inverse].reshape(n, k, -1).sum(1)  # Sᵀ drows
        return dx, dweights, dup, ddown

    return y, backward


print(check_gradients(routed, *large, choices, method="complex"))
library_y, _ = dispatchers.grouped_dispatch(*large, indices=choices)
assert np.allclose(routed(*large, choices)[0], library_y, rtol=1e-12)

# %% [markdown]
# With the router of lesson 9 in front, this is the whole layer, `ops.moe` in [`ops/moe.py`](../tinymoe/ops/moe.py). The models
# of tinymoe run the same one. It hands back the routing too, and a balance loss, for which see lesson 11. Now a token
# reaches the loss in two ways, through its experts and through its scores, and its gradient is the sum of both.

# %%
many, _, ups, downs = large
router = rng.standard_normal((5, 6))
(y_layer, _, decided), layer_back = ops.moe(many, router, ups, downs, k=3)
mine, mine_back = routed(many, decided.weights, ups, downs, decided.indices)
dx_experts, dweights, dup, ddown = mine_back(arriving)
(dscores,) = ops.top_k_gate(many @ router, 3)[1](dweights)
gradients = dx_experts + dscores @ router.T, many.T @ dscores, dup, ddown
assert np.allclose(mine, y_layer, rtol=1e-12)
for ours, theirs in zip(gradients, layer_back(arriving, 0.0), strict=True):  # 0: leave the balance loss out
    assert np.allclose(ours, theirs, rtol=1e-10)
print("the layer, from the pieces of lessons 9 and 10: equal, and so are the gradients of x, router, up and down")

# %% [markdown]
# And the four products of (3) and (4) themselves, on the example:

# %%
dz = C.T @ dy
drows = dz * np.array([[10.0], [10.0], [10.0], [100.0]])
dg, dx = (dy[tokens] * outputs).sum(1), S.T @ drows
print("(4) dZ =", dz[:, 0], " dg =", dg, " drows =", drows[:, 0], " dX =", dx[:, 0])
y_of_way, backward = dispatchers.csr_dispatch(x, weights, up, down, indices=indices, kept=kept)
assert np.array_equal(dx, backward(dy)[0]) and np.array_equal(dg, backward(dy)[1].reshape(-1)[order])

# %% [markdown]
# ## Spot the bug
#
# How should one leave out an assignment? The easy way is to give it the weight 0. With experts on several machines,
# huggingface/transformers did that for what another machine carries out (issue 48687, mended by pull request 48689). The
# output was right. Find what is wrong by reading (2) and (4), before you run the check.


# %%
def layer_with_drops(x, weights, up, down, indices, kept):
    zeroed = np.where(kept, weights, 0)
    y, layer_back = dispatchers.grouped_dispatch(x, zeroed, up, down, indices=indices)

    def backward(dy):
        dx, dweights, dup, ddown = layer_back(dy)
        return dx, dweights, dup, ddown

    return y, backward


# %% [markdown]
# <details><summary>The bug</summary>
#
# A stored 0 is not the same as no entry. The matrix $C$ still has a place for the dropped assignment. Its expert runs, for
# nothing, and by (4) the gradient of that place is what the expert returned: not 0. So the router hears of experts that gave
# the token nothing, and learns to trust them. `backward` must zero the gradient where `kept` is False; better, leave the
# assignment out of the matrix.
#
# </details>

# %% tags=["guess"]
print(check_gradients(layer_with_drops, x, weights, up, down, indices, kept))
y_of_bug, backward = layer_with_drops(x, weights, up, down, indices, kept)
print("\ny", y_of_bug[:, 0], " dweights", backward(dy)[1].tolist())

# %% [markdown]
# Compare with what the six ways have printed: `y` agrees, `dweights` doesn't. The [museum](../tinymoe/systems/museum/layers.py)
# keeps this as "dropped assignments teach the router".

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · Sort by expert
#
# From `indices` of shape (N, K) make `order`, `inverse` and `counts` when nothing is dropped.
#
# <details><summary>Hint</summary>
#
# Everything happens on `indices.reshape(-1)`. `inverse[order[m]]` must be `m`, for each `m`.
#
# </details>


# %% tags=["exercise"]
def sort_by_expert(indices, n_experts):
    flat = indices.reshape(-1)
    order = ...
    inverse = ...
    counts = ...
    return order, inverse, counts


# %% tags=["solution"]
def sort_by_expert(indices, n_experts):
    flat = indices.reshape(-1)
    order = np.argsort(flat, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    counts = np.bincount(flat, minlength=n_experts)
    return order, inverse, counts


# %% tags=["wrong"]
def sort_by_expert(indices, n_experts):
    flat = indices.reshape(-1)
    order = np.argsort(flat, kind="stable")
    inverse = order[order]  # not the inverse
    return order, inverse, np.bincount(flat, minlength=n_experts)


# %% tags=["wrong"]
def sort_by_expert(indices, n_experts):
    flat = indices.reshape(-1)
    order = np.argsort(flat, kind="stable")
    return order, np.argsort(order), np.bincount(flat)  # experts behind the last busy one are missing


# %% tags=["check"]
def sorted_by_library(indices, n_experts):
    order, inverse, _, counts = ops.group_by_expert(indices, n_experts)
    return order, inverse, counts


some = np.array([[2, 0], [0, 3], [2, 3], [3, 0], [2, 1]])
check_exercise(1, sort_by_expert, some, 5, like=sorted_by_library, gradients=False)
check_exercise(1, sort_by_expert, choices, 7, like=sorted_by_library, gradients=False)  # too many to do by eye

# %% [markdown]
# ### 2 · Dispatch, there and back
#
# `tokens` says which token each row is a copy of, `inverse` where each assignment stands. Write the forward pass, and the
# backward pass without `np.add.at`.
#
# <details><summary>Hint</summary>
#
# `drows[inverse]` is in the order of assignments: the $K$ copies of token 0, then those of token 1, and so on. Reshape to
# (N, K, D), and add.
#
# </details>


# %% tags=["exercise"]
def my_dispatch(x, tokens, inverse):
    k = len(inverse) // len(x)
    rows = ...

    def backward(drows):
        dx = ...
        return (dx,)

    return rows, backward


# %% tags=["solution"]
def my_dispatch(x, tokens, inverse):
    k = len(inverse) // len(x)
    rows = x[tokens]

    def backward(drows):
        dx = drows[inverse].reshape(len(x), k, -1).sum(1)
        return (dx,)

    return rows, backward


# %% tags=["wrong"]
def my_dispatch(x, tokens, inverse):
    rows = x[tokens]

    def backward(drows):
        dx = np.zeros_like(x)
        dx[tokens] += drows  # the last copy covers the others
        return (dx,)

    return rows, backward


# %% tags=["wrong"]
def my_dispatch(x, tokens, inverse):
    k = len(inverse) // len(x)
    rows = x[tokens]

    def backward(drows):
        return (drows.reshape(len(x), k, -1).sum(1),)  # still in the order of experts

    return rows, backward


# %% tags=["check"]
grouped = ops.group_by_expert(some, 5)
some_x = np.random.default_rng(4).standard_normal((5, 3))
check_exercise(2, my_dispatch, some_x, grouped.tokens, grouped.inverse, like=lambda x, t, i: (x[t], None))

# %% [markdown]
# ### 3 · Combine as a sparse product
#
# The other way: `outputs` has a row for each assignment, in the order of experts, and `gates` its weight, in the same order.
# Return $y_n = \sum_{m : t_m = n} g_m z_m$ for $N$ tokens, and the gradients of `outputs` and `gates`. Use a dense $S$ if you
# like.
#
# <details><summary>Hint</summary>
#
# `S = np.eye(n)[tokens]` is the $S$ of (2), and $Y = S^\top (g \odot Z)$, where $\odot$ multiplies each row by its weight.
# Backward: $dY$ is gathered by `tokens`. Then (4).
#
# </details>


# %% tags=["exercise"]
def my_combine(outputs, gates, tokens, n):
    y = ...

    def backward(dy):
        doutputs = ...
        dgates = ...
        return doutputs, dgates

    return y, backward


# %% tags=["solution"]
def my_combine(outputs, gates, tokens, n):
    S = np.eye(n)[tokens]
    y = S.T @ (gates[:, None] * outputs)

    def backward(dy):
        doutputs = gates[:, None] * dy[tokens]
        dgates = (outputs * dy[tokens]).sum(1)
        return doutputs, dgates

    return y, backward


# %% tags=["wrong"]
def my_combine(outputs, gates, tokens, n):
    S = np.eye(n)[tokens]
    y = S.T @ (gates[:, None] * outputs)

    def backward(dy):
        return dy[tokens], (outputs * dy[tokens]).sum(1)  # the weight is forgotten on the way back

    return y, backward


# %% tags=["wrong"]
def my_combine(outputs, gates, tokens, n):
    S = np.eye(n)[tokens]
    y = S.T @ (gates[:, None] * outputs)

    def backward(dy):
        arriving = dy[tokens]
        return gates[:, None] * arriving, (gates[:, None] * outputs * arriving).sum(1)  # the weight counts twice

    return y, backward


# %% tags=["check"]
def combined(outputs, gates, tokens, n):
    y = np.zeros((n, outputs.shape[1]))
    np.add.at(y, tokens, gates[:, None] * outputs)
    return y, None


some_outputs, some_gates = np.random.default_rng(5).standard_normal((10, 3)), np.random.default_rng(6).random(10)
check_exercise(3, my_combine, some_outputs, some_gates, grouped.tokens, 5, like=combined)

# %% [markdown]
# ### 4 · Who finds a place?
#
# Each expert takes `places` tokens. All first choices are served before all second choices; tokens in order. Return `kept`, of
# the shape of `indices`.
#
# <details><summary>Hint</summary>
#
# Two loops; the outer one goes over choices. Count how many each expert has already.
#
# </details>


# %% tags=["exercise"]
def first_choices_first(indices, n_experts, places):
    kept = np.zeros(indices.shape, bool)
    taken = np.zeros(n_experts, int)
    ...
    return ...


# %% tags=["solution"]
def first_choices_first(indices, n_experts, places):
    kept = np.zeros(indices.shape, bool)
    taken = np.zeros(n_experts, int)
    for j in range(indices.shape[1]):
        for n, e in enumerate(indices[:, j]):
            kept[n, j] = taken[e] < places
            taken[e] += kept[n, j]
    return kept


# %% tags=["wrong"]
def first_choices_first(indices, n_experts, places):
    kept = np.zeros(indices.shape, bool)
    taken = np.zeros(n_experts, int)
    for n in range(len(indices)):  # token by token: a second choice may stand before a first
        for j, e in enumerate(indices[n]):
            kept[n, j] = taken[e] < places
            taken[e] += 1
    return kept


# %% tags=["wrong"]
def first_choices_first(indices, n_experts, places):
    kept = np.zeros(indices.shape, bool)
    for j in range(indices.shape[1]):
        taken = np.zeros(n_experts, int)  # each round of choices begins anew
        for n, e in enumerate(indices[:, j]):
            kept[n, j] = taken[e] < places
            taken[e] += 1
    return kept


# %% tags=["check"]
check_exercise(4, first_choices_first, some, 5, 2, like=ops.keep_within_capacity, gradients=False)

# %% [markdown]
# ## Next
#
# An uneven gate drops tokens or wastes places. Lesson 11 is about how a load becomes uneven, and what can be done about it.
