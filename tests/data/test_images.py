"""Generated pictures: the captions are true of the pixels, held-out combinations are new, their words are not."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymoe import ops
from tinymoe.data import pictures as im
from tinymoe.data import sources
from tinymoe.data.pictures.digits import DIGITS
from tinymoe.data.pictures.glyphs import CHARACTERS, FONTS
from tinymoe.data.pictures.shapes import COLOURS, PLACES
from tinymoe.errors import UserError


def tiny_digits(**options):
    """`digits` as if scikit-learn were installed, with twenty pictures."""
    rng = np.random.default_rng(5)
    bunch = SimpleNamespace(images=rng.integers(0, 17, (20, 8, 8)).astype(float), target=np.arange(20) % 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sklearn", SimpleNamespace())
        patch.setitem(sys.modules, "sklearn.datasets", SimpleNamespace(load_digits=lambda: bunch))
        return im.digits(**{"val": 4, "held_out": 5} | options)


MAKERS = {
    "one shape": lambda seed: im.shapes(seed, train=800, val=80, held_out=80),
    "two shapes": lambda seed: im.shapes(seed, objects=2, train=800, val=80, held_out=80),
    "glyphs": lambda seed: im.glyphs(seed, copies=1),
    "digits": lambda seed: tiny_digits(seed=seed),
}
COMPOSED: dict[str, list[tuple[str, ...]]] = {  # the labels that make up a combination
    "one shape": [("shape", "colour")],
    "two shapes": [("shape", "colour"), ("other_shape", "other_colour")],
    "glyphs": [("character", "family", "weight", "slant")],
}


@pytest.fixture(scope="module")
def splits():
    return {name: make(0) for name, make in MAKERS.items()}


def parts(split):
    return split.train, split.val, split.held_out


# --- all sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_the_seed_decides_every_bit(splits, name):
    again, other = MAKERS[name](0), MAKERS[name](1)
    for a, b, c in zip(parts(splits[name]), parts(again), parts(other), strict=True):
        assert a.images.tobytes() == b.images.tobytes()
        assert a.captions == b.captions
        assert all(np.array_equal(a.labels[label], b.labels[label]) for label in a.labels)
        assert a.captions != c.captions


@pytest.mark.parametrize("name", MAKERS)
def test_pictures_are_float32_between_0_and_1_and_everything_has_one_length(splits, name):
    for p in parts(splits[name]):
        assert p.images.dtype == np.float32
        assert p.images.flags.c_contiguous
        assert p.images.ndim == 4
        assert p.images.min() >= 0
        assert 0.5 < p.images.max() <= 1
        assert len(p) == len(p.captions) == len(p.images) > 0
        assert p.labels.keys() == p.names.keys()
        for label, values in p.labels.items():
            assert values.shape == (len(p),)
            assert values.dtype == np.int64
            assert 0 <= values.min() <= values.max() < len(p.names[label])


@pytest.mark.parametrize("name", MAKERS)
def test_no_picture_is_in_two_parts_or_twice_in_one(splits, name):
    pictures = [image.tobytes() for p in parts(splits[name]) for image in p.images]
    assert len(pictures) == len(set(pictures))


@pytest.mark.parametrize("name", COMPOSED)
def test_held_out_combinations_are_never_shown_and_each_of_their_words_is(splits, name):
    def combinations(p):
        return [set(zip(*(p.labels[label].tolist() for label in group), strict=True)) for group in COMPOSED[name]]

    train, val, held_out = parts(splits[name])
    shown = set.union(*combinations(train), *combinations(val))
    for i in range(len(held_out)):
        assert set.union(*combinations(held_out.take(np.array([i])))) - shown
    assert not set(held_out.captions) & {*train.captions, *val.captions}
    for label, words in train.names.items():
        assert set(train.labels[label].tolist()) == set(range(len(words))), label


@pytest.mark.parametrize("name", MAKERS)
def test_a_selection_keeps_pictures_captions_and_labels_together(splits, name):
    p, rows = splits[name].train, np.array([3, 0, 3])
    chosen = p.take(rows)
    for j, i in enumerate(rows):
        assert np.array_equal(chosen.images[j], p.images[i])
        assert chosen.captions[j] == p.captions[i]
        assert all(chosen.labels[label][j] == p.labels[label][i] for label in p.labels)


# --- shapes: what the caption says, measured on the pixels ---------------------------------------------------


def ink(images):
    """How far each pixel is from the ground, (N, H, W); the ground is the median, for objects cover less than half."""
    return np.linalg.norm(images - np.median(images, (1, 2), keepdims=True), axis=-1)


def seen_colours(images):
    """The word for the mean colour of the pixels that are surely an object's."""
    strength = ink(images)
    inside = (strength > 0.8 * strength.max((1, 2), keepdims=True))[..., None]
    mean = (images * inside).sum((1, 2)) / inside.sum((1, 2))
    palette = np.array(list(COLOURS.values()))
    return [list(COLOURS)[i] for i in np.linalg.norm(mean[:, None] - palette, axis=-1).argmin(1)]


