"""Coloured shapes, one or two: coverage of a unit figure, whose centre of mass is (0, 0); y points down."""

from collections.abc import Callable, Iterable
from itertools import product

import numpy as np

from ...types import Array
from .captions import of_shapes
from .pictures import FINE, Pictures, PictureSplit, check_size, finish, shrink

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
    check_size(size)
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
    captions = [of_shapes(*(words[i] for words, i in zip(names.values(), row, strict=True))) for row in rows]
    return Pictures(finish(images, noise, rng), captions, dict(zip(names, rows.T.copy(), strict=True)), names)


def _cover(shape: Array, middle: Array, radius: Array, turn: Array, size: int) -> Array:
    """The share of each pixel that a shape covers, (n, size, size); all arguments (n,), but middle (n, 2)."""
    covered = np.empty((len(shape), size, size), np.float32)
    points = (np.arange(size * FINE, dtype=np.float32) + 0.5) / (size * FINE)
    for kind, contains in enumerate(SHAPES.values()):
        these = np.flatnonzero(shape == kind)
        u, v = ((points - middle[these, i, None]) / radius[these, None] for i in (0, 1))  # (n, size·FINE)
        u, v = u.astype(np.float32)[:, None, :], v.astype(np.float32)[:, :, None]
        cos, sin = (f(turn[these]).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        covered[these] = shrink(contains(cos * u + sin * v, cos * v - sin * u))
    return covered
