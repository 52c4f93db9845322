"""Pictures with captions, none of them downloaded: drawn shapes, drawn characters, and handwritten digits.

    set      a picture                    a caption                               held out, though its words are known
    shapes   20×20, coloured              a red circle at the top left            each shape in one colour
             with objects=2               a red circle left of a blue square      the same, for either object
    glyphs   20×20, grey                  bold italic serif letter a              each character in one style
    digits   8×8, grey, by human hands    a handwritten seven                     nothing: a second validation set

One picture has one caption, so that a written caption is right or wrong: of two objects the left or the upper one
is named first, and they stand side by side or one above the other, never on a slant. Place, size, brightness, angle
and noise differ from picture to picture, so no two are alike even when their captions are.
"""

import importlib
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import UserError

Array = np.ndarray

FINE = 4  # pictures are drawn with 4×4 points to a pixel and averaged, so edges are smooth
SMALLEST = 16  # pixels on a side, below which shapes and letters can't be told apart


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures, what they show in words, and the same in numbers: `names[label][number]` is the word."""

    images: Array  # (N, H, W, C) float32 in [0, 1]; C = 1 is grey, 3 is red, green, blue
    captions: list[str]
    labels: dict[str, Array]  # each (N,) int64
    names: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Array) -> "Pictures":
        """The pictures with these numbers (n,), in this order."""
        labels = {name: values[rows] for name, values in self.labels.items()}
        return Pictures(self.images[rows], [self.captions[i] for i in rows], labels, self.names)


@dataclass(frozen=True, eq=False)
class PictureSplit:
    train: Pictures
    val: Pictures  # other pictures of the same kind
    held_out: Pictures  # combinations that train and val never show, though train shows each word of them


# --- shapes: coverage of a unit figure, whose centre of mass is (0, 0); y points down -----------------------

SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: x * x + y * y <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.9,
    "triangle": lambda x, y: (y <= 0.6) & (abs(x) * 3**0.5 <= y + 1.2),
    "diamond": lambda x, y: abs(x) + abs(y) <= 1.15,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.33) & (np.maximum(abs(x), abs(y)) <= 1.1),
    "ring": lambda x, y: (x * x + y * y >= 0.3) & (x * x + y * y <= 1.1),
}
COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.15, 0.25, 1.00),
    "yellow": (1.00, 0.95, 0.10),
    "purple": (0.60, 0.10, 0.80),
    "cyan": (0.10, 0.85, 0.95),
    "orange": (1.00, 0.50, 0.05),
    "white": (1.00, 1.00, 1.00),
}
PLACES = {  # (x, y) of the centre, in parts of the picture
    "at the top left": (0.25, 0.25),
    "at the top": (0.50, 0.25),
    "at the top right": (0.75, 0.25),
    "at the left": (0.25, 0.50),
    "in the middle": (0.50, 0.50),
    "at the right": (0.75, 0.50),
    "at the bottom left": (0.25, 0.75),
    "at the bottom": (0.50, 0.75),
    "at the bottom right": (0.75, 0.75),
}
RELATIONS = {  # (x, y) of the first and of the second object
    "left of": ((0.25, 0.50), (0.75, 0.50)),
    "above": ((0.50, 0.25), (0.50, 0.75)),
}
WORDS: dict[str, Iterable[str]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "place": PLACES,
    "relation": RELATIONS,
    "other_shape": SHAPES,
    "other_colour": COLOURS,
}
LABELS = {  # by the number of objects
    1: ("shape", "colour", "place"),
    2: ("shape", "colour", "relation", "other_shape", "other_colour"),
}


def shapes(
    seed: int = 0,
    objects: int = 1,
    train: int = 4000,
    val: int = 400,
    held_out: int = 400,
    size: int = 20,
    noise: float = 0.03,
) -> PictureSplit:
    """Coloured shapes on a dark ground, in one of nine places or one beside the other.

    Each shape is given one colour, by the seed, in which neither `train` nor `val` ever shows it; every picture of
    `held_out` shows such a pair. Within a set, every combination comes once before any comes again, so each word
    is in `train` as soon as that has a few hundred pictures. The three sets draw from generators of their own: to
    have more of one leaves the others as they are.

    labels  shape, colour, place; with two objects shape, colour, relation, other_shape, other_colour

    Raises ValueError unless there are 1 or 2 objects, the size is at least 16 and no number is negative.
    """
    if objects not in LABELS:
        raise ValueError(f"a picture with {objects} objects was asked for; it can show 1 or 2")
    if min(train, val, held_out, noise) < 0:
        raise ValueError(
            f"train, val, held_out and noise are {train}, {val}, {held_out}, {noise}; none may be negative"
        )
    _check_size(size)
    dealer, *artists = np.random.default_rng(seed).spawn(4)
    hidden = dealer.permutation(len(COLOURS))[: len(SHAPES)]  # shape s is hidden in colour hidden[s]
    table, is_held = _combinations(objects, hidden)
    sets = [
        _draw_shapes(_deal(table[rows], n, rng), objects, size, noise, rng)
        for rows, n, rng in zip((~is_held, ~is_held, is_held), (train, val, held_out), artists, strict=True)
    ]
    return PictureSplit(*sets)


def _combinations(objects: int, hidden: Array) -> tuple[Array, Array]:
    """All that can be shown, a row each (shape, colour, place or relation, then the other's shape and colour), and
    whether it is to be held out."""
    kinds = list(product(range(len(SHAPES)), range(len(COLOURS))))
    if objects == 1:
        table = np.array([(*kind, place) for kind, place in product(kinds, range(len(PLACES)))])
    else:
        pairs = product(kinds, range(len(RELATIONS)), kinds)
        table = np.array([(*kind, relation, *other) for kind, relation, other in pairs if kind != other])
    is_held = np.any([hidden[table[:, i]] == table[:, i + 1] for i in range(0, table.shape[1], 3)], axis=0)
    return table, is_held


def _deal(table: Array, n: int, rng: np.random.Generator) -> Array:
    """n rows in random order, as from a pack of cards that is shuffled anew when it is used up."""
    packs = [rng.permutation(table) for _ in range(n // len(table) + 1)]
    return np.concatenate(packs)[:n]


def _draw_shapes(rows: Array, objects: int, size: int, noise: float, rng: np.random.Generator) -> Pictures:
    n = len(rows)
    middles = np.array(list((PLACES if objects == 1 else RELATIONS).values()))[rows[:, 2]].reshape(n, objects, 2)
    middles = middles + rng.uniform(-0.03, 0.03, middles.shape)
    radius, turn = rng.uniform(0.14, 0.18, (n, objects)), rng.uniform(-0.15, 0.15, (n, objects))
    colours = np.array(list(COLOURS.values()))[rows[:, 1::3]] * rng.uniform(0.85, 1, (n, objects, 1))  # (n, objects, 3)
    images = rng.uniform(0, 0.15, (n, 1, 1, 1))  # the ground
    for j in range(objects):
        covered = _cover(rows[:, 3 * j], middles[:, j], radius[:, j], turn[:, j], size)[..., None]
        images = images + covered * (colours[:, j, None, None] - images)
    names = dict(zip(LABELS[objects], (tuple(WORDS[label]) for label in LABELS[objects]), strict=True))
    captions = [_sentence(*(words[i] for words, i in zip(names.values(), row, strict=True))) for row in rows]
    return Pictures(_finish(images, noise, rng), captions, dict(zip(names, rows.T.copy(), strict=True)), names)


def _sentence(shape: str, colour: str, where: str, *other: str) -> str:
    """(circle, orange, above, square, red) -> an orange circle above a red square"""
    return " ".join([_noun(shape, colour), where] + ([_noun(*other)] if other else []))


def _noun(shape: str, colour: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def _cover(shape: Array, middle: Array, radius: Array, turn: Array, size: int) -> Array:
    """The share of each pixel that a shape covers, (n, size, size); all arguments (n,), but middle (n, 2)."""
    covered = np.empty((len(shape), size, size), np.float32)
    points = (np.arange(size * FINE, dtype=np.float32) + 0.5) / (size * FINE)
    for kind, contains in enumerate(SHAPES.values()):
        these = np.flatnonzero(shape == kind)
        u, v = ((points - middle[these, i, None]) / radius[these, None] for i in (0, 1))  # (n, size·FINE)
        u, v = u.astype(np.float32)[:, None, :], v.astype(np.float32)[:, :, None]
        cos, sin = (f(turn[these]).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        covered[these] = _shrink(contains(cos * u + sin * v, cos * v - sin * u))
    return covered


# --- glyphs: letters and digits in the fonts that come with matplotlib --------------------------------------

CHARACTERS = string.ascii_letters + string.digits
FAMILIES, WEIGHTS, SLANTS = ("sans", "serif", "mono"), ("regular", "bold"), ("upright", "italic")
FONTS = {  # those that every matplotlib from 3.8 on brings along: family, weight, slant
    "DejaVuSans": (0, 0, 0),
    "DejaVuSans-Bold": (0, 1, 0),
    "DejaVuSans-Oblique": (0, 0, 1),
    "DejaVuSans-BoldOblique": (0, 1, 1),
    "DejaVuSerif": (1, 0, 0),
    "DejaVuSerif-Bold": (1, 1, 0),
    "DejaVuSerif-Italic": (1, 0, 1),
    "DejaVuSerif-BoldItalic": (1, 1, 1),
    "DejaVuSansMono": (2, 0, 0),
    "DejaVuSansMono-Bold": (2, 1, 0),
    "DejaVuSansMono-Oblique": (2, 0, 1),
    "DejaVuSansMono-BoldOblique": (2, 1, 1),
    "STIXGeneral": (1, 0, 0),
    "STIXGeneralBol": (1, 1, 0),
    "STIXGeneralItalic": (1, 0, 1),
    "STIXGeneralBolIta": (1, 1, 1),
    "cmr10": (1, 0, 0),
    "cmb10": (1, 1, 0),
    "cmss10": (0, 0, 0),
    "cmtt10": (2, 0, 0),
}
VALIDATION = 0.1  # the share of the glyphs that are not held out


def glyphs(seed: int = 0, copies: int = 3, size: int = 20, noise: float = 0.03) -> PictureSplit:
    """62 letters and digits in 20 fonts, `copies` times each: 3,720 pictures by default, light on black.

    A style is a family, a weight and a slant. Each character is given one of the twelve styles, by the seed, in
    which it is held out, in whichever font. All stand on one line, give or take a pixel, so that o and O differ;
    but some letters look much the same in sans and in mono, and no reader gets all of those captions right.

    labels  character, family, weight, slant, font

    Raises ValueError unless there is a copy, the size is at least 16 and the noise not negative.
    """
    if copies < 1 or noise < 0:
        raise ValueError(f"copies is {copies} and noise {noise}; allowed are at least 1 and at least 0")
    _check_size(size)
    rng = np.random.default_rng(seed)
    font, character, _ = np.indices((len(FONTS), len(CHARACTERS), copies)).reshape(3, -1)
    family, weight, slant = np.array(list(FONTS.values()))[font].T
    images = _draw_glyphs(font, character, size, rng) * rng.uniform(0.7, 1, (len(font), 1, 1, 1))
    labels = {"character": character, "family": family, "weight": weight, "slant": slant, "font": font}
    names = dict(zip(labels, (tuple(CHARACTERS), FAMILIES, WEIGHTS, SLANTS, tuple(FONTS)), strict=True))
    captions = [_describe(*row) for row in zip(character, family, weight, slant, strict=True)]
    everything = Pictures(_finish(images, noise, rng), captions, labels, names)

    style = (family * 2 + weight) * 2 + slant  # 0 … 11
    hidden = np.resize(rng.permutation(12), len(CHARACTERS))  # character c is hidden in style hidden[c]
    is_held = hidden[character] == style
    shown, kept = (rng.permutation(np.flatnonzero(rows)) for rows in (~is_held, is_held))
    cut = int(len(shown) * VALIDATION)
    return PictureSplit(everything.take(shown[cut:]), everything.take(shown[:cut]), everything.take(kept))


def _describe(character: int, family: int, weight: int, slant: int) -> str:
    c = CHARACTERS[character]
    kind = "digit" if c.isdigit() else "capital letter" if c.isupper() else "letter"
    style = ["bold"] * weight + ["italic"] * slant + [FAMILIES[family]]
    return f"{' '.join(style)} {kind} {c}"


def _draw_glyphs(font: Array, character: Array, size: int, rng: np.random.Generator) -> Array:
    """The share of each pixel that is inked, (n, size, size, 1); font and character (n,)."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font  # without pyplot: no display, no global state

    faces = [FT2Font(str(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf"))) for name in FONTS]
    side = size * FINE
    heights = rng.uniform(0.68, 0.76, len(font)) * side  # of an em
    right, down = rng.integers(-FINE, FINE + 1, (2, len(font)))  # off the centre and the line, up to a pixel
    canvas = np.zeros((len(font), side, side), np.uint8)
    for i, (face, c) in enumerate(zip((faces[f] for f in font), character, strict=True)):
        face.set_size(heights[i], 72)
        face.set_text(CHARACTERS[c])
        face.draw_glyphs_to_bitmap()
        ink = np.asarray(face.get_image())
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # matplotlib's margin depends on its version
        above = round(face.load_char(ord(CHARACTERS[c])).horiBearingY / 64)  # points above the line
        top = int(0.75 * side) - above + down[i]
        left = (side - ink.shape[1]) // 2 + right[i]
        canvas[i, top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return _shrink(canvas)[..., None] / 255


# --- digits: written by hand, 8×8 ---------------------------------------------------------------------------

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits(seed: int = 0, val: int = 200, held_out: int = 200) -> PictureSplit:
    """The 1,797 handwritten digits that come with scikit-learn, shuffled; `held_out` is a second validation set.

    labels  digit

    Raises UserError where scikit-learn is not installed, ValueError when nothing is left to train on.
    """
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError:
        raise UserError(
            "the handwritten digits come with scikit-learn, which is not installed: pip install scikit-learn, "
            "or choose the glyphs, which need nothing more"
        ) from None
    n = len(bunch.target)
    if min(val, held_out) < 0 or val + held_out >= n:
        raise ValueError(f"val and held_out are {val} and {held_out}; neither may be negative, together fewer than {n}")
    images = (bunch.images[..., None] / 16).astype(np.float32)
    labels = {"digit": bunch.target.astype(np.int64)}
    everything = Pictures(images, [f"a handwritten {DIGITS[i]}" for i in bunch.target], labels, {"digit": DIGITS})
    order = np.random.default_rng(seed).permutation(n)
    last = val + held_out
    return PictureSplit(everything.take(order[last:]), everything.take(order[:val]), everything.take(order[val:last]))


def _check_size(size: int) -> None:
    if size < SMALLEST:
        raise ValueError(f"the pictures are to have {size} pixels on a side; at least {SMALLEST} can be told apart")


def _shrink(fine: Array) -> Array:
    """Means over squares of FINE × FINE points: (n, side·FINE, side·FINE) -> (n, side, side) float32."""
    n, side = fine.shape[0], fine.shape[1] // FINE
    return fine.reshape(n, side, FINE, side, FINE).mean((2, 4), dtype=np.float32)


def _finish(images: Array, noise: float, rng: np.random.Generator) -> Array:
    """Add noise to every pixel and channel, and cut to [0, 1]."""
    noisy = images.astype(np.float32) + np.float32(noise) * rng.standard_normal(images.shape, np.float32)
    return np.clip(noisy, 0, 1)


# --- for a model: captions as bytes, pictures as rows of patches --------------------------------------------

BEGIN, END = 0x02, ord("\n")  # ASCII "start of text", and the end of a line, as in every corpus
IGNORED = -100  # a target that `ops.cross_entropy` leaves out


class CaptionBatch(NamedTuple):
    ids: Array  # (N, L) int64: BEGIN, the caption's bytes, then END
    targets: Array  # (N, L) int64, the byte that follows each: the caption's bytes, END, then IGNORED
    mask: Array  # (N, L) bool, where there is a target


def encode_captions(captions: list[str], length: int | None = None) -> CaptionBatch:
    """Captions as UTF-8 bytes, the vocabulary of the language models (256), in rows of one length.

        "a cat", length 8    ids      02  a  _  c  a  t  \\n   \\n       (_ is the space)
                             targets   a  _  c  a  t \\n -100 -100

    length  L, at least the bytes of the longest caption and one; None for exactly that

    The ids after a caption are ENDs, which a causal model can't see from within it.
    Raises ValueError when a caption does not fit, or holds one of the two marks.
    """
    rows = [np.frombuffer(caption.encode(), np.uint8) for caption in captions]
    needed = max((len(row) for row in rows), default=0) + 1
    length = needed if length is None else length
    if needed > length:
        longest = max(captions, key=lambda caption: len(caption.encode()))
        raise ValueError(
            f"the length is {length}; the caption {longest!r} needs {needed}, the mark at its end included"
        )
    ids = np.full((len(rows), length), END, np.int64)
    targets = np.full((len(rows), length), IGNORED, np.int64)
    for i, row in enumerate(rows):
        if np.isin(row, (BEGIN, END)).any():
            raise ValueError(f"the caption {captions[i]!r} holds a byte {BEGIN} or a line end, which mark its two ends")
        ids[i, 0], ids[i, 1 : len(row) + 1] = BEGIN, row
        targets[i, : len(row)], targets[i, len(row)] = row, END
    return CaptionBatch(ids, targets, targets != IGNORED)


def decode_caption(tokens: Array) -> str:
    """The text of one row of ids or targets, or of what a model wrote, (L,): up to END; broken UTF-8 shows as �."""
    text = bytes(takewhile(lambda byte: byte != END, tokens.tolist()))
    return text.removeprefix(bytes([BEGIN])).decode(errors="replace")


def patches(images: Array, size: int) -> Array:
    """Cut pictures into squares of size × size pixels, row by row; the pixels of a patch in the same order.

    images  (N, H, W, C)
    result  (N, H/size · W/size, size·size·C)

    Each number keeps its value and gets a new place, so `unpatch` is the inverse and also the gradient.
    Raises ValueError unless size divides H and W. Source: Dosovitskiy et al. 2021 (ViT), §3.1.
    """
    n, height, width, channels = images.shape
    _check_patch(size, height, width)
    squares = images.reshape(n, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return squares.reshape(n, (height // size) * (width // size), size * size * channels)


def unpatch(rows: Array, size: int, height: int, width: int) -> Array:
    """Put patches together again: the inverse of `patches`.

    rows    (N, H/size · W/size, size·size·C)
    result  (N, H, W, C)

    Raises ValueError unless size divides H and W, and the rows are as many as that makes.
    """
    n, count, numbers = rows.shape
    _check_patch(size, height, width)
    if count != (height // size) * (width // size) or numbers % (size * size):
        raise ValueError(
            f"{count} patches of {numbers} numbers don't make pictures of {height}×{width}, patch size {size}"
        )
    squares = rows.reshape(n, height // size, width // size, size, size, numbers // (size * size))
    return squares.swapaxes(2, 3).reshape(n, height, width, numbers // (size * size))


def _check_patch(size: int, height: int, width: int) -> None:
    if size < 1 or height % size or width % size:
        raise ValueError(f"the patch size is {size}; it must divide both sides of the picture, {height} and {width}")