def centroids(weight):
    """(N, 2) as x, y in parts of the picture."""
    at = (np.arange(weight.shape[1]) + 0.5) / weight.shape[1]
    return np.stack([weight.sum(1) @ at, weight.sum(2) @ at], 1) / weight.sum((1, 2))[:, None]


def seen_shape(weight):
    """The word for one shape (H, W), from how it is spread about its centre, whichever way it is turned.

    compact is 1 for a disc, 3/π for a square and less with arms or a hole; the waves say how much of the outline comes
    three or four times round, and for four whether its tips lie on the axes (+) or between them (−).
    """
    weight = weight / weight.max() / weight.size  # sums are now areas, in parts of the picture
    y, x = (np.indices(weight.shape) + 0.5) / len(weight)
    middle = centroids(weight[None])[0]
    z = (x - middle[0]) + 1j * (y - middle[1])
    compact = weight.sum() ** 2 / (2 * np.pi * (weight * abs(z) ** 2).sum())
    three, four = ((weight * z**k).sum() / (weight * abs(z) ** k).sum() for k in (3, 4))
    if abs(three) > 0.2:
        return "triangle"
    if abs(four) > 0.2:
        return "square" if four.real < 0 else "diamond" if compact > 0.85 else "cross"
    return "circle" if compact > 0.85 else "ring"


@pytest.mark.parametrize("size", [16, 20])
def test_colour_and_place_are_as_the_caption_says(size):
    split = im.shapes(1, train=500, val=10, held_out=100, size=size)
    for p in (split.train, split.held_out):
        strength = np.maximum(ink(p.images) - 0.25, 0)  # less the noise
        anchors = np.array(list(PLACES.values()))
        nearest = np.linalg.norm(centroids(strength)[:, None] - anchors, axis=-1).argmin(1)
        for caption, colour, place in zip(p.captions, seen_colours(p.images), nearest, strict=True):
            assert caption.split()[1] == colour
            assert caption.endswith(list(PLACES)[place])


def test_the_shape_is_as_the_caption_says_and_whole():
    p = im.shapes(2, train=400, val=0, held_out=0, size=48, noise=0).train
    for caption, weight in zip(p.captions, ink(p.images), strict=True):
        assert caption.split()[2] == seen_shape(weight)
        assert max(weight[[0, -1]].max(), weight[:, [0, -1]].max()) < weight.max() / 2  # not cut off at the border


