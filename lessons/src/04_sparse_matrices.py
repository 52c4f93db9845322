# ---
# jupyter:
#   lesson:
#     title: Sparse matrices
#     chinese: 稀疏矩阵
#     builds: a matrix that stores only what is not zero, its transpose, its four products, and their gradients
#     code: [tinymoe/sparse/formats.py, tinymoe/sparse/products.py, tinymoe/ops/sparse.py]
#     documents: [S1, S2, S3, O5]
#     papers:
#       - "Gustavson 1978, *Two Fast Algorithms for Sparse Matrices: Multiplication and Permuted Transposition*"
#       - "Nisa et al. 2018, *Sampled Dense Matrix Multiplication for High-Performance Machine Learning*"
#     terms:
#       dense matrix: [稠密矩阵, "a matrix that stores all its places, zeros too"]
#       density: [密度, "the share of a matrix's places that are stored"]
#       entry: [元素, "one stored place of a sparse matrix, with its value"]
#       triple: [三元组, "row, column and value of one entry"]
#       coordinate format: [坐标格式, "a sparse matrix as a list of rows, columns and values"]
#       compressed sparse rows: [压缩稀疏行, "entries sorted by row, with a pointer to where each row begins"]
#       row pointer: [行指针, "the number of the entry at which a row begins"]
#       counting sort: [计数排序, "sorting by counting how often each key occurs, without comparing"]
#       sampled product: [采样乘积, "a product of dense matrices, computed only at the places of a pattern"]
#       pattern: [稀疏模式, "the places that a sparse matrix stores, without their values"]
# ---

# %% [markdown]
# ## You will
#
# store a matrix without its zeros, multiply it in four ways without ever touching a zero, and find the gradients of such
# a product.

# %% [markdown]
# ## You need
#
# Lessons 1 to 3 (gradients and how to check them, and why a gather adds up on its way back), and the product of two
# matrices.

# %%
from collections import Counter
from itertools import pairwise
from timeit import repeat

import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients
from tinymoe.sparse import COO, CSR

# %% [markdown]
# ## Picture
#
# Which letter follows which? Count it in a sentence. Each letter gets a number, 0 for the space, 1 for a, 26 for z. Then the
# counts are a matrix: row $i$, column $j$ says how often letter $j$ comes right after letter $i$.

# %%
text = "a sparse matrix stores what is there and keeps quiet about what is not"
number = {letter: i for i, letter in enumerate(" abcdefghijklmnopqrstuvwxyz")}
counts = Counter(pairwise(text))
triples = sorted((number[a], number[b], float(count)) for (a, b), count in counts.items())

dense = np.zeros((27, 27))
for i, j, count in triples:
    dense[i, j] = count
figure, axes = new_figure(height=4.6)
image = axes.imshow(np.where(dense > 0, dense, np.nan), cmap="cividis_r")
axes.set(xlabel="the letter after it", ylabel="a letter", xticks=range(27), yticks=range(27))
for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticklabels(["␣", *list(number)[1:]])
axes.grid(False)
figure.colorbar(image, label="how often", ticks=range(1, 9))
show(figure, alt="A grid of 27 by 27 places. Only some places are filled: most pairs of letters never occur.")
print(f"{dense.size} places, {len(triples)} of them not zero: {len(triples) / dense.size:.1%}")

# %% [markdown]
# Most pairs never occur. Such a matrix, mostly zeros, is a **sparse matrix** (稀疏矩阵). The opposite is a **dense matrix**
# (稠密矩阵). The share of places that are stored is the **density** (密度).
#
# The array `dense` keeps every zero. The list `triples` doesn't, and it says the same. This lesson computes with the list.

