# ---
# jupyter:
#   lesson:
#     title: The zoo of conventions and the bug museum
#     chinese: 约定与错误博物馆
#     builds: one loss that speaks for many public systems, and repairs of bugs that they really had
#     code:
#       - tinymoe/systems/conventions.py
#       - tinymoe/systems/museum/gates.py
#       - tinymoe/systems/museum/losses.py
#       - tinymoe/systems/museum/layers.py
#     documents: [M11, O6]
#     papers:
#       - "Fedus, Zoph & Shazeer 2021, *Switch Transformers*, eq. 3–6"
#       - "Dai et al. 2024, *DeepSeekMoE*, eq. 12–14"
#     terms:
#       convention: [约定, "a choice that a formula leaves open, and that systems make differently"]
#       coefficient: [系数, "the factor of a term, here of the balancing loss"]
#       covariance: [协方差, "how much two quantities rise and fall together"]
#       recomputation: [重计算, "running the forward pass again in the backward pass, to save memory"]
# ---

# %% [markdown]
# ## You will
#
# see one formula take many values in public systems, recompute each of them, and learn to find bugs that no loss curve shows.

# %% [markdown]
# ## You need
#
# Gradients and their check (lesson 1), mixtures and gates (lessons 8 and 9), and the load-balance loss (lesson 11).

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.gradcheck import check_gradients
from tinymoe.systems.conventions import BALANCE, CAPACITY, BalanceConvention, balance_loss
from tinymoe.systems.museum import MUSEUM

# %% [markdown]
# ## Picture
#
# A model has two layers with two experts each. More and more tokens of layer 1 go to its first expert, and of layer 2 to its
# second. At the right end each layer uses one expert only, and half of the model is idle. Three programs log "the
# load-balance loss", which is 1 if all is even. All three follow public code.


# %%
def two_layers(share, n=100):
    """Logits (2, n, 2) and choices (2, n, 1): in layer 1 a share of the tokens wants expert 0, in layer 2 expert 1."""
    first = (np.arange(n) >= round(share * n)).astype(int)
    choices = np.stack([first, 1 - first])[..., None]
    return np.where(np.arange(2) == choices, np.log(0.9), np.log(0.1)), choices


shares = np.linspace(0.5, 1, 51)
programs = {"each layer by itself, mean": "tinymoe", "tokens of both layers pooled": "hf"}  # whose rules: see below
figure, axes = new_figure()
for label, system in programs.items():
    axes.plot(shares, [balance_loss(z, i, BALANCE[system])[0] for z, i in map(two_layers, shares)], label=label)
double = [
    np.mean([ops.load_balance(ops.softmax(z)[0], i)[0] for z, i in zip(*two_layers(s), strict=True)]) for s in shares
]
axes.plot(shares, double, label="each layer by itself, softmax twice")
axes.set(xlabel="share of a layer's tokens at its favourite expert", ylabel="logged loss")
axes.legend()
show(
    figure,
    alt="By layer the loss rises from one to almost two; with two softmaxes less than half as far; pooled it stays at one.",
)

# %% [markdown]
# The same model, the same formula, three curves. One of them is flat: its reader believes that all is well. A number in a
# log says nothing without its **convention** (约定), the rules by which it was computed. And a **coefficient** (系数), the
# factor in front of such a loss, copied from one system into another, means something else there.

