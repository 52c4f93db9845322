# ---
# jupyter:
#   lesson:
#     title: Vision and language
#     chinese: 视觉与语言
#     builds: a language model that looks at a picture and says what it shows, with experts shared by patches and letters
#     code:
#       - tinymoe/ops/fusion.py
#       - tinymoe/models/vision.py
#       - tinymoe/data/pictures/shapes.py
#       - tinymoe/models/captioning.py
#     documents: [V1, V2, V3]
#     papers:
#       - "Dosovitskiy et al. 2021, *An Image is Worth 16x16 Words*, eq. 1–4"
#       - "Liu et al. 2023, *Visual Instruction Tuning*, §4.1"
#       - "Lin et al. 2024, *MoE-LLaVA: Mixture of Experts for Large Vision-Language Models*, §3"
#     terms:
#       vision-language model: [视觉语言模型, "a language model that also reads pictures"]
#       modality: [模态, "a kind of data, such as text, pictures or sound"]
#       patch: [图像块, "a small square of a picture, read as one row of numbers"]
#       projection: [投影, "a linear map that brings rows to another width"]
#       image encoder: [图像编码器, "the part of a model that makes rows out of a picture"]
#       fusion: [融合, "bringing rows of a picture and of a text together"]
#       prefix: [前缀, "rows that stand before those of the text"]
#       multimodal learning: [多模态学习, "learning from several kinds of data at once"]
# ---

# %% [markdown]
# ## You will
#
# let a language model look at pictures, train it to say what they show, and find out which experts the pictures and
# the words use.

# %% [markdown]
# ## You need
#
# Attention of [lesson 6](06_attention_and_positions.ipynb), the model of [lesson 7](07_transformer_by_hand.ipynb),
# the top-k gate of [lesson 9](09_top_k_gates.ipynb), and the measure MaxVio of [lesson 11](11_balance.ipynb).

# %%
import numpy as np

from lesson_tools import check_exercise, new_figure, show
from tinymoe import ops
from tinymoe.data.pictures import encode_captions, patches, shapes
from tinymoe.data.windows import Batch
from tinymoe.documents.big_language_model import text_to_vector
from tinymoe.gradcheck import check_gradients
from tinymoe.models import captioning, language
from tinymoe.models.vision import encode
from tinymoe.ops import metrics
from tinymoe.runs.settings import resolve
from tinymoe.runs.state import new_state, new_trainer

# %% [markdown]
# ## Picture
#
# A **vision-language model** (视觉语言模型) reads two kinds of data, two **modalities** (one **modality**, 模态): a
# picture and a text. A language model reads rows of numbers and doesn't ask where they come from. So a picture is cut
# into squares, each **patch** (图像块) becomes a row, and the rows are put before those of the letters. Our pictures
# are drawn by the library, and with each comes a sentence. The lines show where it is cut.

# %%
split = shapes(0, train=3000, val=300, held_out=300)


def easy(pictures):  # four of the shapes, which a small model can tell apart in a minute
    return pictures.take(np.flatnonzero(np.isin(pictures.labels["shape"], (1, 2, 4, 5))))


train_set, new_set, unseen_set = map(easy, (split.train, split.val, split.held_out))
figure, axes = new_figure(1, 3, height=2.6)
for panel, picture, caption in zip(axes, train_set.images, train_set.captions, strict=False):
    panel.imshow(picture, interpolation="nearest", extent=(0, 20, 20, 0))
    panel.set(xticks=range(0, 21, 5), yticks=range(0, 21, 5), xlabel="pixel", ylabel="pixel")
    panel.grid(color="0.7")
    panel.set_title(caption.replace(" at", "\nat"), fontsize=9)
show(
    figure, alt="Three coloured shapes on dark ground with captions; white lines cut each into four times four patches."
)
print(
    f"{len(train_set)} pictures to learn from, {len(new_set)} new ones, {len(unseen_set)} of combinations never shown"
)

# %% [markdown]
# The third set is special. Each shape has one colour in which the training pictures never show it. A model that has learnt
# what *yellow* looks like and what a *ring* looks like should name a yellow ring all the same. A model that knows its
# pictures by heart can't.

