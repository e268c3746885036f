r"""Shifted and squeezed FP8: the tensor's own powers of two, moved and narrowed to those that FP8 has.

The logarithms of a tensor's magnitudes have a mean μ and a largest value m. A straight line brings them to mean 0 and
largest value 15, the exponents of E5M2:

    α = 15 / (m - μ),  β = -α μ                over the magnitudes other than zero
    Y = sign(X) 2^β |X|^α                      so that log2 |Y| = α log2 |X| + β
    code = E5M2(Y),  X' = sign(X) (2^-β |E5M2(Y)|)^(1/α)

β shifts, α squeezes; or it stretches, where the tensor is narrower than the format: then the codes lie closer together
than those of E5M2, and precision is won. Two numbers are kept with each tensor. The price is a logarithm and two powers
a number, or, as here, a table: 256 codes stand for 256 numbers, between which decide 255 others.

Source: L. Cambier et al., "Shifted and Squeezed 8-bit Floating Point format for Low-Precision Training of Deep Neural
Networks", 2020, section 3.

Examples
--------
>>> import numpy as np
>>> x = np.float32([1e-7, 2e-7, 1e-6, 3e-5, 0])
>>> form = ShiftedSqueezedFP8().fit(x)
>>> form.squeeze, form.shift
(2.9462995529174805, 59.26720428466797)
>>> form.round(x)
array([1.0122890e-07, 2.0503180e-07, 1.0099608e-06, 2.9999985e-05,
       0.0000000e+00], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple, Self

import numpy as np
from numba import njit

from kernels.arithmetic.bits import shift_right
from kernels.arithmetic.floating_point.minifloat import minifloat_round, minifloat_value
from kernels.arithmetic.number_format import NumberFormat, _floats

__all__ = ["ShiftedSqueezedFP8", "shift_and_squeeze", "shifted_squeezed_round"]

TARGET = 15.0
"""The logarithm that the largest magnitude is brought to: the largest exponent of E5M2."""
FINITE = 124
"""Codes of E5M2 that are numbers of 0 or more."""
NAN = 126
"""The code of NaN."""
BUCKET = 17
"""Bits of a float32's pattern below those that choose where a search for its code begins."""


def shift_and_squeeze(x: np.ndarray) -> tuple[float, float]:
    """The paper's α and β, from the finite numbers other than zero.

    A tensor whose magnitudes are all alike cannot be squeezed: it keeps α = 1, and β brings it to one.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN that is cast would warn
        magnitudes = np.abs(np.asarray(x, np.float64))
    logarithms = np.log2(magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)])
    if not logarithms.size:
        return 1.0, 0.0
    mean, largest = float(np.mean(logarithms)), float(np.max(logarithms))
    squeeze = TARGET / (largest - mean) if largest - mean > 1e-6 else 1.0
    return squeeze, -squeeze * mean


def shifted_squeezed_round(x: np.ndarray, squeeze: float, shift: float) -> np.ndarray:
    """The plain statement: there by the equation, to E5M2 (what is too large stays at the largest), and back.

    Parameters
    ----------
    x : ndarray of floats
    squeeze, shift : float
        α and β.

    Returns
    -------
    ndarray of float64
    """
    x = np.asarray(x, np.float64)
    centre = 2.0 ** (-shift / squeeze)  # 2^μ: 2^β itself may be beyond float64
    with np.errstate(over="ignore", under="ignore"):
        y = minifloat_round((np.abs(x) / centre) ** squeeze, 5, 2, 15, saturate=True)
        return np.copysign(y ** (1 / squeeze) * centre, x)


@dataclass(frozen=True)
class ShiftedSqueezedFP8(NumberFormat):
    """E5M2 of Y = sign(X) 2^β |X|^α, with α and β fitted to each tensor.

    Parameters
    ----------
    squeeze : float, optional
        α, positive; fixed by `fit`, as is
    shift : float, optional
        β. Both are kept as float32.

    Notes
    -----
    What is too large, infinities
    included, becomes the largest number; a NaN stays a NaN of its sign. Float64 is rounded to odd first, which decides
    as float64 itself would, except where a deciding number lies closer than a float32 can say.

    Source: Cambier et al. 2020, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> form = ShiftedSqueezedFP8(squeeze=1.0, shift=0.0)       # plain E5M2
    >>> form.round(np.float32([0.3, 1000]))
    array([3.125e-01, 1.024e+03], dtype=float32)
    >>> form.encode(np.float32([1, -2])).codes
    array([ 60, 192], dtype=uint8)
    """

    squeeze: float | None = None
    shift: float | None = None
    bits = 8  # without annotation: a constant, not a field

    def __post_init__(self) -> None:
        if (self.squeeze is None) != (self.shift is None):
            raise ValueError(f"squeeze, shift: expected both or neither, got {self.squeeze!r} and {self.shift!r}")
        if self.squeeze is not None and not (isfinite(self.squeeze) and self.squeeze > 0):
            raise ValueError(f"squeeze: expected a positive number, got {self.squeeze!r}")
        if self.shift is not None and not isfinite(self.shift):
            raise ValueError(f"shift: expected a number, got {self.shift!r}")

    def fit(self, x: Any) -> Self:
        """The format with the α and β of `x`."""
        squeeze, shift = shift_and_squeeze(_floats(x))
        return replace(self, squeeze=float(np.float32(squeeze)), shift=float(np.float32(shift)))

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits of the codes, and of α and β in FP32."""
        return super().stored_bits(shape) + 64

    def _fitted(self, x: np.ndarray) -> NumberFormat:
        return self.fit(x) if self.squeeze is None else self

    def _scales(self) -> np.ndarray | None:
        return np.array([self.squeeze, self.shift], np.float32)

    def _scaled(self, scales: np.ndarray) -> NumberFormat:
        return replace(self, squeeze=float(scales[0]), shift=float(scales[1]))

    @property
    def _tables(self) -> Tables:
        return _tables(1.0 if self.squeeze is None else self.squeeze, 0.0 if self.shift is None else self.shift)

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        _round(numbers.view(np.uint32), out, *self._tables)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        _encode(numbers.view(np.uint32), codes, *self._tables[1:])

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        np.take(self._tables.values, codes, out=out)