def test_two_shapes_stand_as_the_caption_says():
    p = im.shapes(3, objects=2, train=300, val=0, held_out=0, size=48, noise=0).train
    halves = {"left of": (np.s_[:, :, :24], np.s_[:, :, 24:]), "above": (np.s_[:, :24], np.s_[:, 24:])}
    for relation, sides in halves.items():
        these = [i for i, caption in enumerate(p.captions) if f" {relation} " in caption]
        assert len(these) > 100
        nouns = [p.captions[i].split(f" {relation} ") for i in these]
        for k, side in enumerate(sides):
            colours = seen_colours(p.images[these][side])
            shapes = [seen_shape(np.pad(w, (0, 24))[:48, :48]) for w in ink(p.images[these])[side]]
            for noun, colour, shape in zip(nouns, colours, shapes, strict=True):
                assert noun[k] == f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def test_captions_and_labels_say_the_same(splits):
    one, two = splits["one shape"].train, splits["two shapes"].held_out
    for p in (one, two):
        for i, caption in enumerate(p.captions):
            words = [p.names[label][values[i]] for label, values in p.labels.items()]
            shape, colour, where, *other = words
            expected = f"a {colour} {shape} {where}" + (f" a {other[1]} {other[0]}" if other else "")
            assert caption.replace("an orange", "a orange") == expected


def test_the_same_caption_is_drawn_in_many_ways():
    p = im.shapes(4, train=378 * 4, val=0, held_out=0, noise=0).train
    pictures = p.images[[caption == p.captions[0] for caption in p.captions]]
    assert len(pictures) == 4
    assert min(np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]) > 0.01


def test_every_combination_comes_once_before_any_comes_again():
    split = im.shapes(5, train=42 * 9 * 2 + 5, val=0, held_out=6 * 9)
    counts = np.unique(split.train.captions, return_counts=True)[1]
    assert len(counts) == 42 * 9
    assert sorted(counts) == [2] * (42 * 9 - 5) + [3] * 5
    assert len(set(split.held_out.captions)) == 6 * 9


def test_more_of_one_part_leaves_the_others_as_they_are():
    few, many = im.shapes(6, train=10, val=20, held_out=0), im.shapes(6, train=30, val=20, held_out=7)
    assert few.val.images.tobytes() == many.val.images.tobytes()
    assert few.val.captions == many.val.captions
    assert few.held_out.images.shape == (0, 20, 20, 3)


# --- glyphs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clear_glyphs():
    return im.glyphs(0, copies=2, size=32, noise=0)


def test_captions_of_glyphs_by_hand(splits):
    captions = {caption for p in parts(splits["glyphs"]) for caption in p.captions}
    assert len(captions) == 12 * 62
    assert {
        "bold serif letter a",
        "italic mono capital letter Q",
        "sans digit 7",
        "bold italic sans digit 0",
    } < captions


def test_the_style_is_that_of_the_font(splits):
    """The names of the files say it a second time."""
    for p in parts(splits["glyphs"]):
        for caption, number in zip(p.captions, p.labels["font"], strict=True):
            words, font = caption.split(), list(FONTS)[number]
            assert ("bold" in words) == ("Bol" in font or font == "cmb10")
            assert ("italic" in words) == ("Obl" in font or "Ita" in font)
            assert ("mono" in words) == ("Mono" in font or font == "cmtt10")
            assert ("serif" in words) == ("Sans" not in font and font not in ("cmss10", "cmtt10"))


def test_most_glyphs_can_be_read_by_the_nearest_one_in_the_training_set():
    """Were labels and pictures out of step, one in 62 would be right."""
    split = im.glyphs(0)
    known, asked = (p.images.reshape(len(p), -1) for p in (split.train, split.val))
    distance = (known * known).sum(1) - 2 * asked @ known.T
    guess = split.train.labels["character"][distance.argmin(1)]
    assert (guess == split.val.labels["character"]).mean() > 0.7


