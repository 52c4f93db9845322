"""Whether a notebook, executed again, shows what it is kept with.

A picture must be there, in its size in pixels, with its description. Its dots are not compared: they change with the
version of the drawing library. Text is compared line by line:

- On a machine like the one that made what is kept (`machine`), it is the same to the letter.
- On another, words are the same, and so are whole numbers. Other numbers may differ by one unit of the last printed
  place, or by 1e-7 (of themselves, if they are above 1), a rounding in single precision: products add up in another order.
- In a cell tagged `timed`, the words are the same. Numbers are the clock's, and free, on any machine.
- In a cell tagged `trained`, text isn't compared on another machine: hundreds of steps in single precision carry a
  rounding into every digit, and into what the model writes.
"""

import base64
import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import zip_longest
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from source import tags

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:,\d{3})*(?:\.\d*)?(?:e[-+]?\d+)?")
ROUNDING = Decimal("1e-7")


def machine() -> str:
    """What roundings depend on: the versions of NumPy and of its BLAS, and the instructions that they use here."""
    built: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    blas = built["Build Dependencies"]["blas"]
    kernels = {library.get("architecture", "unknown") for library in threadpool_info() if library["user_api"] == "blas"}
    instructions = " ".join(built["SIMD Extensions"]["found"])
    return f"numpy {np.__version__} {instructions}, {blas['name']} {blas['version']} {' '.join(sorted(kernels))}"


def differences(new: Any, kept: Any, here: bool) -> Iterator[str]:
    """In words, cell by cell, of two notebooks of one source; `here` says that `kept` was made on such a machine."""
    for cell, old in zip(new.cells, kept.cells, strict=True):
        if cell.cell_type != "code":
            continue
        if shown(cell) != shown(old):
            yield f"{cell.id} shows {shown(cell)}, and is kept with {shown(old)}"
        if "trained" in tags(cell) and not here:
            continue
        for line, old_line in zip_longest(printed(cell), printed(old), fillvalue=""):
            if not agree(line, old_line, exact=here, timed="timed" in tags(cell)):
                yield f"{cell.id} prints {line!r}, and is kept with {old_line!r}"


def shown(cell: Any) -> list[Any]:
    """A cell's outputs: of printed text that it is there, of a picture its size and description, of other data all."""
    found: list[Any] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.name)
        else:
            data = {kind: size(value) if kind == "image/png" else value for kind, value in output.data.items()}
            found.append((data, output.metadata))
    return found


def size(png: str) -> tuple[int, int]:
    """Width and height in pixels: two numbers of 4 bytes, behind the 16 with which every PNG begins."""
    start = base64.b64decode(png)[16:24]
    return int.from_bytes(start[:4]), int.from_bytes(start[4:])


def printed(cell: Any) -> list[str]:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream").splitlines()


def agree(line: str, old: str, exact: bool, timed: bool) -> bool:
    """By the rule above. Numbers of another length shift what stands beside them, so that spaces don't count."""
    if exact and not timed:
        return line == old
    words, old_words = ("".join(NUMBER.sub("\0", text).split()) for text in (line, old))
    return words == old_words and (timed or all(map(close, NUMBER.findall(line), NUMBER.findall(old))))


def close(number: str, old: str) -> bool:
    """Whether two printed numbers are equal, or differ no more than roundings do."""
    a, b = (Decimal(text.replace(",", "").replace("−", "-")) for text in (number, old))
    places = [int(value.as_tuple().exponent) for value in (a, b)]  # 0 of a whole number
    if a == b or not any(places):
        return a == b
    unit = Decimal(10) ** min(place for place in places if place)
    return abs(a - b) <= max(unit, ROUNDING * max(Decimal(1), abs(a), abs(b)))