# %% [markdown]
# ## Formula
#
# A layer sends $N$ tokens to $K$ of $E$ experts each. Expert $i$ was chosen $c_i$ times, and token $n$ gives it the
# probability $p_{ni}$. For one layer, as in lesson 11:
#
# $$f_i = \frac{c_i}{N K}, \qquad P_i = \frac1N \sum_n p_{ni}, \qquad L = E \sum_i f_i P_i \tag{1}$$
#
# If all is even, $f_i = P_i = 1/E$ and $L = 1$. With several layers $l = 1 \dots M$, programs add, take the mean, or pool:
#
# $$L_{\text{sum}} = \sum_l L_l, \qquad L_{\text{mean}} = \frac1M \sum_l L_l, \qquad
# L_{\text{pool}} = E \sum_i \bar f_i \bar P_i \tag{2}$$
#
# with $\bar f_i = \frac1M \sum_l f_{li}$ and $\bar P_i$ likewise: the tokens of all layers are taken for tokens of one. What
# pooling hides has a name. The mean of products less the product of means is a **covariance** (协方差):
#
# $$L_{\text{mean}} - L_{\text{pool}} = E \sum_i \frac1M \sum_l (f_{li} - \bar f_i)(P_{li} - \bar P_i) \tag{3}$$
#
# An expert that is both often chosen and probable in one layer, and neither in another, adds to it. That is what layers do that
# collapse on different experts.
#
# The second number with many meanings is the capacity, how many places an expert has. With the factor $\kappa$:
#
# $$C = \lceil \kappa K N / E \rceil \tag{4}$$
#
# where $\lceil\cdot\rceil$ rounds up. Some systems leave out $K$, some round down, some have a minimum.
#
# *Where it stands.* (1) is Fedus et al. 2021, eq. 4–6, for $K = 1$, and Dai et al. 2024, eq. 12–14. The capacity is eq. 3 of
# the former. The untitled document on the sparse gate only names the trouble, in its §8 ([M11](DOCUMENTS.md)).

# %% [markdown]
# ## By hand
#
# Two experts; all tokens choose the first, with probabilities 0.9 and 0.1.
#
# - One layer: $f = (1, 0)$, $P = (0.9, 0.1)$, $L = 2 \cdot 0.9 = 1.8$.
# - A second layer, collapsed on the other expert, has 1.8, too. Mean: 1.8. Pooled: $\bar f = \bar P = (\frac12, \frac12)$,
#   so $L_{\text{pool}} = 2(\frac14 + \frac14) = 1$. In each
#   layer one expert is above these means, by $\frac12$ and 0.4, and one below by as much. By (3) the difference is
#   $2 \cdot (\frac12 \cdot 0.4 + \frac12 \cdot 0.4) = 0.8$.
# - Softmax once more: $e^{0.9} / (e^{0.9} + e^{0.1}) \approx 0.69$, so $L \approx 1.38$ where 1.8 is true.
# - 16 tokens, 8 experts, $K = 2$, $\kappa = 1.25$: by (4) $C = 5$. Without $K$ it is 2.5, which one system rounds to 2,
#   another to 3.

# %% [markdown]
# ## Code
#
# (1) and (2) as loops, with two switches. `first_only` counts only the first choice of each token. Without `divided` the $K$
# of (1) is left out, so that $f$ adds up to $K$.


# %%
def layer_shares(logits, indices, first_only=False, divided=True):
    """f (E,) and P (E,) of one layer."""
    f, P = np.zeros(logits.shape[1]), np.zeros(logits.shape[1])
    counted = indices[:, :1] if first_only else indices
    for row, choices in zip(logits, counted, strict=True):
        for i in choices:
            f[i] += 1 / len(logits) / (len(choices) if divided else 1)
        P += np.exp(row) / np.exp(row).sum() / len(logits)
    return f, P


# %%
def all_layers(logits, indices, how, **switches):
    pairs = [layer_shares(z, i, **switches) for z, i in zip(logits, indices, strict=True)]
    E = logits.shape[2]
    if how == "pooled":
        return E * np.mean([f for f, _ in pairs], axis=0) @ np.mean([P for _, P in pairs], axis=0)
    losses = [E * f @ P for f, P in pairs]
    return np.sum(losses) if how == "sum" else np.mean(losses)


collapsed, chosen = two_layers(1.0)
for how in ("sum", "mean", "pooled"):
    print(f"{how:7} {all_layers(collapsed, chosen, how):.3f}")
twice = ops.softmax(collapsed)[0]  # what a router returns as "logits" after its own softmax
print(f"twice   {all_layers(twice, chosen, 'mean'):.3f}, the mean after a second softmax")
pairs = np.array([layer_shares(z, i) for z, i in zip(collapsed, chosen, strict=True)])  # (layers, 2, E)
off = pairs - pairs.mean(0)
hidden = 2 * (off[:, 0] * off[:, 1]).mean(0).sum()
print(f"(3)     {hidden:.3f} = mean − pooled")
assert np.isclose(hidden, all_layers(collapsed, chosen, "mean") - all_layers(collapsed, chosen, "pooled"))

