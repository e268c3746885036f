r"""Minifloat: a float with any width of exponent and mantissa, any bias, and what it does at its ends to be chosen.

With an exponent field e of E bits, a mantissa field f of M bits and a bias b,

    x = (-1)^s 2^(e - b) (1 + f / 2^M)          normal numbers
    x = (-1)^s 2^(1 - b) f / 2^M                e = 0: zeros and subnormal numbers, where there are any

Without subnormals a field of zero is read as any other, but f = 0 then is zero. The last field is kept for infinity and
NaN (IEEE 754), or only the last code for NaN (FP8 E4M3), or nothing.

The bias places the range. AdaptivFloat chooses it for each tensor, so that the largest number of the format has the
exponent of the largest magnitude in the tensor; smaller ones then have as much range as E gives. It has neither
subnormals nor specials, and saturates.

Source: M. Ortiz et al., "Low-Precision Floating-Point Schemes for Neural Network Training", 2018; T. Tambe et al.,
"Algorithm-Hardware Co-Design of Adaptive Floating-Point Encodings for Resilient Deep Learning Inference", 2020
(AdaptivFloat).

Examples
--------
>>> Minifloat(exponent_bits=3, mantissa_bits=2).values()[-4:]
array([ 8., 10., 12., 14.])
>>> x = np.float32([0.011, 0.02, 0.09, -0.001])
>>> Minifloat(3, 2).round(x)
array([ 0.    ,  0.    ,  0.0625, -0.    ], dtype=float32)
>>> adaptive = Minifloat(3, 2, bias="tensor", subnormals=False, specials="none").fit(x)
>>> adaptive.scale, adaptive.round(x)
(0.00390625, array([ 0.01171875,  0.01953125,  0.09375   , -0.00097656], dtype=float32))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.arithmetic.floating_point.grid import (
    FloatFormat,
    FloatGrid,
    biases,
    check_float,
    float_grid,
    largest_exponent,
)
from kernels.arithmetic.rounding import check_rounding

__all__ = ["Minifloat", "minifloat_round", "minifloat_value"]


def minifloat_value(
    code: int, exponent_bits: int, mantissa_bits: int, bias: int, subnormals: bool = True, specials: str = "ieee"
) -> float:
    """The equation for one code.

    Returns
    -------
    float
        Exact in float64; infinite or NaN where the code is.

    Examples
    --------
    >>> minifloat_value(0b0_1111_110, 4, 3, bias=7, specials="nan")         # the largest FP8 E4M3
    448.0
    """
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    field, f = (code >> mantissa_bits) & (2**exponent_bits - 1), code & (2**mantissa_bits - 1)
    fraction = f / 2**mantissa_bits
    last = field == 2**exponent_bits - 1
    if specials == "ieee" and last:
        return sign * np.inf if f == 0 else np.nan
    if specials == "nan" and last and f == 2**mantissa_bits - 1:
        return np.nan
    if field == 0 and subnormals:
        return sign * 2.0 ** (1 - bias) * fraction
    return sign * 2.0 ** (field - bias) * (1 + fraction) if field or f else sign * 0.0


def minifloat_round(
    x: np.ndarray,
    exponent_bits: int,
    mantissa_bits: int,
    bias: int,
    subnormals: bool = True,
    specials: str = "ieee",
    saturate: bool = False,
    rounding: str = "nearest-even",
) -> np.ndarray:
    """The plain statement: x to a multiple of the spacing around it, then what is too large, too small or no number.

    Parameters
    ----------
    x : ndarray of floats
    exponent_bits, mantissa_bits, bias, subnormals, specials, saturate
        As for `Minifloat`, the bias a number.
    rounding : {"nearest-even", "toward-zero"}

    Returns
    -------
    ndarray of float64
    """
    x = np.asarray(x, np.float64)
    nearest = rounding == "nearest-even"
    exponent = np.frexp(x)[1] - 1  # 2^exponent <= |x| < 2^(exponent + 1)
    lowest = 1 - bias if subnormals else -bias
    spacing = np.exp2(np.maximum(exponent, lowest) - float(mantissa_bits))
    quotient = x / spacing
    y = (np.rint if nearest else np.trunc)(quotient) * spacing
    if nearest and mantissa_bits == 0:  # between 2^k and 2^(k + 1) the even code is that with the even field
        tie = (np.abs(quotient) == 1.5) & (exponent >= lowest)
        y = np.where(tie, np.copysign(np.where((exponent + bias) % 2 == 0, spacing, 2 * spacing), x), y)
    if not subnormals:
        smallest = 2.0**-bias * (1 + 2.0**-mantissa_bits)
        small = np.where((np.abs(x) > smallest / 2) & nearest, smallest, 0.0)
        y = np.where(np.abs(x) < smallest, np.copysign(small, x), y)
    top = largest_exponent(exponent_bits, mantissa_bits, bias, specials)
    below = 2 - 2.0**-mantissa_bits - (2.0**-mantissa_bits if specials == "nan" and mantissa_bits else 0.0)
    largest = 2.0**top * below
    infinite = largest if saturate or specials == "none" else np.inf if specials == "ieee" else np.nan
    beyond = np.abs(y) > largest
    y = np.where(
        beyond & (np.isinf(x) | nearest), np.copysign(infinite, x), np.where(beyond, np.copysign(largest, x), y)
    )
    nan = np.copysign(0.0, x) if specials == "none" else np.nan
    return np.where(np.isnan(x), nan, y)


@dataclass(frozen=True)
class Minifloat(FloatFormat):
    """Floats of any shape that float32 holds: x = (-1)^s 2^(e - b) (1 + f / 2^M).

    Parameters
    ----------
    exponent_bits, mantissa_bits : int
        E from 1 to 8 and M from 0 to 21, so that float32 holds every number and every middle between two, with the bit
        to spare that rounding float64 only once needs.
    bias : int, "tensor" or None
        b; 2^(E - 1) - 1 if not given; with "tensor" each array's own, which stretches the grid by `scale`.
    subnormals : bool
        Whether there are numbers with a leading zero between 0 and 2^(1 - b). If not, codes with e = 0 are normal.
    specials : {"ieee", "nan", "none"}
        Whether the last exponent field is infinity and NaN, or only the last code NaN, or there is neither: then what
        is too large saturates, and NaN becomes a zero of its sign.
    saturate : bool
        Whether what is too large, infinities included, becomes the largest number. Else it becomes infinite, or NaN in
        a format without infinity; towards zero only infinities do.
    rounding : {"nearest-even", "toward-zero", "stochastic"}
    seed : int
        Of stochastic rounding: what is drawn depends on it and on a number's place in the array.
    scale : float, optional
        With bias "tensor", what the grid of the default bias is multiplied by, a power of two; fixed by `fit`.

    Notes
    -----
    Stochastic rounding takes float64 as it takes float32, rounded to odd: the probability is off by up to 2^(M - 23).

    Source: Ortiz et al. 2018; for the bias of a tensor, Tambe et al. 2020, algorithm 1.

    Examples
    --------
    >>> [f"{code:06b}" for code in Minifloat(3, 2).encode(np.float32([1, -0.25, np.inf])).codes]
    ['001100', '100100', '011100']
    """

    exponent_bits: int = 4
    mantissa_bits: int = 3
    bias: int | str | None = None
    subnormals: bool = True
    specials: str = "ieee"
    saturate: bool = False
    rounding: str = "nearest-even"
    seed: int = 0
    scale: float | None = None

    def __post_init__(self) -> None:
        check_rounding(self.rounding)
        if not (self.bias is None or self.bias == "tensor" or isinstance(self.bias, int | np.integer)):
            raise ValueError(f"bias: expected an integer, 'tensor' or None, got {self.bias!r}")
        check_float(self.exponent_bits, self.mantissa_bits, self._bias, self.subnormals, self.specials)
        if self.scale is not None and self.bias != "tensor":
            raise ValueError(f"scale: expected none without bias='tensor', got {self.scale!r}")
        self._check_scale()

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def _bias(self) -> int:
        return self.bias if isinstance(self.bias, int | np.integer) else 2 ** (self.exponent_bits - 1) - 1

    @property
    def _scales_itself(self) -> bool:
        return self.bias == "tensor"

    def _exponents(self) -> tuple[int, int, int]:
        low, high = biases(self.exponent_bits, self.mantissa_bits, self.subnormals, self.specials)
        top = largest_exponent(self.exponent_bits, self.mantissa_bits, self._bias, self.specials)
        return top, self._bias - high, self._bias - low

    def _grid_at(self, exponent: int) -> FloatGrid:
        return float_grid(
            self.exponent_bits,
            self.mantissa_bits,
            self._bias - exponent,
            self.subnormals,
            self.specials,
            self.saturate,
        )