# %% [markdown]
# ## Formula
#
# A picture has $R$ patches; $x_r$ are the numbers of patch $r$ in a row: here 5 × 5 pixels of three colours. A
# **projection** (投影), a matrix $P$, brings them to the width $D$ of the text, and $p_r$, a learned row, says where the
# patch stood. With the norm $N$ of
# lesson 7 and a second matrix $O$, this is the simplest **image encoder** (图像编码器); a larger one has blocks of
# attention in between:
#
# $$v_r = N(x_r P + p_r)\, O \tag{1}$$
#
# **Fusion** (融合). With the rows $h_1, \dots, h_T$ of the text, there are two ways. One adds the mean of the patches
# to every letter, the other puts them in front as a **prefix** (前缀):
#
# $$y_t = h_t + \frac1R \sum_r v_r \tag{2}$$
#
# $$y = (v_1, \dots, v_R,\; h_1, \dots, h_T) \tag{3}$$
#
# From there on the language model goes on as always. With (3) the text can attend to every patch. With (2) the patches have
# been mixed before anybody could look.
#
# *Where it stands.* (2) is `combined_feature = image_feature + text_feature` of
# 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》, §3.4 ([V1](DOCUMENTS.md)), with what it needs to be
# right. The title of that document promises a vision-language model with sparse experts ([V2](DOCUMENTS.md)), and
# 《稀疏专家模型》, §8.2, looks forward to **multimodal learning** (多模态学习, [V3](DOCUMENTS.md)). (1) is eq. 1 of
# Dosovitskiy et al. 2021 with a norm and a matrix behind it, (3) is how Liu et al. 2023 join the two, and Lin et al.
# 2024 do with sparse experts.

# %% [markdown]
# ## By hand
#
# Two patches, $v = (2, 4)$, and three letters, $h = (1, 1, 5)$, all of width 1.
#
# - (2): the mean patch is 3, so $y = (4, 4, 8)$. If $dy = (1, 2, 3)$ comes back, each letter gets its own, and every patch
#   $\frac12 (1 + 2 + 3) = 3$.
# - (3): $y = (2, 4, 1, 1, 5)$. If $dy = (1, 2, 3, 4, 5)$ comes back, the patches get $(1, 2)$ and the letters $(3, 4, 5)$.

# %% [markdown]
# ## Code
#
# Cutting a picture, and both fusions, as loops.


# %%
def cut(picture, S):  # (H, W, C) to (R, S·S·C)
    rows = []
    for top in range(0, picture.shape[0], S):
        for left in range(0, picture.shape[1], S):
            rows.append(picture[top : top + S, left : left + S].ravel())
    return np.array(rows)


# %%
def add(v, h):  # v (R, D), h (T, D)
    y = np.array([row + sum(v) / len(v) for row in h])  # (2)

    def backward(dy):
        dv = np.array([sum(dy) / len(v) for _ in v])
        return dv, dy.copy()

    return y, backward


def put_before(v, h):
    y = np.array([*v, *h])  # (3)

    def backward(dy):
        return dy[: len(v)].copy(), dy[len(v) :].copy()

    return y, backward


v, h = np.array([[2.0], [4]]), np.array([[1.0], [1], [5]])
for fuse, dy in ((add, [1.0, 2, 3]), (put_before, [1.0, 2, 3, 4, 5])):
    y, backward = fuse(v, h)
    dv, dh = backward(np.array(dy)[:, None])
    print(f"{fuse.__name__:10} y {y[:, 0]}  dv {dv[:, 0]}  dh {dh[:, 0]}")

# %% [markdown]
# **Who may see whom.** The causal mask of lesson 6 stays, over patches and letters together: each row sees itself and
# all before it. So every letter sees the whole picture, and the letters before.

# %%
begin = "☐"  # the mark that a caption begins
names = [f"p{r}" for r in range(4)] + list(begin + "a␣ring")
allowed = np.tril(np.ones((len(names), len(names))))
shade = allowed * np.where(np.arange(len(names)) < 4, 0.5, 1.0)
figure, axes = new_figure(height=3.4)
axes.imshow(shade, "Greys", vmin=0, vmax=1.3)
axes.set(xticks=range(len(names)), xticklabels=names, yticks=range(len(names)), yticklabels=names)
axes.set(xlabel="is seen: four patches, then the text", ylabel="sees")
axes.grid(visible=False)
show(
    figure,
    alt="A triangle: each row sees those before it; the first four columns, the patches, are seen by all letters.",
)

