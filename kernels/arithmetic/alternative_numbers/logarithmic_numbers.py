r"""Logarithmic numbers: sign and fixed-point logarithm, so that multiplying is adding, and adding needs a table.

With b bits, F of them behind the binary point of the logarithm, and an exponent E shared by a tensor,

    x = (-1)^s 2^(E + (c - L) / 2^F),      1 <= c <= L = 2^(b - 1) - 1;        c = 0 is zero

so that 2^E is the largest number. Rounding goes to the nearest logarithm, c = L + round(2^F (log2 |x| - E)), which
never ties: no float lies halfway between two logarithms. Beyond the largest number it stays there, infinities too;
below half of the smallest it is zero. A NaN is refused.

Products and sums are computed on codes, in integers. With k = 2^F log2 |x|, and d = |k1 - k2| for two numbers,

    multiply    k1 + k2                                signs are multiplied
    add         max(k1, k2) + 2^F log2(1 + 2^(-d / 2^F))           equal signs
                max(k1, k2) + 2^F log2(1 - 2^(-d / 2^F))           opposite signs, that of the larger; zero where d = 0

The two functions of d are tables, one entry a code, which makes every sum the nearest there is; or fewer entries, every
2^-ceil(F / 2) in the logarithm, with straight lines between them, which `largest_error` bounds.

Source: D. Miyashita et al., "Convolutional Neural Networks using Logarithmic Data Representation", 2016, section 3, for
the format; J. Zhao et al., "LNS-Madam: Low-Precision Training in Logarithmic Number System using Multiplicative Weight
Update", 2021, for fractions of the exponent. The sums are those of every logarithmic number system.

Examples
--------
>>> LogarithmicNumbers(bits=8, fraction_bits=3).round(np.float32([1.0, -0.7, 3.14159265, 1e-9]))
array([ 1.        , -0.70710677,  3.0844216 ,  0.        ], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import log
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.bits import cast, shift_right
from kernels.arithmetic.exponent_format import ExponentFormat
from kernels.arithmetic.number_format import Encoded
from kernels.arrays import describe

__all__ = ["METHODS", "LogarithmicNumbers", "logarithmic_round"]

METHODS = ("table", "interpolation")
GUARD = 8
"""Bits more than the code's that the knots of an interpolation keep."""


def logarithmic_round(x: np.ndarray, bits: int, fraction_bits: int, exponent: int) -> np.ndarray:
    """The plain statement, with logarithms in float64.

    Parameters
    ----------
    x : ndarray of floats
        No NaN.
    bits, fraction_bits, exponent : int
        b, F and E.

    Returns
    -------
    ndarray of float64

    Examples
    --------
    >>> logarithmic_round(np.array([1.0, -0.7, 0.0]), bits=8, fraction_bits=1, exponent=0)
    array([ 1.        , -0.70710678,  0.        ])
    """
    magnitude = np.abs(np.asarray(x, np.float64))
    largest = 2 ** (bits - 1) - 1
    with np.errstate(divide="ignore"):
        c = largest + np.rint(2**fraction_bits * (np.log2(magnitude) - exponent))
    value = np.exp2(exponent + (np.clip(c, 1, largest) - largest) / 2**fraction_bits)
    smallest = np.exp2(exponent + (1 - largest) / 2**fraction_bits)
    return np.where(magnitude < smallest / 2, 0.0, np.sign(x) * value)


