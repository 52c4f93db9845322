# ---
# jupyter:
#   lesson:
#     title: Words as vectors
#     chinese: 词向量
#     builds: an embedding in four forms with the gradient of each, and a map of words that nobody has told their grammar
#     code: [tinymoe/ops/linear.py, tinymoe/ops/sparse.py, tinymoe/data/toy.py]
#     documents: [L1]
#     papers:
#       - "Bengio et al. 2003, *A Neural Probabilistic Language Model*, §2"
#       - "Mikolov et al. 2013, *Efficient Estimation of Word Representations in Vector Space*, §3.2"
#     terms:
#       vocabulary: [词汇表, "all words or tokens that a model knows, each with a number"]
#       word embedding: [词嵌入, "the learned list of numbers that stands for a word"]
#       embedding layer: [嵌入层, "the layer that looks up the vector of each token in a table"]
#       one-hot vector: [独热编码向量, "a vector that is 1 at one place and 0 everywhere else"]
#       gather: [聚集, "to take rows of an array by a list of their numbers"]
#       scatter-add: [散布相加, "to add rows to the places a list names, summing where they meet"]
#       sparse matrix: [稀疏矩阵, "a matrix of mostly zeros, of which only the rest is stored"]
#       transpose: [转置, "the matrix with its rows and columns exchanged"]
#       padding: [填充, "meaningless entries that fill short texts up to a common length"]
# ---

# %% [markdown]
# ## You will
#
# turn words into vectors by looking rows up in a table, write the gradient of that table in four ways, and watch words of one
# kind move together while it is trained.

# %% [markdown]
# ## You need
#
# The matrix product, `y, backward = op(…)` from lesson 1, and from lesson 2 that the gradients of a value that is used
# several times add up.

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.data import toy
from tinymoe.gradcheck import check_gradients

# %% [markdown]
# ## Picture
#
# A network computes with numbers, and "cat" is none. So each word gets a list of numbers of its own, a vector: its
# **word embedding** (词嵌入). The vectors stand in a table, one row for each word that the model knows. These words are its
# **vocabulary** (词汇表). A word is then only a row number, its *id*.
#
# There are two ways to see the look-up. Take the row with that number. Or write the word as a **one-hot vector**
# (独热编码向量), which is 1 at its id and 0 elsewhere, and multiply it with the table. The picture shows the second.
# (Row $i$ of NumPy's `np.eye(V)` is the one-hot vector of the id $i$.)

# %%
words = "the cat sees the dog".split()
vocabulary = sorted(set(words))
ids = np.array([vocabulary.index(word) for word in words])
table = np.random.default_rng(0).integers(1, 10, (len(vocabulary), 3)).astype(float)
one_hot = np.eye(len(vocabulary))[ids]

figure, axes = new_figure(1, 3, height=2.9, width_ratios=[4, 3, 3])
panels = [
    ("one-hot vectors O", one_hot, words),
    ("times the table W", table, vocabulary),
    ("are the rows Y", one_hot @ table, words),
]
for ax, (title, matrix, names) in zip(axes, panels, strict=True):
    ax.imshow(matrix, cmap="Greys", vmax=2.5 * matrix.max())  # light, so that the numbers can be read
    for (i, j), value in np.ndenumerate(matrix):
        ax.text(j, i, f"{value:.0f}", ha="center", va="center")
    ax.set(title=title, xlabel="word of the vocabulary" if matrix is one_hot else "place in the vector")
    ax.set(xticks=range(matrix.shape[1]), yticks=range(len(names)), yticklabels=names)
    ax.set_ylabel("word of the vocabulary" if matrix is table else "word of the text")
    ax.grid(visible=False)
axes[0].set_xticks(range(len(vocabulary)), vocabulary)
show(
    figure,
    alt="A matrix with one 1 in each row, times a table with a row for each word, is that row for each word of the text.",
)

# %% [markdown]
# "the" stands twice in the text. It gets the same row both times. Remember that: it is the only difficulty of this lesson,
# and it comes on the way back.