# %% [markdown]
# ## Formula
#
# Let $A$ have $R$ rows, $C$ columns, and $Z$ stored **entries** (元素; an entry is a place with its value). Entry $e$ stands in
# row $r_e$ and column $c_e$ and has the value $v_e$. The three together are a **triple** (三元组), and the list of them is the
# **coordinate format** (坐标格式), COO:
#
# $$a_{ij} = \sum_{e \,:\, r_e = i,\; c_e = j} v_e \tag{1}$$
#
# A sum over nothing is 0, so places without an entry are zero. Two entries at one place add up. The pairs $(r_e, c_e)$
# alone are the **pattern** (稀疏模式).
#
# Sort the entries by row. Then the row numbers repeat, $0, 0, 2, 2, 2$, and it is enough to know where each row begins. This
# is **compressed sparse rows** (压缩稀疏行), CSR. Its **row pointers** (行指针) $p$ are one more than there are rows:
#
# $$p_i = \text{the number of entries in rows before } i, \qquad \text{row } i \text{ owns the entries } p_i, \dots, p_{i+1} - 1
# \tag{2}$$
#
# The **transpose** (转置) $A^\top$ exchanges rows and columns. So its entries must be sorted by column, and where an entry goes
# can be counted. This is a **counting sort** (计数排序):
#
# $$\text{place of } e = (\text{entries in columns before } c_e) + (\text{earlier entries in column } c_e) \tag{3}$$
#
# **Four products**, each a sum over stored entries only. By a vector $x$; by a dense matrix $X$, whose row $k$ is
# $X_{k:}$; by another sparse matrix $B$; and the **sampled product** (采样乘积) of two dense matrices $G$ and $H$, only
# where $A$ stores something:
#
# $$y_i = \sum_{e \text{ of row } i} v_e\, x_{c_e} \tag{4}$$
#
# $$Y_{i:} = \sum_{e \text{ of row } i} v_e\, X_{c_e:} \tag{5}$$
#
# $$(AB)_{i:} = \sum_{e \text{ of row } i} v_e\, B_{c_e:} \qquad \text{reading only the stored entries of } B_{c_e:} \tag{6}$$
#
# $$s_e = \sum_d g_{r_e d}\; h_{d c_e} \qquad \text{the element of } GH \text{ at the place of entry } e \tag{7}$$
#
# With $b$ bytes for a value and 4 for an index, CSR takes
#
# $$Z (b + 4) + 4 (R + 1) \text{ bytes, and the dense array } R\,C\,b. \tag{8}$$
#
# *Where it stands.* (1) and (6) are what the document 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 asks for in §5 and
# answers in §6.1 to §6.3 ([S1, S2, S3](DOCUMENTS.md)); CSR isn't in it. (3) and (6) are Gustavson 1978. (7) is the "SDDMM" of
# Nisa et al. 2018.

# %% [markdown]
# ## By hand
#
# $$A = \begin{pmatrix} 0 & 2 & 0 & 3 \\ 0 & 0 & 0 & 0 \\ 4 & 1 & 0 & 5 \end{pmatrix}$$
#
# - COO: rows 0 0 2 2 2, columns 1 3 0 1 3, values 2 3 4 1 5.
# - Row pointers: row 0 begins at entry 0, row 1 at 2, row 2 also at 2, and the end is 5. So $p$ = 0 2 2 5. Row 1 is empty:
#   its two pointers are equal.
# - Transpose: the columns have 1, 2, 0, 2 entries, so they begin at 0, 1, 3, 3, and the end is 5. Entry 0, in column 1, goes to
#   place 1. Entry 1, in column 3, to place 3. Entry 2 to 0. Entry 3, the second of column 1, to $1 + 1 = 2$. Entry 4 to
#   $3 + 1 = 4$. In their new order the values are 4 2 1 3 5.
# - Times the vector $x$ = 1 2 3 4: $y_0 = 2 \cdot 2 + 3 \cdot 4 = 16$, $y_1 = 0$, $y_2 = 4 \cdot 1 + 1 \cdot 2 + 5 \cdot 4
#   = 26$. Five multiplications; the dense product needs twelve.
# - Sampled, with the column $G$ = 1 2 3 and the row $H$ = 1 2 3 4: $s$ = 2 4 3 6 12. The other seven elements of $GH$ are
#   never computed.
# - Bytes, for values of 8: $5 \cdot 12 + 4 \cdot 4 = 76$ against $12 \cdot 8 = 96$. For values of 4: $5 \cdot 8 + 16 = 56$
#   against 48. There CSR is the larger one!

# %% [markdown]
# ## Code
#
# From a dense array to COO is to note the places; from COO to CSR, (2), is to count them.


# %%
def coordinates(dense):
    rows, cols = np.nonzero(dense)  # row after row
    return rows, cols, dense[rows, cols]


