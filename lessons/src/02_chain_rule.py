# ---
# jupyter:
#   lesson:
#     title: The chain rule as functions
#     chinese: 链式法则
#     builds: a two-layer network whose backward pass is put together from those of its parts
#     code: [tinymoe/ops/linear.py, tinymoe/ops/pointwise.py, tinymoe/ops/softmax.py, tinymoe/ops/moe.py]
#     documents: [L2, L3]
#     papers:
#       - "Rumelhart, Hinton & Williams 1986, *Learning Representations by Back-propagating Errors*"
#       - "Nair & Hinton 2010, *Rectified Linear Units Improve Restricted Boltzmann Machines*"
#     terms:
#       chain rule: [链式法则, "slopes along a chain multiply, and slopes of several ways add up"]
#       fully connected layer: [全连接层, "a layer in which every output depends on every input: a matrix and a bias"]
#       hidden layer: [隐藏层, "a layer between the input and the output"]
#       output layer: [输出层, "the last layer, whose numbers are the answer"]
#       bias: [偏置项, "a learned number that is added, whatever the input is"]
#       activation function: [激活函数, "a function of one number between two layers, such as ReLU"]
#       cross-entropy: [交叉熵, "the mean surprise at the right answers, −ln of their probabilities"]
#       neural network: [神经网络, "a chain of simple operations, with weights that training changes"]
#       computation graph: [计算图, "a drawing of the operations and of the values that pass between them"]
#       closure: [闭包, "a function that remembers the variables around it"]
#       fan-out: [扇出, "the use of one value in several places; their gradients add up"]
#       broadcasting: [广播, "repeating a small array along an axis so that shapes fit"]
#       pure function: [纯函数, "a function that changes nothing outside and depends on its inputs alone"]
#       late binding: [延迟绑定, "a closure sees the last value of a variable, not the one at its birth"]
# ---

# %% [markdown]
# ## You will
#
# build a network of two layers from three small operations, and get all of its gradients by running their backward passes
# from the last to the first.

# %% [markdown]
# ## You need
#
# Lesson 1 (what `y, backward` means, and how a gradient is checked) and the product of two matrices. A function inside a
# function remembers the variables around it: it is called a **closure** (闭包), and every `backward` here is one.

# %%
import numpy as np
from matplotlib.patches import FancyBboxPatch

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients

# %% [markdown]
# ## Picture
#
# A **neural network** (神经网络) is a chain of operations. Each takes what the one before it made. This one has a
# **hidden layer** (隐藏层) and an **output layer** (输出层), and ends with the loss. Such a drawing is a **computation graph**
# (计算图).


# %%
def arrow(axes, start, end, back=False):
    style = {"arrowstyle": "->", "ls": "--" if back else "-", "ec": "#b2182b" if back else "black"}
    axes.annotate("", end, start, arrowprops=style)


def draw(axes, operations, values, gradients):
    """Operations from left to right as (name, weights, their gradients); values go right, gradients left."""
    for i, (name, weights, dweights) in enumerate(operations):
        axes.add_patch(FancyBboxPatch((i, 0), 0.5, 0.5, boxstyle="round,pad=0.06", fc="0.93", ec="black"))
        axes.text(i + 0.25, 0.25, name, ha="center", va="center", fontsize=9)
        if weights:
            arrow(axes, (i + 0.12, 1), (i + 0.12, 0.58))
            axes.text(i + 0.18, 1.05, weights, ha="right")
        if dweights:
            arrow(axes, (i + 0.38, 0.58), (i + 0.38, 1), back=True)
            axes.text(i + 0.32, 1.05, dweights, ha="left", color="#b2182b")
    for i, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        arrow(axes, (i - 0.43, 0.36), (i - 0.07, 0.36))
        arrow(axes, (i - 0.07, 0.14), (i - 0.43, 0.14), back=True)
        axes.text(i - 0.25, 0.42, value, ha="center")
        axes.text(i - 0.25, -0.08, gradient, ha="center", color="#b2182b")
    axes.set(xlim=(-0.5, len(operations) + 0.05), ylim=(-0.2, 1.25))
    axes.axis("off")


