r"""The quire: a fixed-point register so wide that sums of products of posits are exact in it, and rounded once.

The smallest posit is 2^-s and the largest 2^s, s = (bits - 2) 2^es, and all others are multiples of the smallest. So
every product is a multiple of 2^-2s of at most 2^2s, and a register from there to there, with some bits more for
carries, holds any sum of them:

    q = sum over i of a_i b_i  exactly,        y = posit(q), one rounding for a whole dot product.

A narrower register is cheaper. It keeps `width` bits from 2^low on: what a product has below is cut off, and a sum
beyond either end stays there. This is what a product must be shifted over to be added, the *alignment width*.

Source: J. Gustafson and I. Yonemoto, "Beating floating point at its own game: posit arithmetic", 2017, and the Standard
for Posit Arithmetic (2022), section 5.11 (fused dot product); Z. Carmichael et al., "Deep Positron", DATE 2019, exact
multiply-and-accumulate in networks; J. Johnson, "Rethinking floating point for deep learning", 2018.

Examples
--------
>>> a, b = np.float32([64, 0.015625, -64]), np.float32([64, 0.015625, 64])      # 64² + 2^-12 - 64²
>>> posit = Posit(bits=8, es=0)
>>> float(Quire(posit).dot(a, b)), float(Quire(posit, width=12, low=-4).dot(a, b))
(0.015625, 0.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import frexp, ldexp
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.alternative_numbers.posit import Posit
from kernels.arrays import as_array, describe, like

__all__ = ["Quire", "exact_dot"]

SPARE = 64
"""Bits below a quire's last and above its first: a product is added with more bits than it uses."""


def exact_dot(a: Any, b: Any) -> Fraction:
    """The equation, in rationals, for finite numbers.

    Examples
    --------
    >>> exact_dot([0.5, 3.0], [0.25, 1.0])
    Fraction(25, 8)
    """
    return sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)), Fraction(0))