def row_pointers(rows, n_rows):
    pointers = [0] * (n_rows + 1)
    for i in rows:
        pointers[i + 1] += 1  # so many entries has row i
    for i in range(n_rows):
        pointers[i + 1] += pointers[i]  # … and so many have all rows up to it
    return np.array(pointers)


A = np.array([[0.0, 2, 0, 3], [0, 0, 0, 0], [4, 1, 0, 5]])
rows, cols, values = coordinates(A)
indptr = row_pointers(rows, len(A))
print(f"rows         {rows}\ncolumns      {cols}\nvalues       {values}\nrow pointers {indptr}")

# %% [markdown]
# `rows` isn't needed any more: CSR is `indptr`, `cols`, `values`. Now the transpose, (3). `free` holds the next free place
# of each column. Because entries come row after row, those of one column stay in the order of their rows, so the result is
# CSR again.


# %%
def transposed(indptr, cols, values, n_cols):
    starts = row_pointers(cols, n_cols)  # the same count, of columns
    free = starts[:-1].copy()
    new_cols, new_values = np.empty_like(cols), np.empty_like(values)
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            place = free[cols[e]]
            free[cols[e]] += 1
            new_cols[place], new_values[place] = i, values[e]
    return starts, new_cols, new_values


starts, new_cols, new_values = transposed(indptr, cols, values, 4)
for name, array in zip(("row pointers", "columns", "values"), (starts, new_cols, new_values), strict=True):
    print(f"{name:12} {array}")
back = transposed(starts, new_cols, new_values, 3)
assert all(np.array_equal(a, b) for a, b in zip(back, (indptr, cols, values), strict=True))  # twice is A again

# %% [markdown]
# No comparison of one entry with another, so the time goes with $Z + R + C$. You will meet this loop again: sorting
# tokens by the expert they chose *is* this transpose.
#
# Now the products. (4) and (5) are the same loop: `x[cols[e]]` is a number if `x` is a vector, and a row if it is a
# matrix. (`np.result_type` is the type of number that holds both: complex if one of them is, as in the gradient check
# further down.)


# %%
def times_dense(indptr, cols, values, x):
    y = np.zeros((len(indptr) - 1, *x.shape[1:]), np.result_type(values, x))  # shape (R,) or (R, D)
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            y[i] += values[e] * x[cols[e]]
    return y


def sampled(indptr, cols, g, h):
    values = np.zeros(len(cols), np.result_type(g, h))
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            values[e] = g[i] @ h[:, cols[e]]
    return values


x = np.array([1.0, 2, 3, 4])
print("times a vector:", times_dense(indptr, cols, values, x))
print("sampled:       ", sampled(indptr, cols, np.array([[1.0], [2], [3]]), x[None]))  # x as a matrix of one row
assert np.array_equal(times_dense(indptr, cols, values, x), A @ x)
assert np.array_equal(times_dense(indptr, cols, values, np.eye(4)), A)

# %% [markdown]
# For sparse times sparse, (6), the row of $B$ is sparse too, so the sum goes to a dictionary. Row $i$ of the product is made of
# those rows of $B$ that row $i$ of $A$ names, and nothing else is looked at. This is Gustavson's algorithm.


# %%
def times_sparse(a, b):
    (indptr, cols, values), (b_indptr, b_cols, b_values) = a, b
    triples = []
    for i in range(len(indptr) - 1):
        row = {}
        for e in range(indptr[i], indptr[i + 1]):
            for f in range(b_indptr[cols[e]], b_indptr[cols[e] + 1]):
                row[b_cols[f]] = row.get(b_cols[f], 0) + values[e] * b_values[f]
        triples += [(i, int(j), float(row[j])) for j in sorted(row)]
    return triples


product = times_sparse((indptr, cols, values), transposed(indptr, cols, values, 4))
print("A Aᵀ =", product)
assert product == COO.from_dense(A @ A.T).to_triples()

# %% [markdown]
# ## The same in tinymoe
#
# The library has `COO` and `CSR`, with these arrays in them; it calls them `indptr`, `indices` and `data`. Here are the
# counts of letters.

