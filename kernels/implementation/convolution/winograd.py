"""Winograd convolution: tiles of results from fewer multiplications, more additions, and matrix products between.

For one channel of a tile of m x m results, from an image d of (m + 2) x (m + 2) and a filter g of 3 x 3,

    Y = A^T [(G g G^T) * (B^T d B)] A          (* place by place)

and a layer sums the bracket over its channels. So each of the (m + 2)^2 places is a matrix product, of tiles by
channels with channels by filters, and A brings back only the sums.

Everything is done a block of tiles at a time, so that what is transformed stays in the second-level cache until it is
multiplied: rows of the image are laid out with their margins, channels innermost; B transforms a tile of as many
channels as a vector has lanes, in registers; the products take filters two vectors at a time, and A transforms their
results at once. Each transform is one run of instructions, made from its matrix: zeros and ones cost nothing, and
points that mirror each other share their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.arrays import as_array
from kernels.implementation.convolution.lowered import Convolution, Geometry, pair
from kernels.simd import LANES, store, tile_fma, tile_load, tile_store, tile_transpose, tile_zero, zero

__all__ = ["Winograd", "cook_toom", "plain_winograd", "transforms"]

HALF, EIGHTH = Fraction(1, 2), Fraction(1, 8)
POINTS = {2: (0, 1, -1), 4: (0, 5 * EIGHTH, -5 * EIGHTH, 3 * HALF, -3 * HALF), 6: (0, 1, -1, 2, -2, HALF, -HALF)}
"""Where the polynomials are evaluated, infinity besides. Mirrored pairs share sums, and powers of halves and eighths
are exact in float32; of such points these gave about the least error. For m = 4 the customary 1 and 2 amplify it
more."""

# The register tile of a product: tiles of the image by two vectors of filters; FEW serve what is left over.
ROWS, FEW, WIDE = 8 if LANES == 16 else 6, 2, 2 * LANES
BLOCK_BYTES = (
    1 << 20
)  # of a block of tiles while it is worked on: a second-level cache, of which filters only pass through


# --- the equation --------------------------------------------------------------------------------------------------


def cook_toom(points: Sequence[Fraction | int], m: int) -> tuple[list[list[Fraction]], ...]:
    """The matrices B^T, G and A^T of m results of a filter of three, exactly.

    A correlation is the transpose of a product of polynomials. That is known by its values at n - 1 = m + 1 points and
    at infinity: powers of the points evaluate (G, A), Lagrange's polynomials interpolate (B).

    Parameters
    ----------
    points : sequence of m + 1 different rationals

    Returns
    -------
    lists of lists of Fraction, of shape (n, n), (n, 3) and (m, n)

    Examples
    --------
    >>> [[str(x) for x in row] for row in cook_toom((0, 1, -1), 2)[1]]
    [['-1', '0', '0'], ['1/2', '1/2', '1/2'], ['1/2', '-1/2', '1/2'], ['0', '0', '1']]
    """
    at_points = [Fraction(p) for p in points]

    def through(roots: Sequence[Fraction]) -> list[Fraction]:  # coefficients of prod (x - root), the constant first
        found = [Fraction(1)]
        for root in roots:
            found = [low - root * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
        return found

    others = [[q for q in at_points if q != p] for p in at_points]
    bt = [[*through(rest), Fraction(0)] for rest in others] + [through(at_points)]
    scales = [prod((p - q for q in rest), start=Fraction(1)) for p, rest in zip(at_points, others, strict=True)]
    g = [[p**k / scale for k in range(3)] for p, scale in zip(at_points, scales, strict=True)]
    at = [[p**i for p in at_points] + [Fraction(i == m - 1)] for i in range(m)]
    return bt, [*g, [Fraction(k == 2) for k in range(3)]], at


@lru_cache(maxsize=8)
def transforms(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices B^T, G and A^T of F(m, 3) at this module's points, in float64; B and A are exact in float32.

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
    bt, g, at = (np.array(matrix, np.float64) for matrix in cook_toom(POINTS[tile], tile))
    return bt, g, at


def plain_winograd(x: np.ndarray, w: np.ndarray, tile: int) -> np.ndarray:
    """A layer without padding as the equation says it, in float64.

    Parameters
    ----------
    x : ndarray of shape (channels, rows, columns)
    w : ndarray of shape (outputs, channels, 3, 3)

    Returns
    -------
    ndarray of shape (outputs, rows - 2, columns - 2)

    Examples
    --------
    >>> np.round(plain_winograd(np.arange(16.0).reshape(1, 4, 4), np.ones((1, 1, 3, 3)), 2), 9)
    array([[[45., 54.],
            [81., 90.]]])
    """
    return _by_tiles(x, w, tile, *transforms(tile))


def _by_tiles(x: np.ndarray, w: np.ndarray, m: int, bt: np.ndarray, g: np.ndarray, at: np.ndarray) -> np.ndarray:
    rows, columns = x.shape[1] - 2, x.shape[2] - 2
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, -rows % m), (0, -columns % m)])
    d = np.lib.stride_tricks.sliding_window_view(padded, (m + 2, m + 2), (1, 2))[:, ::m, ::m]
    u, v = g @ w.astype(np.float64) @ g.T, bt @ d @ bt.T
    y = at @ np.einsum("ocab,cijab->oijab", u, v, optimize=True) @ at.T
    outputs, down, across = y.shape[:3]
    return y.transpose(0, 1, 3, 2, 4).reshape(outputs, down * m, across * m)[:, :rows, :columns]


# --- the operator --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Winograd(Convolution):
    r"""A 3 x 3 convolution with (m + 2)² / m² multiplications for each result in place of 9.

    .. math:: Y = A^\top \Big[ \sum_c (G\, g_c\, G^\top) \odot (B^\top d_c\, B) \Big] A

    for tiles of m x m results from overlapping tiles d of (m + 2)². Filters are transformed in float64 and packed once
    (`prepare`). Any padding, batch and groups; stride and dilation are one.

    Parameters
    ----------
    tile : {4, 2, 6}
        m.

    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, equation 8; errors
    and the choice of points: Barabasz et al., arXiv 1803.10986.

    Notes
    -----
    The transforms mix numbers of both signs, with coefficients that grow with m, and rounding is multiplied by them:
    `error_bound` says by how much at most, result by result, `amplification` as one number. A NaN or an infinity spoils
    every result whose tile sees it, as NaN; so may a number within a factor `amplification` of overflow.

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

    @property
    def amplification(self) -> float:
        """The most, over max|g| max|d|, that the numbers add up to which make a channel's result; 9 of the direct sum.

        Examples
        --------
        >>> Winograd(2).amplification
        64.0
        """
        bt, g, at = (np.abs(matrix) for matrix in transforms(self.tile))
        return float((at @ (g.sum(1) * bt.sum(1))).max() ** 2)

    def error_bound(self, x: Any, w: Any, padding: Any = 0) -> np.ndarray:
        """The most that each result, without bias, can be off by, of one group.

        A number meets at most m + 2 roundings in each of four passes of a transform, one where its filter was rounded,
        and one for each of C channels: with q = C + 4 (m + 2) + 1, u = 2^-24 and gamma = q u / (1 - q u),

            |error| <= gamma |A|^T [ sum over c of |G g_c G^T| * (|B|^T |d_c| |B|) ] |A|

        unless something overflows or is subnormal.

        Parameters
        ----------
        x : array_like of shape (images, channels, rows, columns)
        w : array_like of shape (outputs, channels, 3, 3)
        padding : int or (int, int)

        Returns
        -------
        ndarray of float64, as `conv2d` returns
        """
        images, filters = (np.abs(as_array(a, name, ndim=4, dtype=np.float32)) for a, name in ((x, "x"), (w, "w")))
        top, left = pair(padding, "padding", 0)
        images = np.pad(images, [(0, 0), (0, 0), (top, top), (left, left)])
        bt, _, at = (np.abs(matrix) for matrix in transforms(self.tile))
        u = np.abs(self.transformed(as_array(w, "w", dtype=np.float32)))
        terms = (filters.shape[1] + 4 * len(bt) + 1) * 2.0**-24
        identity = np.eye(len(bt))
        bounds = [_by_tiles(image, u, self.tile, bt, identity, at) for image in images]
        return np.array(bounds) * terms / (1 - terms)

    def effective_macs(self, channels: int, outputs: int, kernel: tuple[int, int], shape: tuple[int, int]) -> int:
        """Multiplications of the products between the transforms, for one image."""
        tiles = -(-shape[0] // self.tile) * -(-shape[1] // self.tile)
        return (self.tile + 2) ** 2 * channels * outputs * tiles

    def transformed(self, w: np.ndarray) -> np.ndarray:
        """G g G^T of every filter: (outputs, channels, m + 2, m + 2), in float64."""
        g = transforms(self.tile)[1]
        return g @ w.astype(np.float64) @ g.T

    def _permits(self, kernel: Any, stride: Any, dilation: Any) -> str | None:
        if tuple(kernel) != (3, 3):
            return f"w: expected 3 x 3 filters, for which the transforms are, got {kernel[0]} x {kernel[1]}"
        if tuple(stride) != (1, 1) or tuple(dilation) != (1, 1):
            return (
                f"stride, dilation: expected 1, got {tuple(stride)}, {tuple(dilation)}: a tile's results are neighbours"
            )
        return None

    def _form(self, w: np.ndarray) -> Any:
        if w.shape[2:] != (3, 3):
            raise ValueError(self._permits(w.shape[2:], (1, 1), (1, 1)))
        outputs, channels = w.shape[:2]
        places, blocks = (self.tile + 2) ** 2, -(-outputs // WIDE)
        packed = _aligned(blocks * places * channels * WIDE)
        by_block = packed.reshape(blocks, places, channels, WIDE)
        for k in range(blocks):
            u = self.transformed(w[k * WIDE : (k + 1) * WIDE])
            by_block[k, :, :, len(u) :] = 0
            by_block[k, :, :, : len(u)] = u.reshape(len(u), channels, places).transpose(2, 1, 0)
        packed.flags.writeable = False
        return _Form(packed, outputs)

    def _apply(self, image: np.ndarray, form: Any, geometry: Geometry) -> np.ndarray:
        y = (np.empty if len(image) else np.zeros)((form.outputs, *geometry.shape), np.float32)
        if y.size and len(image):
            rows, *sizes = _blocking(self.tile, len(image), geometry.shape)
            _kernel(self.tile)(image, geometry.padding, form.packed, y, rows, *[_aligned(size) for size in sizes])
        return y


@dataclass(frozen=True, eq=False)
class _Form:
    """Filters as the products read them: blocks of WIDE, places, channels, and in each the filters of the block."""

    packed: np.ndarray
    outputs: int

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


def _aligned(size: int) -> np.ndarray:
    """An empty float32 array that begins with a cache line, so that no vector of it straddles two."""
    memory = np.empty(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size]


@lru_cache(maxsize=256)
def _blocking(m: int, channels: int, shape: tuple[int, int]) -> tuple[int, ...]:
    """Rows of tiles that are worked on at once, and the sizes of what they need: image, transforms, products, results.

    A tile's vectors lie side by side, one more than there are places: where that is odd, tiles fall into different sets
    of a cache.
    """
    down, across = -(-shape[0] // m), -(-shape[1] // m)
    places, vectors = (m + 2) ** 2, -(-channels // LANES)

    def sizes(rows: int) -> tuple[int, ...]:
        tiles = rows * across + FEW
        return (
            (rows * m + 2) * (across * m + 2) * LANES + LANES * LANES,
            vectors * tiles * (places + 1) * LANES,
            tiles * (places * WIDE + LANES),
            (rows * m * shape[1] + m + LANES) * WIDE,
        )

    most = max((rows for rows in range(1, down + 1) if 4 * sum(sizes(rows)) <= BLOCK_BYTES), default=1)
    rows = -(-down // -(-down // most))  # blocks of equal height
    return rows, *sizes(rows)


# --- transforms in registers ---------------------------------------------------------------------------------------


def _combine(builder: Any, matrix: np.ndarray, x: list[Any]) -> list[Any]:
    """The vectors matrix @ x; neighbours that are each other's mirror share what is even and what is odd in them."""
    matrix, x, results = matrix.copy(), list(x), []
    kind = x[0].type
    signature = ir.FunctionType(kind, [kind] * 3)
    fma = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{kind.count}f32")

    def total(row: np.ndarray) -> Any:
        terms = sorted(((c, v) for c, v in zip(row, x, strict=True) if c), key=lambda term: term[0] != 1)
        (first, vector), *rest = terms
        found = vector if first == 1 else builder.fmul(ir.Constant(kind, [float(first)] * kind.count), vector)
        for c, v in rest:
            if abs(c) == 1:
                found = (builder.fadd if c == 1 else builder.fsub)(found, v)
            else:
                found = builder.call(fma, [ir.Constant(kind, [float(c)] * kind.count), v, found])
        return found

    for j in range(1, len(x) - 1, 2):
        a, b = matrix[:, j], matrix[:, j + 1]
        if _mirrored(a, b):
            x[j], x[j + 1] = builder.fadd(x[j], x[j + 1]), builder.fsub(x[j], x[j + 1])
            matrix[:, j], matrix[:, j + 1] = (a + b) / 2, (a - b) / 2
    i = 0
    while i < len(matrix):
        if i + 1 < len(matrix) and _mirrored(*matrix[i : i + 2]):
            even, odd = total((matrix[i] + matrix[i + 1]) / 2), total((matrix[i] - matrix[i + 1]) / 2)
            results += [builder.fadd(even, odd), builder.fsub(even, odd)]
            i += 2
        else:
            results.append(total(matrix[i]))
            i += 1
    return results


def _mirrored(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(np.abs(a), np.abs(b)) and np.any(a * b > 0) and np.any(a * b < 0))


@intrinsic(prefer_literal=True)
def _transform(typingctx, size, n, x, i, down, across, y, j, down_y, across_y):
    """Write M X M^T, of size x size vectors, from y[j] on, X being the n x n vectors from x[i] on.

    M is B^T where the size is n, else A^T. Steps are those from row to row and from column to column.
    """
    m, count = size.literal_value, n.literal_value
    bt, _, at = transforms(count - 2)
    matrix = bt if m == count else at

    def build(context, builder, sig, args):
        kind = ir.VectorType(ir.FloatType(), LANES)

        def at_places(array, value, first, steps, rows):
            data = context.make_array(array)(context, builder, value).data
            for r in range(rows):
                for c in range(rows):
                    index = first
                    for step, times in zip(steps, (r, c), strict=True):
                        index = builder.add(index, builder.mul(step, ir.Constant(step.type, times)))
                    yield builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

        vectors = [builder.load(place, align=4) for place in at_places(x, args[2], args[3], args[4:6], count)]
        rows = [_combine(builder, matrix, vectors[r * count : (r + 1) * count]) for r in range(count)]
        columns = [_combine(builder, matrix, [row[c] for row in rows]) for c in range(m)]
        for k, place in enumerate(at_places(y, args[6], args[7], args[8:10], m)):
            builder.store(columns[k % m][k // m], place, align=4)
        return context.get_dummy_value()

    return types.void(size, n, x, *[types.intp] * 3, y, *[types.intp] * 3), build


# --- the loops -----------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _lay(x, channel, left, first, rows, width, planes, square):
    """Lay out rows of LANES channels with zeros around them, pixel by pixel, `width` pixels a row.

    Pixels are taken LANES at a time; what reaches over the end of a row is overwritten by what comes after it. Lanes
    beyond the last channel hold whatever the image goes on with: nothing multiplies them.
    """
    channels, height, wide = x.shape
    plane, flat = height * wide, x.reshape(-1)
    for row in range(rows):
        line, r = row * width * LANES, first + row
        inside = 0 <= r < height
        for c in range(left if inside else width):
            store(zero(LANES), planes, line + c * LANES)
        if inside:
            for c in range(0, wide, LANES):
                at = channel * plane + r * wide + c
                if at + (LANES - 1) * plane + LANES <= flat.size:
                    pixels = tile_load(flat, at, plane, LANES, 1, LANES)
                else:
                    for k in range(min(LANES, channels - channel)):
                        for p in range(min(LANES, wide - c)):
                            square[k * LANES + p] = flat[at + k * plane + p]
                    pixels = tile_load(square, 0, LANES, LANES, 1, LANES)
                tile_store(tile_transpose(pixels), planes, line + (left + c) * LANES, LANES)
            for c in range(left + wide, width):
                store(zero(LANES), planes, line + c * LANES)


@njit(cache=True, nogil=True)
def _deliver(results, count, y, output, first, square):
    """Write `count` pixels of at most WIDE outputs, from a pixel on: channels innermost become channels outermost."""
    outputs, plane, flat = y.shape[0], y.shape[1] * y.shape[2], y.reshape(-1)
    for h in range(0, min(WIDE, outputs - output), LANES):
        for start in range(0, count, LANES):
            s = max(0, min(start, count - LANES))
            pixels = tile_transpose(tile_load(results, s * WIDE + h, WIDE, LANES, 1, LANES))
            at = (output + h) * plane + first + s
            if s + LANES <= count and output + h + LANES <= outputs:
                tile_store(pixels, flat, at, plane)
            else:
                tile_store(pixels, square, 0, LANES)
                for k in range(min(LANES, outputs - output - h)):
                    for p in range(min(LANES, count - s)):
                        flat[at + k * plane + p] = square[k * LANES + p]


@lru_cache(maxsize=8)
def _kernel(m: int) -> Callable[..., None]:
    n = m + 2
    places = n * n
    tile_step, product_step = (places + 1) * LANES, places * WIDE + LANES

    @njit(cache=True, nogil=True)
    def winograd(x, padding, u, y, block, planes, v, products, results):
        """Convolve x (channels, height, width) into y (outputs, rows, columns), `block` rows of tiles at a time."""
        channels = x.shape[0]
        outputs, high, wide = y.shape
        down, across = (high + m - 1) // m, (wide + m - 1) // m
        width, vector_step = across * m + 2, (block * across + FEW) * tile_step
        square = np.zeros(LANES * LANES, np.float32)
        for first in range(0, down, block):
            here = min(block, down - first)
            tiles = here * across
            for c in range(0, channels, LANES):
                _lay(x, c, padding[1], first * m - padding[0], here * m + 2, width, planes, square)
                for t in range(tiles):
                    corner = (t // across * width + t % across) * m * LANES
                    at = c // LANES * vector_step + t * tile_step
                    _transform(n, n, planes, corner, width * LANES, LANES, v, at, n * LANES, LANES)
            for k in range(0, outputs, WIDE):
                for place in range(places):
                    filters = (k // WIDE * places + place) * channels * WIDE
                    whole = tiles - tiles % ROWS
                    for t in range(0, whole, ROWS):
                        tile = tile_zero(ROWS, 2, LANES)
                        for c in range(0, channels, LANES):
                            at = c // LANES * vector_step + t * tile_step + place * LANES
                            for lane in range(min(LANES, channels - c)):
                                right = filters + (c + lane) * WIDE
                                tile = tile_fma(tile, v, at + lane, tile_step, u, right)
                        tile_store(tile, products, t * product_step + place * WIDE, product_step)
                    for t in range(whole, tiles, FEW):
                        few = tile_zero(FEW, 2, LANES)
                        for c in range(0, channels, LANES):
                            at = c // LANES * vector_step + t * tile_step + place * LANES
                            for lane in range(min(LANES, channels - c)):
                                right = filters + (c + lane) * WIDE
                                few = tile_fma(few, v, at + lane, tile_step, u, right)
                        tile_store(few, products, t * product_step + place * WIDE, product_step)
                # Results lie without margins. A tile that reaches over the end of a row writes into the next one, which
                # is written after it: rows rise and columns fall.
                for i in range(here):
                    for j in range(across - 1, -1, -1):
                        for h in range(0, min(WIDE, outputs - k), LANES):
                            at = (i * across + j) * product_step + h
                            to = (i * wide + j) * m * WIDE + h
                            _transform(m, n, products, at, n * WIDE, WIDE, results, to, wide * WIDE, WIDE)
                _deliver(results, min(here * m, high - first * m) * wide, y, k, first * m * wide, square)

    return winograd