# %% [markdown]
# ## The same in tinymoe
#
# The library has public systems as presets of one function. They are compared here with our loops, forward, but for two that
# use other probabilities: `nanomoe` a softmax over the chosen experts only, `hf-5.0.0` the double softmax of lesson 11. The
# columns say how each sets the switches. The batch is that of a [table with the sources](../docs/conventions.md): two layers,
# 16 tokens, 8 experts, two choices.

# %%
logits = np.random.default_rng(7).standard_normal((2, 16, 8))
indices = np.argsort(-logits, -1, kind="stable")[..., :2]
print(f"{'system':16} choices  divided  layers  layer 1  layer 2    both")
for name, c in BALANCE.items():
    alone = [balance_loss(logits[i : i + 1], indices[i : i + 1], c)[0] for i in (0, 1)]
    both = balance_loss(logits, indices, c)[0]
    if c.probabilities == "softmax":
        ours = all_layers(logits, indices, c.layers, first_only=c.choices == "first", divided=c.divided)
        assert np.isclose(ours, both, rtol=1e-12)
    print(f"{name:16} {c.choices:8} {c.divided!s:8} {c.layers:6} {alone[0]:8.4f} {alone[1]:8.4f} {both:7.4f}")

# %% [markdown]
# The same batch, and the largest value is several times the smallest. What is even differs as well: 1 for the mean of layers
# with $f$ divided, 2 if $K$ is left out or two layers are added, 4 if both. So one number is good in one log and bad in
# another. Now the capacities, for the numbers of "By hand".

# %%
factors = {"hf-switch": 64}  # there it is no factor, but the number of places itself, by default 64
print(", ".join(f"{name} {rule(16, 8, 2, factors.get(name, 1.25))}" for name, rule in CAPACITY.items()))
assert CAPACITY["tinymoe"](16, 8, 2, 1.25) == ops.capacity(16, 8, 2, 1.25) == np.ceil(1.25 * 2 * 16 / 8)

# %% [markdown]
# Some leave out $K$; some round down, some up, some to an even number or a multiple of four; some give no expert fewer than
# four places. A capacity factor says as little by itself as a coefficient.

# %% [markdown]
# ## Backward by hand
#
# $f$ counts, so it is constant almost everywhere; only $P$ has a gradient. From (1),
# $\partial L / \partial p_{ni} = E f_i / N$, which is called $g_{ni}$ here. Softmax passes it on to the logits $z$:
# $\partial L / \partial z_{ni} = p_{ni}(g_{ni} - \sum_j g_{nj} p_{nj})$. For the mean of $M$ layers divide by $M$; for the
# pool, replace $f$ by $\bar f$ and divide by $M$ too:
#
# $$g_{lni} = \frac{E f_{li}}{N M} \quad\text{(mean)}, \qquad g_{lni} = \frac{E \bar f_i}{N M} \quad\text{(pooled)} \tag{5}$$
#
# If each layer has collapsed on its own expert, $\bar f$ is even, all $g$ are equal, and the gradient of the pool is exactly
# 0. It does not only hide the collapse, it does nothing against it.


# %%
def layered_loss(logits, indices, pooled):
    M, N, E = logits.shape
    p, softmax_back = ops.softmax(logits.reshape(M * N, E))
    f = (indices[..., None] == np.arange(E)).mean((1, 2))  # (M, E)
    f = np.broadcast_to(f.mean(0), f.shape) if pooled else f
    g = np.repeat(E * f / (N * M), N, axis=0)  # (M·N, E), formula (5)
    loss = (g * p).sum()

    def backward(dloss):
        return (softmax_back(dloss * g)[0].reshape(logits.shape),)

    return loss, backward