def test_bold_has_more_ink_italic_leans_and_capitals_are_taller(clear_glyphs):
    images = np.concatenate([p.images[..., 0] for p in parts(clear_glyphs)])
    images = images / images.max((1, 2), keepdims=True)
    of = {label: np.concatenate([p.labels[label] for p in parts(clear_glyphs)]) for label in ("character", "font")}

    def of_font(name):
        return images[of["font"] == list(FONTS).index(name)]

    for regular, bold in (("DejaVuSans", "DejaVuSans-Bold"), ("STIXGeneral", "STIXGeneralBol"), ("cmr10", "cmb10")):
        assert of_font(bold).mean() > 1.1 * of_font(regular).mean()

    y, x = np.indices(images.shape[1:])

    def lean(name):
        """How far right a stroke goes on its way up, of all letters laid over each other."""
        weight = of_font(name).sum(0)
        dx, dy = x - np.average(x, weights=weight), y - np.average(y, weights=weight)
        return -(weight * dx * dy).sum() / (weight * dy * dy).sum()

    assert lean("DejaVuSans-Oblique") > lean("DejaVuSans") + 0.1
    assert lean("STIXGeneralItalic") > lean("STIXGeneral") + 0.1

    heights = (images.max(2) > 0.3).sum(1)
    for small, capital in ("oO", "vV", "sS", "xX"):
        small, capital = (heights[of["character"] == CHARACTERS.index(c)] for c in (small, capital))
        assert small.mean() + 4 < capital.mean()


def test_the_dot_of_an_i_stays_apart_and_no_letter_is_as_large_as_the_picture(clear_glyphs):
    for p in parts(clear_glyphs):
        for image, c in zip(p.images[..., 0], p.labels["character"], strict=True):
            rows = np.flatnonzero(image.max(1) > 0)
            if CHARACTERS[c] == "i":
                assert (image[rows[0] : rows[-1]].max(1) < 0.5 * image.max()).any()
            assert min(image[0].max(), image[-1].max()) == 0
            assert min(image[:, 0].max(), image[:, -1].max()) == 0


# --- digits -------------------------------------------------------------------------------------------------


def test_digits_are_split_without_loss():
    split = tiny_digits()
    assert [len(p) for p in parts(split)] == [11, 4, 5]
    everything = [image.tobytes() for p in parts(split) for image in p.images]
    assert len(set(everything)) == 20
    for p in parts(split):
        assert p.captions == [f"a handwritten {DIGITS[i]}" for i in p.labels["digit"]]


def test_reports_call_the_held_out_digits_new_and_held_out_combinations_unseen(monkeypatch):
    monkeypatch.setattr(sources, "load_pictures", lambda name, seed: tiny_digits())
    assert sources.CaptionSource(sources.Data(pictures="digits"), 0).unseen == "more new pictures"
    assert sources.CaptionSource(sources.Data(pictures="shapes"), 0).unseen == "combinations never seen"


def test_the_digits_of_scikit_learn():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn for real digits")
    split = im.digits()
    assert [len(p) for p in parts(split)] == [1397, 200, 200]
    assert split.train.images.shape == (1397, 8, 8, 1)
    assert split.train.images.max() == 1
    zero, one = (split.train.images[split.train.labels["digit"] == i].mean(0)[..., 0] for i in (0, 1))
    assert zero[3:5, 3:5].max() < 0.2 < 0.6 < one[3:5, 3:5].min()  # a zero is hollow, a one is not


def test_digits_without_scikit_learn_say_so_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        im.digits()


# --- captions as bytes, pictures as patches -----------------------------------------------------------------


def test_a_caption_by_hand():
    batch = im.encode_captions(["a cat", "é"], 8)
    a, c, t, space = b"act "
    assert batch.ids.tolist() == [[2, a, space, c, a, t, 10, 10], [2, 0xC3, 0xA9, 10, 10, 10, 10, 10]]
    assert batch.targets.tolist() == [[a, space, c, a, t, 10, -100, -100], [0xC3, 0xA9, 10, *[-100] * 5]]
    assert batch.mask.sum(1).tolist() == [6, 3]
    assert batch.ids.dtype == batch.targets.dtype == np.int64


