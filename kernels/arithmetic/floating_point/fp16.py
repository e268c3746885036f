r"""FP16: the half precision of IEEE 754, five exponent bits and ten of fraction.

    x = (-1)^s 2^(e - 15) (1 + f / 2^10)       0 < e < 31
    x = (-1)^s 2^-14 f / 2^10                  e = 0: zeros and subnormals
    infinities where f = 0, else NaN           e = 31

Three digits and a half, from 6e-8 to 65504. What is larger becomes infinite, what is below half the smallest becomes
zero: in training, many gradients do, which is why the loss is scaled.

Source: IEEE 754-2008, binary16; P. Micikevicius et al., "Mixed Precision Training", 2018, for its use.

Examples
--------
>>> import numpy as np
>>> FP16().round(np.float32([3.14159265, 1e-8, 70000.0]))
array([3.140625, 0.      ,      inf], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.arithmetic.floating_point.grid import FloatFormat, FloatGrid, float_grid
from kernels.arithmetic.rounding import check_rounding

__all__ = ["FIELDS", "FP16"]

FIELDS = (5, 10, 15)
"""Exponent bits, mantissa bits and bias; `minifloat_round` with them is the plain statement."""


@dataclass(frozen=True)
class FP16(FloatFormat):
    """IEEE 754 binary16, x = (-1)^s 2^(e - 15) (1 + f / 2^10).

    Parameters
    ----------
    rounding : {"nearest-even", "toward-zero", "stochastic"}
    seed : int
        Of stochastic rounding: what is drawn depends on it and on a number's place in the array.

    Notes
    -----
    What is too large becomes infinite, towards zero the largest number. A NaN stays a NaN of its sign. Stochastic
    rounding takes float64 as it takes float32, rounded to odd: the probability is off by up to 2^-13.

    Source: IEEE 754-2008, binary16; Micikevicius et al. 2018.

    Examples
    --------
    >>> import numpy as np
    >>> [f"{code:016b}" for code in FP16().encode(np.float32([1, -2, 1e-7])).codes]
    ['0011110000000000', '1100000000000000', '0000000000000010']
    """

    rounding: str = "nearest-even"
    seed: int = 0
    bits = 16  # without annotation: constants, not fields
    scale = None

    def __post_init__(self) -> None:
        check_rounding(self.rounding)

    def _grid_at(self, exponent: int) -> FloatGrid:
        return float_grid(*FIELDS)
