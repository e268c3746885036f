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

from kernels.arithmetic.bits import shift_left, shift_right
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

    def _round(self, numbers: np.ndarray, out: np.ndarray) -> None:
        (_round32 if self.dtype is np.float32 else _round64)(numbers, out, self.bits, self.es)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray) -> None:
        (_encode32 if self.dtype is np.float32 else _encode64)(numbers, codes, self.bits, self.es)

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        _decode(codes, out, self.bits, self.es)


_posit_value = njit(cache=True)(posit_value)


@njit(cache=True)
def _decode(codes, out, bits, es):
    for i in range(codes.size):
        out[i] = _posit_value(np.int64(codes[i]), bits, es)


def _kernels(Int, mantissa):
    """Rounding and encoding on the patterns of floats with so many mantissa bits, read as integers of type `Int`.

    A float's pattern without its bias is scale and mantissa side by side, 2^mantissa log2(x) drawn with straight lines;
    so is a posit's code, cut at a place that its regime decides. Between neighbouring codes the pattern grows by 2^cut,
    and rounding to the nearest code is rounding the pattern, an integer, to a multiple of 2^cut.

    What is shifted or compared is cast to `Int` first: numba would widen it to 64 bits, and half the lanes be lost.
    """
    sign = Int(np.iinfo(Int).min)
    magnitude = Int(~sign)
    infinity = Int(magnitude >> mantissa << mantissa)
    nan = Int(infinity | 1 << (mantissa - 1))
    bias = Int((infinity >> mantissa >> 1) << mantissa)
    one = Int(1)

    @njit(cache=True)
    def nearest(pattern, bits, es):
        """The pattern, bias removed, of the nearest posit to a positive float."""
        unit = mantissa + es  # regime k, then so many bits of exponent and mantissa
        smallest = shift_left(Int(2 - bits), unit)
        below_largest = Int(shift_left(Int(bits - 2), unit) - 1)  # which rounds up to the largest, and is cut as it is
        p = max(min(Int(pattern - bias), below_largest), smallest)
        k = shift_right(p, unit)
        run = Int(k ^ (k >> 63))  # k or, below 1, -k - 1: the regime's length less two
        cut = Int(run + (unit + 3 - bits))
        # A tie goes to the even code. Its last bit is the pattern's, except where the code ends with its regime: in
        # 0 for k >= 0, in 1 for k < 0. Only there k's own last bit is looked at: right for odd widths, else flipped.
        flip = shift_left(Int(bits & 1 ^ 1), unit)
        last = Int(shift_right(Int(p ^ flip), cut) & 1)
        step = shift_left(one, cut)
        return Int((p + (step >> 1) - 1 + last) & -step)

    @njit(cache=True)
    def round_chunk(x, out, bits, es):
        source, target = x.view(Int), out.view(Int)
        for i in range(source.size):
            m = Int(source[i] & magnitude)
            rounded = Int((nearest(m, bits, es) + bias) | (source[i] & sign))
            rounded = Int(0) if m == 0 else rounded
            target[i] = nan if m >= infinity else rounded

    @njit(cache=True)
    def encode_chunk(x, codes, bits, es):
        source = x.view(Int)
        unit = mantissa + es
        for i in range(source.size):
            m = Int(source[i] & magnitude)
            p = nearest(m, bits, es)
            k = shift_right(p, unit)
            left = Int(bits - 3 - (k ^ (k >> 63)))  # bits after the regime's end, -1 where it has none
            ones = shift_left(Int(shift_left(one, Int(max(k, Int(-1)) + 1)) - 1), Int(left + 1))
            regime = ones if k >= 0 else shift_left(one, max(left, Int(0)))
            code = Int(regime | shift_right(Int(p & (shift_left(one, unit) - 1)), Int(unit - left)))
            code = Int(-code) if source[i] < 0 else code
            code = Int(0) if m == 0 else code
            code = shift_left(one, bits - 1) if m >= infinity else code
            codes[i] = code & ((1 << bits) - 1)

    return round_chunk, encode_chunk


_round32, _encode32 = _kernels(np.int32, 23)
_round64, _encode64 = _kernels(np.int64, 52)
