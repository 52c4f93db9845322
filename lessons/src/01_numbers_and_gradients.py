# ---
# jupyter:
#   lesson:
#     title: Numbers and gradients
#     chinese: 数与梯度
#     builds: three ways to measure a slope, and operations whose gradients the library's checker accepts
#     code: [tinymoe/gradcheck/checker.py, tinymoe/gradcheck/slopes.py, tinymoe/ops/softmax.py]
#     documents: [M7]
#     papers:
#       - "Squire & Trapp 1998, *Using Complex Variables to Estimate Derivatives of Real Functions*"
#       - "Press et al. 2007, *Numerical Recipes*, 3rd edition, §5.7"
#     terms:
#       weight: [权重, "a number that something is multiplied by, and that training changes"]
#       loss: [损失, "one number that says how wrong a model is"]
#       slope: [斜率, "how much a result changes for a unit of change in an input"]
#       derivative: [导数, "the slope of a function at a point: that of its tangent"]
#       gradient: [梯度, "the slopes of the loss along all numbers of an array"]
#       finite difference: [有限差分, "a slope measured between two points that lie close together"]
#       central difference: [中心差分, "a slope measured from one step before a point to one step after"]
#       truncation error: [截断误差, "the error of a formula that stops after its first terms"]
#       rounding error: [舍入误差, "the error of storing a number with a limited count of digits"]
#       complex step: [复数步长法, "a slope measured by a step into the imaginary numbers, without a subtraction"]
#       forward pass: [前向传播, "computing the result from the inputs"]
#       backward pass: [反向传播, "computing the gradients, from the loss back to the inputs"]
#       gradient check: [梯度检验, "comparing a gradient from formulas with slopes measured on the forward pass"]
#       gradient descent: [梯度下降, "training that moves each parameter a small step against its gradient"]
#       learning rate: [学习率, "how far a step goes, as a factor of the gradient"]
# ---

# %% [markdown]
# ## You will
#
# measure how a loss changes when a weight changes, learn how far such a measurement can be trusted, and use it to find a
# wrong gradient at its very index.

# %% [markdown]
# ## You need
#
# Python functions, a little NumPy, and from school derivatives: that of $w^2$ is $2w$, that of $e^w$ is $e^w$, that of $\ln w$
# is $1/w$. No earlier lesson.

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients

# %% [markdown]
# ## Picture
#
# A model is a function with **weights** (权重): numbers that training may change. Here is the smallest model that learns. It
# has one weight $w$. It reads one number $x$ and says how probable the answer "yes" is:
#
# $$p = \frac{1}{1 + e^{-wx}}$$
#
# The right answer is "yes". The **loss** (损失) says how bad the model is: $L = -\ln p$, in nats, the unit of $\ln$. It is
# 0 if the model is certain and right, and grows without bound as $p$ goes to 0.
#
# Training asks one question of every weight: if I make you a little larger, does the loss go up or down, and how fast? The
# answer is the **slope** (斜率) of the curve below.


# %%
def loss(w, x=2.0):
    return np.log(1 + np.exp(-w * x))  # this is -ln p


def slope_of_loss(w, x=2.0):
    return -x / (1 + np.exp(w * x))  # found with pencil and paper, further down


w, wide = 0.0, 1.0
grid = np.linspace(-2, 2, 200)
figure, axes = new_figure()
axes.plot(grid, loss(grid), label="loss L(w)")
axes.plot(grid, loss(w) + slope_of_loss(w) * (grid - w), label="tangent: the slope we want")
axes.plot(grid, loss(w) + (loss(w + wide) - loss(w)) / wide * (grid - w), label="line through two points of the curve")
axes.plot([w, w + wide], [loss(w), loss(w + wide)], "ko")
axes.set(xlabel="weight w", ylabel="loss in nats", ylim=(-0.6, 4.2))
axes.legend()
show(
    figure,
    alt="The loss falls as w grows. A line through two of its points is less steep than the tangent at the first.",
)

# %% [markdown]
# The line through two points is easy to get: two values of the loss and a division. It is not the tangent, but the closer the
# two points, the better it fits. So should they be as close as possible? That is the question of this lesson, and the
# answer is no.