@dataclass(frozen=True)
class Quire:
    """Products of matrices of posits of at most 16 bits, each result rounded once.

    Parameters
    ----------
    posit : Posit
    width : int, optional
        Bits of the register, its sign included, 2 to 62; if absent it holds every sum exactly.
    low : int, optional
        The power of two of its last bit; with `width` only. If absent, as many bits lie below one as above.

    Notes
    -----
    Emulated: operands are floats, rounded to posits first, and results are floats that are posits.

    Source: Gustafson and Yonemoto 2017; Carmichael et al. 2019 for networks.

    Examples
    --------
    >>> Quire(Posit(bits=16, es=1)).bits
    144
    """

    posit: Posit
    width: int | None = None
    low: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.posit, Posit) or self.posit.bits > 16:
            raise ValueError(f"posit: expected a Posit of at most 16 bits, got {self.posit!r}")
        if self.width is not None and self.width not in range(2, 63):
            raise ValueError(f"width: expected an integer from 2 to 62, got {self.width!r}")
        if self.low is not None and (self.width is None or self.low not in range(-500, 501)):
            raise ValueError(f"low: expected an integer from -500 to 500, beside a width, got {self.low!r}")

    @property
    def bits(self) -> int:
        """The register's: `width`, or what is exact for sums of 2^30 products."""
        return 4 * self._scale + 32 if self.width is None else self.width

    @property
    def _scale(self) -> int:
        return (self.posit.bits - 2) << self.posit.es

    def dot(self, a: Any, b: Any) -> np.floating:
        """The fused dot product of two vectors of one length; NaN (NaR) where one number is.

        Raises
        ------
        ValueError
            If they are not vectors of one length.
        """
        a, b = (as_array(x, name, ndim=1, dtype=np.float64) for x, name in ((a, "a"), (b, "b")))
        return self.matmul(a[None], b[:, None])[0, 0]

    def matmul(self, a: Any, b: Any) -> Any:
        """The product of (m, k) and (k, n).

        Returns
        -------
        ndarray or Tensor of the posit's `dtype`, (m, n)
            Posits.

        Raises
        ------
        TypeError, ValueError
            If the shapes do not fit.
        """
        left, right = (as_array(x, name, ndim=2, dtype=np.float64) for x, name in ((a, "a"), (b, "b")))
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"b: expected {left.shape[1]} rows, as a has columns, got {describe(right)}")
        left = self.posit.round(left).astype(np.float64)
        columns = np.ascontiguousarray(self.posit.round(right).T).astype(np.float64)
        sums = np.empty((left.shape[0], right.shape[1]))
        if self.width is None:
            below = 2 * self._scale + SPARE
            limbs = np.empty((2 * below + SPARE) // 32 + 2, np.int64)
            _exact(np.ascontiguousarray(left), columns, sums, limbs, below)
        else:
            low = -(self.width // 2) if self.low is None else self.low
            _limited(np.ascontiguousarray(left), columns, sums, 2.0**-low, 2 ** (self.width - 1) - 1)
            sums *= 2.0**low
        return like(self.posit.round(sums), a)


@njit(cache=True, nogil=True)
def _exact(a, b, sums, limbs, below):
    """Sums in digits of 32 bits, their carries passed on at the end; then float64, to odd, for one rounding later."""
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            limbs[:] = 0
            bad = False
            for p in range(a.shape[1]):
                product = a[i, p] * b[j, p]  # exact: 28 bits at most
                bad |= not np.isfinite(product)
                if product != 0 and not bad:
                    fraction, exponent = frexp(product)
                    place = exponent - 30 + below
                    shifted = np.int64(fraction * 2.0**30) << (place & 31)
                    limbs[place >> 5] += shifted & 0xFFFFFFFF
                    limbs[(place >> 5) + 1] += shifted >> 32
            sums[i, j] = np.nan if bad else _value(limbs, below)


@njit(cache=True, nogil=True)
def _value(limbs, below):
    top = limbs.size - 1
    for t in range(top):  # every digit from 0 to 2^32 - 1, the sign in the last one
        limbs[t + 1] += limbs[t] >> 32
        limbs[t] &= 0xFFFFFFFF
    negative = limbs[top] < 0
    if negative:
        carry = 1
        for t in range(limbs.size):
            digit = (~limbs[t] & 0xFFFFFFFF) + carry
            limbs[t], carry = digit & 0xFFFFFFFF, digit >> 32
    while top > 0 and limbs[top] == 0:
        top -= 1
    high = limbs[top]
    if high == 0:
        return 0.0
    bits = 0
    while high >> bits:
        bits += 1
    # 53 bits from the first one on: the rest only as whether there is any
    middle = limbs[top - 1] if top > 0 else 0
    lowest = limbs[top - 2] if top > 1 else 0
    drop = bits - 21  # of the middle digit's bits, or of the lowest's where negative
    if drop >= 0:
        number = (high << (32 - drop)) | (middle >> drop)
        rest = (middle & ((1 << drop) - 1)) | lowest
    else:
        number = (((high << 32) | middle) << -drop) | (lowest >> (32 + drop))
        rest = lowest & ((1 << (32 + drop)) - 1)
    for t in range(top - 2):
        rest |= limbs[t]
    number |= np.int64(rest != 0)
    value = ldexp(np.float64(number), 32 * (top - 1) + drop - below)
    return -value if negative else value


@njit(cache=True, nogil=True)
def _limited(a, b, sums, scale, largest):
    """Sums of integers that int64 holds: products cut below the last bit, sums kept within the register.

    Then float64, to odd, for one rounding later.
    """
    end = np.float64(largest)
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            total = np.int64(0)
            bad = False
            for p in range(a.shape[1]):
                product = a[i, p] * b[j, p] * scale
                bad |= not np.isfinite(product)
                product = min(max(np.floor(product), -end), end) if not bad else 0.0
                total = max(min(total + np.int64(product), np.int64(largest)), np.int64(-largest))
            size = abs(total)
            if size >> 53:  # nine bits are kept as whether one of them is set
                size = (size | np.int64((size & 511) != 0) << 9) & ~511
            sums[i, j] = np.nan if bad else np.copysign(np.float64(size), total)