# %%
pairs = COO.from_triples(triples, (27, 27)).to_csr()
ours = row_pointers([i for i, j, count in triples], 27)
flipped = transposed(pairs.indptr, pairs.indices, pairs.data, 27)
print(pairs)
assert np.array_equal(pairs.to_dense(), dense)  # formula (1)
assert COO.from_triples([(0, 1, 2.0), (0, 1, 3.0)], (1, 2)).to_triples() == [(0, 1, 5.0)]  # (1), two at one place
assert np.array_equal(pairs.indptr, ours)  # (2)
assert all(np.array_equal(a, b) for a, b in zip(pairs.T.arrays, flipped, strict=True))  # (3)

rng = np.random.default_rng(0)
X, H = rng.standard_normal((27, 5)), rng.standard_normal((5, 27))
assert np.allclose(pairs @ X[:, 0], times_dense(*pairs.arrays, X[:, 0]), rtol=1e-12)  # (4)
assert np.allclose(pairs @ X, times_dense(*pairs.arrays, X), rtol=1e-12)  # (5)
assert (pairs @ pairs).to_triples() == times_sparse(pairs.arrays, pairs.arrays)  # (6)
assert np.allclose(pairs.sampled_matmul(X, H).data, sampled(pairs.indptr, pairs.indices, X, H), rtol=1e-12)  # (7)
assert pairs.nbytes == pairs.nnz * (8 + 4) + 4 * 28  # (8)
print("All eight formulas hold. The counts times themselves have", (pairs @ pairs).nnz, "entries: products fill up.")

# %% [markdown]
# **Does it pay?** Count the multiplications and sparse wins whenever a place is empty. Measure bytes and time, and it looks
# otherwise. Random matrices of single floats, and the library's products against NumPy's:


# %%
def seconds(function):
    return min(repeat(function, number=2, repeat=5))


size, densities = 400, np.geomspace(0.002, 0.9, 12)
X = rng.standard_normal((size, size), dtype=np.float32)
gains = []  # of bytes, of time for sparse × dense, of time for sparse × sparse
for density in densities:
    S = CSR.from_dense(X, rng.random((size, size)) < density)
    full = S.to_dense()
    by_dense = seconds(lambda full=full: full @ X) / seconds(lambda S=S: S @ X)
    by_sparse = seconds(lambda full=full: full @ full) / seconds(lambda S=S: S @ S)
    gains.append((full.nbytes / S.nbytes, by_dense, by_sparse))
figure, axes = new_figure(height=3.6)
axes.loglog(densities, 1 / densities, label="multiplications, sparse × dense")
for gain, label in zip(np.transpose(gains), ("bytes", "time, sparse × dense", "time, sparse × sparse"), strict=True):
    axes.loglog(densities, gain, label=label)
axes.axhline(1, color="black", linewidth=0.8)
axes.set(xlabel="density", ylabel="dense / sparse: above 1 sparse wins")
axes.legend()
show(
    figure,
    alt="Dense over sparse against density: all lines fall; bytes and times end below 1, multiplications near 1.",
)

# %% [markdown]
# Above 1 sparse is better, below 1 it is worse. The line of bytes crosses where (8) says: with values of 4 bytes and an
# index of 4, at a density of one half. The lines of time differ from machine to machine, but they stay below the line
# of the work saved, $1 / \text{density}$. A dense product reads numbers in a row and does many at a time; a sparse one
# has to fetch rows from here and there. And in sparse × sparse the result soon isn't sparse any more. Where filling in
# the zeros is faster, the library does it: from there on the lines of time are nearly level.
#
# Remember this when somebody says "90 % of the weights are zero, so it is ten times as fast".

# %% [markdown]
# ## Backward by hand
#
# $Y = AX$ with a fixed pattern. The values $v_e$ and the matrix $X$ are learnt. Which elements of $Y$ does one value touch?
# By (5) only row $r_e$, and there $y_{r_e f}$ grows by $x_{c_e f}$ for each unit of $v_e$. So, with `dy` as $dY$:
#
# $$dv_e = \sum_f dy_{r_e f}\; x_{c_e f} \tag{9}$$
#
# which is (7): the product $dY\, X^\top$, sampled at the pattern. And which elements of $Y$ does row $k$ of $X$ touch? Those
# whose rows have an entry in column $k$:
#
# $$dX_{k:} = \sum_{e \,:\, c_e = k} v_e\, dY_{r_e:} \tag{10}$$
#
# which is (5) again, with $A^\top$ for $A$. So nothing new is needed: the gradients of one product of this lesson are two
# others.