# %% [markdown]
# ## Formula
#
# The **derivative** (导数) of $L$ at $w$ is the slope of the tangent:
#
# $$\frac{dL}{dw} = \lim_{h \to 0} \frac{L(w + h) - L(w)}{h} \tag{1}$$
#
# A computer can't let the **step** $h$ go to 0. It takes a small one. This is a **finite difference** (有限差分), and there
# are two kinds of it. Their errors follow from Taylor's series, where $L''$ and $L'''$ are the second and third derivatives:
#
# $$L(w + h) = L + h\frac{dL}{dw} + \frac{h^2}{2} L'' + \frac{h^3}{6} L''' + \dots$$
#
# For $L(w - h)$ the signs of $h$ and $h^3$ change, so that in the second difference $L''$ cancels:
#
# $$\text{forward:}\quad \frac{L(w + h) - L(w)}{h} = \frac{dL}{dw} + \frac{h}{2} L'' + \dots \tag{2}$$
#
# $$\text{central (中心差分):}\quad \frac{L(w + h) - L(w - h)}{2h} = \frac{dL}{dw} + \frac{h^2}{6} L''' + \dots \tag{3}$$
#
# What comes after $dL/dw$ is the **truncation error** (截断误差): the part of the series that is cut off. It shrinks with
# $h$. Each value of the loss also has a **rounding error** (舍入误差), because a float has only 53 binary digits: about
# $u|L|$, with $u = 2^{-53}$. Both differences divide it by $h$, so it *grows* as $h$ shrinks.
#
# A trick avoids this. Put $ih$ for $h$ in the series, with $i^2 = -1$, and take the part with $i$. This is the
# **complex step** (复数步长法):
#
# $$L(w + ih) = L + ih\frac{dL}{dw} - \frac{h^2}{2} L'' - i\frac{h^3}{6} L''' + \dots \quad\Rightarrow\quad
# \frac{\operatorname{Im} L(w + ih)}{h} = \frac{dL}{dw} - \frac{h^2}{6} L''' + \dots \tag{4}$$
#
# There is no subtraction, so $h$ may be as small as you like.
#
# If $L$ has many weights, each has its slope while the others stay where they are. All of them together are the
# **gradient** (梯度): an array with the shape of the weights, one slope for each.
#
# *Where it stands.* Four of the five [documents](DOCUMENTS.md) train "by gradient descent" or write
# $\partial L / \partial w_i$; none says what a gradient is or how to find out whether one is right. Formula (4) is Squire &
# Trapp 1998. The errors of (2) and (3) are in *Numerical Recipes*, §5.7.

# %% [markdown]
# ## By hand
#
# Take $L = w^2$ at $w = 3$, where the slope is $2w = 6$, and a large step, $h = 0.1$:
#
# - forward: $(3.1^2 - 3^2) / 0.1 = (9.61 - 9) / 0.1 = 6.1$. It is off by $h$, as (2) says with $L'' = 2$.
# - central: $(3.1^2 - 2.9^2) / 0.2 = (9.61 - 8.41) / 0.2 = 6$. It is exact, as (3) says: $L''' = 0$.
# - complex: $(3 + 0.1i)^2 = 9 - 0.01 + 0.6i$. The imaginary part over $h$ is $0.6 / 0.1 = 6$. Also exact.

# %% [markdown]
# ## Code
#
# Each formula is one line; Python writes $i$ as `1j`. First the example from paper, then the slope of $e^w$ at 0, where every
# derivative is 1: are the errors those of (2), (3) and (4)?


# %%
def forward_difference(f, w, h):
    return (f(w + h) - f(w)) / h


def central_difference(f, w, h):
    return (f(w + h) - f(w - h)) / (2 * h)


def complex_step(f, w, h):
    return np.imag(f(w + 1j * h)) / h


h = 0.01
by_formula = {forward_difference: h / 2, central_difference: h**2 / 6, complex_step: -(h**2) / 6}
for measure, error in by_formula.items():
    found = measure(np.exp, 0.0, h) - 1
    print(f"{measure.__name__:18} {measure(lambda w: w * w, 3.0, 0.1)}   error {found:.2e}, by formula {error:.2e}")
    assert np.isclose(found, error, rtol=h, atol=0)  # the rest of the series is left out

# %% [markdown]
# The same numbers as on paper, but for the last digits of some: the rounding error is there already. Now measure the slope of
# our loss, with steps from large to tiny, and see how far each result is from the truth.

