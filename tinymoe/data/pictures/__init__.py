"""Pictures with captions, none of them downloaded: drawn shapes, drawn characters, and handwritten digits.

    set      a picture                    a caption                               held out, though its words are known
    shapes   20×20, coloured              a red circle at the top left            each shape in one colour
             with objects=2               a red circle left of a blue square      the same, for either object
    glyphs   20×20, grey                  bold italic serif letter a              each character in one style
    digits   8×8, grey, by human hands    a handwritten seven                     nothing: a second validation set

One picture has one caption, so that a written caption is right or wrong: of two objects the left or the upper one
is named first, and they stand side by side or one above the other, never on a slant. Of what is drawn, place,
brightness and noise differ from picture to picture, so no two are alike even when their captions are.
"""

from .captions import BEGIN, END, CaptionBatch, decode_caption, encode_captions
from .digits import digits
from .glyphs import glyphs
from .patches import patches, unpatch
from .pictures import Pictures, PictureSplit
from .shapes import shapes

__all__ = [
    "BEGIN",
    "END",
    "CaptionBatch",
    "PictureSplit",
    "Pictures",
    "decode_caption",
    "digits",
    "encode_captions",
    "glyphs",
    "patches",
    "shapes",
    "unpatch",
]
