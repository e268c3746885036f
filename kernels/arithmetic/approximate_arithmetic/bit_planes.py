"""Products of matrices of bits: AND, count the ones, add. Shared by the techniques that take numbers bit by bit.

    C[i, j] = sum_s 2^s sum_{a + b = s} popcount(A_a[i] & B_b[j])

A_a[i] being bit a of the codes of row i, a string of k bits. The sum over s runs from the highest weight down, and
doubles what it has before each step (Horner), so that a tile of C stays in registers through all pairs of planes.

The words of a panel of rows lie in the order in which the micro-kernel reads them:

    word w of plane a of row i    at    ((i // width * planes + a) * words + w) * width + i % width
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.simd import bit_plane, counts_add, counts_double, counts_store, counts_zero

__all__ = ["Planes", "pack_planes", "pack_words", "plain_planes_product", "planes_product", "tile_shape"]


def plain_planes_product(a: np.ndarray, b: np.ndarray, a_bits: int, b_bits: int) -> np.ndarray:
    """The definition: unsigned codes a of shape (m, k) and b of shape (n, k), plane by plane.

    Examples
    --------
    >>> plain_planes_product(np.array([[3, 1]]), np.array([[2, 1], [0, 3]]), 2, 2)
    array([[7, 3]])
    """
    total = np.zeros((len(a), len(b)), np.int64)
    for i in range(a_bits):
        for j in range(b_bits):
            left, right = a >> i & 1, b >> j & 1
            total += (left[:, None, :] & right[None, :, :]).sum(2, dtype=np.int64) << (i + j)
    return total


def tile_shape(lanes: int) -> tuple[int, int]:
    """Rows and vectors a row of the tile of counters, for vectors of so many words of 64 bits."""
    return (8, 2) if lanes == 8 else (4, 2)


class Planes(NamedTuple):
    """Bit planes in panels of `width` rows, and what they were: `outer` rows of `words` words in so many planes."""

    data: np.ndarray
    outer: int
    words: int
    planes: int
    width: int


def pack_planes(codes: np.ndarray, planes: int, width: int) -> Planes:
    """Codes (uint8, of shape (outer, a multiple of 64)) in planes."""
    outer, words = codes.shape[0], codes.shape[1] // 64
    data = np.zeros(-(-outer // width) * width * planes * words, np.uint64)
    _pack(np.ascontiguousarray(codes), data, planes, words, width)
    return Planes(data, outer, words, planes, width)


def pack_words(words: np.ndarray, width: int) -> Planes:
    """Words of bits (uint64, of shape (outer, words)) as a single plane."""
    outer, depth = words.shape
    panels = np.zeros((-(-outer // width) * width, depth), np.uint64)
    panels[:outer] = words
    data = np.ascontiguousarray(panels.reshape(-1, width, depth).transpose(0, 2, 1)).ravel()
    return Planes(data, outer, depth, 1, width)


def planes_product(
    a: Planes, b: Planes, lanes: int, out: np.ndarray, shift: int = 0, rows: np.ndarray | None = None,
    columns: np.ndarray | None = None, row_scales: np.ndarray | None = None, column_scales: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """out[i, j] = row_scales[i] * column_scales[j] * (2^shift C[i, j] + rows[i] + columns[j])

    Parameters
    ----------
    a, b : Planes
        Packed for the rows and for the columns of `tile_shape(lanes)`.
    out : ndarray of int64 or float32, shape (a.outer, b.outer)
        Integers take no scales.
    rows, columns : ndarray of int64, optional
    row_scales, column_scales : ndarray of float32, optional
    """
    if out.dtype == np.float32 and 64 * a.words << (a.planes + b.planes) >= 2**31:
        assert row_scales is not None and column_scales is not None
        exact = planes_product(a, b, lanes, np.empty(out.shape, np.int64), shift, rows, columns)
        return np.multiply(exact.astype(np.float32), np.outer(row_scales, column_scales), out=out)
    (m, n), word = out.shape, np.int32 if out.dtype == np.float32 else np.int64

    def whole(x: np.ndarray | None, size: int, dtype: type, fill: int) -> np.ndarray:
        return np.full(size, fill, dtype) if x is None else np.ascontiguousarray(x, dtype)

    _product_kernel(lanes, out.dtype == np.float32)(
        a.data, b.data, a.words, a.planes, b.planes, out, shift, whole(rows, m, word, 0), whole(columns, n, word, 0),
        whole(row_scales, m, np.float32, 1), whole(column_scales, n, np.float32, 1),
    )  # fmt: skip
    return out


@njit(cache=True, nogil=True)
def _pack(codes, data, planes, words, width):
    k = codes.shape[1]
    for i in range(codes.shape[0]):
        for plane in range(planes):
            at = (i // width * planes + plane) * words * width + i % width
            for w in range(words):
                data[at + w * width] = bit_plane(codes, i * k + w * 64, plane)


@lru_cache(maxsize=8)
def _product_kernel(lanes: int, real: bool) -> Callable[..., None]:
    tall, vectors = tile_shape(lanes)
    wide = vectors * lanes
    word = np.int32 if real else np.int64

    @njit(cache=True, nogil=True)
    def product(a, b, words, a_planes, b_planes, out, shift, rows, columns, row_scales, column_scales):
        m, n = out.shape
        tile = np.empty(tall * wide, word)
        for j0 in range(0, n, wide):
            for i0 in range(0, m, tall):
                a_panel, b_panel = i0 // tall * a_planes, j0 // wide * b_planes
                counts = counts_zero(tall, vectors, lanes)
                for s in range(a_planes + b_planes - 2, -1, -1):
                    counts = counts_double(counts)
                    for i in range(max(0, s - b_planes + 1), min(s, a_planes - 1) + 1):
                        at_a, at_b = (a_panel + i) * words * tall, (b_panel + s - i) * words * wide
                        for w in range(words):
                            counts = counts_add(counts, a, at_a + w * tall, b, at_b + w * wide)
                counts_store(counts, tile, 0)
                added, scales = columns[j0 : j0 + wide], column_scales[j0 : j0 + wide]
                for i in range(min(tall, m - i0)):
                    row, counted = out[i0 + i, j0 : j0 + wide], tile[i * wide : i * wide + wide]
                    more, scale = rows[i0 + i], row_scales[i0 + i]
                    for j in range(row.size):
                        exact = word(word(counted[j] << word(shift)) + more + added[j])
                        row[j] = np.float32(exact) * (scale * scales[j]) if real else exact

    return product