# %%
w = 0.7
steps = np.logspace(-20, 0, 161)
figure, axes = new_figure(height=3.8)
for measure in (forward_difference, central_difference, complex_step):
    errors = np.array([abs(measure(loss, w, h) / slope_of_loss(w) - 1) for h in steps])
    axes.loglog(steps, np.maximum(errors, 1e-17), label=measure.__name__.replace("_", " "))  # a log axis has no 0
axes.annotate("rounding:\nsmaller steps are worse", (1e-12, 4e-4))
axes.annotate("truncation:\nlarger steps are worse", (2, 1e-13), ha="right")
axes.set(xlabel="step h", ylabel="relative error of the slope", ylim=(3e-18, 1e2))
axes.legend(loc="center left")
show(
    figure,
    alt="Error against step: both differences are V-shaped, central lower than forward; the complex step falls and stays down.",
)

# %% [markdown]
# Read it from right to left. At first a smaller step helps: the line of the central difference is twice as steep as that of
# the forward difference, because its error goes with $h^2$. Then rounding takes over, and the error grows like $1/h$. At the
# far left $w + h$ *is* $w$ in floats, the difference is 0, and the slope is wrong altogether. The complex step begins with
# the truncation error of the central difference, as (4) says. But once that is gone, it stays at the bottom, however small
# $h$ is.
#
# So each difference has a best step: where truncation and rounding are about equal. For an ordinary function $h = u/h$ gives
# $\sqrt u$ for (2), and $h^2 = u/h$ gives $\sqrt[3]u$ for (3). The exact place is luck, since roundings sometimes cancel.

# %%
for measure in (forward_difference, central_difference):
    errors = [abs(measure(loss, w, h) / slope_of_loss(w) - 1) for h in steps]
    best = int(np.argmin(errors))
    print(f"{measure.__name__:18} best step {steps[best]:.0e}, relative error {errors[best]:.0e}")
u = 2.0**-53
print(f"{'rule of thumb':18} √u = {np.sqrt(u):.0e} for forward, ∛u = {np.cbrt(u):.0e} for central")


# %% [markdown]
# **Many weights.** Move one at a time:


# %%
def numerical_gradient(f, w, h=1e-5):
    gradient = np.zeros_like(w)
    for index in np.ndindex(w.shape):  # every index of the array
        up, down = w.copy(), w.copy()
        up[index] += h
        down[index] -= h
        gradient[index] = (f(up) - f(down)) / (2 * h)
    return gradient


x = np.array([2.0, -1.0, 0.5])  # now the model reads three numbers
w = np.array([0.3, 0.8, -0.4])  # and has three weights
print(numerical_gradient(lambda w: loss(w @ x, 1.0), w))  # x = 1 leaves ln(1 + exp(-s))

# %% [markdown]
# Two values of the loss for every weight: a model with a million weights would have to read its text two million times, for
# one step of training. That is why gradients are computed another way, and measured only to check them.

# %% [markdown]
# ## The same in tinymoe
#
# Every operation of the library is a function that returns two things: its result, and a function that computes the
# gradients.
#
# ```python
# y, backward = op(x, w)      # the forward pass (前向传播)
# dx, dw = backward(dy)       # the backward pass (反向传播)
# ```
#
# `dy` says how much the final loss changes per unit of `y`; `dx` and `dw` say the same for `x` and `w`. So `backward` passes
# the message on, from the result to the inputs. If `y` is the loss itself, `dy` is 1.
#
# Our loss is in the library as `cross_entropy`. It takes a row of scores, one for each possible answer, and the index of
# the right one. An answer's probability is $e$ to its score, divided by the sum of these over all answers: softmax. With the
# scores $s = w \cdot x$ for "yes" and 0 for "no", that is $e^s / (e^s + 1)$, our $p$.

# %%
scores, right_answer = np.array([[w @ x, 0.0]]), np.array([0])
library_loss, backward = ops.cross_entropy(scores, right_answer)
(dscores,) = backward(1.0)

print("loss, ours and the library's:    ", loss(w @ x, 1.0), library_loss)
print("slope along s, ours and its own: ", complex_step(lambda s: loss(s, 1.0), w @ x, 1e-20), dscores[0, 0])
assert np.isclose(loss(w @ x, 1.0), library_loss, rtol=1e-12)
assert np.isclose(complex_step(lambda s: loss(s, 1.0), w @ x, 1e-20), dscores[0, 0], rtol=1e-12)