# %%
def my_sparse_matmul(values, x, indptr, cols):
    y = times_dense(indptr, cols, values, x)

    def backward(dy):
        dvalues = sampled(indptr, cols, dy, x.T)
        starts, rows, turned = transposed(indptr, cols, values, len(x))
        dx = times_dense(starts, rows, turned, dy)
        return dvalues, dx

    return y, backward


X, dy = rng.standard_normal((4, 2)), rng.standard_normal((3, 2))
print(check_gradients(my_sparse_matmul, values, X, indptr, cols, method="complex"))

pattern = CSR.from_dense(A)
(y, backward), (y2, backward2) = my_sparse_matmul(values, X, indptr, cols), ops.sparse_matmul(values, X, pattern)
assert np.allclose(y, y2, rtol=1e-12)
for mine, theirs in zip(backward(dy), backward2(dy), strict=True):
    assert np.allclose(mine, theirs, rtol=1e-12)

# %% [markdown]
# Is the gradient zero where nothing is stored? No! The loss would change if a weight were there. It is not computed, because
# nobody is there to receive it. (In lesson 13 we do compute it now and then, to find out where a new weight would help most.)

# %%
whole = dy @ X.T  # what the gradient would be if A were dense
print("dense gradient:\n", whole.round(2))
print("at the pattern: ", backward(dy)[0].round(2))
assert np.allclose(whole[rows, cols], backward(dy)[0], rtol=1e-12)

# %% [markdown]
# ## What the document gets wrong
#
# **The triples** ([S2](DOCUMENTS.md)). §6.1 shows a matrix with 5 in row 1, column 1, and 7 in row 2, column 3, counted from 0.
# §6.2 stores it as (0, 1, 5), (1, 2, 7), (2, 3, 7). Put them back:

# %%
printed_matrix = np.array([[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 7], [0, 0, 0, 0]])
printed_triples = [(0, 1, 5), (1, 2, 7), (2, 3, 7)]
print("the matrix of §6.1:", COO.from_dense(printed_matrix).picture(), sep="\n")
print("the triples of §6.2:", COO.from_triples(printed_triples, (4, 4)).picture(), sep="\n")
print("what they should be:", COO.from_dense(printed_matrix).to_triples())

# %% [markdown]
# Another matrix, with an entry too many. It doesn't help to count from 1 either: then the 5 would be at (2, 2) and the 7 at
# (3, 4).
#
# **The product** ([S3](DOCUMENTS.md)). §6.3 gives this loop. A and B are lists of triples.


# %%
def printed_product(A, B):
    result = [[0] * len(B[0]) for _ in range(len(A))]
    for i, k, v in A:
        for j in range(len(B[0])):
            for _m, n, w in B:
                if k == n:
                    result[i][j] += v * w
    return result


a, b = [(0, 0, 2), (1, 1, 3)], [(0, 1, 5), (1, 0, 7)]
print("as printed:", printed_product(a, b))
print("right:     ", (COO.from_triples(a, (2, 2)) @ COO.from_triples(b, (2, 2))).to_dense().tolist())

# %% [markdown]
# Three mistakes in eight lines:
#
# 1. `len(A)` is the number of *entries*, not of rows; `len(B[0])` is the length of a triple, always 3, not the number of
#    columns.
# 2. `k == n` compares the column in A with the *column* in B. The sum $\sum_k a_{ik} b_{kj}$ needs B's *row*, which is never
#    looked at (and so is called `_m` here).
# 3. The product belongs to one place, row $i$ and column `n`. It is added to every $j$.
#
# Mended, it is the definition. It searches all of B for each entry of A; (6) goes to the right row at once.


# %%
def mended_product(A, B):
    result = {}
    for i, k, v in A:
        for m, n, w in B:
            if k == m:
                result[i, n] = result.get((i, n), 0) + v * w
    return sorted((i, j, value) for (i, j), value in result.items())


print("mended:", mended_product(a, b))
assert mended_product(a, b) == (COO.from_triples(a, (2, 2)) @ COO.from_triples(b, (2, 2))).to_triples()

# %% [markdown]
# ## Spot the bug
#
# In a mixture of experts each token chooses $K$ experts, with a weight for each. That is a sparse matrix of tokens ×
# experts. The code of nanoMoE and of deepspeedai/DeepSpeed (`deepspeed/moe/sharded_moe.py`) makes it like this, in
# essence: weights into an array of zeros, and the token goes where the array is not zero (`combine_weights.bool()`).
# Find the bug by reading.