class Tables(NamedTuple):
    """What the codes stand for, and where they begin."""

    values: np.ndarray  # float32, of all 256 codes
    begins: np.ndarray  # uint32: pattern of the smallest float32 that goes to a code from 1 on; beyond the last, never
    start: np.ndarray  # uint32: a code that no pattern of a bucket goes below
    most: int  # how many codes begin in one bucket, at most


@lru_cache(maxsize=64)
def _tables(squeeze: float, shift: float) -> Tables:
    """The inverse of the equation at E5M2's numbers, and at the middles between them."""

    def back(y: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            return y ** (1 / squeeze) * 2.0 ** (-shift / squeeze)

    grid = np.array([minifloat_value(code, 5, 2, 15) for code in range(FINITE)])
    middles = (grid[:-1] + grid[1:]) / 2
    with np.errstate(over="ignore", under="ignore"):
        x = np.minimum(back(grid), np.finfo(np.float32).max).astype(np.float32)
        exact = back(middles)
        begins = np.minimum(exact, np.finfo(np.float32).max).astype(np.float32)
    patterns = begins.view(np.int32).astype(np.int64)
    ties_up = np.arange(1, FINITE) % 2 == 0  # a middle goes to the even code
    patterns += np.where(ties_up, begins < exact, begins <= exact)
    values = np.concatenate([x, np.full(128 - FINITE, np.nan, np.float32)])
    values = np.concatenate([values, -values])
    begins = np.append(patterns, 2**32 - 1).astype(np.uint32)
    edges = np.arange(2 ** (31 - BUCKET) + 1) << BUCKET
    codes = np.searchsorted(begins[:-1], edges, side="right").astype(np.uint32)  # of the first pattern of each bucket
    return Tables(values, begins, codes[:-1], int(np.max(np.diff(codes))))


# Indices are unsigned: a signed one might count from the end, and the loop would not be vectorised for it. Mostly one
# code at most begins in a bucket; a loop of one step, known as the code is made, is vectorised too.


@njit(cache=True, nogil=True, inline="always")
def _code(pattern, begins, start, most):
    magnitude = np.uint32(pattern & np.uint32(0x7FFFFFFF))
    code = start[shift_right(magnitude, BUCKET)]
    for _ in range(most):
        code = np.uint32(code + np.uint32(begins[code] <= magnitude))
    code = code if magnitude <= np.uint32(0x7F800000) else np.uint32(NAN)
    return np.uint32(code | np.uint32(shift_right(pattern, 24) & np.uint32(0x80)))


@njit(cache=True, nogil=True)
def _encode(patterns, codes, begins, start, most):
    if most <= 1:
        for i in range(patterns.size):
            codes[i] = _code(patterns[i], begins, start, 1)
    else:
        for i in range(patterns.size):
            codes[i] = _code(patterns[i], begins, start, most)


@njit(cache=True, nogil=True)
def _round(patterns, out, values, begins, start, most):
    if most <= 1:
        for i in range(patterns.size):
            out[i] = values[_code(patterns[i], begins, start, 1)]
    else:
        for i in range(patterns.size):
            out[i] = values[_code(patterns[i], begins, start, most)]