# %%
figure, axes = new_figure(height=2.2)
operations = [
    ("linear", "W₁ b₁", "dW₁ db₁"),
    ("ReLU", "", ""),
    ("linear", "W₂ b₂", "dW₂ db₂"),
    ("cross-\nentropy", "answers", ""),
]
draw(axes, operations, ["x", "u", "h", "s", "L"], ["dx", "du", "dh", "ds", "1"])
show(
    figure,
    alt="Four boxes in a row. Values x, u, h, s, L go right; gradients 1, ds, dh, du, dx go left over the same places.",
)

# %% [markdown]
# Black arrows are the forward pass: values. Red, dashed arrows are the backward pass: for each value, how much the loss $L$
# changes per unit of it. The red message starts as 1, since $L$ changes by 1 per unit of $L$. Every box needs to know one
# thing only: how to turn the message that comes in from its right into those that go out to its left, and up to its weights.
# No box knows the whole network. That is all there is to backpropagation.

# %% [markdown]
# ## Formula
#
# If $x$ changes $y$, and $y$ changes $L$, the rates multiply. This is the **chain rule** (链式法则):
#
# $$\frac{dL}{dx} = \frac{dL}{dy} \cdot \frac{dy}{dx} \tag{1}$$
#
# If $x$ reaches the loss by several ways, through $y_1$, $y_2$ and so on, each way counts, and they add up:
#
# $$\frac{\partial L}{\partial x} = \sum_j \frac{\partial L}{\partial y_j} \cdot \frac{\partial y_j}{\partial x} \tag{2}$$
#
# We write $dx$ for $\partial L / \partial x$, and so for every value. The three operations, for a batch of $N$ rows:
#
# **Linear**, also called **fully connected layer** (全连接层). Row $n$ of $x$ has $D$ numbers, row $n$ of $y$ has $F$. The
# weights $W$ are a matrix with $D$ rows and $F$ columns, and the **bias** (偏置项) $b$ has $F$ numbers. $W^\top$, in NumPy
# `W.T`, is $W$ with rows and columns exchanged:
#
# $$y = xW + b \qquad dx = dy\,W^\top \qquad dW = x^\top dy \qquad db = \sum_n dy_n \tag{3}$$
#
# **ReLU**, the **activation function** (激活函数) between the layers, for each number alone:
#
# $$y = \max(0, x) \qquad dx = dy \text{ where } x > 0, \text{ else } 0 \tag{4}$$
#
# At $x = 0$ the curve has a kink, and no slope; everybody takes 0.
#
# **Cross-entropy** (交叉熵): scores $s$ become probabilities $p$ by softmax, and the loss is the mean of $-\ln p$ of the
# right answers $t_n$. The matrix $\text{onehot}(t)$ has a 1 at the right answer of each row, else 0:
#
# $$p_{nv} = \frac{e^{s_{nv}}}{\sum_j e^{s_{nj}}} \qquad L = -\frac1N \sum_n \ln p_{n t_n} \qquad
# ds = \frac{dL}{N} \, (p - \text{onehot}(t)) \tag{5}$$
#
# *Where it stands.* (3) and (4), the forward halves, are in 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》, §4.3
# and §4.2 ([L3, L2](DOCUMENTS.md)). One of the five documents names the backward pass; none has the
# chain rule, or the backward half of any operation. That a network can be trained with it is the subject of Rumelhart, Hinton
# & Williams 1986. ReLU is short for rectified linear unit, a name from Nair & Hinton 2010.

