r"""Bfloat16: the upper half of a float32, which keeps its exponent and gives up sixteen bits of its fraction.

With e an exponent of eight bits and f a fraction of seven,

    x = (-1)^s 2^(e - 127) (1 + f / 2^7)       0 < e < 255
    x = (-1)^s 2^-126 f / 2^7                  e = 0: zeros and subnormals, which are kept
    infinities where f = 0, else NaN           e = 255

Rounding goes to the nearest, ties to the even fraction, and what rounds beyond the largest number becomes infinite; or
towards zero, which is dropping the lower half of a float32; or, stochastically, up with the probability that the
dropped part says. A NaN stays a NaN of the same sign, made quiet.

Source: D. Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019.

Examples
--------
>>> BFloat16().round(np.float32([3.14159265, 3.4e38, np.nan]))
array([3.140625,      inf,      nan], dtype=float32)
>>> BFloat16(rounding="toward-zero").round(np.float32([3.14159265, 3.4e38]))
array([3.1406250e+00, 3.3895314e+38], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.arithmetic.floating_point.grid import FloatFormat, FloatGrid, float_grid
from kernels.arithmetic.rounding import check_rounding

__all__ = ["BFloat16", "bfloat16_round"]


def bfloat16_round(x: np.ndarray, rounding: str = "nearest-even") -> np.ndarray:
    """The plain statement: x to a multiple of the spacing of bfloat16 numbers around it.

    Parameters
    ----------
    x : ndarray of floats
    rounding : {"nearest-even", "toward-zero"}

    Returns
    -------
    ndarray of float64
    """
    x = np.asarray(x, np.float64)
    exponent = np.frexp(x)[1] - 1  # 2^exponent <= |x| < 2^(exponent + 1)
    spacing = np.exp2(np.maximum(exponent, -126) - 7.0)
    largest = 2.0**128 - 2.0**120
    if rounding == "nearest-even":
        y = np.rint(x / spacing) * spacing
        return np.where(np.abs(y) > largest, np.copysign(np.inf, x), y)
    y = np.trunc(x / spacing) * spacing
    return np.where(np.isfinite(x), np.clip(y, -largest, largest), x)


@dataclass(frozen=True)
class BFloat16(FloatFormat):
    """Bfloat16, x = (-1)^s 2^(e - 127) (1 + f / 2^7); a code is the upper half of the float32 with the same value.

    Parameters
    ----------
    rounding : {"nearest-even", "toward-zero", "stochastic"}
        The second is dropping bits: cheaper in hardware, twice the largest error, and biased.
    seed : int
        Of stochastic rounding: what is drawn depends on it and on a number's place in the array.

    Notes
    -----
    Stochastic rounding takes float64 as it takes float32, rounded to odd: the probability is off by up to 2^-16.

    Source: Kalamkar et al. 2019.

    Examples
    --------
    >>> encoded = BFloat16().encode(np.float32([1, -2, 0.1]))
    >>> [f"{code:016b}" for code in encoded.codes]
    ['0011111110000000', '1100000000000000', '0011110111001101']
    >>> BFloat16().decode(encoded)
    array([ 1.        , -2.        ,  0.10009766], dtype=float32)
    """

    rounding: str = "nearest-even"
    seed: int = 0
    bits = 16  # without annotation: constants, not fields
    scale = None

    def __post_init__(self) -> None:
        check_rounding(self.rounding)

    def _grid_at(self, exponent: int) -> FloatGrid:
        return float_grid(8, 7)

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        np.left_shift(codes, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