# %% [markdown]
# **Train.** The model is that of lesson 7 with two layers of four experts, two for each row. Patches and letters
# share them: nobody says which expert is for what. The loss counts letters only; a patch has nothing to predict.

# %%
LENGTH = max(len(c) for c in train_set.captions + new_set.captions + unseen_set.captions) + 1
settings = resolve(
    {"task": "caption", "encoder": "linear", "layers": 2, "width": 32, "heads": 2, "kv_heads": 2, "experts": 4}
    | {"top_k": 2, "expert_width": 32, "tied": False, "batch_size": 16, "lr": 6e-3, "warmup": 20, "steps": 850}
    | {"decay_steps": 850, "weight_decay": 0.0, "dropout": 0.0, "word_drop": 0.0, "workers": 1}
)
state, data, losses = new_state(settings), encode_captions(train_set.captions, LENGTH), []
params, config = state.params, settings.model
rng = np.random.default_rng(settings.run.seed)
with new_trainer(state, settings) as trainer:
    while state.step < settings.run.steps:
        rows = rng.integers(0, len(train_set), settings.training.batch_size)
        picked = Batch(data.ids[rows], data.targets[rows], data.mask[rows], train_set.images[rows])
        losses.append(trainer.step(picked).loss)

# %%
blind = np.log(len(set(train_set.captions))) / data.mask.sum(1).mean()  # nats per letter
figure, axes = new_figure(height=2.4)
axes.semilogy(np.arange(1, 851), losses, color="0.7", ls="-", lw=0.8, label="each step")
axes.semilogy(np.arange(10, 851, 10), np.reshape(losses, (-1, 10)).mean(1), color="k", ls="-", label="mean of ten")
axes.axhline(blind, color="k", ls=":", label="can spell, can't see")
axes.set(xlabel="step", ylabel="loss in nats per letter")
axes.legend(fontsize=9)
show(
    figure,
    alt="The loss falls fast, bends at the level of a model that can only spell, and falls slowly from there.",
)

# %% [markdown]
# At first the loss falls fast: the model learns how captions are spelt, for which it needs no picture. A model that
# knows all $C$ captions, which are about equally frequent, but can't see which of them it is, pays $\ln C$ nats for
# each: that is the dotted line, per letter, and there the curve bends. From there on only the picture can tell which
# words come. Now let it write, for pictures that it has never seen:


# %% tags=["trained"]
def write(pictures):
    return captioning.write_captions(params, config, pictures, LENGTH)


figure, axes = new_figure(2, 3, height=4.4)
for panel, source, n in zip(axes.flat, [new_set] * 3 + [unseen_set] * 3, [0, 60, 120] * 2, strict=True):
    (caption,) = write(source.images[n : n + 1])
    panel.imshow(source.images[n], interpolation="nearest")
    panel.axis("off")
    verdict = "right" if caption == source.captions[n] else "wrong"
    panel.set_title(f"{verdict}: {caption}".replace(" at", "\nat"), fontsize=9)
show(
    figure, alt="Six pictures with the captions that the model wrote, three new ones and three of unseen combinations."
)
for name, source in (("new pictures", new_set), ("combinations never seen", unseen_set)):
    print(f"{name:24} exactly right: {captioning.exact(params, config, source, LENGTH):.0%}")

# %% [markdown]
# New pictures are no trouble. Combinations that were never shown are harder: this small model, trained for seconds,
# has in part learnt pairs instead of words. (`python -m tinymoe.train --task caption` makes a larger one, which trains
# for minutes and gets [nearly all of them](../docs/accounting.md) right.) If the two kinds were counted together, one
# would not see it. Keep such sets apart.
#
# **Does it look at all?** A language model is good at guessing. So measure the loss with the right picture, with somebody
# else's, and with a black one.

# %% tags=["trained"]
batch = encode_captions(new_set.captions, LENGTH)
others = np.roll(new_set.images, 1, axis=0)
found = {}
for name, pictures in (("right", new_set.images), ("another's", others), ("black", 0 * others)):
    (loss, parts), _ = language.loss(params, config, Batch(batch.ids, batch.targets, images=pictures))
    found[name] = parts.cross_entropy