# %% [markdown]
# ## By hand
#
# One row, $x = [1, 2]$, two hidden numbers, two possible answers, and the right one is answer 0.
#
# $W_1 = \begin{bmatrix} 1 & 1 \\ 1 & -2 \end{bmatrix}$, $b_1 = [0, 1]$,
# $W_2 = \begin{bmatrix} 1 & 2 \\ 4 & -3 \end{bmatrix}$, $b_2 = [3, 0]$.
#
# Forward, from left to right:
#
# - $u = xW_1 + b_1 = [1 + 2,\; 1 - 4 + 1] = [3, -2]$
# - $h = \max(0, u) = [3, 0]$; the $-2$ becomes 0; the document has the same example
# - $s = hW_2 + b_2 = [3 + 3,\; 6] = [6, 6]$
# - $p = [\frac12, \frac12]$, since the scores are equal; $L = \ln 2$
#
# Backward, from right to left:
#
# - $ds = p - [1, 0] = [-\frac12, \frac12]$
# - $dW_2 = h^\top ds = \begin{bmatrix} -\frac32 & \frac32 \\ 0 & 0 \end{bmatrix}$, and $db_2 = ds$
# - $dh = ds\,W_2^\top = [-\frac12 + 1,\; -2 - \frac32] = [\frac12, -\frac72]$
# - $du = [\frac12, 0]$: the second hidden number was cut off, so its message is, too
# - $dW_1 = x^\top du = \begin{bmatrix} \frac12 & 0 \\ 1 & 0 \end{bmatrix}$, and $db_1 = du$
# - $dx = du\,W_1^\top = [\frac12, \frac12]$

# %% [markdown]
# ## Code
#
# The linear operation as a loop. Look at the innermost line of each pass: a product `x * W` in the forward pass becomes two
# products backward. $y$ grows by $W$ per unit of $x$, and by $x$ per unit of $W$, which is (1). And each `+=` is a term of
# the sum in (2).


# %%
def linear_in_loops(x, W, b):
    (N, D), F = x.shape, len(b)
    y = np.zeros((N, F), x.dtype)
    for n, f in np.ndindex(N, F):
        y[n, f] = b[f]
        for d in range(D):
            y[n, f] += x[n, d] * W[d, f]

    def backward(dy):
        dx, dW, db = np.zeros_like(x), np.zeros_like(W), np.zeros_like(b)
        for n, f in np.ndindex(N, F):
            db[f] += dy[n, f]
            for d in range(D):
                dx[n, d] += dy[n, f] * W[d, f]
                dW[d, f] += dy[n, f] * x[n, d]
        return dx, dW, db

    return y, backward


# %% [markdown]
# The loops are matrix products, and from here on they are written so. The other two operations:


# %%
def linear(x, W, b):
    y = x @ W + b

    def backward(dy):
        return dy @ W.T, x.T @ dy, dy.sum(0)

    return y, backward


def relu(x):
    positive = x.real > 0  # `.real`, so that the complex step can check it
    y = x * positive

    def backward(dy):
        return (dy * positive,)

    return y, backward


# %%
def cross_entropy(s, targets):
    rows = np.arange(len(s))
    e = np.exp(s - s.real.max(1, keepdims=True))  # the same p, and no overflow
    p = e / e.sum(1, keepdims=True)
    y = -np.log(p[rows, targets]).mean()

    def backward(dy):
        ds = p.copy()  # not p itself: backward may be called again
        ds[rows, targets] -= 1
        return (ds * dy / len(s),)

    return y, backward


# %% [markdown]
# Now the network. The forward pass reads downwards, and each operation leaves its `backward` behind. The backward pass calls
# them in the opposite order, so it reads upwards. Nothing else is needed, for two layers or for a hundred.


# %%
def network(x, W1, b1, W2, b2, *, targets):
    u, first_back = linear(x, W1, b1)
    h, relu_back = relu(u)
    s, second_back = linear(h, W2, b2)
    loss, loss_back = cross_entropy(s, targets)

    def backward(dloss):
        (ds,) = loss_back(dloss)
        dh, dW2, db2 = second_back(ds)
        (du,) = relu_back(dh)
        dx, dW1, db1 = first_back(du)
        return dx, dW1, db1, dW2, db2

    return loss, backward