@given(st.lists(st.text("ab é春𝒳\0\r"), max_size=4), st.integers(0, 3))
def test_captions_come_back_and_each_target_is_the_id_that_follows(captions, spare):
    length = im.encode_captions(captions).ids.shape[1] + spare
    ids, targets, mask = im.encode_captions(captions, length)
    assert ids.shape == targets.shape == mask.shape == (len(captions), length)
    assert (ids[:, 1:] == targets[:, :-1])[mask[:, :-1]].all()
    assert (targets[~mask] == -100).all()
    for rows in (ids, targets):
        assert [im.decode_caption(row) for row in rows] == captions


def test_padding_changes_neither_loss_nor_gradient():
    captions = ["a red ring", "an orange cross above a red ring"]
    short, long = im.encode_captions(captions), im.encode_captions(captions, 50)
    logits = np.random.default_rng(0).standard_normal((2, 50, 256))
    width = short.ids.shape[1]
    few, few_back = ops.cross_entropy(logits[:, :width].reshape(-1, 256), short.targets.reshape(-1))
    many, many_back = ops.cross_entropy(logits.reshape(-1, 256), long.targets.reshape(-1))
    np.testing.assert_allclose(many, few, rtol=1e-14)
    padded = many_back(1.0)[0].reshape(logits.shape)
    np.testing.assert_allclose(padded[:, :width], few_back(1.0)[0].reshape(2, width, 256), rtol=1e-14)
    assert not padded[:, width:].any()


def test_what_a_model_writes_is_read_up_to_the_line_end():
    assert im.decode_caption(np.array([*b"a cat\na dog"])) == "a cat"
    assert im.decode_caption(np.array([*b"no end"])) == "no end"
    assert im.decode_caption(np.array([0xC3, 0x41, 10])) == "�A"


def test_patches_by_hand():
    image = np.arange(4 * 6).reshape(1, 4, 6, 1)
    assert im.patches(image, 2)[0].tolist() == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
        [12, 13, 18, 19],
        [14, 15, 20, 21],
        [16, 17, 22, 23],
    ]
    colours = np.arange(2 * 2 * 3).reshape(1, 2, 2, 3)  # a pixel's channels stay together
    assert im.patches(colours, 2)[0].tolist() == [list(range(12))]


@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_unpatch_is_the_inverse_of_patches(n, size, down, across, channels):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, size * down, size * across, channels)).astype(np.float32)
    rows = im.patches(images, size)
    assert rows.shape == (n, down * across, size * size * channels)
    back = im.unpatch(rows, size, size * down, size * across)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, images)
    np.testing.assert_array_equal(im.patches(back, size), rows)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: im.shapes(objects=3), "3 objects"),
        (lambda: im.shapes(train=-1), "none may be negative"),
        (lambda: im.shapes(size=15), "15 pixels on a side; at least 16"),
        (lambda: im.glyphs(copies=0), "copies is 0"),
        (lambda: im.glyphs(noise=-0.1), "noise -0.1"),
        (lambda: im.glyphs(size=8), "8 pixels on a side; at least 16"),
        (lambda: tiny_digits(val=15, held_out=5), "together fewer than 20"),
        (lambda: im.encode_captions(["a", "a cat"], 5), "'a cat' needs 6"),
        (lambda: im.encode_captions(["two\nlines"]), "line end"),
        (lambda: im.encode_captions(["\2"]), "mark its two ends"),
        (lambda: im.patches(np.zeros((1, 4, 6, 1)), 4), "must divide both sides"),
        (lambda: im.unpatch(np.zeros((1, 5, 4)), 2, 4, 6), "5 patches of 4 numbers"),
        (lambda: im.unpatch(np.zeros((1, 6, 5)), 2, 4, 6), "6 patches of 5 numbers"),
    ],
)
def test_refusals_say_what_was_given_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