# %% [markdown]
# The library also has the **gradient check** (梯度检验). It compares what `backward` returns with slopes measured on the
# forward pass, along random directions of every input. `central` uses (3), at two steps at once; `complex` uses (4). If it
# says "not linear in dy", `backward` may have forgotten to multiply by `dy`.

# %%
print(check_gradients(ops.cross_entropy, scores, right_answer))
print(check_gradients(ops.cross_entropy, scores, right_answer, method="complex"))

# %% [markdown]
# ## Backward by hand
#
# With pencil and paper, for three weights. Let $s = \sum_i w_i x_i$ and $L = \ln(1 + e^{-s})$.
#
# 1. $L$ changes with $s$ at the rate $\dfrac{dL}{ds} = \dfrac{-e^{-s}}{1 + e^{-s}} = \dfrac{1}{1 + e^{-s}} - 1 = p - 1$:
#    what the model says less what it should say.
# 2. $s$ changes with $w_i$ at the rate $x_i$, and with $x_i$ at the rate $w_i$.
# 3. Rates multiply: $\dfrac{\partial L}{\partial w_i} = (p - 1)\, x_i$ and $\dfrac{\partial L}{\partial x_i} = (p - 1)\, w_i$.
#
# Step 3 is the chain rule, which is the next lesson. With `dy` in front, this is an operation:


# %%
def logistic_loss(x, w):
    s = w @ x
    y = np.log(1 + np.exp(-s))

    def backward(dy):
        ds = dy * (1 / (1 + np.exp(-s)) - 1)  # p - 1
        return ds * w, ds * x

    return y, backward


y, backward = logistic_loss(x, w)
print("by hand: ", backward(1.0)[1])
print("measured:", numerical_gradient(lambda w: logistic_loss(x, w)[0], w))
print(check_gradients(logistic_loss, x, w, method="complex"))

# %% [markdown]
# Now plant a bug. The operation below takes the difference of neighbours, $y_i = x_{i+1} - x_i$. Every $x_i$ stands in two of
# the results, except the first and the last. The backward pass forgets the last. Nothing crashes, all shapes are right, and
# a model with this mistake may even learn, only worse.


# %%
def neighbour_difference(x):
    y = x[1:] - x[:-1]

    def backward(dy):
        dx = np.zeros_like(x)
        dx[:-1] -= dy
        dx[1:-1] += dy[:-1]  # the bug: it must be dx[1:] += dy
        return (dx,)

    return y, backward


print(check_gradients(neighbour_difference, np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.0])))

# %% [markdown]
# The checker names the input, the index, the slope it measured there, and the number it found instead. Indices count from 0,
# so it is the last element, as it must be. (The slope has odd digits because the checker draws a random `dy`: with a `dy` of
# ones, some mistakes cancel.)

# %% [markdown]
# ## What the document gets wrong
#
# The untitled document on the sparse gate (稀疏门控), §4, updates the weights of the active experts by
# $\Delta w_i = \partial L / \partial w_i$ ([M7](DOCUMENTS.md)). Two things are missing. The gradient points *uphill*, so the
# step needs a minus sign; and it says how steep the hill is, not how far to go, so it needs a **learning rate** (学习率)
# $\eta$: $\Delta w_i = -\eta\, \partial L / \partial w_i$. This is **gradient descent** (梯度下降). Try both on our loss
# with one weight.

# %%
printed, corrected, rate = 0.7, 0.7, 0.5
for step in range(5):
    print(f"step {step}   as printed: loss {loss(printed):6.3f}   corrected: loss {loss(corrected):6.3f}")
    printed += slope_of_loss(printed)
    corrected -= rate * slope_of_loss(corrected)

# %% [markdown]
# With two weights the loss is a landscape. Here it is for five examples; a line joins places of equal loss, as on a map of
# mountains, and the cross is the lowest point. Three walkers start at one place. Each step goes along the gradient, which
# stands straight across the lines.

# %%
examples = np.array([[2.0, 1], [1, -1], [-1.5, 0.5], [-0.5, -1.5], [1, 2]])  # −x where the right answer is "no"


def landscape(w):
    """The mean loss of the examples, and its gradient."""
    losses, backs = zip(*[logistic_loss(x, w) for x in examples], strict=True)
    return np.mean(losses), np.mean([back(1.0)[1] for back in backs], axis=0)