x, right = np.array([[1.0, 2.0]]), np.array([0])
W1, b1 = np.array([[1.0, 1.0], [1.0, -2.0]]), np.array([0.0, 1.0])
W2, b2 = np.array([[1.0, 2.0], [4.0, -3.0]]), np.array([3.0, 0.0])
loss, backward = network(x, W1, b1, W2, b2, targets=right)
print("loss", loss, "and ln 2 is", np.log(2))
for name, gradient in zip(["dx", "dW1", "db1", "dW2", "db2"], backward(1.0), strict=True):
    print(f"{name:4}", gradient.tolist())

# %% [markdown]
# They are the numbers from paper. Look at the zeros: all weights that lead to the second hidden number, or away from it,
# have the gradient 0, because ReLU has cut it off, for this row. They learn nothing from this example. Remember it when
# you meet experts (专家): an expert that a token doesn't visit learns nothing from that token, for the same reason.
#
# **Fan-out** (扇出). A value may be used twice. Then it gets two messages, and (2) says: add them. Here $y = x \cdot x$,
# where $x$ is used as the left factor and as the right one. Each use sends back $dy \cdot x$, which makes the $2x$ you know
# from school.


# %%
def square(x):
    y = x * x

    def backward(dy):
        dx_as_left_factor = dy * x
        dx_as_right_factor = dy * x
        return (dx_as_left_factor + dx_as_right_factor,)

    return y, backward


print(check_gradients(square, np.array([3.0, -1.0, 0.5])))

# %% [markdown]
# **Broadcasting** (广播) is fan-out, too. In `x @ W + b` NumPy adds the same $b$ to all $N$ rows, so $b$ is used $N$ times,
# and its gradient is the sum over the rows. The rule: *whatever the forward pass spreads along an axis, the backward pass
# sums along that axis.* It works the other way round as well: what the forward pass sums, the backward pass spreads. If you
# forget, the shape tells you.


# %%
def bias_without_sum(x, b):
    return x + b, lambda dy: (dy, dy)  # db must be dy.sum(0)


rng = np.random.default_rng(0)
print(check_gradients(bias_without_sum, rng.standard_normal((4, 3)), rng.standard_normal(3)))

# %% [markdown]
# ## The same in tinymoe
#
# The library has the three operations. Put together in the same way, on a batch of five rows, they give the same loss and
# the same gradients, and so do the loops.


# %%
def library_network(x, W1, b1, W2, b2, *, targets):
    u, first_back = ops.linear(x, W1, b1)
    h, relu_back = ops.relu(u)
    s, second_back = ops.linear(h, W2, b2)
    loss, loss_back = ops.cross_entropy(s, targets)

    def backward(dloss):
        dh, *dsecond = second_back(*loss_back(dloss))  # loss_back gives a tuple of one; `*` takes it out
        return *first_back(*relu_back(dh)), *dsecond

    return loss, backward


# %%
shapes = [(5, 4), (4, 6), (6,), (6, 3), (3,)]  # x, W1, b1, W2, b2
inputs, right = [rng.standard_normal(shape) for shape in shapes], np.array([0, 2, 1, 1, 0])
ours, theirs = network(*inputs, targets=right), library_network(*inputs, targets=right)
print("loss:", ours[0], theirs[0])
assert np.isclose(ours[0], theirs[0], rtol=1e-12)
for mine, library in zip(ours[1](1.0), theirs[1](1.0), strict=True):
    assert np.allclose(mine, library, rtol=1e-12, atol=1e-15)

dy = rng.standard_normal((5, 6))
loops, (y, linear_back) = linear_in_loops(*inputs[:3]), ops.linear(*inputs[:3])
assert np.allclose(loops[0], y, rtol=1e-12)
assert all(np.allclose(mine, its, rtol=1e-12) for mine, its in zip(loops[1](dy), linear_back(dy), strict=True))

# %% [markdown]
# A whole model of the library is written like this: its [`forward`](../tinymoe/models/language.py) reads downwards, and the
# `backward` inside it upwards. There is no other machinery.