figure, axes = new_figure(height=2.2)
axes.barh(list(found), list(found.values()), color=["0.2", "0.5", "0.7"])
axes.axvline(blind, color="k", ls=":", label="can spell, can't see")
axes.set(xlabel="loss in nats per letter", ylabel="picture")
axes.legend(fontsize=9, loc="lower right")
show(figure, alt="Three bars: the loss is near 0 with the right picture and large with another's or a black one.")
print({name: round(float(value), 3) for name, value in found.items()}, "can't see:", round(float(blind), 3))

# %% [markdown]
# It looks. Without the right picture the loss is even above that of a model which can't see: it doesn't guess, it is
# sure of wrong words. Another's picture costs more than a black one: the model believes what it sees.
#
# **Who uses which expert?** Here are the routers' choices for all new pictures, patches and letters apart.

# %% tags=["trained"]
(_, _, routed), _ = language.forward(params, config, Batch(batch.ids, mask=batch.mask, images=new_set.images))
R = settings.vision.rows
figure, axes = new_figure(1, 2, height=2.6, sharey=True)
counts = []
for layer, (panel, choice) in enumerate(zip(axes, routed, strict=True)):
    chosen = choice.indices.reshape(len(new_set), R + LENGTH, -1)
    of_patches = np.bincount(chosen[:, :R].ravel(), minlength=4)
    of_letters = np.bincount(chosen[:, R:][batch.mask].ravel(), minlength=4)
    counts.append(np.array([of_patches, of_letters]))
    for shift, share, shade, label in ((-0.2, of_patches, "0.2", "patches"), (0.2, of_letters, "0.65", "letters")):
        panel.bar(np.arange(4) + shift, share / share.sum(), 0.4, color=shade, label=label)
    panel.axhline(0.25, color="k", ls=":", lw=1)
    panel.set(title=f"layer {layer}", xlabel="expert", xticks=range(4), ylim=(0, 0.5))
axes[0].set(ylabel="share of the visits")
axes[1].legend(fontsize=8)
show(figure, alt="Shares of four experts in two layers: patches and letters lean to different experts.")
for layer, table in enumerate(counts):
    report = metrics.per_group_balance(table)
    print(
        f"layer {layer}: MaxVio of patches {report.max_violation[0]:.2f}, of letters {report.max_violation[1]:.2f}, ",
        end="",
    )
    print(f"of all rows together {report.pooled_max_violation:.2f}")

# %% [markdown]
# The two modalities lean to different experts, though nobody asked them to. And the last number of each line is
# the smallest: where one kind crowds an expert, the other fills the rest. The trainer adds the loss on the shares of
# lesson 11, and that counts all rows together, so only the sum must be even. A small modality that collapses hides in
# the sum altogether. Make it extreme: 576 patches spread evenly, and 30 letters that all go to one expert.

# %%
hidden = np.array([[144, 144, 144, 144], [30, 0, 0, 0]])
report = metrics.per_group_balance(hidden)
print(
    "MaxVio of patches and letters",
    report.max_violation,
    " of all together",
    round(float(report.pooled_max_violation), 2),
)
mean = hidden[1].mean()
assert np.isclose(report.max_violation[1], (hidden[1].max() - mean) / mean)  # MaxVio, lesson 11

# %% [markdown]
# All together looks healthy, and the text has one expert. So count by modality. Last, one picture from inside: which expert
# comes first for each patch, and for each letter of its caption, in the last layer?

# %%
n, shades = 0, np.array([0.93, 0.72, 0.5, 0.2])
first = routed[-1].indices.reshape(len(new_set), R + LENGTH, -1)[n, :, 0]
figure, axes = new_figure(1, 3, height=2.3, width_ratios=[1, 1, 3.4])
axes[0].imshow(new_set.images[n], interpolation="nearest")
axes[1].imshow(shades[first[:R]].reshape(4, 4), "gray", vmin=0, vmax=1)
text = begin + new_set.captions[n]
axes[2].imshow(shades[first[None, R : R + len(text)]], "gray", vmin=0, vmax=1, aspect=2.5)
for position, letter in enumerate(text):
    dark = shades[first[R + position]] < 0.6
    axes[2].text(position, 0, letter, ha="center", va="center", family="monospace", color="white" if dark else "black")
