r"""TF32 and DLFloat: two answers to the question how many exponent and fraction bits a product needs.

    TF32      x = (-1)^s 2^(e - 127) (1 + f / 2^10)     float32's exponent, FP16's fraction: 19 bits
    DLFloat   x = (-1)^s 2^(e - 31) (1 + f / 2^9)       six exponent bits, nine of fraction: 16 bits

TF32 is what the multipliers of a matrix unit make of float32 operands that they are given; sums stay float32, and
memory holds float32. DLFloat is stored as it is. It has no subnormal numbers (a field of zero is a normal exponent, and
only the code of zeros is 0), and the last code is infinity and NaN in one: NaN, as a float.

Rounding goes to the nearest, ties to the even fraction or away from zero, which saves hardware: it is adding half a
step and cutting; or towards zero, which is cutting.

Source: NVIDIA, "NVIDIA A100 Tensor Core GPU Architecture", 2020 (TF32); A. Agrawal et al., "DLFloat: A 16-b Floating
Point Format Designed for Deep Learning Training and Inference", 2019.

Examples
--------
>>> import numpy as np
>>> x = np.float32([3.14159265, 1e-30, 1e30])
>>> TF32().round(x)
array([3.14062500e+00, 9.99942827e-31, 1.00025555e+30], dtype=float32)
>>> TF32("dlfloat").round(x)
array([3.140625, 0.      ,      nan], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from kernels.arithmetic.floating_point.grid import FloatFormat, FloatGrid, float_grid
from kernels.arithmetic.rounding import check_rounding

__all__ = ["FIELDS", "TF32"]

FIELDS = {"tf32": (8, 10, 127, True, "ieee"), "dlfloat": (6, 9, 31, False, "nan")}
"""Exponent bits, mantissa bits, bias, subnormals and specials; `minifloat_round` with them is the plain statement."""
ROUNDINGS = ("nearest-even", "nearest-away", "toward-zero")


@dataclass(frozen=True)
class TF32(FloatFormat):
    """TF32, x = (-1)^s 2^(e - 127) (1 + f / 2^10), and DLFloat, x = (-1)^s 2^(e - 31) (1 + f / 2^9).

    Parameters
    ----------
    format : {"tf32", "dlfloat"}
    rounding : {"nearest-even", "nearest-away", "toward-zero"}

    Notes
    -----
    A NaN stays a NaN of its sign. What is too large becomes infinite in TF32 and NaN in DLFloat; rounded towards zero,
    the largest number. In memory a TF32 number takes the 32 bits of a float32, and `stored_bits` says so.

    Source: NVIDIA 2020; Agrawal et al. 2019.

    Examples
    --------
    >>> import numpy as np
    >>> encoded = TF32("dlfloat").encode(np.float32([1, -1.001, 2.0**-31]))
    >>> [f"{code:016b}" for code in encoded.codes]
    ['0011111000000000', '1011111000000001', '0000000000000001']
    >>> TF32("tf32").stored_bits((10,)), TF32("dlfloat").stored_bits((10,))
    (320, 160)
    """

    format: str = "tf32"
    rounding: str = "nearest-even"
    seed = 0  # without annotation: constants, not fields
    scale = None

    def __post_init__(self) -> None:
        if self.format not in FIELDS:
            raise ValueError(f"format: expected {' or '.join(FIELDS)}, got {self.format!r}")
        check_rounding(self.rounding, ROUNDINGS)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one code: 19 of TF32, 16 of DLFloat."""
        return 19 if self.format == "tf32" else 16

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits that an array takes in memory; TF32 is kept there as float32."""
        return (32 if self.format == "tf32" else 16) * prod(shape)

    def _grid_at(self, exponent: int) -> FloatGrid:
        return float_grid(*FIELDS[self.format], ties="away" if self.rounding == "nearest-away" else "even")