# %%
def choices_as_matrix(weights, indices, n_experts):
    combine = np.zeros((len(weights), n_experts), weights.dtype)
    np.put_along_axis(combine, indices, weights, 1)  # row n gets weights[n] in the columns indices[n]
    return CSR.from_dense(combine)  # stores what is not zero


# %% [markdown]
# <details><summary>The bug</summary>
#
# The pattern is read off the values. But a stored value may *be* zero: a weight is $e^{-\text{something}}$, and in
# single precision that is exactly 0 once the something is above about 104. Then a choice has been made, and counted,
# and the matrix doesn't know of it: row numbers and counts no longer fit. A pattern is a decision of its own. Build it
# from the indices, and keep stored zeros.
#
# </details>

# %% tags=["guess"]
scores = np.array([[0, -200, -300], [1, 2, 0]], np.float32)
(weights, indices), _ = ops.top_k_gate(scores, 2)  # the two largest scores of each row; weights that add up to 1
print("chosen:", indices.tolist(), "with weights", weights.tolist())

tokens = np.repeat(np.arange(len(indices)), indices.shape[1])
right = CSR.from_coordinates(tokens, indices.reshape(-1), weights.reshape(-1), (2, 3), keep_zeros=True)
print("entries by the code above:", choices_as_matrix(weights, indices, 3).nnz)
print("entries by the indices:   ", right.nnz, "= 2 tokens × 2 choices")

# %% [markdown]
# It is the exhibit "a gate that underflows" of the library's [museum](../tinymoe/systems/museum/layers.py). The same mistake in
# training: a sparse weight passes through 0, and if its place is dropped at that moment, it can never come back.

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · The way back
#
# From row pointers to the row number of every entry: 0 2 2 5 becomes 0 0 2 2 2. No loop is needed.
#
# <details><summary>Hint</summary>
#
# `np.diff(indptr)` says how many entries each row has, and `np.repeat` repeats each number so many times.
#
# </details>


# %% tags=["exercise"]
def row_numbers(indptr):
    return ...


# %% tags=["solution"]
def row_numbers(indptr):
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


# %% tags=["wrong"]
def row_numbers(indptr):
    return np.repeat(np.arange(1, len(indptr)), np.diff(indptr))  # counts rows from 1


# %% tags=["wrong"]
def row_numbers(indptr):
    filled = np.diff(indptr)
    filled = filled[filled > 0]
    return np.repeat(np.arange(len(filled)), filled)  # forgets that row 1 is there, though empty


# %% tags=["check"]
for matrix in (CSR.from_dense(A), pairs):
    check_exercise(1, row_numbers, matrix.indptr, like=lambda _, m=matrix: m.to_coo().rows, gradients=False)

# %% [markdown]
# ### 2 · Fast, and right for empty rows
#
# Write (4) without a loop. NumPy has `np.add.reduceat(terms, starts)`, which adds up `terms` from each start to the next. It
# looks made for CSR, and it has a trap: for an empty row it returns the *next* term, and not 0.
#
# <details><summary>Hint</summary>
#
# Either use `reduceat` for the rows that have entries, and leave 0 in the others; or give every term its row number and let
# `np.bincount(rows, terms, minlength=…)` add up the terms of equal numbers.
#
# </details>


# %% tags=["exercise"]
def fast_matvec(indptr, cols, values, x):
    terms = values * x[cols]
    return ...


# %% tags=["solution"]
def fast_matvec(indptr, cols, values, x):
    terms = values * x[cols]
    n_rows = len(indptr) - 1
    return np.bincount(np.repeat(np.arange(n_rows), np.diff(indptr)), terms, minlength=n_rows)


# %% tags=["wrong"]
def fast_matvec(indptr, cols, values, x):
    terms = values * x[cols]
    return np.add.reduceat(terms, indptr[:-1])  # the trap


# %% tags=["wrong"]
def fast_matvec(indptr, cols, values, x):
    terms = values * x[cols]
    return np.bincount(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), terms)  # too short if the last is empty