@dataclass(frozen=True)
class LogarithmicNumbers(ExponentFormat):
    """Sign and logarithm, x = (-1)^s 2^(E + (c - L) / 2^F); a code is s and then c.

    Parameters
    ----------
    bits : int
        b, 3 to 16.
    fraction_bits : int
        F, from b - 8 (or 0) to b - 2 (or 12): 2^F values an octave. Without any they are powers of two.
    exponent : int, optional
        E, the logarithm of the largest number, set by `fit`; also that of the sums and products computed in the format.
        Without one, they take an exponent in which none saturates.

    Notes
    -----
    Decoded values are the float32 nearest to the power; a number of float64 is narrowed to float32 before its logarithm
    is taken.

    Source: Miyashita et al. 2016, section 3; Zhao et al. 2021.

    Examples
    --------
    >>> form = LogarithmicNumbers(bits=8, fraction_bits=3)
    >>> a, b = form.encode(np.float32([2.0, -0.5, 3.0])), form.encode(np.float32([0.5, 4.0, -3.0]))
    >>> a.codes
    array([119, 231, 124], dtype=uint8)
    >>> form.decode(form.multiply(a, b))
    array([ 1.      , -2.      , -9.513657], dtype=float32)
    >>> form.decode(form.add(a, b))
    array([2.5936792, 3.3635857, 0.       ], dtype=float32)
    """

    bits: int = 8
    fraction_bits: int = 3
    exponent: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in range(3, 17):
            raise ValueError(f"bits: expected an integer from 3 to 16, got {self.bits!r}")
        low, high = max(self.bits - 8, 0), min(self.bits - 2, 12)
        if self.fraction_bits not in range(low, high + 1):
            raise ValueError(f"fraction_bits: expected an integer from {low} to {high}, got {self.fraction_bits!r}")
        self._check_exponent()

    def _exponent_for(self, largest: float) -> int:
        """The smallest E with max |x| <= 2^E."""
        mantissa, exponent = np.frexp(largest)
        return int(exponent) - (mantissa == 0.5)

    def multiply(self, a: Encoded, b: Encoded) -> Encoded:
        """Products of encoded numbers, a sum of integers each: exact, where they do not leave the range.

        Parameters
        ----------
        a, b : Encoded
            Of this format, whatever their exponents, of shapes that broadcast.

        Returns
        -------
        Encoded
            With this format's exponent or, where it has none, the sum of the operands'.
        """
        (k1, s1, some1), (k2, s2, some2) = self._read(a, "a"), self._read(b, "b")
        own = self if self.exponent is not None else self._at(self._exponent(a) + self._exponent(b))
        return own._write(k1 + k2, s1 ^ s2, some1 & some2)

    def add(self, a: Encoded, b: Encoded, method: str = "table") -> Encoded:
        """Sums of encoded numbers.

        Parameters
        ----------
        a, b : Encoded
            Of this format, whatever their exponents, of shapes that broadcast.
        method : {"table", "interpolation"}
            With a table of every difference each sum is the nearest number of the format; interpolated, it errs by
            `largest_error` at most.

        Returns
        -------
        Encoded
            With this format's exponent or, where it has none, one more than the larger of the operands'.
        """
        plus, minus = self._functions(method)
        (k1, s1, some1), (k2, s2, some2) = self._read(a, "a"), self._read(b, "b")
        own = self if self.exponent is not None else self._at(max(self._exponent(a), self._exponent(b)) + 1)
        d, larger, sign = np.abs(k1 - k2), np.maximum(k1, k2), np.where(k1 >= k2, s1, s2)
        k = larger + np.where(s1 == s2, plus(d), minus(d))
        some = (s1 == s2) | (d != 0)
        k, sign, some = (
            np.where(some1 & some2, both, np.where(some1, first, second))
            for both, first, second in ((k, k1, k2), (sign, s1, s2), (some, some1, some2))
        )
        return own._write(k, sign, some)

    def subtract(self, a: Encoded, b: Encoded, method: str = "table") -> Encoded:
        """Differences of encoded numbers: `add` with the sign of `b` flipped."""
        _, _, some = self._read(b, "b")
        flipped = np.where(some, b.codes ^ self.code_dtype(2 ** (self.bits - 1)), 0).astype(self.code_dtype)
        return self.add(a, replace(b, codes=flipped), method)

    def largest_error(self, method: str = "table") -> float:
        """A bound of |log2(sum) - log2(exact sum)| for sums within the range.

        By table half a code, 2^-(F + 1). With lines between knots h apart, h^2 / 8 times the largest curvature more:
        that of log2(1 - 2^-d) at d = 1, 2 ln 2; and two roundings to GUARD bits below a code.

        Examples
        --------
        >>> [round(LogarithmicNumbers(16, 10).largest_error(method) * 2**10, 3) for method in METHODS]
        [0.5, 0.677]
        """
        self._functions(method)
        half = 0.5 / 2**self.fraction_bits
        if method == "table":
            return half
        h = 2.0 ** -((self.fraction_bits + 1) // 2)
        return half + h * h / 4 * log(2) + 2.0 ** -(self.fraction_bits + GUARD)

    def entries(self, method: str = "table") -> int:
        """How many numbers the tables of both functions hold."""
        self._functions(method)
        return sum(map(len, _tables(self.fraction_bits) if method == "table" else _knots(self.fraction_bits)))

    @property
    def _exponents(self) -> tuple[int, int]:
        """From the least by which half of the smallest number is a normal float32."""
        return -125 + -(-(2 ** (self.bits - 1) - 2) // 2**self.fraction_bits), 127

    def _functions(self, method: str) -> tuple[Any, Any]:
        if method not in METHODS:
            raise ValueError(f"method: expected {' or '.join(METHODS)}, got {method!r}")
        f = self.fraction_bits
        if method == "table":
            plus, minus = _tables(f)
            return lambda d: plus[np.minimum(d, len(plus) - 1)], lambda d: minus[np.minimum(d, len(minus) - 1)]
        plus, minus, near = _knots(f)
        return (
            lambda d: _interpolate(d, plus, f),
            lambda d: np.where(d < len(near), near[np.minimum(d, len(near) - 1)], _interpolate(d, minus, f)),
        )

    def _exponent(self, encoded: Encoded) -> int:
        own = self if encoded.scales is None else self._scaled(encoded.scales)
        return own.exponent or 0

    def _read(self, encoded: Encoded, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """k = 2^F log2 |x|, the sign, and whether it is not zero."""
        if encoded.codes.dtype != self.code_dtype:
            raise TypeError(
                f"{name}: expected codes of dtype {np.dtype(self.code_dtype)}, got {describe(encoded.codes)}"
            )
        codes = encoded.codes.astype(np.int64)
        largest = 2 ** (self.bits - 1) - 1
        c = codes & largest
        return c - largest + (self._exponent(encoded) << self.fraction_bits), codes >> (self.bits - 1), c != 0

    def _write(self, k: np.ndarray, sign: np.ndarray, some: np.ndarray) -> Encoded:
        largest, f = 2 ** (self.bits - 1) - 1, self.fraction_bits
        c = k + largest - ((self.exponent or 0) << f)
        some = some & (1 - c <= 2**f)  # rounded to a code, less than half of the smallest is zero
        codes = np.where(some, np.clip(c, 1, largest) | sign << (self.bits - 1), 0).astype(self.code_dtype)
        return Encoded(codes, self._scales(), codes.shape)

    @property
    def _lowest_k(self) -> int:
        """k of the smallest number."""
        return ((self.exponent or 0) << self.fraction_bits) + 2 - 2 ** (self.bits - 1)

    @property
    def _layout(self) -> tuple[np.int32, np.int32, np.int32]:
        """How far down a fraction's cell stands; the patterns of the smallest and of the largest number."""
        octave, step = divmod(self._lowest_k, 2**self.fraction_bits)
        smallest = (octave + 127 << 23) + int(_octave(self.fraction_bits)[0][step])
        return np.int32(22 - self.fraction_bits), np.int32(smallest), np.int32((self.exponent or 0) + 127 << 23)

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        _refuse_nan(_round(numbers.view(np.int32), out.view(np.int32), *_octave(self.fraction_bits), *self._layout))

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        tables, sign = _octave(self.fraction_bits)[1:], 1 << (self.bits - 1)
        _refuse_nan(_encode(numbers.view(np.int32), codes, *tables, *self._layout, self._lowest_k, sign))

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        fractions, sign = _octave(self.fraction_bits)[0], 1 << (self.bits - 1)
        _decode(codes, out.view(np.int32), fractions, self.fraction_bits, self._lowest_k, sign)


def _refuse_nan(found: bool) -> None:
    if found:
        raise ValueError("x: expected numbers, got NaN, which has no logarithm")


@lru_cache(maxsize=16)
def _octave(fraction_bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What rounding needs of one octave, as integers of 23 bits.

    The fraction of 2^(j / 2^F) for j = 0 .. 2^F; then, with the octave cut into 2^(F + 1) cells, of which none holds
    more than one border 2^((j + 1/2) / 2^F): the j of a cell's start, and the first fraction beyond its border.
    """
    count = 2**fraction_bits
    fractions = np.rint((np.exp2(np.arange(count + 1) / count) - 1) * 2**23).astype(np.int32)
    borders = np.ceil((np.exp2((np.arange(count) + 0.5) / count) - 1) * 2**23).astype(np.int32)
    starts = np.arange(2 * count) << (22 - fraction_bits)
    below = np.searchsorted(borders, starts, side="right").astype(np.int32)
    return fractions, below, np.append(borders, 2**23).astype(np.int32)[below]


def _sum(d: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp2(-d)) / log(2)


def _difference(d: np.ndarray) -> np.ndarray:
    return np.log(-np.expm1(-d * log(2))) / log(2)


@lru_cache(maxsize=16)
def _tables(fraction_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """2^F log2(1 +- 2^(-d / 2^F)), rounded, for d from 0 until it is 0; the difference's first entry is not used."""
    one = 2**fraction_bits
    d = np.arange((fraction_bits + 3) * one)
    with np.errstate(divide="ignore"):
        functions = [np.rint(one * f(d / one)) for f in (_sum, _difference)]
    functions[1][0] = 0
    return tuple(f[: np.flatnonzero(f)[-1] + 2].astype(np.int64) for f in functions)  # type: ignore[return-value]


@lru_cache(maxsize=16)
def _knots(fraction_bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with GUARD bits more at every 2^-ceil(F / 2); and a table of differences for d < 1, where they bend."""
    one, spacing = 2**fraction_bits, 2 ** (fraction_bits // 2)
    d = np.arange((fraction_bits + 3) * one // spacing + 2) * spacing / one
    with np.errstate(divide="ignore"):
        plus, minus = (np.rint(one * 2**GUARD * f(d)) for f in (_sum, _difference))
    minus[d < 1] = 0
    return plus.astype(np.int64), minus.astype(np.int64), _tables(fraction_bits)[1][:one]


def _interpolate(d: np.ndarray, knots: np.ndarray, fraction_bits: int) -> np.ndarray:
    """In integers: a line between two knots, its value rounded to a code."""
    bits = fraction_bits // 2
    i = np.minimum(d >> bits, len(knots) - 2)
    t = np.minimum(d - (i << bits), 1 << bits)
    fine = (knots[i] << bits) + (knots[i + 1] - knots[i]) * t
    return (fine + (1 << (bits + GUARD - 1))) >> (bits + GUARD)


# In an octave, the cell of a fraction and one comparison tell which logarithm is nearest. A magnitude beyond the ends
# is replaced by the end first. Unsigned indices spare the loop a test for negative ones.


@njit(cache=True, nogil=True, inline="always")
def _step(magnitude, below, border, shift):
    """j of the logarithm nearest to a positive normal float within its octave, from 0 to 2^F."""
    fraction = cast(magnitude & 0x007FFFFF, shift)
    cell = np.uint32(shift_right(fraction, shift))
    return np.uint32(below[cell] + (fraction >= border[cell]))


@njit(cache=True, nogil=True)
def _round(source, target, fractions, below, border, shift, smallest, largest):
    nan = False
    half = cast(smallest - (1 << 23), shift)
    for i in range(source.size):
        magnitude = cast(source[i] & 0x7FFFFFFF, shift)
        nan |= magnitude > np.int32(0x7F800000)
        inside = max(min(magnitude, largest), smallest)
        power = (inside & 0x7F800000) + fractions[_step(inside, below, border, shift)]
        target[i] = cast(power | (source[i] & ~0x7FFFFFFF), shift) if magnitude >= half else np.int32(0)
    return nan


@njit(cache=True, nogil=True)
def _encode(source, codes, below, border, shift, smallest, largest, lowest, sign):
    nan = False
    half = cast(smallest - (1 << 23), shift)
    fraction_bits = 22 - shift
    for i in range(source.size):
        magnitude = cast(source[i] & 0x7FFFFFFF, shift)
        nan |= magnitude > np.int32(0x7F800000)
        inside = max(min(magnitude, largest), smallest)
        k = (((inside >> 23) - 127) << fraction_bits) + _step(inside, below, border, shift)
        code = (k - lowest + 1) | (sign if source[i] < 0 else 0)
        codes[i] = code if magnitude >= half else 0
    return nan


@njit(cache=True, nogil=True)
def _decode(codes, target, fractions, fraction_bits, lowest, sign):
    for i in range(codes.size):
        c = np.int64(codes[i]) & (sign - 1)
        k = c - 1 + lowest
        power = (((k >> fraction_bits) + 127) << 23) + fractions[k & ((1 << fraction_bits) - 1)]
        target[i] = (power | -((np.int64(codes[i]) & sign) // sign << 31)) if c != 0 else 0