for pooled, system in ((False, "tinymoe"), (True, "hf")):
    print(check_gradients(layered_loss, logits, indices, pooled))
    scale = 1 if BALANCE[system].divided else indices.shape[2]  # hf does not divide by K
    loss, backward = balance_loss(logits, indices, BALANCE[system])
    ours, ours_back = layered_loss(logits, indices, pooled)
    assert np.isclose(scale * ours, loss) and np.isclose(scale * ours_back(1.0)[0], backward(1.0)[0]).all()
    stuck = np.abs(layered_loss(collapsed, chosen, pooled)[1](1.0)[0]).max()
    print(f"  as {system}; the largest slope after the collapse: {stuck:.1e}")

# %% [markdown]
# (The other slope is small because the loss is a mean over two hundred tokens, and this is that of one of them.)

# %% [markdown]
# ## What the document gets wrong
#
# Names change on the way, too. Three of the documents recommend papers ([O6](DOCUMENTS.md)). Some titles are altered, a paper
# on dropout in recurrent networks is given to other authors and to another subject, and two papers we could not find at
# all. The map of the documents lists them as they should be cited. Cite what you have opened; that holds for code as well.

# %% [markdown]
# ## Spot the bug
#
# The library's [museum](../tinymoe/systems/museum/__init__.py) has bugs of public code, each with the check that catches it.
# Few crash, and few are found by looking at the loss. Here are three. Read each, and say what is wrong, before you open the
# answer.
#
# **A.** Noise makes the experts take turns in training. (After the code of makeMoE and nanoMoE.)


# %%
def noisy_gate(logits, k, rng, training):
    noisy = logits + rng.standard_normal(logits.shape)
    (weights, chosen), _ = ops.top_k_gate(noisy, k)
    return weights, chosen


# %% [markdown]
# <details><summary>Bug A</summary>
#
# `training` is never read. The noise is drawn in evaluation, too, and the same text gets another loss each time.
#
# </details>
#
# **B.** A counter of tokens per expert is updated in the forward pass. To save memory, a program may throw away what the
# forward pass has made, and run it again when the backward pass needs it: **recomputation** (重计算). (After
# NVIDIA/Megatron-LM, issues 1330 and 1331.)


# %%
class CountingRouter:
    def __init__(self, n_experts):
        self.total = np.zeros(n_experts, int)

    def forward(self, chosen):
        self.total += np.bincount(chosen.ravel(), minlength=len(self.total))
        return chosen

    def backward(self, chosen, recompute):
        if recompute:
            self.forward(chosen)


# %% [markdown]
# <details><summary>Bug B</summary>
#
# With recomputation the forward pass runs twice, so every token is counted twice. A forward pass must not change anything: it
# returns its counts, and who calls it a second time doesn't add them again.
#
# </details>
#
# **C.** An expert with too few places keeps the tokens that score highest for it. (Mended by deepspeedai/DeepSpeed, pull
# request 7986.)


# %%
def keep_best(logits, chosen, places):
    asked = np.zeros(logits.shape)
    np.put_along_axis(asked, chosen, np.take_along_axis(logits, chosen, 1), 1)
    best = np.argsort(-asked, axis=0, kind="stable")[:places]
    served = np.zeros(logits.shape, bool)
    np.put_along_axis(served, best, True, 0)
    return np.take_along_axis(served, chosen, 1)


# %% [markdown]
# <details><summary>Bug C</summary>
#
# A token that didn't ask for an expert scores 0 there. Logits may be negative. Then those who never asked rank above those
# who did, and tokens are dropped from an expert that is half empty. Probabilities are positive: with them it works.
#
# </details>
#
# All three show themselves at once, if one looks at the right thing:

# %% tags=["guess"]
tokens = np.random.default_rng(0).standard_normal((20, 5))
seen = [noisy_gate(tokens, 2, np.random.default_rng(seed), training=False)[1] for seed in (1, 2)]
print("A: tokens that change experts between two evaluations:", (seen[0] != seen[1]).any(1).sum(), "of", len(tokens))
router = CountingRouter(4)
router.backward(router.forward(np.array([[0], [1], [1]])), recompute=True)
print("B: three tokens are counted as", router.total.sum())
pairs = np.array([[-1.0, -2], [-1, -2], [-2, -1], [-2, -1]])
print(
    "C: two tokens for each expert, two places each, kept:", keep_best(pairs, pairs.argmax(1)[:, None], 2).sum(), "of 4"
)