# %% [markdown]
# ## Backward by hand
#
# (3) and (4) can be read off the loops. (5) takes three lines. Take one row, and let $z = \sum_j e^{s_j}$, so that
# $L = \ln z - s_t$.
#
# 1. $\ln z$ changes with $s_v$ at the rate $\dfrac1z \cdot e^{s_v} = p_v$, by (1).
# 2. $-s_t$ changes with $s_v$ at the rate $-1$ if $v = t$, else 0.
# 3. $s_v$ reaches $L$ by both ways, and by (2) they add up: $ds_v = p_v - \text{onehot}(t)_v$.
#
# What the model says, less what it should say. The mean over $N$ rows divides it by $N$. Now all of it is checked, by both
# methods:

# %%
print(check_gradients(network, *inputs, targets=right))
print(check_gradients(network, *inputs, targets=right, method="complex"))


# %% [markdown]
# Three bugs that everybody who writes a backward pass has had. They don't crash.
#
# **Bug 1: a missing term.** In $y = x + \text{relu}(xW)$ the $x$ has a fan-out of two, and one message is forgotten.


# %%
def missing_term(x, W):
    u, linear_back = ops.linear(x, W)
    h, relu_back = ops.relu(u)

    def backward(dy):
        dx, dW = linear_back(*relu_back(dy))
        return dx, dW  # it must be dx + dy

    return x + h, backward


x, W = rng.standard_normal((5, 4)), rng.standard_normal((4, 4))
print(check_gradients(missing_term, x, W))

# %% [markdown]
# `dW` is right. A model with this bug in its last layer would train that layer well, and all below it badly.
#
# **Bug 2: `+=` on something that isn't yours.** "The messages add up, so I write `dy += …`." But `dy += …` changes the array
# that the caller passed in, and the caller still needs it. Here $y = a + a \cdot g$; the array `dy` goes to two branches.


# %%
def with_plus_equals(a, g):
    def backward(dy):
        dg = dy * a
        dy += dy * g  # the bug: it must be da = dy + dy * g
        return dy, dg

    return a + a * g, backward


a, g, dy = rng.standard_normal((3, 4))
y, backward = with_plus_equals(a, g)
print("asked twice, the same dg?", np.array_equal(backward(dy)[1], backward(dy)[1]))
print(check_gradients(with_plus_equals, a, g))

# %% [markdown]
# The first answer was right. Then `dy` was not what it had been, so whoever uses it next gets the wrong message. This is why
# every operation of the library is a **pure function** (纯函数): its result depends on its inputs only, and it changes
# nothing but what it made itself. Then the order of the calls doesn't matter, nor how often you call. The checker passes in
# arrays that can't be written to, to find this out.
#
# **Bug 3: late binding** (延迟绑定). A closure remembers *variables*, not values: it looks them up when it is called. In a
# loop all closures share one variable, and at the end it holds the last value.


# %%
def two_layers_late(x, W1, W2):
    y, backs = x, []
    for W in (W1, W2):
        before = y
        y = before @ W
        backs.append(lambda dy: (dy @ W.T, before.T @ dy))  # noqa: B023 (the bug: W and before are the last ones)

    def backward(dy):
        dmiddle, dW2 = backs[1](dy)
        dx, dW1 = backs[0](dmiddle)
        return dx, dW1, dW2

    return y, backward


print(check_gradients(two_layers_late, x, W, rng.standard_normal((4, 4))))

# %% [markdown]
# `dW2` is right, because for the last layer the last values are the right ones. The cure: make each closure in a function of
# its own, as `linear` does. There `x` and `W` belong to one call, and no later call changes them. For the same reason a
# variable that `backward` reads should be given a value only once in its function.

# %% [markdown]
# ## What the document gets wrong
#
# 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》, §4.3, computes an output layer:
# $\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix} \begin{bmatrix} 5 \\ 6 \end{bmatrix} + \begin{bmatrix} 7 \\ 8 \end{bmatrix}$.
# It writes the two rows correctly, $1 \cdot 5 + 2 \cdot 6 + 7$ and $3 \cdot 5 + 4 \cdot 6 + 8$, and then prints $[35, 43]$
# ([L3](DOCUMENTS.md)).

