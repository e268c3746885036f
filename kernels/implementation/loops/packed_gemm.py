"""The last rung of the ladder: packed panels and a micro-kernel that keeps a tile of C in registers.

A panel is a strip of an operand, `width` rows of A or columns of B, stored so that the micro-kernel reads it from its
first byte to its last. With blocks of kc along the contracted dimension k, element p of column i of an operand lies at

    p0 * P + (i - i % width) * kb + (p - p0) * width + i % width

where p0 = p - p % kc begins its block, kb = min(kc, K - p0) is the block's length, and P is the outer dimension, padded
with zeros to whole panels. Both operands have this form, so that a packed matrix can stand on either side.

The loops around the micro-kernel keep one panel of B (kc x width) and one block of A (mc x kc) in the second-level
cache, and walk C tile by tile (Goto and van de Geijn, 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.simd import load, store, tile_fma, tile_load, tile_store, tile_transpose, tile_zero

__all__ = ["Panels", "one_row", "pack", "product", "tile_shape"]


def tile_shape(lanes: int) -> tuple[int, int]:
    """Rows and vectors a row of the register tile: 8 x 2 of AVX-512's 32 registers, 4 x 3 of AVX2's 16.

    Enough accumulators to hide the multiply-add's latency, two units times four to five cycles, and few enough that
    a row of B and the broadcast element of A have registers too.
    """
    return (8, 2) if lanes == 16 else (4, 3)


class Panels(NamedTuple):
    """An operand in panels, and what it was: `outer` rows of A or columns of B, contracted along `depth`."""

    data: np.ndarray
    outer: int
    depth: int
    width: int


def pack(x: np.ndarray, width: int, lanes: int, kc: int, dtype: type = np.float32) -> Panels:
    """An operand of shape (outer, k), float32, in panels of `width`; as bfloat16 codes where `dtype` is uint16.

    The contracted dimension is padded with zeros to whole vectors, in every operand alike, so that padding meets
    padding and an infinity in one operand never meets a zero of the other's.
    """
    outer, depth = x.shape
    padded = _whole(outer, width), _whole(depth, lanes)
    if x.shape != padded:
        ragged, x = x, np.zeros(padded, np.float32, order="F" if x.flags.f_contiguous else "C")
        x[:outer, :depth] = ragged
    data = _aligned(x.size, dtype)
    by_rows, by_columns = _packers(lanes)
    if x.flags.f_contiguous:
        by_columns(x.T, data, width, kc)
    else:
        by_rows(np.ascontiguousarray(x), data, width, kc)
    return Panels(data, outer, depth, width)


def one_row(x: np.ndarray, lanes: int) -> Panels:
    """An operand of shape (1, k): a panel of width one is the row itself, padded as `pack` does."""
    data = np.zeros(_whole(x.shape[1], lanes), np.float32)
    data[: x.shape[1]] = x[0]
    return Panels(data, 1, x.shape[1], 1)


def product(a: Panels, b: Panels, lanes: int, mc: int, kc: int) -> np.ndarray:
    """C = A B from panels of A's rows and B's columns; float32 of shape (a.outer, b.outer)."""
    rows = 1 if a.width == 1 else tile_shape(lanes)[0]
    c = np.empty((_whole(a.outer, rows), _whole(b.outer, b.width)), np.float32)
    _macro_kernel(rows, lanes)(a.data, a.width, b.data, c, _whole(a.depth, lanes), mc, kc)
    return np.ascontiguousarray(c[: a.outer, : b.outer])


def _aligned(size: int, dtype: type) -> np.ndarray:
    """An empty array that begins with a cache line, so that no vector of a panel straddles two."""
    memory = np.empty(size * np.dtype(dtype).itemsize + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first - 64].view(dtype)


def _whole(size: int, step: int) -> int:
    return -(-size // step) * step


@lru_cache(maxsize=8)
def _macro_kernel(rows: int, lanes: int) -> Callable[..., None]:
    columns = tile_shape(lanes)[1]
    width = columns * lanes

    @njit(cache=True, nogil=True)
    def macro_kernel(a, a_width, b, c, k, mc, kc):
        m, n = c.shape
        a_outer = (m + a_width - 1) // a_width * a_width
        if k == 0:
            c[:] = 0
        for p0 in range(0, k, kc):
            kb = min(kc, k - p0)
            for i0 in range(0, m, mc):
                for j in range(0, n, width):
                    for i in range(i0, min(i0 + mc, m), rows):
                        if p0 == 0:
                            tile = tile_zero(rows, columns, lanes)
                        else:
                            tile = tile_load(c, i * n + j, n, rows, columns, lanes)
                        at_a = p0 * a_outer + (i - i % a_width) * kb + i % a_width
                        at_b = p0 * n + j * kb
                        for p in range(kb):
                            tile = tile_fma(tile, a, at_a + p * a_width, 1, b, at_b + p * width)
                        tile_store(tile, c, i * n + j, n)

    return macro_kernel


@lru_cache(maxsize=8)
def _packers(lanes: int) -> tuple[Callable[..., None], Callable[..., None]]:
    @njit(cache=True, nogil=True)
    def by_rows(x, out, width, kc):
        # rows of x become columns of a panel: squares of lanes x lanes are transposed in registers
        outer, k = x.shape
        for p0 in range(0, k, kc):
            kb = min(kc, k - p0)
            for i in range(0, outer, lanes):
                at = p0 * outer + (i - i % width) * kb + i % width
                for p in range(0, kb, lanes):
                    square = tile_load(x, i * k + p0 + p, k, lanes, 1, lanes)
                    tile_store(tile_transpose(square), out, at + p * width, width)

    @njit(cache=True, nogil=True)
    def by_columns(x, out, width, kc):
        k, outer = x.shape
        for p0 in range(0, k, kc):
            kb = min(kc, k - p0)
            for p in range(kb):
                for i in range(0, outer, width):
                    at = p0 * outer + i * kb + p * width
                    for v in range(0, width, lanes):
                        store(load(x, (p0 + p) * outer + i + v, lanes), out, at + v)

    return by_rows, by_columns