# %% [markdown]
# ## Formula
#
# Let $W$ be the table, with $V$ rows (one for each word of the vocabulary) and $D$ columns (the numbers of a vector). Let
# $i_n$ be the id of the word at place $n$ of a text of $N$ words. The **embedding layer** (嵌入层) returns $N$ rows $Y$:
#
# $$y_n = W_{i_n} \tag{1}$$
#
# Taking rows by their numbers is called **gather** (聚集). With the matrix $O$ of one-hot vectors, $O_{nv} = 1$ if $i_n = v$
# and 0 otherwise, it is a product:
#
# $$Y = O\,W \tag{2}$$
#
# Let $dy_n$ be the gradient that arrives at row $n$. Then row $v$ of the table gets
#
# $$dW_v = \sum_{n\,:\,i_n = v} dy_n \tag{3}$$
#
# Every place where the word stands sends its gradient to the word's row, and what meets there is added up. That is a
# **scatter-add** (散布相加), the reverse of a gather. As a product, with the **transpose** (转置) $O^\top$, it is
#
# $$dW = O^\top\, dY \tag{4}$$
#
# *Where it stands.* 《通过稀疏MoE扩展视觉语言模型》 §4.1, [L1](DOCUMENTS.md): embed(x) = weight_matrix · one_hot(x).
# There a word is a *column* of the matrix. Here, and in most code, it is a row. A table that is learned with the network:
# Bengio et al. 2003, §2. No document gives its gradient.

# %% [markdown]
# ## By hand
#
# Two words, hello (id 0) and world (id 1), and a table with $W_0 = (2, 4)$ and $W_1 = (3, 5)$. The text is "hello world hello",
# so the ids are 0, 1, 0.
#
# - Forward, by (1): the rows are $(2, 4)$, $(3, 5)$, $(2, 4)$.
# - By (2), the first row: $1 \cdot (2, 4) + 0 \cdot (3, 5) = (2, 4)$. The same.
# - Backward, when $(1, 2)$, $(3, 4)$, $(5, 6)$ arrive: hello stands at places 0 and 2 and gets $(1, 2) + (5, 6) = (6, 8)$;
#   world stands at place 1 and gets $(3, 4)$.

# %% [markdown]
# ## Code
#
# First as a child could read it, with both passes.


# %%
def look_up(ids, table):
    y = np.zeros((len(ids), table.shape[1]))
    for n, v in enumerate(ids):
        y[n] = table[v]

    def backward(dy):
        dtable = np.zeros_like(table)
        for n, v in enumerate(ids):
            dtable[v] += dy[n]
        return (dtable,)

    return y, backward


hello_ids, hello_table = np.array([0, 1, 0]), np.array([[2.0, 4.0], [3.0, 5.0]])
dy = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
y, backward = look_up(hello_ids, hello_table)
print("(1) y  =", y.tolist())
print("(3) dW =", backward(dy)[0].tolist())

# %% [markdown]
# Then as the two products. NumPy's `table[ids]` is the gather without the loop.

# %%
hello_one_hot = np.eye(2)[hello_ids]
print("(2) O W   =", (hello_one_hot @ hello_table).tolist())
print("(4) Oᵀ dY =", (hello_one_hot.T @ dy).tolist())
assert np.array_equal(hello_one_hot @ hello_table, y)
assert np.array_equal(hello_one_hot.T @ dy, backward(dy)[0])
assert np.array_equal(hello_table[hello_ids], y)

# %% [markdown]
# The product is easy to think with and hopeless to run: almost every multiplication is by 0. For a text of 1,000 words, vectors
# of 500 numbers, and larger and larger vocabularies:

# %%
for size in (256, 50_000, 200_000):
    print(
        f"V = {size:7,}: the product multiplies {1000 * size * 500:15,} times; the gather copies {1000 * 500:,} numbers"
    )

# %% [markdown]
# **Only the ones.** A matrix that is mostly 0 is a **sparse matrix** (稀疏矩阵), and one may store only the rest. Lesson 4 is
# about that; here is what you need of it. The CSR form has three arrays: `data`, the stored values, row after row;
# `indices`, the column of each; and `indptr`, where each row begins among them. For one-hot vectors there is hardly
# anything to store: the values are ones, the columns are the ids, and row $n$ begins at $n$.

# %%
sparse = ops.one_hot(ids, len(vocabulary))
print("ids     ", ids)
print("data    ", sparse.data)
print("indices ", sparse.indices)
print("indptr  ", sparse.indptr)
assert np.array_equal(sparse @ table, table[ids])  # (2), without a single product by 0