# %%
W, x, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([5.0, 6.0]), np.array([7.0, 8.0])
print("W x + b, as the document defines it: ", W @ x + b)
y, _ = ops.linear(x[None], W.T, b)
print("the same with the library's linear:  ", y[0])
assert y.tolist() == [[24, 47]]

# %% [markdown]
# The right answer is $[24, 47]$. The second line needs `W.T`: the document multiplies a matrix with one column, $Wx$; the
# library multiplies rows with a matrix, $xW$, so that a batch is simply many rows. Both are common. Mixed up, they still run
# whenever $W$ is square, as here.

# %% [markdown]
# ## Spot the bug
#
# A **router** (路由器) decides how much of an expert's answer each token gets. In training, its input is shaken a little by
# random factors ("jitter"), so that it tries other choices. Only the router's input: the expert is to see the token as it is.
# In a public library (huggingface/transformers, issue 33969) the layer was written like this, here with one expert, which is
# a matrix. `ops.sigmoid`, $\sigma$ in formulas, is the logistic function of lesson 1:


# %%
def shaken_layer(x, router, expert, *, factors):
    x *= factors
    logits, router_back = ops.linear(x, router)
    weight, sigmoid_back = ops.sigmoid(logits)  # (N, 1)
    answer, expert_back = ops.linear(x, expert)  # (N, D)
    y = weight * answer

    def backward(dy):
        (dlogits,) = sigmoid_back((dy * answer).sum(1, keepdims=True))
        dx_router, drouter = router_back(dlogits)
        dx_expert, dexpert = expert_back(dy * weight)
        return (dx_router + dx_expert) * factors, drouter, dexpert

    return y, backward


# %% [markdown]
# Is there a mistake in `backward`? Read it first: the sum over the axis along which `weight` is broadcast, the two messages
# to `x`, the factors.
#
# <details><summary>The bug</summary>
#
# `backward` is right for what the forward pass does. The bug is the first line: `x *= factors` writes into the
# caller's array. So the expert sees the shaken token, too, and so does everything else that uses `x` later, such as a
# sum $x + \dots$ like that of bug 1. The cure is a new name, `shaken = x * factors`, for the router alone. Then the two
# messages to `x` differ: only the router's passes through the factors. You write it in exercise 4.
#
# </details>

# %% tags=["guess"]
x, factors = rng.standard_normal((5, 4)), rng.uniform(0.9, 1.1, (5, 4))
weights = rng.standard_normal((4, 1)), rng.standard_normal((4, 4))
print(check_gradients(shaken_layer, x, *weights, factors=factors))

# %% [markdown]
# The checker doesn't know what the layer is for. It only saw that a function which must be pure isn't. The library keeps this
# bug as the exhibit "jitter reaches the experts" of its [museum](../tinymoe/systems/museum/layers.py); the right layer has a
# [fan-out of the same form](../tinymoe/ops/moe.py).

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · A gain for each column
#
# $y_{nd} = x_{nd} \, g_d$: every column of $x$ has its own gain, and $g$ is broadcast over the rows.
#
# <details><summary>Hint</summary>
#
# Along which axis was $g$ spread? Sum along that one.
#
# </details>


# %% tags=["exercise"]
def gain(x, g):
    y = x * g

    def backward(dy):
        dx = ...
        dg = ...
        return dx, dg

    return y, backward


# %% tags=["solution"]
def gain(x, g):
    y = x * g

    def backward(dy):
        dx = dy * g
        dg = (dy * x).sum(0)
        return dx, dg

    return y, backward


# %% tags=["wrong"]
def gain(x, g):
    y = x * g

    def backward(dy):
        return dy * g, dy * x  # not summed

    return y, backward


# %% tags=["wrong"]
def gain(x, g):
    y = x * g

    def backward(dy):
        return dy * g, (dy * x).mean(0)  # each use counts in full

    return y, backward


# %% tags=["check"]
rng = np.random.default_rng(1)
check_exercise(1, gain, rng.standard_normal((5, 3)), rng.standard_normal(3), like=lambda x, g: (x * g, None))

