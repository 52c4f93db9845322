# ---
# jupyter:
#   lesson:
#     title: Seven interview questions
#     chinese: 典型面试题
#     builds: answers to the seven questions of an interview, each short enough to say aloud, and with code that runs
#     code:
#       - tinymoe/sparse/gustavson.py
#       - tinymoe/documents/sparse_weights.py
#       - tinymoe/models/accounting.py
#       - tinymoe/systems/all_reduce.py
#     documents: [O5, S1, S2, S3, S9, S10, S11, S12]
#     papers:
#       - "Gustavson 1978, *Two Fast Algorithms for Sparse Matrices: Multiplication and Permuted Transposition*"
#       - "Shazeer et al. 2017, *Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer*, eq. 1"
#     terms:
#       inference: [推理, "using a trained model, without learning"]
# ---

# %% [markdown]
# ## You will
#
# answer the seven interview questions of 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》, §5, each in a few
# sentences and with code that runs ([O5](DOCUMENTS.md)).

# %% [markdown]
# ## You need
#
# All lessons so far, as a revision. Try each question before you read on: say the answer aloud, then compare.

# %%
from dataclasses import replace

import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.documents.sparse_weights import SparseExpertLanguageModel
from tinymoe.models.accounting import active_parameters, flops_per_token
from tinymoe.models.config import LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.ops.metrics import max_violation
from tinymoe.sparse import COO, prune
from tinymoe.systems.all_reduce import ring_all_reduce
from tinymoe.systems.dispatchers import exchanged_bytes
from tinymoe.tree import named

# %% [markdown]
# ## 1 · What is a sparse matrix? 什么是稀疏矩阵？
#
# *One whose elements are mostly zero, so many of them that it pays to store and to multiply the others only.* It is a
# matter of use and not of a fixed share: what pays depends on the format and on the machine. The document's example:

# %%
matrix = np.array([[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 7], [0, 0, 0, 0]])
print(
    f"{np.count_nonzero(matrix)} of {matrix.size} elements are not zero: density {np.count_nonzero(matrix) / matrix.size:.1%}"
)

# %% [markdown]
# ## 2 · How is it stored? 稀疏矩阵如何存储？
#
# *As triples of row, column and value (COO): easy to make. Or with the rows compressed (CSR): the entries row by row,
# and for each row where its own begin. That is the form to compute with.*
#
# The document gives three triples for the matrix above. They describe another one:

# %%
A = COO.from_dense(matrix)
print("triples      ", A.to_triples())
compressed = A.to_csr()
print("CSR          ", compressed.indptr, compressed.indices, compressed.data)
printed = COO.from_triples([(0, 1, 5), (1, 2, 7), (2, 3, 7)], (4, 4)).to_dense()
print("the document's triples give its matrix:", np.array_equal(printed, matrix))

# %% [markdown]
# ## 3 · Write its product. 请实现一个稀疏矩阵的乘法算法。
#
# *$C_{ij} = \sum_k A_{ik} B_{kj}$. Keep the entries of $B$ by row. Then each entry $(i, k)$ of $A$ meets row $k$ of $B$ and
# nothing else: one step for each product that exists, however large the matrices are.*


# %%
def product(A, B):
    row_of_b, total = {}, {}
    for k, j, w in B:
        row_of_b.setdefault(k, []).append((j, w))
    for i, k, v in A:
        for j, w in row_of_b.get(k, []):
            total[i, j] = total.get((i, j), 0) + v * w
    return [(i, j, v) for (i, j), v in sorted(total.items())]


def as_printed(A, B):  # the document's
    result = [[0] * len(B[0]) for _ in range(len(A))]
    for i, k, v in A:
        for j in range(len(B[0])):
            for _m, n, w in B:
                if k == n:
                    result[i][j] += v * w
    return result


X, Y = [(0, 0, 2), (1, 1, 3)], [(0, 1, 5), (1, 1, 7)]  # 2×2: [[2, 0], [0, 3]] and [[0, 5], [0, 7]]
print("right:     ", product(X, Y))
print("as printed:", as_printed(X, Y))
dense = [COO.from_triples(triples, (2, 2)).to_dense() for triples in (X, Y, product(X, Y))]
assert np.array_equal(dense[0] @ dense[1], dense[2])

# %% [markdown]
# The printed loop takes the length of a triple, 3, for the number of columns. It asks whether $k$ is the *column* of
# an entry of $B$, where it must be its row. And it adds each product to every column.
#
# ## 4 · How does a sparse expert model work? 请解释稀疏专家模型的工作原理。
#
# *A router gives each token a score for every expert. The best K run, the others don't. Their answers are added up,
# each times a weight made of the scores, so that the router learns from the loss. A second rule keeps the experts
# evenly busy.* That is the usual meaning, and the choice is again a sparse matrix (lesson 10). The document means
# something else: experts whose *weights* are sparse. Ask which of the two is meant. In the picture below each column is
# a token, and the two places that are filled are its experts.