# %% [markdown]
# **The gradient by sort.** The transpose has a row for each word of the vocabulary. Its columns are the places where
# the word stands: first all places of word 0, then those of word 1, and so on. That is the text, *sorted by word*. And
# so (4) becomes: sort the rows of $dY$ by id, then add up each run of equal ids. No row is ever written twice. Below,
# `np.argsort` gives the order that sorts, `np.unique` where each run begins, and `np.add.reduceat` adds up from each of
# these places to the next.

# %%
order = np.argsort(ids, kind="stable")  # stable: equal ids stay in the order of the text
kinds, first = np.unique(ids[order], return_index=True)
print("words, sorted             ", [words[n] for n in order])
print("their places              ", order)
print("`indices` of the transpose", sparse.T.indices)
print("where runs begin          ", first)
print("`indptr` of the transpose ", sparse.T.indptr)

dy = np.random.default_rng(1).standard_normal((len(ids), 3))
dtable = np.zeros_like(table)
dtable[kinds] = np.add.reduceat(dy[order], first)  # a row for each run
assert np.array_equal(order, sparse.T.indices)
assert np.allclose(dtable, one_hot.T @ dy, rtol=1e-12, atol=0)

# %% [markdown]
# Keep this in mind. A mixture of experts sends tokens to experts, and sorts them by expert for the same reason. It is the same
# sparse matrix with experts in the place of words (lesson 10).

# %% [markdown]
# ## The same in tinymoe
#
# `ops.embedding` gathers forward and sorts backward. `ops.sparse_matmul` is the product of any sparse matrix with a dense one;
# it also returns a gradient for the stored values, which we don't need, for these ones are constants.

# %%
mine, my_backward = look_up(ids, table)
theirs, their_backward = ops.embedding(ids, table)
product, product_backward = ops.sparse_matmul(sparse.data, table, sparse)
for y, dtable in ((theirs, their_backward(dy)[0]), (product, product_backward(dy)[1])):
    assert np.array_equal(y, mine)
    assert np.allclose(dtable, my_backward(dy)[0], rtol=1e-12, atol=0)
print("loop, gather with sort, and CSR product: the same rows, the same gradient")

# %% [markdown]
# ## Backward by hand
#
# Change one number of the table, $W_{vd}$, by a little. Which numbers of $Y$ change? By (1), $y_{nd}$ for every place $n$ where
# word $v$ stands, each at the rate 1; and no other. The loss changes with $y_{nd}$ at the rate $dy_{nd}$. Rates along
# different ways add up:
#
# $$dW_{vd} = \sum_n dy_{nd}\,\frac{\partial y_{nd}}{\partial W_{vd}} = \sum_{n\,:\,i_n = v} dy_{nd}$$
#
# That is (3). Since $\partial y_{nd} / \partial W_{vd}$ is just $O_{nv}$, it is (4) too. The ids are whole numbers, chosen by
# the text; there is nothing to differentiate by. And a word that is not in the text gets a gradient of exactly 0.

# %%
print(check_gradients(look_up, ids, table))
print(check_gradients(ops.embedding, ids, table, method="complex"))
(dtable,) = ops.embedding(ids[:2], table)[1](np.ones((2, 3)))
print("\nthe gradient when the text is only", words[:2])
for word, row in zip(vocabulary, dtable, strict=True):
    print(f"{word:5}", row)

# %% [markdown]
# **What it is good for.** Now let the table learn. The text below comes from a generator of simple sentences. Nobody
# tells the model what a noun is. It only has to guess, from the vector of one word, which word stands next to it and on
# which side. This is close to the skip-gram of Mikolov et al. 2013, §3.2, which guesses words further away, too, and
# not the side.

# %%
lines = toy.generate(300_000, np.random.default_rng(0)).text.splitlines()
sentences = [line for line in lines if line.endswith(".")]
text = " ".join(sentences).replace(".", " .").split()
names = sorted(set(text))
text_ids = np.searchsorted(names, text)  # the place of each word in the sorted list
print(len(text), "words, of which", len(names), "different ones:", " ".join(sentences[:3]))

size = len(names)
centre = np.concatenate([text_ids[:-1], text_ids[1:]])
neighbour = np.concatenate([text_ids[1:], size + text_ids[:-1]])  # V + id stands for "on the left"

# %% [markdown]
# Each step looks up a batch of words, scores all possible neighbours with a matrix product, and goes downhill. A vector
# has just two numbers, so that we can draw it.