# %% [markdown]
# ### 2 · Around a layer
#
# $y = x + \text{relu}(xW)$: the input goes around the layer and is added to its result. A transformer is made
# of layers of this form. One of the two ways is there already.
#
# <details><summary>Hint</summary>
#
# $x$ reaches $y$ by two ways, and on one of them nothing happens to it. Write to no array that was passed in.
#
# </details>


# %% tags=["exercise"]
def residual(x, W):
    u, linear_back = ops.linear(x, W)
    h, relu_back = ops.relu(u)
    y = x + h

    def backward(dy):
        through_the_layer = linear_back(*relu_back(dy))  # a tuple of two
        dx = ...
        dW = ...
        return dx, dW

    return y, backward


# %% tags=["solution"]
def residual(x, W):
    u, linear_back = ops.linear(x, W)
    h, relu_back = ops.relu(u)
    y = x + h

    def backward(dy):
        through_the_layer = linear_back(*relu_back(dy))
        dx = dy + through_the_layer[0]
        dW = through_the_layer[1]
        return dx, dW

    return y, backward


# %% tags=["wrong"]
def residual(x, W):
    u, linear_back = ops.linear(x, W)
    h, relu_back = ops.relu(u)
    y = x + h

    def backward(dy):
        return linear_back(*relu_back(dy))  # the way around is missing

    return y, backward


# %% tags=["wrong"]
def residual(x, W):
    u, linear_back = ops.linear(x, W)
    h, relu_back = ops.relu(u)
    y = x + h

    def backward(dy):
        dx_layer, dW = linear_back(*relu_back(dy))
        dy += dx_layer  # the caller's array
        return dy, dW

    return y, backward


# %% tags=["check"]
x, W = np.random.default_rng(2).standard_normal((2, 4, 4))
check_exercise(2, residual, x, W, like=missing_term)  # only the forward pass of that one is used

# %% [markdown]
# ### 3 · As deep as you like
#
# Three linear layers in a loop, without late binding. Complete the loop of the backward pass: it runs through `backs` from
# the last to the first, and collects the gradients of the weights in the order of the inputs.
#
# <details><summary>Hint</summary>
#
# `for back in reversed(backs):` gives them in the right order. What goes in is the message from the right. `insert(0, dW)`
# puts a gradient in front of a list.
#
# </details>


# %% tags=["exercise"]
def deep(x, W1, W2, W3):
    y, backs = x, []
    for W in (W1, W2, W3):
        y, back = ops.linear(y, W)  # `back` belongs to this call, whatever W and y become
        backs.append(back)

    def backward(dy):
        message, gradients = dy, []
        ...  # three steps, from the last layer to the first
        dx = ...
        return dx, *gradients

    return y, backward


# %% tags=["solution"]
def deep(x, W1, W2, W3):
    y, backs = x, []
    for W in (W1, W2, W3):
        y, back = ops.linear(y, W)
        backs.append(back)

    def backward(dy):
        message, gradients = dy, []
        for back in reversed(backs):
            message, dW = back(message)
            gradients.insert(0, dW)
        return message, *gradients

    return y, backward


# %% tags=["wrong"]
def deep(x, W1, W2, W3):
    y, backs = x, []
    for W in (W1, W2, W3):
        y, back = ops.linear(y, W)
        backs.append(back)

    def backward(dy):
        message, gradients = dy, []
        for back in reversed(backs):
            message, dW = back(message)
            gradients.append(dW)  # the last layer's comes first
        return message, *gradients

    return y, backward


# %% tags=["wrong"]
def deep(x, W1, W2, W3):
    y, backs = x, []
    for W in (W1, W2, W3):
        y, _ = ops.linear(y, W)
        backs.append(lambda dy: ops.linear(y, W)[1](dy))  # noqa: B023 (the bug: y and W are the last ones)

    def backward(dy):
        message, gradients = dy, []
        for back in reversed(backs):
            message, dW = back(message)
            gradients.insert(0, dW)
        return message, *gradients

    return y, backward


