"""Captions: the sentence that is said of a picture, and its bytes, which a language model reads and writes."""

from itertools import takewhile
from typing import NamedTuple

import numpy as np

from ...types import Array

BEGIN, END = 0x02, ord("\n")  # ASCII "start of text", and the end of a line, as in every corpus
IGNORED = -100  # a target that `ops.cross_entropy` leaves out


def of_shapes(shape: str, colour: str, where: str, *other: str) -> str:
    """(circle, orange, above, square, red) -> an orange circle above a red square"""
    return " ".join([_noun(shape, colour), where] + ([_noun(*other)] if other else []))


def _noun(shape: str, colour: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def of_glyph(character: str, family: str, *, bold: int, italic: int) -> str:
    """(A, serif, bold=1, italic=0) -> bold serif capital letter A"""
    kind = "digit" if character.isdigit() else "capital letter" if character.isupper() else "letter"
    return " ".join(["bold"] * bold + ["italic"] * italic + [family, kind, character])


def of_digit(word: str) -> str:
    return f"a handwritten {word}"


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