def walk(rate, steps, w=(-2.5, 2.0)):
    places = [np.array(w)]
    for _ in range(steps):
        places.append(places[-1] - rate * landscape(places[-1])[1])
    return np.array(places)


# %%
first, second = np.linspace(-4, 4, 61), np.linspace(-3, 4, 61)
heights = [[landscape(np.array([a, b]))[0] for a in first] for b in second]
figure, axes = new_figure(height=3.8)
axes.contour(first, second, heights, levels=10, colors="0.75", linewidths=0.9)
for label, marker, path in [
    ("downhill, rate 0.5", "o", walk(0.5, 40)),
    ("downhill, rate 8", "s", walk(8.0, 6)),
    ("as printed: uphill", "^", walk(-1.0, 3)),
]:
    axes.plot(*path.T, marker=marker, markersize=4, label=label)
lowest = walk(0.5, 2000)[-1]
axes.plot(*lowest, "kx", markersize=10)
axes.set(xlabel="first weight", ylabel="second weight", xlim=(-4, 4), ylim=(-1.8, 3), aspect="equal")
axes.legend(fontsize=9)
show(figure, alt="Rings of equal loss; one path runs down to the lowest point, one leaps across it, one climbs away.")
print("slope at the cross is 0:", np.allclose(landscape(lowest)[1], 0, atol=1e-6))

# %% [markdown]
# ## Spot the bug
#
# A sparse model has a second loss, which keeps its experts evenly busy. It is added to the first. In a public training
# library (NVIDIA-NeMo/Automodel, issue 1408, mended by pull request 1412) this second loss was computed, and it changed
# nothing: no weight got a gradient from it.
#
# Here is the same mistake in a small model. The penalty $\frac{c}{2}\sum_i w_i^2$, with a strength $c$, is to keep the weights
# small. Find the bug by reading, before you run the check.


# %%
def loss_with_penalty(x, w, strength=0.1):
    main_loss, main_back = logistic_loss(x, w)
    penalty = strength / 2 * (w * w).sum()
    y = main_loss + penalty

    def backward(dy):
        dx, dw = main_back(dy)
        return dx, dw

    return y, backward


# %% [markdown]
# <details><summary>The bug</summary>
#
# The penalty is in `y`, so it is logged; it is not in `backward`, so no weight ever hears of it. The loss looks right because
# it *is* right. In the library, the function that should have attached the gradient returned a new array, and its caller went
# on with the old one. The backward pass must return `dw + dy * strength * w`.
#
# </details>

# %% tags=["guess"]
print(check_gradients(loss_with_penalty, x, w))

# %% [markdown]
# `dx` is right, `dw` is not: the bug is in what concerns `w` alone. The library keeps the original, with the check that
# catches it, as the exhibit "detached balance loss" of its [museum](../tinymoe/systems/museum/losses.py).

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it. It prints `[todo]`, `[ok]`, or `[wrong]` and where.
#
# ### 1 · A better difference
#
# The truncation error of (3) is $\frac{h^2}{6} L'''$ with the step $h$ and four times that with $2h$. Combine the two central
# differences $s(h)$ and $s(2h)$ so that it cancels. This is what tinymoe's checker uses.
#
# <details><summary>Hint</summary>
#
# You look for $a\,s(h) + b\,s(2h)$ with $a + b = 1$, so that the slope comes out once, and $a + 4b = 0$, so that the error
# goes.
#
# </details>


# %% tags=["exercise"]
def better_difference(f, w, h):
    near = central_difference(f, w, h)
    far = central_difference(f, w, 2 * h)
    return ...


# %% tags=["solution"]
def better_difference(f, w, h):
    near = central_difference(f, w, h)
    far = central_difference(f, w, 2 * h)
    return (4 * near - far) / 3


# %% tags=["wrong"]
def better_difference(f, w, h):
    near = central_difference(f, w, h)
    far = central_difference(f, w, 2 * h)
    return (near + far) / 2  # the mean of the two: worse than the nearer alone


# %% tags=["wrong"]
def better_difference(f, w, h):
    near = central_difference(f, w, h)
    far = central_difference(f, w, 2 * h)
    return 2 * near - far  # right for an error that goes with h, not with its square


# %% tags=["check"]
def true_slope(f, w, h):
    return complex_step(f, w, 1e-20)


check_exercise(1, better_difference, np.exp, 0.5, 0.1, like=true_slope, gradients=False, tolerance=1e-5)

