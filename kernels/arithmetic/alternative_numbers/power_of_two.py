r"""Powers of two: every number is zero or a signed power of two, so that multiplying by it is shifting.

With b bits a tensor has one window of exponents, from its largest power 2^n1 down to 2^n2, and the values

    { 0, +-2^n2, ..., +-2^n1 },     n1 = floor(log2(4 s / 3)),  s = max |x|,      n2 = n1 + 1 - 2^(b - 2)

one bit telling zero, one the sign, b - 2 which power. With neighbours a < c among the values, 0 included, a number is
sent to the nearer, to the larger at a tie:

    c sign(x)       if (a + c) / 2 <= |x| < 3 c / 2

What lies beyond the window's top stays there, infinities too; what is less than half of the smallest power is zero. A
NaN is refused.

Source: A. Zhou et al., "Incremental Network Quantization: Towards Lossless CNNs with Low-Precision Weights", 2017,
section 2.1, equations 1 to 4.

Examples
--------
>>> PowerOfTwo(bits=4).round(np.float32([1.0, -0.7, 0.38, 0.3, 0.07, 0.05]))
array([ 1.   , -0.5  ,  0.5  ,  0.25 ,  0.125,  0.   ], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.bits import cast
from kernels.arithmetic.exponent_format import ExponentFormat
from kernels.arithmetic.number_format import Encoded
from kernels.arrays import as_array, describe

__all__ = ["PowerOfTwo", "power_of_two_round", "shift_dot"]


def power_of_two_round(x: np.ndarray, bits: int, exponent: int) -> np.ndarray:
    """The paper's equation with a table of all values.

    Parameters
    ----------
    x : ndarray of floats
        No NaN.
    bits, exponent : int
        b and n1.

    Returns
    -------
    ndarray of float64

    Examples
    --------
    >>> power_of_two_round(np.array([0.75, 0.1, -9.0]), bits=3, exponent=0)
    array([ 1.,  0., -1.])
    """
    values = np.append(0.0, 2.0 ** np.arange(exponent + 1 - 2 ** (bits - 2), exponent + 1))
    borders = (values[:-1] + values[1:]) / 2
    return np.sign(x) * values[np.searchsorted(borders, np.abs(x), side="right")] + 0.0


@dataclass(frozen=True)
class PowerOfTwo(ExponentFormat):
    """Zero and signed powers of two, x = s 2^n with n2 <= n <= n1; a code is: not zero, sign, n - n2.

    Parameters
    ----------
    bits : int
        b, 2 to 8: 2^(b - 2) powers of two, with both signs, and zero.
    exponent : int, optional
        n1, from 2^(b - 2) - 126 to 127; set by `fit`.

    Notes
    -----
    Source: Zhou et al. 2017, section 2.1.

    Examples
    --------
    >>> form = PowerOfTwo(bits=4).fit(np.float32([0.9, -0.2]))
    >>> form.exponent, form.values()
    (0, array([-1.   , -0.5  , -0.25 , -0.125,  0.   ,  0.125,  0.25 ,  0.5  ,
            1.   ]))
    >>> weights = form.encode(np.float32([0.9, -0.2, 0.01]))
    >>> [f"{code:04b}" for code in weights.codes]
    ['1011', '1101', '0000']

    Integers are multiplied by such weights with shifts, in units of the smallest power:

    >>> form.multiply(np.array([5, 5, 5]), weights) * 2.0**form.smallest
    array([ 5.  , -1.25,  0.  ])
    """

    bits: int = 5
    exponent: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise ValueError(f"bits: expected an integer from 2 to 8, got {self.bits!r}")
        self._check_exponent()

    @property
    def smallest(self) -> int:
        """n2, the exponent of the smallest power of two."""
        return (0 if self.exponent is None else self.exponent) + 1 - 2 ** (self.bits - 2)

    def _exponent_for(self, largest: float) -> int:
        """n1, where the largest magnitude is rounded to 2^n1."""
        mantissa, exponent = np.frexp(largest)  # 1/2 <= mantissa < 1; from 3/4 on the next power is as near
        return int(exponent) - (mantissa < 0.75) if largest else 0

    def multiply(self, q: Any, weights: Encoded) -> np.ndarray:
        """Integers times encoded powers of two, by shifts alone.

        Parameters
        ----------
        q : array_like of signed integers of at most 32 bits
        weights : Encoded
            Of this format, of a shape that `q` broadcasts with.

        Returns
        -------
        ndarray of int64
            Exact, in units of 2^n2: a left shift by the code's low bits, negated or made zero. For b = 8 a shift may be
            by 63 places; what then leaves 64 bits is lost.

        Raises
        ------
        TypeError
            If `q` is not such integers.
        """
        numbers = as_array(q, "q")
        if numbers.dtype.kind != "i" and not (numbers.dtype.kind == "u" and numbers.itemsize < 4):
            raise TypeError(f"q: expected signed integers, got {describe(q)}")
        codes = weights.codes.astype(np.int64)
        shifted = numbers.astype(np.int64) << (codes & (2 ** (self.bits - 2) - 1))
        negative, some = codes >> (self.bits - 2) & 1, codes >> (self.bits - 1)
        return np.where(some == 1, np.where(negative == 1, -shifted, shifted), 0)

    @property
    def _exponents(self) -> tuple[int, int]:
        """From the least n1 by which half of 2^n2 is a normal float32."""
        return 2 ** (self.bits - 2) - 126, 127

    @property
    def _patterns(self) -> tuple[np.int32, np.int32]:
        """Those of 2^n2 and 2^n1."""
        top = 0 if self.exponent is None else self.exponent
        return np.int32(self.smallest + 127 << 23), np.int32(top + 127 << 23)

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        _refuse_nan(_round(numbers.view(np.int32), out.view(np.int32), *self._patterns))

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        _refuse_nan(_encode(numbers.view(np.int32), codes, *self._patterns, self.bits))

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        _decode(codes, out.view(np.int32), self._patterns[0], self.bits)


def _refuse_nan(found: bool) -> None:
    if found:
        raise ValueError("x: expected numbers, got NaN, which is no power of two")


# Rounding |x| = 2^e (1 + f) to 2^e or, from f = 1/2 on, to 2^(e + 1) is adding half to the fraction's field and cutting
# it off: a carry raises the exponent.


@njit(cache=True, nogil=True, inline="always")
def _nearest(magnitude, smallest, largest):
    """The pattern of the power of two, zero left out."""
    power = cast((magnitude + 0x00400000) & 0x7F800000, magnitude)
    return max(min(power, largest), smallest)


@njit(cache=True, nogil=True)
def _round(source, target, smallest, largest):
    nan = False
    half = cast(smallest - 0x00800000, smallest)
    for i in range(source.size):
        magnitude = cast(source[i] & 0x7FFFFFFF, smallest)
        nan |= magnitude > np.int32(0x7F800000)
        power = cast(_nearest(magnitude, smallest, largest) | (source[i] & ~0x7FFFFFFF), smallest)
        target[i] = power if magnitude >= half else np.int32(0)
    return nan


@njit(cache=True, nogil=True)
def _encode(source, codes, smallest, largest, bits):
    nan = False
    half = cast(smallest - 0x00800000, smallest)
    some, sign = np.int32(1 << (bits - 1)), np.int32(1 << (bits - 2))
    for i in range(source.size):
        magnitude = cast(source[i] & 0x7FFFFFFF, smallest)
        nan |= magnitude > np.int32(0x7F800000)
        index = cast((_nearest(magnitude, smallest, largest) - smallest) >> 23, smallest)
        code = cast(index | some | (sign if source[i] < 0 else np.int32(0)), smallest)
        codes[i] = code if magnitude >= half else np.int32(0)
    return nan


@njit(cache=True, nogil=True)
def _decode(codes, target, smallest, bits):
    for i in range(codes.size):
        code = np.int32(codes[i])
        power = smallest + ((code & ((1 << (bits - 2)) - 1)) << 23)
        negative = (code >> (bits - 2)) & 1
        target[i] = (power | -(negative << 31)) if code >> (bits - 1) else 0


@njit(cache=True, nogil=True)
def shift_dot(q, places, signs):
    """Sum of integers, each shifted by its places and negated where the sign is -1: a dot product without a product.

    Parameters
    ----------
    q, places, signs : ndarray of int32, of one shape (n,)
        Signs are 0 and -1, for (x ^ s) - s is x or -x.

    Returns
    -------
    int32
        Modulo 2^32, as a sum of products would be.

    Examples
    --------
    >>> int(shift_dot(np.int32([5, 5]), np.int32([0, 3]), np.int32([0, -1])))
    -35
    """
    total = np.int32(0)
    for i in range(q.size):
        x = cast(q[i] << places[i], total)
        total = cast(total + cast(cast(x ^ signs[i], total) - signs[i], total), total)
    return total