for expert, shade in enumerate(shades):
    box = {"facecolor": str(shade), "edgecolor": "black", "pad": 2}
    axes[2].text(
        expert * len(text) / 4, 2.2, f"expert {expert}", fontsize=8, color="white" if shade < 0.6 else "black", bbox=box
    )
for panel in axes:
    panel.axis("off")
show(figure, alt="A picture, its patches shaded by expert, and its caption with each letter shaded by expert.")

# %% [markdown]
# In our run most of the dark ground goes to one expert, and the letters of one word go to several. None of the four
# has a subject that one could name.

# %% [markdown]
# ## The same in tinymoe
#
# `patches` cuts, `encode` is (1), `fuse_additive` and `fuse_prefix` are (2) and (3) for a batch of pictures and texts.

# %%
rng = np.random.default_rng(0)
picture = new_set.images[:2]
rows = patches(picture, 5)
assert all(np.array_equal(rows[b], cut(picture[b], 5)) for b in range(2))

p = params.vision
placed = rows @ p.projection + p.positions
size = np.sqrt((placed * placed).mean(2, keepdims=True) + 1e-6)
features, _ = encode(picture, p, settings.vision)
assert np.allclose(features, (placed / size * p.norm.gain) @ p.output, rtol=1e-3, atol=1e-5)  # (1), in float32

v, h = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 3, 6))
for mine, library in ((add, ops.fuse_additive), (put_before, ops.fuse_prefix)):
    y, library_back = library(v, h)
    dy = rng.standard_normal(y.shape)
    for b in range(2):
        own, own_back = mine(v[b], h[b])
        assert np.allclose(own, y[b], rtol=1e-12)
        assert all(np.allclose(a, c[b], rtol=1e-12) for a, c in zip(own_back(dy[b]), library_back(dy), strict=True))
print("cutting, encoding and both fusions: equal, forward and backward")

# %% [markdown]
# ## Backward by hand
#
# In (2) every $v_r$ reaches every $y_t$ with the factor $\frac1R$. What reaches several places gets the sum of what
# they send back; in (3) every row has one place only:
#
# $$dv_r = \frac1R \sum_t dy_t, \quad dh_t = dy_t \qquad\text{and}\qquad dv_r = dy_r, \quad dh_t = dy_{R+t} \tag{4}$$
#
# So with (2) all patches get the *same* gradient: the encoder hears what the whole picture should have said, not
# which patch. With (3) each patch gets its own: on the way back, attention has given each what the letters that looked
# at it need. The picture itself is no parameter, and gets no gradient; the encoder's matrices do, as in lesson 7.

# %%
print(check_gradients(ops.fuse_additive, v, h))
print(check_gradients(ops.fuse_prefix, v, h))
_, additive_back = ops.fuse_additive(v, h)
dv, _ = additive_back(rng.standard_normal(h.shape))
print("additive: all patches get the same gradient:", np.allclose(dv, dv[:, :1]))

# %% [markdown]
# ## What the document gets wrong
#
# `combined_feature = image_feature + text_feature` (§3.4) needs rows of one width. Otherwise NumPy refuses, or worse,
# doesn't: where one of two sizes is 1 it spreads, and where they agree by chance it adds what doesn't belong
# together.

# %%
letters = rng.standard_normal((20, 32))  # 20 letters of width 32
for title, feature in (("20 × 20 pixels", np.ones((20, 20))), ("a column of 20", np.ones((20, 1)))):
    try:
        print(f"{title:15} + letters has the shape {(feature + letters).shape}")
    except ValueError as error:
        print(f"{title:15} + letters: {error}")

# %% [markdown]
# The second sum adds one pixel to all 32 numbers of a letter, the next pixel to the next letter: no error, and no
# meaning. A projection like $P$ must come first. Second, the document gives the sum to `big_language_model`, whose
# first step turns a *text* into numbers. It would read the features as digits (the 0 only marks the beginning):

# %%
print(text_to_vector(["[0.5 -1.2]"])[0], "are the bytes of the text [0.5 -1.2]")