# %%
def sparse_layer(x, router, experts, k):
    y, visits = np.zeros(x.shape), np.zeros((len(experts), len(x)))
    for n, row in enumerate(x):
        scores = row @ router
        best = np.argsort(-scores)[:k]
        weights = np.exp(scores[best] - scores[best].max())
        for i, w in zip(best, weights / weights.sum(), strict=True):
            y[n] += w * np.maximum(0, row @ experts[i][0]) @ experts[i][1]
            visits[i, n] = w
    return y, visits


# %%
rng = np.random.default_rng(0)
x, router = rng.standard_normal((24, 6)), rng.standard_normal((6, 5))
up, down = rng.standard_normal((5, 6, 8)), rng.standard_normal((5, 8, 6))
y, visits = sparse_layer(x, router, list(zip(up, down, strict=True)), k=2)
(same, _, _), _ = ops.moe(x, router, up, down, k=2)  # the layer that the models of tinymoe run
assert np.allclose(y, same, rtol=1e-10)

figure, axes = new_figure(height=1.9)
image = axes.imshow(np.where(visits > 0, visits, np.nan), "cividis_r", vmin=0, vmax=1, aspect="auto")
axes.set(xlabel="token", ylabel="expert", yticks=range(5))
axes.grid(visible=False)
figure.colorbar(image, label="gate weight")
show(figure, alt="A matrix of 5 experts by 24 tokens with two shaded places in each column, the rest empty.")

# %% [markdown]
# ## 5 · What are its merits and faults? 稀疏专家模型有哪些优缺点？
#
# The document answers: fewer parameters, faster training. *Of a choice of experts the first is false: for equal work
# per token it has more parameters, and that is its point. The second needs care: a step takes no less work, but the
# larger model often needs fewer steps to the same loss. Its faults: memory, traffic between machines, experts that
# collapse, batches that split into small products.* Sparse *weights* do save memory; time they save only at low
# densities (lesson 15). In numbers, a mixture against a dense model of equal work:

# %%
sparse = LanguageConfig(layers=2, width=64, heads=4, kv_heads=4, expert_width=128, experts=8, top_k=2)
dense = replace(sparse, experts=2, dense_layers=(0, 1))
for name, shape in {"dense": dense, "8 experts, 2 used": sparse}.items():
    params = initialize(shape, np.random.default_rng(0))
    size = sum(array.size for array in named(params).values())
    work = flops_per_token(shape, 64)
    print(
        f"{name:18} {size:8,} parameters, {active_parameters(params, shape):8,} active, {work:9,.0f} operations a token"
    )
print("MaxVio, a measure of uneven load, for 3 of 4 experts idle:", max_violation(np.array([24, 0, 0, 0])))

# %% [markdown]
# ## 6 · Write a language model with it. 请实现一个基于稀疏专家模型的语言模型。
#
# *Embedding, layers, a head; somewhere in between, the layer of question 4.* The whole of it by hand is lesson 7,
# with experts lesson 8. The document gives two functions that fill dense arrays with random numbers, and no model.
# Around its two functions the library has built one whose embedding and experts are sparse from the start and stay so
# ([S10](DOCUMENTS.md)). A few steps on one sentence:

# %% tags=["trained"]
sentence = np.frombuffer(b"sparse experts share the work, and every expert is sparse. " * 8, np.uint8).astype(int)
windows = sentence[: 16 * 24 + 1]
ids, targets = windows[:-1].reshape(24, 16), windows[1:].reshape(24, 16)
model = SparseExpertLanguageModel(V=128, D=24, H=4, k=2, density=0.25)
before = model.parameters.experts.nnz
curve = model.train(ids, targets, epochs=200, learning_rate=0.02)
density = model.parameters.experts.nnz / np.prod(model.parameters.experts.shape)
print(f"loss {curve[0]:.2f} → {curve[-1]:.2f}; {density:.0%} of the experts' places are stored")
assert model.parameters.experts.nnz == before and curve[-1] < curve[0]

# %% [markdown]
# ## 7 · What is it good for in large training runs? 请分析稀疏专家模型在大规模语言模型训练中的应用。
#
# *It lets the number of parameters grow without the work per token, and it changes what travels. With experts on
# several machines, tokens go to the experts and back (all-to-all), and no expert's gradient has to be added up across
# machines. With copies on every machine, gradients are added up (all-reduce), whatever the batch. Which is less
# depends on the tokens per step.* So the document's "less communication" is true only on one side of a line. In
# **inference** (推理) on a small device, experts save work but no memory, since all must be stored. Pruned weights save
# memory, if less than it seems: an index goes with each value.