# %% [markdown]
# ### 2 · Half the squared error
#
# $y = \frac12 \sum_i (p_i - t_i)^2$: how far predictions $p$ are from targets $t$. Write the forward pass and both gradients.
#
# <details><summary>Hint</summary>
#
# Only one term of the sum has $p_i$ in it. Its derivative is $p_i - t_i$. And $t_i$ stands there with a minus. Both are
# multiplied by `dy`.
#
# </details>


# %% tags=["exercise"]
def squared_error(p, t):
    y = ...

    def backward(dy):
        dp = ...
        dt = ...
        return dp, dt

    return y, backward


# %% tags=["solution"]
def squared_error(p, t):
    error = p - t
    y = (error * error).sum() / 2

    def backward(dy):
        dp = dy * error
        dt = -dp
        return dp, dt

    return y, backward


# %% tags=["wrong"]
def squared_error(p, t):
    error = p - t
    y = (error * error).sum() / 2

    def backward(dy):
        return dy * error, dy * error  # t stands in the error with a minus

    return y, backward


# %% tags=["wrong"]
def squared_error(p, t):
    error = p - t
    y = (error * error).sum()  # not half of it

    def backward(dy):
        return 2 * dy * error, -2 * dy * error

    return y, backward


# %% tags=["check"]
def reference(p, t):
    return ((p - t) ** 2).sum() / 2, None


p, t = np.random.default_rng(1).standard_normal((2, 4))
check_exercise(2, squared_error, p, t, like=reference)

# %% [markdown]
# ### 3 · The logistic function
#
# $y = 1 / (1 + e^{-x})$ for every element of an array: the $p$ of this lesson. Write both passes.
#
# <details><summary>Hint</summary>
#
# The derivative is $y(1 - y)$, so `backward` needs only `y`. Don't forget `dy`: it has the shape of `y` and multiplies it
# element by element.
#
# </details>


# %% tags=["exercise"]
def logistic(x):
    y = ...

    def backward(dy):
        dx = ...
        return (dx,)  # a tuple, also when there is one gradient

    return y, backward


# %% tags=["solution"]
def logistic(x):
    y = 1 / (1 + np.exp(-x))

    def backward(dy):
        dx = dy * y * (1 - y)
        return (dx,)

    return y, backward


# %% tags=["wrong"]
def logistic(x):
    y = 1 / (1 + np.exp(-x))

    def backward(dy):
        return (y * (1 - y),)  # without dy

    return y, backward


# %% tags=["wrong"]
def logistic(x):
    y = 1 / (1 + np.exp(-x))

    def backward(dy):
        return (dy * y * (1 + y),)  # a wrong sign

    return y, backward


# %% tags=["check"]
check_exercise(3, logistic, np.random.default_rng(2).standard_normal((3, 4)), like=ops.sigmoid)

# %% [markdown]
# ### 4 · Open to the complex step
#
# $y = |x|$ and its backward pass. The checker now measures with the complex step, and `np.abs` of a complex number is real:
# the imaginary part, which carries the slope, is lost. Decide on the real part, compute with the whole number.
#
# <details><summary>Hint</summary>
#
# `x.real` works for floats and for complex numbers, and `np.sign` of a float is 1, -1 or 0.
#
# </details>


# %% tags=["exercise"]
def absolute(x):
    sign = ...  # 1 where x is above 0, -1 where it is below
    y = ...

    def backward(dy):
        return (...,)

    return y, backward


# %% tags=["solution"]
def absolute(x):
    sign = np.sign(x.real)
    y = x * sign

    def backward(dy):
        return (dy * sign,)

    return y, backward


# %% tags=["wrong"]
def absolute(x):
    sign = np.sign(x.real)
    y = np.abs(x)  # right for floats, but the imaginary part is lost

    def backward(dy):
        return (dy * sign,)

    return y, backward


# %% tags=["wrong"]
def absolute(x):
    sign = np.sign(x.real)
    y = x * sign

    def backward(dy):
        return (dy * y,)  # the value in the place of the slope

    return y, backward


# %% tags=["check"]
def reference(x):
    return np.abs(x), None


check_exercise(4, absolute, np.random.default_rng(3).standard_normal((3, 4)), like=reference, method="complex")

# %% [markdown]
# ## Next
#
# You can now tell whether any gradient is right. Lesson 2, the chain rule, is about finding it: how the `backward` of a
# long computation is put together from those of its parts.