# %% [markdown]
# The picture must come in behind the embedding, where (2) and (3) put it.

# %% [markdown]
# ## Spot the bug
#
# Users of a vision-language model with sparse experts got other answers in each evaluation, from the same weights and
# the same pictures (PKU-YuanGroup/MoE-LLaVA, issue 60: a question about a colour was answered with *red* or *brown*).
# The reason was below, in the gate for two experts (deepspeedai/DeepSpeed, pull request 8620). In essence:


# %%
def choose_two(scores, rng, training):
    rows = np.arange(len(scores))
    first = scores.argmax(1)
    rest = scores.copy()
    rest[rows, first] = -np.inf
    second = (rest + rng.gumbel(size=rest.shape)).argmax(1)  # random numbers: others get a try
    return np.stack([first, second], 1)


# %% [markdown]
# <details><summary>The bug</summary>
#
# `training` is never read. Noise that tries other experts is for training. In evaluation the second expert must be
# the second best: `noise = rng.gumbel(size=rest.shape) if training else 0`. Nothing fails, and the mean accuracy is
# nearly the same. The test that finds it evaluates twice and compares to the bit.
#
# </details>

# %% tags=["guess"]
scores = rng.standard_normal((200, 4))
once, again = (choose_two(scores, rng, training=False) for _ in range(2))
print(f"rows with another second expert in the second evaluation: {(once != again).any(1).mean():.0%}")
twice = [language.forward(params, config, Batch(batch.ids[:5], images=new_set.images[:5]))[0][0] for _ in range(2)]
print("our model, evaluated twice, equal to the bit:", np.array_equal(*twice))

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the cell, then the one below it.
#
# ### 1 · Cut without a loop
#
# Cut one picture (H, W) of grey numbers into patches of `S` by `S`, to (R, S·S), with `reshape` and `swapaxes` alone.
#
# <details><summary>Hint</summary>
#
# The four axes are rows of patches, rows within a patch, columns of patches, columns within a patch. Which two must
# change places so that those within a patch are the last two?
#
# </details>