# %%
rng = np.random.default_rng(1)
vectors, scorer = 0.1 * rng.standard_normal((size, 2)), 0.1 * rng.standard_normal((2, 2 * size))
losses = []
for _ in range(3000):
    batch = rng.integers(0, len(centre), 256)
    rows, embedding_back = ops.embedding(centre[batch], vectors)
    scores, linear_back = ops.linear(rows, scorer)
    loss, loss_back = ops.cross_entropy(scores, neighbour[batch])
    drows, dscorer = linear_back(*loss_back(1.0))
    (dvectors,) = embedding_back(drows)
    vectors = vectors - 10 * dvectors  # a row gets few of the gradients, so its steps may be long
    scorer = scorer - 2 * dscorer
    losses.append(loss)
print(f"loss in nats, first steps {np.mean(losses[:20]):.2f}, last steps {np.mean(losses[-500:]):.2f}")
print(f"who knows nothing has {np.log(2 * size):.2f}, the logarithm of the number of answers")

# %%
groups = {
    "noun, singular": (toy.NOUNS, "o"),
    "noun, plural": ([noun + "s" for noun in toy.NOUNS], "s"),
    "verb, singular": ([verb + "s" for verb in toy.VERBS], "^"),
    "verb, plural": (toy.VERBS, "v"),
    "adjective": ([word.strip() for word in toy.ADJECTIVE], "D"),
    "article or number": (["a", "every", "the", "some", "two"], "P"),
    "end of a sentence": (["."], "x"),
}
figure, axes = new_figure(height=4.6)
for (label, (members, marker)), grey in zip(groups.items(), (0, 0.75, 0.35, 0.6, 0.9, 1, 0), strict=True):
    x, y = vectors[[names.index(word) for word in members]].T
    axes.plot(x, y, marker, color=str(grey), markeredgecolor="black", label=label)
    axes.annotate(members[0], (x.max(), y.mean()), xytext=(8, -4), textcoords="offset points")
axes.set(xlabel="first number of the vector", ylabel="second number")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(figure, alt="Words of one kind lie in one heap: nouns, plural nouns, both forms of verbs, adjectives, articles.")

# %% [markdown]
# At the start all words lay in one heap in the middle. Now each kind has its own, and singular and plural lie apart.
# Words that can stand in the same places get similar gradients, on average, so they go to the same spot. What a king is
# the model doesn't know, but it knows what a king can do in a sentence. The five nearest words say the same (two has
# only four of its kind):

# %%
for word in ("king", "kings", "sees", "see", "red", "two"):
    distance = np.linalg.norm(vectors - vectors[names.index(word)], axis=1)
    print(f"nearest to {word:6}", [names[v] for v in np.argsort(distance)[1:6]])

# %% [markdown]
# ## What the document gets wrong
#
# The document's example ([L1](DOCUMENTS.md)) is the matrix with the rows $(2, 3)$ and $(4, 5)$, and hello is the one-hot
# *column* $(1, 0)$. Its formula says matrix · one_hot. That product is a column of the matrix. What is printed as the
# embedding of hello is a row.

# %%
matrix = np.array([[2.0, 3.0], [4.0, 5.0]])
hello, world = np.eye(2)
print("by the formula, W · one_hot:  hello", matrix @ hello, " world", matrix @ world)
print("what is printed, Wᵀ · one_hot: hello", matrix.T @ hello, " world", matrix.T @ world)

# %% [markdown]
# Words as columns or words as rows: both are in use, and both are right. A formula and its example must be of the same kind.
# With a matrix that isn't square, the shapes would have told; this one is two by two. So test with axes of different length.

# %% [markdown]
# ## Spot the bug
#
# A gather stands wherever a sparse model picks: a word's vector, a token's experts, the weights of these experts. In May 2017
# two users of PyTorch 0.1 reported that its gradient was wrong (pytorch/pytorch, issues 1528 and 1631). Nothing crashed and
# nothing warned. In 2026 the same was found, and mended, in PyTensor's backend for MLX (pymc-devs/pytensor, pull request
# 2242).
#
# Here is the mistake in NumPy, in the form in which it looks most innocent. It passes a test in which every word is different.
# Find it by reading, before you run the check.


