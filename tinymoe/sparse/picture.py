"""A sparse matrix drawn with characters."""

import numpy as np

from ..types import Array

SHADES = " .:-=+*#%@"  # a part without entries … a full part


def picture(rows: Array, cols: Array, data: Array, shape: tuple[int, int], height: int = 24, width: int = 48) -> str:
    """Values for at most 12×12 places (· where nothing is stored), else a map of how full its parts are."""
    if max(shape) <= 12:
        cells = np.full(shape, "·", dtype=object)
        cells[rows, cols] = [f"{value:.3g}" for value in data.tolist()]
        longest = max((len(cell) for cell in cells.flat), default=0)
        return "\n".join(" ".join(cell.rjust(longest) for cell in line) for line in cells)
    parts = min(height, shape[0]), min(width, shape[1])  # part of a place: place · parts // places
    if 0 in parts:
        return ""
    place = rows.astype(np.int64) * parts[0] // shape[0] * parts[1] + cols.astype(np.int64) * parts[1] // shape[1]
    stored = np.bincount(place, minlength=parts[0] * parts[1]).reshape(parts)
    tall, wide = (np.diff(-(np.arange(n + 1) * -size // n)) for n, size in zip(parts, shape, strict=True))
    full = stored / np.outer(tall, wide)
    shade = np.ceil(full * (len(SHADES) - 1)).astype(int)  # a part with any entry is never blank
    return "\n".join("|" + "".join(SHADES[s] for s in line) + "|" for line in shade)
