r"""NormalFloat (NF4): sixteen levels at the quantiles of a normal distribution, times a block's largest magnitude.

Weights of a trained layer are nearly normal. Levels at evenly spaced quantiles are then used equally often, each
carrying four bits of information. With Φ^-1 the quantile function and p_i evenly spaced from 1 - d to 1/2 on the
negative side (seven steps) and from 1/2 to d on the positive one (eight), d = (1 - 1/32 + 1 - 1/30) / 2,

    q_i = Φ^-1(p_i) / Φ^-1(d),        x_i = s q_(c_i),        s = max |x| over 64 neighbours

so that zero is a level, and so are -1 and 1. A number goes to the nearest level, a tie to the lower one.

*Double quantization* stores the scales themselves in eight bits: their mean is subtracted, each block of 256 is divided
by its largest magnitude, and the nearest of 256 fixed values is taken, which are finer near zero ("dynamic tree"). That
takes the price of scales from 32/64 to 8/64 + 32/(64 · 256) bits a weight. Codes are chosen before, by the exact
scale; a scale that would decode to less than zero is zero.

A block with a NaN or an infinity becomes NaN; with double quantization, so do all 256 blocks of its group, since eight
bits have no code for it.

Source: T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
section 3, appendix E; the levels are those of the authors' library, bitsandbytes, and the 256 values are built as it
builds them, equal but for rounding.

Examples
--------
>>> form = NormalFloat(double_quantization=False)
>>> form.round(np.float32([2.0, 0.4, -0.1, 0.01]))                      # 2 times a level
array([ 2.        ,  0.3218604 , -0.18210007,  0.        ], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numba import njit

from kernels.arithmetic.block_format import BlockFormat, decode_by_table, in_blocks, same_order

__all__ = ["LEVELS", "NormalFloat", "double_quantize", "dynamic_tree", "normal_float_round"]

LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""The paper's q_i, as float32."""
MIDDLES = (LEVELS[:-1].astype(np.float64) + LEVELS[1:]) / 2
"""Halfway between neighbours: of at most 26 bits, so that a float32 times one is exact in float64."""
BELOW = np.searchsorted(MIDDLES, np.linspace(-1, 1, 33)[:-1]).astype(np.int64)
"""How many middles lie below each of 32 cells between -1 and 1."""
WITHIN = np.append(MIDDLES, np.inf)[BELOW]
"""The middle in a cell, or the next one above it."""
HIGHEST = float(np.finfo(np.float32).max)
GROUP = 256
"""Scales that share a second scale."""