# %% tags=["guess"]
def quick_embedding(ids, table):
    y = table[ids]

    def backward(dy):
        dtable = np.zeros_like(table)
        dtable[ids] += dy
        return (dtable,)

    return y, backward


print(check_gradients(quick_embedding, np.array([2, 0, 3]), table))

# %% [markdown]
# <details><summary>The bug</summary>
#
# `dtable[ids] += dy` means `dtable[ids] = dtable[ids] + dy`: gather, add, write back. If an id stands there twice, its row is
# written twice, and the second write covers the first. Only the last of the gradients is left. `np.add.at(dtable, ids, dy)`
# does add each of them; the sort of this lesson does too.
#
# </details>

# %% tags=["guess"]
print(check_gradients(quick_embedding, ids, table))
_, backward = quick_embedding(np.array([0, 0]), np.zeros((1, 1)))
(dtable,) = backward(np.ones((2, 1)))
print("\none id twice, each time with gradient 1, must give 2; here it gives", dtable.item())

# %% [markdown]
# The sort has one more merit. If many threads add to one row, as on a GPU, the order of the additions is chance, and floats
# round differently in another order. Mixtures of experts in huggingface/transformers gave other results in each run for this
# reason (issue 43360, mended by pull request 43362). Rows that are sorted are added in the same order each time.

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · Words as columns
#
# The document's way: `w` has shape (D, V), and a word is a column. Return $Y$ with shape (N, D) all the same, and the gradient
# of `w`.
#
# <details><summary>Hint</summary>
#
# `w[:, ids]` takes columns, and has shape (D, N). For the gradient start from (4) and transpose both sides:
# $(O^\top dY)^\top = dY^\top O$. You get $O$ from `np.eye`; its size is $V$, not $D$.
#
# </details>


# %% tags=["exercise"]
def columns_embedding(ids, w):
    y = ...

    def backward(dy):
        dw = ...
        return (dw,)

    return y, backward


# %% tags=["solution"]
def columns_embedding(ids, w):
    y = w[:, ids].T

    def backward(dy):
        dw = dy.T @ np.eye(w.shape[1])[ids]
        return (dw,)

    return y, backward


# %% tags=["wrong"]
def columns_embedding(ids, w):
    y = w[ids]  # the document's mistake

    def backward(dy):
        return (np.eye(len(w))[ids].T @ dy,)

    return y, backward


# %% tags=["wrong"]
def columns_embedding(ids, w):
    y = w[:, ids].T

    def backward(dy):
        return (np.eye(w.shape[1])[ids].T @ dy,)  # not transposed

    return y, backward


# %% tags=["check"]
some_ids, some_table = np.array([2, 0, 2, 3, 2, 0]), np.random.default_rng(2).standard_normal((5, 3))  # V = 5, D = 3
check_exercise(1, columns_embedding, some_ids, some_table.T, like=lambda ids, w: (w[:, ids].T, None))

# %% [markdown]
# ### 2 · Count with weights
#
# `np.bincount(ids, weights=g, minlength=V)` adds up the numbers `g` by id: for a single column, this is (3). Write the backward
# pass with it, one column of the table at a time.
#
# <details><summary>Hint</summary>
#
# Column $d$ of the gradient is made of column $d$ of `dy`. Without `minlength` the result ends at the largest id of the text,
# and words that the text doesn't use are missing.
#
# </details>


# %% tags=["exercise"]
def counting_embedding(ids, table):
    y = table[ids]

    def backward(dy):
        dtable = np.zeros_like(table)
        for d in range(table.shape[1]):
            dtable[:, d] = ...
        return (dtable,)

    return y, backward


# %% tags=["solution"]
def counting_embedding(ids, table):
    y = table[ids]

    def backward(dy):
        dtable = np.zeros_like(table)
        for d in range(table.shape[1]):
            dtable[:, d] = np.bincount(ids, weights=dy[:, d], minlength=len(table))
        return (dtable,)

    return y, backward


# %% tags=["wrong"]
def counting_embedding(ids, table):
    y = table[ids]

    def backward(dy):
        dtable = np.zeros_like(table)
        for d in range(table.shape[1]):
            dtable[:, d] = np.bincount(ids, minlength=len(table))  # how often, not how much
        return (dtable,)

    return y, backward