# %% tags=["check"]
check_exercise(2, fast_matvec, indptr, cols, values, x, like=times_dense, gradients=False)
check_exercise(2, fast_matvec, np.array([0, 2, 5, 5]), cols, values, x, like=times_dense, gradients=False)

# %% [markdown]
# ### 3 · A sparse layer
#
# A layer of a network has the weight on the right: $Y = XW$, with the rows of $X$ as tokens and a sparse $W$ in CSR.
# Write both passes, with loops or without. `pattern.indptr`, `pattern.indices` and `pattern.shape` are those of $W$.
#
# <details><summary>Hint</summary>
#
# Entry $e$ adds $v_e$ times *column* $r_e$ of $X$ to *column* $c_e$ of $Y$. So `dx[:, r]` gets `values[e] * dy[:, c]`, and
# `dvalues[e]` is `x[:, r] @ dy[:, c]`. The row numbers of exercise 1 help: `pattern.to_coo().rows` has them too.
#
# </details>


# %% tags=["exercise"]
def sparse_layer(x, values, pattern):
    rows, cols = pattern.to_coo().rows, pattern.indices
    y = ...

    def backward(dy):
        dx = ...
        dvalues = ...
        return dx, dvalues

    return y, backward


# %% tags=["solution"]
def sparse_layer(x, values, pattern):
    rows, cols = pattern.to_coo().rows, pattern.indices
    y = np.zeros((len(x), pattern.shape[1]))
    for r, c, v in zip(rows, cols, values, strict=True):
        y[:, c] += v * x[:, r]

    def backward(dy):
        dx = np.zeros_like(x)
        for r, c, v in zip(rows, cols, values, strict=True):
            dx[:, r] += v * dy[:, c]
        dvalues = (x[:, rows] * dy[:, cols]).sum(0)
        return dx, dvalues

    return y, backward


# %% tags=["wrong"]
def sparse_layer(x, values, pattern):
    rows, cols = pattern.to_coo().rows, pattern.indices
    y = np.zeros((len(x), pattern.shape[1]))
    y[:, cols] += values * x[:, rows]  # where two entries share a column, the last one wins

    def backward(dy):
        dx = np.zeros_like(x)
        dx[:, rows] += values * dy[:, cols]
        return dx, (x[:, rows] * dy[:, cols]).sum(0)

    return y, backward


# %% tags=["wrong"]
def sparse_layer(x, values, pattern):
    rows, cols = pattern.to_coo().rows, pattern.indices
    y = x @ pattern.with_data(values).to_dense()

    def backward(dy):
        dx = np.zeros_like(x)
        dx[:, rows] += values * dy[:, cols]  # the same mistake, only on the way back: rows repeat too
        return dx, (x[:, rows] * dy[:, cols]).sum(0)

    return y, backward


# %% tags=["check"]
check_exercise(
    3, sparse_layer, np.random.default_rng(1).standard_normal((6, 3)), values, pattern, like=ops.sparse_linear
)

# %% [markdown]
# ### 4 · How much work?
#
# How many multiplications does (6) need? Count them without doing one, from the index arrays of $A$ and the row pointers of
# $B$.
#
# <details><summary>Hint</summary>
#
# Every entry of $A$ meets one whole row of $B$: the one that its column names.
#
# </details>


# %% tags=["exercise"]
def multiplications(a_cols, b_indptr):
    return ...


# %% tags=["solution"]
def multiplications(a_cols, b_indptr):
    return int(np.diff(b_indptr)[a_cols].sum())


# %% tags=["wrong"]
def multiplications(a_cols, b_indptr):
    return len(a_cols) * int(b_indptr[-1])  # that of the mended loop, which looks at every pair


# %% tags=["wrong"]
def multiplications(a_cols, b_indptr):
    return int(b_indptr[a_cols].sum())  # where the rows begin, not how long they are


# %% tags=["check"]
def counted(a_cols, b_indptr):
    return sum(1 for k in a_cols for _ in range(b_indptr[k], b_indptr[k + 1]))


check_exercise(4, multiplications, pairs.indices, pairs.indptr, like=counted, gradients=False)

# %% [markdown]
# ## Next
#
# You can compute with a matrix of which most is not there, and train what is. Lesson 10 shows that a routing decision *is*
# such a matrix, and lesson 13 how weights become sparse in the first place. But first come models that read: lesson 5,
# recurrent networks.