# %% [markdown]
# Now the whole museum. Each check is silent for the right code, and complains of the other. Take the list as questions to ask
# of any code that you are about to trust.

# %%
for exhibit in MUSEUM:
    exhibit.check(exhibit.right)
    try:
        exhibit.check(exhibit.buggy)
    except AssertionError:
        print(f"caught: {exhibit.name}")

# %% [markdown]
# ## Exercises
#
# Three more exhibits, and a coefficient to translate. Replace each `...` and run the cell, then the one below it.
#
# ### 1 · Padding
#
# Short texts are filled up to the length of the longest, and `mask` (N,) is False on what was filled in. In
# huggingface/transformers (issue 28505) it was counted like text: $f$ was the share of *all* choices, $P$ the mean over *all*
# tokens. Write (1) for the real tokens only.
#
# <details><summary>Hint</summary>
#
# Let `real = mask.sum()`. Count only `indices[mask]`. A row of padding gets the gradient 0: multiply by `mask[:, None]`.
#
# </details>


# %% tags=["exercise"]
def balance_of_text(logits, indices, *, mask):
    E = logits.shape[1]
    p, softmax_back = ops.softmax(logits)
    f = ...  # (E,)
    g = ...  # (N, E): how the loss changes with p
    y = (g * p).sum()

    def backward(dy):
        return softmax_back(dy * g)

    return y, backward


# %% tags=["solution"]
def balance_of_text(logits, indices, *, mask):
    E = logits.shape[1]
    p, softmax_back = ops.softmax(logits)
    f = np.bincount(indices[mask].ravel(), minlength=E) / indices[mask].size
    g = mask[:, None] * E * f / mask.sum()
    y = (g * p).sum()

    def backward(dy):
        return softmax_back(dy * g)

    return y, backward


# %% tags=["wrong"]
def balance_of_text(logits, indices, *, mask):
    E = logits.shape[1]
    p, softmax_back = ops.softmax(logits)
    f = np.bincount(indices.ravel(), minlength=E) / indices.size  # as published: padding counts
    g = np.broadcast_to(E * f / len(p), p.shape)
    y = (g * p).sum()

    def backward(dy):
        return softmax_back(dy * g)

    return y, backward


# %% tags=["wrong"]
def balance_of_text(logits, indices, *, mask):
    E = logits.shape[1]
    p, softmax_back = ops.softmax(logits)
    f = np.bincount(indices[mask].ravel(), minlength=E) / indices[mask].size
    g = mask[:, None] * E * f / len(p)  # divided by all tokens
    y = (g * p).sum()

    def backward(dy):
        return softmax_back(dy * g)

    return y, backward


# %% tags=["check"]
scores = np.random.default_rng(1).standard_normal((8, 4))
wishes = np.argsort(-scores, 1)[:, :2]
check_exercise(1, balance_of_text, scores, wishes, like=ops.load_balance, mask=np.arange(8) < 5)

# %% [markdown]
# ### 2 · A coefficient, translated
#
# A paper gives a coefficient for the loss as tinymoe has it: $f$ divided by $K$, mean over $M$ layers. Your program may leave
# out $K$ (`divided` is False), and it may add up the layers (`summed` is True). Return the coefficient with which its loss
# pulls exactly as hard. The checker measures it on a batch.
#
# <details><summary>Hint</summary>
#
# By what factor is your program's loss larger than that of the paper? Each switch has a factor of its own.
#
# </details>


# %% tags=["exercise"]
def translated(coefficient, K, M, divided, summed):
    return ...


# %% tags=["solution"]
def translated(coefficient, K, M, divided, summed):
    return coefficient / (1 if divided else K) / (M if summed else 1)


# %% tags=["wrong"]
def translated(coefficient, K, M, divided, summed):
    return coefficient * (1 if divided else K) * (M if summed else 1)  # the wrong way round


# %% tags=["wrong"]
def translated(coefficient, K, M, divided, summed):
    return coefficient / (M if summed else 1)  # forgets that f adds up to K