# %% tags=["check"]
x, W1, W2, W3 = np.random.default_rng(3).standard_normal((4, 3, 3))
check_exercise(3, deep, x, W1, W2, W3, like=lambda x, W1, W2, W3: (x @ W1 @ W2 @ W3, None))

# %% [markdown]
# ### 4 · The layer, mended
#
# The layer of *Spot the bug* with $x$ shaken for the router only: $y = \sigma\big((x \odot f) R\big) \odot (xE)$, with the
# factors $f$, the router $R$, the expert $E$, and $\odot$ for the product of numbers at the same place. Complete what the
# router sees, and mend $dx$.
#
# <details><summary>Hint</summary>
#
# `dx_router` is the gradient of what the router has seen, which is $x \odot f$. One more step of the chain rule leads to $x$.
# The expert has seen $x$ itself.
#
# </details>


# %% tags=["exercise"]
def mended_layer(x, router, expert, *, factors):
    shaken = x * ...
    logits, router_back = ops.linear(shaken, router)
    weight, sigmoid_back = ops.sigmoid(logits)
    answer, expert_back = ops.linear(x, expert)
    y = weight * answer

    def backward(dy):
        (dlogits,) = sigmoid_back((dy * answer).sum(1, keepdims=True))
        dx_router, drouter = router_back(dlogits)
        dx_expert, dexpert = expert_back(dy * weight)
        dx = (dx_router + dx_expert) * factors  # as it was: mend it, too
        return dx, drouter, dexpert

    return y, backward


# %% tags=["solution"]
def mended_layer(x, router, expert, *, factors):
    shaken = x * factors
    logits, router_back = ops.linear(shaken, router)
    weight, sigmoid_back = ops.sigmoid(logits)
    answer, expert_back = ops.linear(x, expert)
    y = weight * answer

    def backward(dy):
        (dlogits,) = sigmoid_back((dy * answer).sum(1, keepdims=True))
        dx_router, drouter = router_back(dlogits)
        dx_expert, dexpert = expert_back(dy * weight)
        dx = dx_router * factors + dx_expert
        return dx, drouter, dexpert

    return y, backward


# %% tags=["wrong"]
def mended_layer(x, router, expert, *, factors):
    shaken = x * factors
    logits, router_back = ops.linear(shaken, router)
    weight, sigmoid_back = ops.sigmoid(logits)
    answer, expert_back = ops.linear(x, expert)
    y = weight * answer

    def backward(dy):
        (dlogits,) = sigmoid_back((dy * answer).sum(1, keepdims=True))
        dx_router, drouter = router_back(dlogits)
        dx_expert, dexpert = expert_back(dy * weight)
        dx = (dx_router + dx_expert) * factors  # as before; but the expert's input was not shaken
        return dx, drouter, dexpert

    return y, backward


# %% tags=["wrong"]
def mended_layer(x, router, expert, *, factors):
    shaken = x * factors
    logits, router_back = ops.linear(shaken, router)
    weight, sigmoid_back = ops.sigmoid(logits)
    answer, expert_back = ops.linear(x, expert)
    y = weight * answer

    def backward(dy):
        (dlogits,) = sigmoid_back((dy * answer).sum(1, keepdims=True))
        _, drouter = router_back(dlogits)
        dx_expert, dexpert = expert_back(dy * weight)
        return dx_expert, drouter, dexpert  # the way through the router is forgotten

    return y, backward


# %% tags=["check"]
def reference(x, router, expert, *, factors):
    return (x @ expert) / (1 + np.exp(-(x * factors) @ router)), None


rng = np.random.default_rng(4)
x, router, expert = rng.standard_normal((5, 4)), rng.standard_normal((4, 1)), rng.standard_normal((4, 3))
check_exercise(4, mended_layer, x, router, expert, like=reference, factors=rng.uniform(0.5, 1.5, (5, 4)))

# %% [markdown]
# ## Next
#
# You can now put any network together, forward and backward. What goes in has been numbers so far. Lesson 3, words as
# vectors, turns text into them.