# %%
machines, D, F, E = 4, 32, 64, 8
gradient = [np.zeros((E, 2, D, F), np.float32) for _ in range(machines)]
_, sent = ring_all_reduce(gradient)
print(f"all-reduce of the experts' gradients: {sent[0] // 1000:4} kB from each machine, whatever the batch")
for tokens in (64, 4096):  # of each machine
    indices = np.argsort(rng.random((machines * tokens, E)), axis=1)[:, :2]
    moved = 4 * exchanged_bytes(indices, E, 4 * D, ranks=machines).sum(1)  # there and back, forward and backward
    print(f"all-to-all with {tokens:4} tokens:              {moved.mean() / 1000:6.0f} kB from each machine")
weights = rng.standard_normal((256, 256)).astype(np.float32)
pruned = prune(weights, 0.9)
stored = sum(array.nbytes for array in (pruned.data, pruned.indices, pruned.indptr))
print(f"a matrix pruned to 10 %: {stored / weights.nbytes:.0%} of the bytes")

# %% [markdown]
# ## Exercises
#
# ### 1 · When do triples pay?
#
# A matrix has `rows` times `columns` places and `entries` of them are not zero. A value takes 4 bytes, an index 8.
# How many bytes do you save by storing triples (two indices and a value for each entry) instead of every place? The
# answer may be negative.
#
# <details><summary>Hint</summary>
#
# All places: 4 bytes each. Triples: 8 + 8 + 4 bytes for each entry.
#
# </details>


# %% tags=["exercise"]
def saved(rows, columns, entries):
    return ...


# %% tags=["solution"]
def saved(rows, columns, entries):
    return 4 * rows * columns - (8 + 8 + 4) * entries


# %% tags=["wrong"]
def saved(rows, columns, entries):
    return max(0, 4 * rows * columns - 20 * entries)  # triples may cost more than they save


# %% tags=["wrong"]
def saved(rows, columns, entries):
    return 4 * rows * columns - (8 + 4) * entries  # a triple has two indices


# %% tags=["check"]
def bytes_saved(rows, columns, entries):
    dense = np.zeros((rows, columns), np.float32)
    dense.ravel()[:entries] = 1
    at = np.nonzero(dense)
    return dense.nbytes - sum(index.astype(np.int64).nbytes for index in at) - dense[at].nbytes


check_exercise(1, saved, 50, 40, 500, like=bytes_saved, gradients=False)

# %% [markdown]
# ### 2 · Rows that travel
#
# `machines` machines share the tokens and the experts evenly and in order: with 8 tokens on 4 machines, tokens 0 and
# 1 are on machine 0, and so on; so it is with experts. `indices` (N, K) has the experts of each token. How many
# (token, expert) pairs need a row to travel, because the expert lives on another machine?
#
# <details><summary>Hint</summary>
#
# The machine of expert `i` is `i // (n_experts // machines)`, and that of token `n` is computed in the same way.
# Compare the two with broadcasting: one has the shape (N, K), the other needs (N, 1).
#
# </details>


# %% tags=["exercise"]
def travelling(indices, n_experts, machines):
    of_expert = indices // (n_experts // machines)
    of_token = ...
    return ...


# %% tags=["solution"]
def travelling(indices, n_experts, machines):
    of_expert = indices // (n_experts // machines)
    of_token = np.arange(len(indices))[:, None] // (len(indices) // machines)
    return (of_expert != of_token).sum()


# %% tags=["wrong"]
def travelling(indices, n_experts, machines):
    return indices.size  # what stays at home needs no journey


# %% tags=["wrong"]
def travelling(indices, n_experts, machines):
    of_expert = indices // (n_experts // machines)
    of_token = np.arange(len(indices))[:, None] // (len(indices) // machines)
    return (of_expert != of_token).any(1).sum()  # tokens that travel, not pairs


# %% tags=["check"]
def rows_exchanged(indices, n_experts, machines):
    return exchanged_bytes(indices, n_experts, 1, ranks=machines).sum()


chosen = np.argsort(np.random.default_rng(1).random((12, 8)), axis=1)[:, :2]
check_exercise(2, travelling, chosen, 8, 4, like=rows_exchanged, gradients=False)

# %% [markdown]
# ## Next
#
# You have the answers, and the code behind them. [The map](DOCUMENTS.md) leads from each sentence of the five
# documents to the lines that make it true, and the [README](../README.md) to the commands that train larger models
# than these.