# %% tags=["wrong"]
def counting_embedding(ids, table):
    y = table[ids]

    def backward(dy):
        dtable = np.zeros_like(table)
        for d in range(table.shape[1]):
            dtable[:, d] = np.bincount(ids, weights=dy[:, d])  # stops at the largest id
        return (dtable,)

    return y, backward


# %% tags=["check"]
check_exercise(2, counting_embedding, some_ids, some_table, like=ops.embedding)

# %% [markdown]
# ### 3 · The transpose is a sort
#
# Make `indptr` and `indices` of $O^\top$ from the ids, without making any matrix. `indptr` has $V + 1$ numbers: where the
# places of each word begin, and at the end how many there are.
#
# <details><summary>Hint</summary>
#
# `np.bincount(ids, minlength=V)` says how often each word stands in the text; `np.cumsum` turns that into the places
# where each word *ends*. The first begins at 0. The `indices` are in this lesson already: look at *The gradient by
# sort*.
#
# </details>


# %% tags=["exercise"]
def transposed(ids, size):
    indptr = ...
    indices = ...
    return indptr, indices


# %% tags=["solution"]
def transposed(ids, size):
    indptr = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=size))])
    indices = np.argsort(ids, kind="stable")
    return indptr, indices


# %% tags=["wrong"]
def transposed(ids, size):
    indptr = np.cumsum(np.bincount(ids, minlength=size))  # where words end
    return indptr, np.argsort(ids, kind="stable")


# %% tags=["wrong"]
def transposed(ids, size):
    indptr = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=size))])
    return indptr, np.sort(ids)  # the words, not their places


# %% tags=["check"]
def reference(ids, size):
    flipped = ops.one_hot(ids, size).T
    return flipped.indptr, flipped.indices


check_exercise(3, transposed, some_ids, 5, like=reference, gradients=False)

# %% [markdown]
# ### 4 · A bag of words, with padding
#
# Texts of different length go into one array `ids` of shape (B, T), B texts of T places, filled up with −1. These places are
# **padding** (填充): no words. Return for each text the mean vector of its words, shape (B, D), and the gradient of the table.
#
# <details><summary>Hint</summary>
#
# `table[-1]` is the *last* word in NumPy, without any complaint: padding must be left out by hand.
# `text, place = np.nonzero(real)` lists the real words; `np.add.at(dtable, rows, values)` adds `values` to those rows,
# also where a row is repeated, so it can add up the words of each text, too. A word in a text of three gets a third of
# what arrives at that text.
#
# </details>


# %% tags=["exercise"]
def bag_of_words(ids, table):
    real = ids >= 0  # (B, T)
    text, place = np.nonzero(real)
    count = ...  # (B, 1): words of each text
    y = ...

    def backward(dy):
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids[text, place], ...)  # type: ignore[arg-type]
        return (dtable,)

    return y, backward


# %% tags=["solution"]
def bag_of_words(ids, table):
    real = ids >= 0  # (B, T)
    text, place = np.nonzero(real)
    count = real.sum(1, keepdims=True)  # (B, 1): words of each text
    y = (table[ids] * real[:, :, None]).sum(1) / count

    def backward(dy):
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids[text, place], (dy / count)[text])
        return (dtable,)

    return y, backward


# %% tags=["wrong"]
def bag_of_words(ids, table):
    y = table[ids].mean(1)  # padding counts as the last word

    def backward(dy):
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids, dy[:, None] / ids.shape[1])
        return (dtable,)

    return y, backward


# %% tags=["wrong"]
def bag_of_words(ids, table):
    real = ids >= 0
    text, place = np.nonzero(real)
    count = real.sum(1, keepdims=True)
    y = (table[ids] * real[:, :, None]).sum(1) / count

    def backward(dy):
        dtable = np.zeros_like(table)
        np.add.at(dtable, ids[text, place], dy[text])  # each word gets all of it
        return (dtable,)

    return y, backward


# %% tags=["check"]
def mean_of_words(ids, table):
    return np.stack([table[row[row >= 0]].mean(0) for row in ids]), None


texts = np.array([[1, 1, 4, 0], [2, -1, -1, -1], [0, 3, -1, -1]])
check_exercise(4, bag_of_words, texts, some_table, like=mean_of_words)

# %% [markdown]
# ## Next
#
# You have used a sparse matrix without much ado. Lesson 4 looks at it properly: how it is stored, how it is multiplied, and
# when that is worth it.