# %% tags=["exercise"]
def cut_at_once(picture, S):
    H, W = picture.shape
    four_axes = picture.reshape(H // S, S, W // S, S)
    return ...


# %% tags=["solution"]
def cut_at_once(picture, S):
    H, W = picture.shape
    four_axes = picture.reshape(H // S, S, W // S, S)
    return four_axes.swapaxes(1, 2).reshape(-1, S * S)


# %% tags=["wrong"]
def cut_at_once(picture, S):
    return picture.reshape(-1, S * S)  # strips, not squares


# %% tags=["wrong"]
def cut_at_once(picture, S):
    H, W = picture.shape
    four_axes = picture.reshape(H // S, S, W // S, S)
    return four_axes.swapaxes(0, 2).reshape(-1, S * S)  # other axes


# %% tags=["check"]
def reference(picture, S):
    return cut(picture[:, :, None], S)


check_exercise(1, cut_at_once, np.arange(48.0).reshape(6, 8), 2, like=reference, gradients=False)

# %% [markdown]
# ### 2 · A door that opens
#
# To give eyes to a language model that has been trained without, Flamingo (Alayrac et al. 2022) lets the picture in
# through a door that is shut at first. With the mean of (2) where Flamingo has attention:
# $y_t = h_t + \tanh(a)\, \frac1R \sum_r v_r$, with a learned number $a$ that starts at 0. Write the gradients of $v$
# and $a$.
#
# <details><summary>Hint</summary>
#
# With $m$ for the mean of the patches and $g = \tanh a$: $dh$ is $dy$. Every letter has the same $g\,m$, so $d(g\,m)$
# is the sum over letters. The slope of $\tanh a$ is $1 - g^2$.
#
# </details>


# %% tags=["exercise"]
def door(v, h, a):
    m, g = v.mean(0), np.tanh(a)
    y = h + g * m

    def backward(dy):
        dgm = dy.sum(0)
        dv, da = ..., ...
        return dv, dy.copy(), da

    return y, backward


# %% tags=["solution"]
def door(v, h, a):
    m, g = v.mean(0), np.tanh(a)
    y = h + g * m

    def backward(dy):
        dgm = dy.sum(0)
        dv = np.tile(g * dgm / len(v), (len(v), 1))
        da = (1 - g * g) * (dgm * m).sum()
        return dv, dy.copy(), da

    return y, backward


# %% tags=["wrong"]
def door(v, h, a):
    m, g = v.mean(0), np.tanh(a)
    y = h + g * m

    def backward(dy):
        dgm = dy.sum(0)
        dv = np.tile(g * dgm, (len(v), 1))  # the mean is forgotten
        return dv, dy.copy(), (1 - g * g) * (dgm * m).sum()

    return y, backward


# %% tags=["wrong"]
def door(v, h, a):
    m, g = v.mean(0), np.tanh(a)
    y = h + g * m

    def backward(dy):
        dgm = dy.sum(0)
        dv = np.tile(g * dgm / len(v), (len(v), 1))
        return dv, dy.copy(), (dgm * m).sum()  # without the slope of tanh

    return y, backward


# %% tags=["check"]
def door_reference(v, h, a):
    return h + np.tanh(a) * v.mean(0), None


rng = np.random.default_rng(1)
check_exercise(2, door, rng.standard_normal((3, 4)), rng.standard_normal((5, 4)), np.array(0.4), like=door_reference)

# %% [markdown]
# ### 3 · Patches that see each other
#
# With the causal mask the first patch sees only itself. Nothing needs to be hidden within a picture. Build the mask
# (R+T, R+T), True where row i may see row j: patches see all patches, letters see all patches and the letters up to
# themselves, and no patch sees a letter.
#
# <details><summary>Hint</summary>
#
# Begin with `np.tri(R + T, dtype=bool)`, the causal mask, and open one corner of it.
#
# </details>


# %% tags=["exercise"]
def prefix_mask(R, T):
    return ...


# %% tags=["solution"]
def prefix_mask(R, T):
    mask = np.tri(R + T, dtype=bool)
    mask[:R, :R] = True
    return mask


# %% tags=["wrong"]
def prefix_mask(R, T):
    return np.tri(R + T, dtype=bool)  # causal within the picture, too


# %% tags=["wrong"]
def prefix_mask(R, T):
    mask = np.tri(R + T, dtype=bool)
    mask[:R] = True  # patches read the caption that is to be guessed
    return mask


# %% tags=["check"]
def mask_reference(R, T):
    return np.array([[j < R or (i >= R and j <= i) for j in range(R + T)] for i in range(R + T)])


check_exercise(3, prefix_mask, 3, 4, like=mask_reference, gradients=False)

# %% [markdown]
# Why must no patch see a letter? Such a model would train very well: its loss would fall to nearly 0, since the
# patches would tell the letters what comes. And left to write, it would write nonsense.
#
# ### 4 · The worst of them
#
# `counts` (G, E) has a row for each modality, the visits of each expert. Return the largest MaxVio of any modality,
# and that of all together.
#
# <details><summary>Hint</summary>
#
# MaxVio of a row is its largest number over its mean, minus 1. "All together" is the sum over rows, as one row.
#
# </details>


# %% tags=["exercise"]
def violations(counts):
    return ...


# %% tags=["solution"]
def violations(counts):
    worst = (counts.max(1) / counts.mean(1) - 1).max()
    together = counts.sum(0)
    return worst, together.max() / together.mean() - 1


# %% tags=["wrong"]
def violations(counts):
    worst = counts.max() / counts.mean() - 1  # a large modality drowns the small one
    together = counts.sum(0)
    return worst, together.max() / together.mean() - 1


# %% tags=["wrong"]
def violations(counts):
    each = counts.max(1) / counts.mean(1) - 1
    return each.max(), each.mean()  # the mean of them is not that of the sum


# %% tags=["check"]
def violations_reference(counts):
    report = metrics.per_group_balance(counts)
    return report.max_violation.max(), report.pooled_max_violation


check_exercise(4, violations, np.array([[90, 110, 100, 100], [2, 0, 9, 1]]), like=violations_reference, gradients=False)

# %% [markdown]
# ## Next
#
# Nearly all right on new pictures, and far fewer on unseen combinations: two answers to one question, how good is it?
# Lesson 15, evaluation and accounting, is about asking it honestly, and about what the answer costs.