@lru_cache(maxsize=1)
def dynamic_tree() -> np.ndarray:
    """The 256 values that scales are rounded to: seven decades, each a bit finer than the one below; zero, and one.

    Returns
    -------
    ndarray of float32, ascending

    Source
    ------
    T. Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2015, section 2.

    Examples
    --------
    >>> len(dynamic_tree()), [f"{value:.3g}" for value in dynamic_tree()[[0, 127, 128, 255]]]
    (256, ['-0.993', '0', '5.5e-07', '1'])
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2**decade + 1)
        positive = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        values += [*positive, *-positive]
    tree = np.sort(np.array(values, np.float32))
    tree.setflags(write=False)
    return tree


def double_quantize(scales: np.ndarray) -> np.ndarray:
    """Scales as they come back from eight bits: relative to their mean, in groups of 256 with a scale of their own.

    Parameters
    ----------
    scales : ndarray of float32, shape (blocks,)

    Returns
    -------
    ndarray of float32, shape (blocks,)
        None below zero; NaN for all of a group in which one is not finite.
    """
    finite = np.isfinite(scales)
    mean = np.float32(scales[finite].mean(dtype=np.float64) if finite.any() else 0)
    groups = in_blocks(scales - mean, GROUP)[0].astype(np.float32)
    second = np.abs(groups).max(axis=1, keepdims=True)
    tree = dynamic_tree().astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        codes = np.searchsorted((tree[:-1] + tree[1:]) / 2, np.where(second > 0, groups / np.float64(second), 0.0))
        back = np.float32(tree[codes]) * second + mean
    back = np.where(np.isfinite(second), np.maximum(back, 0), np.float32(np.nan))
    return back.reshape(-1)[: scales.size]


def normal_float_round(x: np.ndarray, block: int = 64, double_quantization: bool = True) -> np.ndarray:
    """The plain statement: each number to the level nearest to x / s, times s.

    Parameters
    ----------
    x : ndarray of float32, any shape
    block : int
    double_quantization : bool

    Returns
    -------
    ndarray of float32
    """
    blocks = in_blocks(x, block)
    exact = np.abs(blocks).max(axis=-1, keepdims=True, initial=0)
    scales = np.where(np.isfinite(exact), exact, np.nan).astype(np.float32)
    if double_quantization:
        scales = double_quantize(scales.reshape(-1)).reshape(scales.shape)
    with np.errstate(invalid="ignore"):
        codes = np.sum(blocks[..., None] > np.where(exact > 0, exact, 1)[..., None] * MIDDLES, axis=-1)
        return same_order(LEVELS[codes] * scales, np.shape(x))


@dataclass(frozen=True)
class NormalFloat(BlockFormat):
    """NF4, x_i = s q_(c_i): a code is the number of one of sixteen levels q, a scale is the block's largest magnitude.

    Parameters
    ----------
    block : int
        Numbers of a row that share a scale.
    double_quantization : bool
        Whether scales are stored in eight bits (with a float32 for each 256 of them, and one for their mean), else in
        float32. `encode` gives the scales as they come back.

    Notes
    -----
    Source: Dettmers et al. 2023, section 3.

    Examples
    --------
    >>> encoded = NormalFloat(double_quantization=False).encode(np.float32([2.0, 0.4, -0.1, 0.01]))
    >>> encoded.codes, encoded.scales
    (array([15,  9,  6,  7], dtype=uint8), array([2.], dtype=float32))
    >>> [NormalFloat(double_quantization=double).stored_bits((2**20,)) / 2**20 for double in (False, True)]
    [4.5, 4.126983642578125]
    """

    block: int = 64
    double_quantization: bool = True
    bits = 4
    narrows = False

    def __post_init__(self) -> None:
        if not (isinstance(self.block, int) and self.block >= 1):
            raise ValueError(f"block: expected a positive integer, got {self.block!r}")

    @property
    def together(self) -> bool:
        """Whether a scale depends on more than its own block: doubly quantized, on the mean of all."""
        return self.double_quantization

    @property
    def scale_bits(self) -> int:  # type: ignore[override]
        """Bits of a block's own scale, what it shares with others not counted."""
        return 8 if self.double_quantization else 32

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits that an array of this shape takes: codes, scales, and with double quantization the scales of those."""
        shared = 0
        if self.double_quantization and 0 not in shape:
            shared = 32 * (-(-prod(self.scales_shape(shape)) // GROUP) + 1)
        return super().stored_bits(shape) + shared

    def element_values(self) -> np.ndarray:
        """The sixteen levels."""
        return LEVELS.astype(np.float64)

    def _settle(self, largest: np.ndarray, scales: np.ndarray) -> None:
        with np.errstate(invalid="ignore"):
            scales[:] = np.where(np.isfinite(largest), np.minimum(largest, HIGHEST), np.nan)
        if self.double_quantization:
            scales[:] = double_quantize(scales)

    def _round_blocks(self, numbers, out, row, block, largest, scales) -> None:
        _round(numbers, out, row, block, largest, scales, LEVELS, BELOW, WITHIN)

    def _encode_blocks(self, numbers, codes, row, block, largest, scales) -> None:
        _encode(numbers, codes, row, block, largest, BELOW, WITHIN)

    def _decode_blocks(self, codes, out, row, block, scales) -> None:
        decode_by_table(codes, out, row, block, scales, LEVELS)


# Between -1 and 1 lie 32 cells of equal width, each with one middle at most, and no middle near an edge. So the cell of
# x / s, found by a product that rounds, tells which middle x is to be compared with; that comparison is exact.


@njit(cache=True, nogil=True, inline="always")
def _top(largest):
    """The scale of a block as float32, in float64; one where it is zero, and every number as good as zero."""
    top = np.float64(np.float32(largest))
    top = top if top < HIGHEST else HIGHEST
    return top if top > 0 else 1.0


@njit(cache=True, nogil=True, inline="always")
def _code(x, top, inverse, below, within):
    number = np.float64(x)
    place = number * inverse + 16.0
    place = place if place < 31.0 else 31.0  # NaN, whose scale is NaN, as well
    place = place if place > 0.0 else 0.0
    cell = np.uint64(np.int64(place))
    return np.uint64(below[cell] + np.int64(number > top * within[cell]))


@njit(cache=True, nogil=True)
def _round(x, out, row, block, largest, scales, levels, below, within):
    at = 0
    for start in range(0, x.size, row):
        end = min(start + row, x.size)
        for first in range(start, end, block):
            stop = min(first + block, end)
            numbers, rounded = x[first:stop], out[first:stop]
            top, scale = _top(largest[at]), scales[at]
            inverse = 16.0 / top
            at += 1
            for i in range(numbers.size):
                rounded[i] = levels[_code(numbers[i], top, inverse, below, within)] * scale


@njit(cache=True, nogil=True)
def _encode(x, codes, row, block, largest, below, within):
    at = 0
    for start in range(0, x.size, row):
        end = min(start + row, x.size)
        for first in range(start, end, block):
            stop = min(first + block, end)
            numbers, own = x[first:stop], codes[first:stop]
            top = _top(largest[at])
            inverse = 16.0 / top
            at += 1
            for i in range(numbers.size):
                own[i] = _code(numbers[i], top, inverse, below, within)
