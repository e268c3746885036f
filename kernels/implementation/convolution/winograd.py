"""Winograd convolution: tiles of results from fewer multiplications, more additions, and matrix products between."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from kernels.implementation.convolution.lowered import Convolution, Geometry
from kernels.implementation.loops.packed_gemm import tile_shape
from kernels.simd import LANES, broadcast, fma, load, store, tile_fma, tile_store, tile_zero

__all__ = ["Winograd", "plain_winograd", "transforms"]

POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 2, -2), 6: (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))}
"""Where the polynomials are evaluated, and at infinity; small numbers, for the transforms' entries are their powers."""
ROWS, VECTORS = tile_shape(LANES)
WIDTH = VECTORS * LANES
"""Tiles of the image that a product takes side by side."""


class _Scratch(threading.local):
    """Arrays of a thread that calls use again: memory fresh from the system costs as much as the transforms."""

    def take(self, name: str, size: int) -> np.ndarray:
        """At least so many float32, with whatever they hold."""
        kept = self.__dict__.get(name)
        if kept is None or kept.size < size:
            kept = self.__dict__[name] = np.empty(size, np.float32)
        return kept[:size]


_SCRATCH = _Scratch()


@lru_cache(maxsize=8)
def transforms(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices Bᵀ, G and Aᵀ of F(m, 3), exact rationals rounded once, in float64.

    A correlation of m + 2 numbers with 3 is the transpose of a product of polynomials, which is known by its values at
    m + 2 points: Vandermonde matrices evaluate the factors, the inverse of one brings the product back (Toom and Cook).

    Parameters
    ----------
    tile : {2, 4, 6}
        m.

    Returns
    -------
    ndarray of shape (m + 2, m + 2), (m + 2, 3), (m, m + 2)

    Examples
    --------
    >>> bt, g, at = transforms(2)
    >>> d, w = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0, 7.0])
    >>> at @ ((g @ w) * (bt @ d)), np.correlate(d, w)
    (array([38., 56.]), array([38., 56.]))
    """
    points = POINTS[tile]
    n = tile + 2

    def powers(count: int) -> list[list[Fraction]]:
        rows = [[Fraction(p) ** j for j in range(count)] for p in points]
        return [*rows, [Fraction(int(j == count - 1)) for j in range(count)]]

    inverse = _inverse(powers(n))  # from values to coefficients
    bt = [[inverse[j][i] for j in range(n)] for i in range(n)]
    g, a = powers(3), powers(tile)
    for i in range(n - 1):  # rows of Bᵀ in whole numbers, where G takes the fractions
        scale = Fraction(1)
        for j in range(n - 1):
            if j != i:
                scale *= Fraction(points[i]) - Fraction(points[j])
        bt[i] = [scale * x for x in bt[i]]
        g[i] = [x / scale for x in g[i]]
    at = [[a[j][i] for j in range(n)] for i in range(tile)]
    return tuple(np.array([[float(x) for x in row] for row in m]) for m in (bt, g, at))  # type: ignore[return-value]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Of a square matrix of rationals, exactly."""
    n = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(n))] for i, row in enumerate(matrix)]
    for i in range(n):
        at = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[at] = rows[at], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(n):
            if r != i and rows[r][i]:
                rows[r] = [x - rows[r][i] * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [row[n:] for row in rows]


def plain_winograd(x: np.ndarray, w: np.ndarray, tile: int) -> np.ndarray:
    """Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for one channel and filter whose results are tile x tile, in float64.

    Examples
    --------
    >>> np.round(plain_winograd(np.arange(16.0).reshape(4, 4), np.ones((3, 3)), 2), 9)
    array([[45., 54.],
           [81., 90.]])
    """
    bt, g, at = transforms(tile)
    return at @ ((g @ w @ g.T) * (bt @ x @ bt.T)) @ at.T


@dataclass(frozen=True)
class Winograd(Convolution):
    r"""A 3 x 3 convolution with (m + 2)² / m² multiplications for each result in place of 9.

    .. math:: Y = A^\top \Big[ \sum_c (G\, g_c\, G^\top) \odot (B^\top d_c\, B) \Big] A

    for tiles of m x m results from overlapping tiles d of (m + 2)². Filters are transformed and packed once
    (`prepare`); each of the (m + 2)² places of the transformed tiles is then a matrix product, filters by channels by
    tiles. Tiles are taken a panel at a time, so that what is transformed stays in the second-level cache until it is
    multiplied.

    The transforms mix numbers with coefficients that grow with m, and rounding with them: on random images the
    largest error, over the largest result, is some 2^-21 for m = 2, 2^-17 for 4 and 2^-15 for 6; the direct sum's is
    about 2^-20.

    Parameters
    ----------
    tile : {4, 2, 6}
        m.

    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, equation 8; errors:
    Barabasz et al., arXiv 1803.10986.

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> np.round(Winograd().conv2d(x, np.ones((1, 1, 3, 3)), padding=1), 3)
    array([[[[ 8., 15., 12.],
             [21., 36., 27.],
             [20., 33., 24.]]]], dtype=float32)
    """

    tile: int = 4

    def __post_init__(self) -> None:
        if self.tile not in POINTS:
            raise ValueError(f"tile: expected 2, 4 or 6, got {self.tile!r}")

    def _permits(self, kernel: Any, stride: Any, dilation: Any) -> str | None:
        if tuple(kernel) != (3, 3):
            return f"w: expected 3 x 3 filters, for which the transforms are, got {kernel[0]} x {kernel[1]}"
        if tuple(stride) != (1, 1) or tuple(dilation) != (1, 1):
            return (
                f"stride, dilation: expected 1, got {tuple(stride)}, {tuple(dilation)}: a tile's results are neighbours"
            )
        return None

    def effective_macs(self, channels: int, outputs: int, kernel: tuple[int, int], shape: tuple[int, int]) -> int:
        """Multiplications of the products between the transforms, for one image."""
        tiles = -(-shape[0] // self.tile) * -(-shape[1] // self.tile)
        return (self.tile + 2) ** 2 * channels * outputs * tiles

    def transformed(self, w: np.ndarray) -> np.ndarray:
        """G g Gᵀ of every filter: (outputs, channels, m + 2, m + 2), in float64."""
        g = transforms(self.tile)[1]
        return np.einsum("ia,ocab,jb->ocij", g, w.astype(np.float64), g)

    def _form(self, w: np.ndarray) -> Any:
        if w.shape[2:] != (3, 3):
            raise ValueError(self._permits(w.shape[2:], (1, 1), (1, 1)))
        outputs, channels = w.shape[:2]
        u = self.transformed(w).reshape(outputs, channels, (self.tile + 2) ** 2).astype(np.float32)
        padded = np.zeros((-(-outputs // ROWS) * ROWS, channels, u.shape[2]), np.float32)
        padded[:outputs] = u
        # (panels, rows, channels, places) -> places, panels, channels, rows
        laid = padded.reshape(len(padded) // ROWS, ROWS, channels, u.shape[2]).transpose(3, 0, 2, 1)
        return _Form(np.ascontiguousarray(laid), outputs)

    def _apply(self, image: np.ndarray, form: Any, geometry: Geometry) -> np.ndarray:
        m, (rows, columns) = self.tile, geometry.shape
        down, across = -(-rows // m), -(-columns // m)
        (top, left), (height, width) = geometry.padding, geometry.size
        plane = (down * m + 2) * (across * m + 2)
        padded = _SCRATCH.take("image", len(image) * plane).reshape(len(image), down * m + 2, across * m + 2)
        padded[:] = 0
        fits = min(height, padded.shape[1] - top), min(width, padded.shape[2] - left)
        padded[:, top : top + fits[0], left : left + fits[1]] = image[:, : fits[0], : fits[1]]
        y = np.empty((form.outputs, down * m, across * m), np.float32)
        if len(image):
            bt, _, at = (np.ascontiguousarray(matrix, np.float32) for matrix in transforms(m))
            planes = padded.reshape(len(padded), -1), y.reshape(len(y), -1)
            places = (m + 2) ** 2 * WIDTH
            scratch = (_SCRATCH.take("tiles", places * len(image)),
                       _SCRATCH.take("products", places * form.packed.shape[1] * ROWS))  # fmt: skip
            _winograd(
                planes[0], padded.shape[2], form.packed, bt, at, across, down * across, planes[1], y.shape[2], *scratch
            )
        else:
            y[:] = 0
        return np.ascontiguousarray(y[:, :rows, :columns])


@dataclass(frozen=True, eq=False)
class _Form:
    packed: np.ndarray
    outputs: int

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


@njit(cache=True, nogil=True, inline="always")
def _lines(matrix, source, first, step, target, to, stride):
    """Line i of the target, `WIDTH` numbers, is the sum over j of matrix[i, j] times line j of the source."""
    for i in range(matrix.shape[0]):
        total = broadcast(np.float32(0), WIDTH)
        for j in range(matrix.shape[1]):
            total = fma(broadcast(matrix[i, j], WIDTH), load(source, first + j * step, WIDTH), total)
        store(total, target, to + i * stride)


@njit(cache=True, nogil=True)
def _winograd(x, width, u, bt, at, across, tiles, y, y_width, v, product):
    """All tiles of an image: x (channels, plane), u (places, panels, channels, ROWS), y (outputs, plane)."""
    (channels, plane), (outputs, y_plane) = x.shape, y.shape
    m, n = at.shape
    places, panels = n * n, u.shape[1]
    flat, x, y = u.reshape(-1), x.reshape(-1), y.reshape(-1)
    one, two = np.zeros(places * WIDTH, np.float32), np.zeros(places * WIDTH, np.float32)
    corner, result = np.zeros(WIDTH, np.int64), np.zeros(WIDTH, np.int64)
    for first in range(0, tiles, WIDTH):
        count = min(WIDTH, tiles - first)
        for t in range(count):
            i, j = (first + t) // across * m, (first + t) % across * m
            corner[t], result[t] = i * width + j, i * y_width + j
        for c in range(channels):
            for a in range(n):  # the numbers of a place of all tiles side by side
                for b in range(n):
                    here, line = c * plane + a * width + b, (a * n + b) * WIDTH
                    for t in range(count):
                        one[line + t] = x[here + corner[t]]
            for b in range(n):  # columns, then rows
                _lines(bt, one, b * WIDTH, n * WIDTH, two, b * WIDTH, n * WIDTH)
            for a in range(n):
                _lines(bt, two, a * n * WIDTH, WIDTH, v, (a * n * channels + c) * WIDTH, channels * WIDTH)
        for place in range(places):
            for panel in range(panels):
                tile = tile_zero(ROWS, VECTORS, LANES)
                left, right = (place * panels + panel) * channels * ROWS, place * channels * WIDTH
                for c in range(channels):
                    tile = tile_fma(tile, flat, left + c * ROWS, 1, v, right + c * WIDTH)
                tile_store(tile, product, (place * panels + panel) * ROWS * WIDTH, WIDTH)
        for o in range(outputs):
            for b in range(n):
                _lines(
                    at, product, (b * panels * ROWS + o) * WIDTH, n * panels * ROWS * WIDTH, one, b * WIDTH, n * WIDTH
                )
            for a in range(m):
                _lines(at, one, a * n * WIDTH, WIDTH, two, a * m * WIDTH, WIDTH)
            for a in range(m):
                for b in range(m):
                    here, line = o * y_plane + a * y_width + b, (a * m + b) * WIDTH
                    for t in range(count):
                        y[here + result[t]] = two[line + t]
