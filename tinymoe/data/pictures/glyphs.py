"""Letters and digits in the fonts that come with matplotlib."""

import string
from pathlib import Path

import numpy as np

from ...types import Array
from .captions import of_glyph
from .pictures import FINE, Pictures, PictureSplit, check_size, finish, shrink

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
    but some letters look much the same in sans and in mono, and of those a reader must guess.

    labels  character, family, weight, slant, font

    Raises ValueError unless there is a copy, the size is at least 16 and the noise not negative.
    """
    if copies < 1 or noise < 0:
        raise ValueError(f"copies is {copies} and noise {noise}; allowed are at least 1 and at least 0")
    check_size(size)
    rng = np.random.default_rng(seed)
    font, character, _ = np.indices((len(FONTS), len(CHARACTERS), copies)).reshape(3, -1)
    family, weight, slant = np.array(list(FONTS.values()))[font].T
    images = _draw_glyphs(font, character, size, rng) * rng.uniform(0.7, 1, (len(font), 1, 1, 1))
    labels = {"character": character, "family": family, "weight": weight, "slant": slant, "font": font}
    names = dict(zip(labels, (tuple(CHARACTERS), FAMILIES, WEIGHTS, SLANTS, tuple(FONTS)), strict=True))
    rows = zip(character, family, weight, slant, strict=True)
    captions = [of_glyph(CHARACTERS[c], FAMILIES[f], bold=w, italic=s) for c, f, w, s in rows]
    everything = Pictures(finish(images, noise, rng), captions, labels, names)

    style = (family * 2 + weight) * 2 + slant  # 0 … 11
    hidden = np.resize(rng.permutation(12), len(CHARACTERS))  # character c is hidden in style hidden[c]
    is_held = hidden[character] == style
    shown, kept = (rng.permutation(np.flatnonzero(rows)) for rows in (~is_held, is_held))
    cut = int(len(shown) * VALIDATION)
    return PictureSplit(everything.take(shown[cut:]), everything.take(shown[:cut]), everything.take(kept))


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
    return shrink(canvas)[..., None] / 255
