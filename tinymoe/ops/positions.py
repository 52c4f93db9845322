"""Where a token stands: added as a table (sinusoidal or learned), or turned into queries and keys (rotary)."""

import numpy as np

from ..types import Array, Backward


def sinusoidal(length, width, base=10_000.0):
    """The fixed table of sines and cosines; no parameters, so no gradient.

        table[t, 2i] = sin(t / base^(2i/D)),   table[t, 2i+1] = cos(t / base^(2i/D))

    Returns (T, D) float64 for T = `length`, D = `width`.
    Source: Vaswani et al. 2017, §3.5; 《稀疏专家模型》 §2.1 (位置编码).
    """
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, width, 2) / width)  # (T, ⌈D/2⌉)
    table = np.empty((length, width))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : width // 2])
    return table


def add_positions(x: Array, table: Array) -> tuple[Array, Backward]:
    """Add row t of the table to every token that stands at position t.

        y_bt = x_bt + table_t        dx = dy,   dtable_t = Σ_b dy_bt  (0 for rows beyond T)

    x      (B, T, D)
    table  (L, D)     L ≥ T; learned, or `sinusoidal(L, D)`
    y      (B, T, D)

    Raises ValueError when the text is longer than the table.
    """
    length = x.shape[1]
    if length > len(table):
        raise ValueError(f"{length} positions, but the position table has only {len(table)} rows")
    y = x + table[:length]

    def backward(dy):
        dtable = np.zeros(table.shape, dy.dtype)
        dtable[:length] = dy.sum(0)
        return dy.copy(), dtable

    return y, backward


def rotary(x: Array, positions: Array, base=10_000.0) -> tuple[Array, Backward]:
    """Turn each pair (x_i, x_{i+P/2}) by an angle that grows with the position.

        y_i       = x_i cos a − x_{i+P/2} sin a
        y_{i+P/2} = x_{i+P/2} cos a + x_i sin a,        a = t base^(−2i/P),  0 ≤ i < P/2

    A rotation is orthogonal, so the gradient is turned back by the same angle. The scalar product of a
    query at s and a key at t then depends on s − t alone.

    x          (B, T, H, P)  P even
    positions  (T,)          int
    y          (B, T, H, P)

    Raises ValueError for an odd P. Pairs are halves apart ("rotate half"), not neighbours.
    Source: Su et al. 2021, eq. 34, with the pairs rearranged.
    """
    half = x.shape[-1] // 2
    if x.shape[-1] != 2 * half:
        raise ValueError(f"rotary positions turn pairs; a head of width {x.shape[-1]} has an odd one left over")
    angles = positions[:, None] * base ** (-np.arange(half) / half)  # (T, P/2)
    cos = np.tile(np.cos(angles), 2)[:, None].astype(x.real.dtype)  # (T, 1, P)
    sin = np.concatenate([-np.sin(angles), np.sin(angles)], -1)[:, None].astype(x.real.dtype)

    def swap(a):  # (B, T, H, P) with the halves of P exchanged
        return np.concatenate([a[..., half:], a[..., :half]], -1)

    y = x * cos + swap(x) * sin

    def backward(dy):
        return (dy * cos - swap(dy) * sin,)

    return y, backward
