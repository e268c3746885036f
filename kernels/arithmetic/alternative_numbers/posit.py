r"""Posit: a float whose exponent is written in unary, so that numbers near one get more fraction bits.

A posit of n bits is sign, *regime* (a run of equal bits and its end), `es` exponent bits, fraction; what the regime
leaves is used, what does not fit is cut. With useed = 2^(2^es), a run of m zeros means k = -m, of m ones k = m - 1, and

    x = (-1)^s useed^k 2^e (1 + f)          a negative posit is the two's complement of its magnitude;
                                            0...0 is zero, 10...0 is NaR, "not a real"

Rounding goes to the nearest code: between two neighbours of n bits the posit of n + 1 bits decides, and a number equal
to it goes to the even code. Beyond the largest posit it stays there, and a number that is not zero never becomes zero.
NaN and infinities become NaR, which is NaN as a float.

SoftPosit and the work of 2017 take es = 0, 1, 2 for 8, 16, 32 bits; the standard of 2022 takes es = 2 for all.

Source: J. Gustafson and I. Yonemoto, "Beating floating point at its own game: posit arithmetic", 2017, section 2;
for rounding, Posit Working Group, "Standard for Posit Arithmetic (2022)".

Examples
--------
>>> Posit(bits=16, es=1).round(np.array([3.14159265, 1e9, -1e-12]))
array([ 3.1416016e+00,  2.6843546e+08, -3.7252903e-09], dtype=float32)
>>> Posit(bits=4, es=0).values()[7:]
array([0.  , 0.25, 0.5 , 0.75, 1.  , 1.5 , 2.  , 4.  ])
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from kernels.arithmetic.bits import cast, shift_left, shift_right, width
from kernels.arithmetic.number_format import NumberFormat

__all__ = ["Posit", "posit_round", "posit_value"]


def posit_value(code: int, bits: int, es: int) -> float:
    """The paper's equation for one code.

    Parameters
    ----------
    code : int
        From 0 to 2^bits - 1.
    bits, es : int
        Width and exponent bits.

    Returns
    -------
    float
        Exact in float64; NaN for NaR.

    Examples
    --------
    >>> posit_value(0b0_0001_101_11011101, bits=16, es=3)         # the example of the paper
    3.553926944732666e-06
    """
    sign = code >> (bits - 1)
    if code == sign << (bits - 1):
        return np.nan if sign else 0.0
    body = (1 << bits) - code if sign else code
    first, run = (body >> (bits - 2)) & 1, 1
    while run < bits - 1 and (body >> (bits - 2 - run)) & 1 == first:
        run += 1
    k = run - 1 if first else -run
    left = max(bits - 2 - run, 0)  # bits after the regime's end
    tail = (body & ((1 << left) - 1)) << es  # exponent bits that were cut read as zeros
    e, f = tail >> left, (tail & ((1 << left) - 1)) / (1 << left)
    return (-1.0) ** sign * 2.0 ** (k * (1 << es) + e) * (1 + f)


def posit_round(x: np.ndarray, bits: int, es: int) -> np.ndarray:
    """The standard's rounding, said with tables of all posits; slow, for at most 16 bits.

    Parameters
    ----------
    x : ndarray of floats
    bits, es : int

    Returns
    -------
    ndarray of float64
    """
    positive = np.arange(1, 2 ** (bits - 1))
    grid = np.array([posit_value(int(code), bits, es) for code in positive])
    between = np.array([posit_value(2 * int(code) + 1, bits + 1, es) for code in positive[:-1]])
    below = np.searchsorted(between, np.abs(x), side="left")  # index of the posit that x goes to, ties downwards
    tie = (below < len(between)) & (np.append(between, np.nan)[below] == np.abs(x))
    nearest = grid[below + (tie & (positive[below] % 2 == 1))]
    return np.where(np.isfinite(x), np.where(x == 0, 0.0, np.copysign(nearest, x)), np.nan)


@dataclass(frozen=True)
class Posit(NumberFormat):
    """Posits of any width from 2 to 32 bits: x = (-1)^s useed^k 2^e (1 + f), useed = 2^(2^es).

    Parameters
    ----------
    bits : int
        Width of a code, 2 to 32.
    es : int
        Exponent bits, 0 to 4. More of them widen the range and take from the fraction.

    Notes
    -----
    Results are float32 where its normal numbers hold every posit and every midpoint, else float64 (posit 32).

    Source: Gustafson and Yonemoto 2017, section 2; rounding as in the standard of 2022.

    Examples
    --------
    >>> Posit(bits=8, es=0).encode(np.float32([1, -1, 0.3, np.inf])).codes
    array([ 64, 192,  19, 128], dtype=uint8)
    """

    bits: int = 16
    es: int = 1

    def __post_init__(self) -> None:
        if self.bits not in range(2, 33):
            raise ValueError(f"bits: expected an integer from 2 to 32, got {self.bits!r}")
        if self.es not in range(5):
            raise ValueError(f"es: expected an integer from 0 to 4, got {self.es!r}")

    @property
    def dtype(self) -> type[np.floating]:
        """float32 where its normal numbers hold every posit, with two bits to spare, else float64."""
        fits = self.bits - 3 - self.es <= 21 and (self.bits - 2) << self.es <= 126
        return np.float32 if fits else np.float64

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        _round(_patterns(numbers), _patterns(out), self.bits, self.es)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        _encode(_patterns(numbers), codes, self.bits, self.es)

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        _decode(codes, out, self.bits, self.es)


def _patterns(x: np.ndarray) -> np.ndarray:
    return x.view(np.int32 if x.dtype == np.float32 else np.int64)


_posit_value = njit(cache=True, nogil=True)(posit_value)


@njit(cache=True, nogil=True)
def _decode(codes, out, bits, es):
    for i in range(codes.size):
        out[i] = _posit_value(np.int64(codes[i]), bits, es)


# A float's pattern without its bias is scale and mantissa side by side, 2^mantissa log2(x) drawn with straight lines;
# so is a posit's code, cut at a place that its regime decides. Between neighbouring codes the pattern grows by 2^cut,
# and rounding to the nearest code is rounding the pattern, an integer, to a multiple of 2^cut.
#
# What is shifted or compared is cast to the pattern's own width first, or half the lanes of a register would be lost.


@njit(cache=True, nogil=True)
def _layout(pattern):
    """Of floats with such patterns: mantissa bits, the sign's mask, infinity and the exponent's bias."""
    mantissa = 23 if width(pattern) == 32 else 52
    sign = shift_left(cast(1, pattern), width(pattern) - 1)
    infinity = cast((~sign >> mantissa) << mantissa, pattern)
    bias = cast((infinity >> (mantissa + 1)) << mantissa, pattern)
    return mantissa, sign, infinity, bias


@njit(cache=True, nogil=True)
def _nearest(p, bits, unit):
    """The pattern, bias removed, of the posit nearest to a positive float; `unit` bits of it stand below the regime."""
    smallest = shift_left(cast(2 - bits, p), unit)
    below_largest = cast(shift_left(cast(bits - 2, p), unit) - 1, p)  # rounds up to the largest, and is cut as it is
    p = max(min(p, below_largest), smallest)
    k = shift_right(p, unit)
    run = cast(k ^ (k >> 63), p)  # k or, below 1, -k - 1: the regime's length less two
    cut = cast(run + (unit + 3 - bits), p)
    # A tie goes to the even code. Its last bit is the pattern's, except where the code ends with its regime: in 0 for
    # k >= 0, in 1 for k < 0. Only there k's own last bit is looked at: right for odd widths, flipped for even ones.
    flip = shift_left(cast((bits & 1) ^ 1, p), unit)
    last = shift_right(cast(p ^ flip, p), cut) & 1
    step = shift_left(cast(1, p), cut)
    return cast((p + (step >> 1) - 1 + last) & -step, p)


@njit(cache=True, nogil=True)
def _round(source, target, bits, es):
    mantissa, sign, infinity, bias = _layout(source.dtype.type(0))
    nan = infinity | (infinity >> 1)
    for i in range(source.size):
        magnitude = cast(source[i] & ~sign, sign)
        rounded = (_nearest(cast(magnitude - bias, sign), bits, mantissa + es) + bias) | (source[i] & sign)
        rounded = rounded if magnitude != 0 else 0
        target[i] = rounded if magnitude < infinity else nan


@njit(cache=True, nogil=True)
def _encode(source, codes, bits, es):
    mantissa, sign, infinity, bias = _layout(source.dtype.type(0))
    unit = mantissa + es
    for i in range(source.size):
        magnitude = cast(source[i] & ~sign, sign)
        p = _nearest(cast(magnitude - bias, sign), bits, unit)
        k = shift_right(p, unit)
        left = cast(bits - 3 - (k ^ (k >> 63)), p)  # bits after the regime's end, -1 where it has none
        one = cast(1, p)
        ones = shift_left(cast(shift_left(one, max(k, cast(-1, p)) + 1) - 1, p), left + 1)
        regime = ones if k >= 0 else shift_left(one, max(left, cast(0, p)))
        code = regime | shift_right(cast(p & (shift_left(one, unit) - 1), p), unit - left)
        code = -code if source[i] < 0 else code
        code = code if magnitude != 0 else 0
        codes[i] = (code if magnitude < infinity else 1 << (bits - 1)) & ((1 << bits) - 1)