# %% tags=["check"]
def measured(coefficient, K, M, divided, summed):
    z = np.random.default_rng(3).standard_normal((M, 12, 6))
    chosen = np.argsort(-z, -1)[..., :K]
    yours = BalanceConvention(divided=divided, layers="sum" if summed else "mean")
    return coefficient * balance_loss(z, chosen)[0] / balance_loss(z, chosen, yours)[0]


for switches in ((True, False), (False, False), (True, True), (False, True)):
    check_exercise(2, translated, 0.01, 2, 3, *switches, like=measured, gradients=False)

# %% [markdown]
# ### 3 · Groups
#
# A token may only use experts of its best group: `allowed` (N, E) says which. Then the best `k` of those are taken. The
# published code (among others huggingface/transformers, issue 45440) writes 0 over the scores of the others. With a bias,
# scores can be negative. Return the chosen experts (N, k), best first.
#
# <details><summary>Hint</summary>
#
# Which number is smaller than every score?
#
# </details>


# %% tags=["exercise"]
def choose_allowed(scores, allowed, k):
    limited = ...
    return np.argsort(-limited, axis=1, kind="stable")[:, :k]  # type: ignore[operator]


# %% tags=["solution"]
def choose_allowed(scores, allowed, k):
    limited = np.where(allowed, scores, -np.inf)
    return np.argsort(-limited, axis=1, kind="stable")[:, :k]


# %% tags=["wrong"]
def choose_allowed(scores, allowed, k):
    limited = np.where(allowed, scores, 0.0)  # as published
    return np.argsort(-limited, axis=1, kind="stable")[:, :k]


# %% tags=["wrong"]
def choose_allowed(scores, allowed, k):
    limited = scores * allowed  # the same in another dress
    return np.argsort(-limited, axis=1, kind="stable")[:, :k]


# %% tags=["check"]
def by_lists(scores, allowed, k):
    rows = [sorted(np.flatnonzero(may), key=lambda i: -row[i])[:k] for row, may in zip(scores, allowed, strict=True)]
    return np.array(rows)


two_groups = np.repeat(np.random.default_rng(2).random((8, 1)) < 0.5, 4, axis=1) ^ (np.arange(4) < 2)
check_exercise(3, choose_allowed, scores[:, ::-1] - 0.5, two_groups, 2, like=by_lists, gradients=False)

# %% [markdown]
# ### 4 · Dropped tokens
#
# Experts are full, and some tokens are dropped: `kept` (N,) is False for them. The Switch router of huggingface/transformers
# 4.57.1 erases their rows from the one-hot matrix of choices, and then takes `argmax` of each row to see who went where. A
# row of zeros has its largest element at 0, so every dropped token counts for expert 0. Return the shares $f$ (E,) of what
# the tokens *wished*: a full expert must look full.
#
# <details><summary>Hint</summary>
#
# The balance loss is about what the router wants, not about what there was room for. You don't need `kept`.
#
# </details>


# %% tags=["exercise"]
def wished_shares(chosen, kept, n_experts):
    f = ...
    return f


# %% tags=["solution"]
def wished_shares(chosen, kept, n_experts):
    f = np.bincount(chosen, minlength=n_experts) / len(chosen)
    return f


# %% tags=["wrong"]
def wished_shares(chosen, kept, n_experts):
    one_hot = (chosen[:, None] == np.arange(n_experts)) & kept[:, None]
    return np.bincount(one_hot.argmax(1), minlength=n_experts) / len(chosen)  # as published


# %% tags=["wrong"]
def wished_shares(chosen, kept, n_experts):
    return np.bincount(chosen[kept], minlength=n_experts) / len(chosen)  # an overfull expert looks only full


# %% tags=["check"]
def library_shares(chosen, kept, n_experts):
    return ops.expert_shares(chosen[:, None], n_experts)


check_exercise(
    4, wished_shares, np.array([1, 1, 1, 1, 2, 0]), np.arange(6) != 3, 4, like=library_shares, gradients=False
)

# %% [markdown]
# ## Next
#
# You have now met the sparsity of *choice*: most experts rest. Lesson 13, sparse weights, is about the other kind: most
# weights are 0.
