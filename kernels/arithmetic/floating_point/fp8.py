r"""FP8: one byte a number, with four exponent bits where precision is short and five where range is.

    E4M3   x = (-1)^s 2^(e - 7) (1 + f / 8)       largest 448; no infinity, only S.1111.111 is NaN
    E5M2   x = (-1)^s 2^(e - 15) (1 + f / 4)      largest 57344; infinity and NaN as in IEEE 754

and subnormal numbers where e = 0 in both. E4M3 gives its last exponent, but for one code, to numbers: so few exponents
are too many to lose one. Weights and activations take E4M3, gradients E5M2.

What is too large becomes the largest number (saturates), or infinite, or NaN where there is no infinity: the OCP asks
that a conversion offer both. Saturating is the usual choice, since one NaN spoils a network. A scale a tensor brings
its numbers into the range; a power of two does without rounding anything.

Source: P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022, section 3; N. Wang et al., "Training Deep Neural
Networks with 8-bit Floating Point Numbers", 2018 (E5M2); X. Sun et al., "Hybrid 8-bit Floating Point (HFP8) Training
and Inference for Deep Neural Networks", 2019 (the two together).

Examples
--------
>>> import numpy as np
>>> x = np.float32([0.3, 0.001, 500, -np.inf])
>>> FP8().round(x)
array([ 3.125000e-01,  1.953125e-03,  4.480000e+02, -4.480000e+02], dtype=float32)
>>> FP8("e5m2", saturate=False).round(x)
array([3.125000e-01, 9.765625e-04, 5.120000e+02,         -inf],
      dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp

from kernels.arithmetic.floating_point.grid import FloatFormat, FloatGrid, biases, float_grid, largest_exponent
from kernels.arithmetic.rounding import check_rounding

__all__ = ["FIELDS", "FP8"]

FIELDS = {"e4m3": (4, 3, 7, "nan"), "e5m2": (5, 2, 15, "ieee")}
"""Exponent bits, mantissa bits, bias and specials; `minifloat_round` with them is the plain statement."""
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}


@dataclass(frozen=True)
class FP8(FloatFormat):
    """The two 8-bit floats of the OCP: x = (-1)^s 2^(e - 7) (1 + f / 8), and 2^(e - 15) (1 + f / 4).

    Parameters
    ----------
    format : {"e4m3", "e5m2"}
    saturate : bool
        Whether what is too large, infinities included, becomes the largest number. Else it becomes NaN in E4M3 and
        infinite in E5M2; rounded towards zero only infinities do.
    rounding : {"nearest-even", "toward-zero", "stochastic"}
    seed : int
        Of stochastic rounding: what is drawn depends on it and on a number's place in the array.
    scaled : bool
        Whether each array is given a scale: the smallest power of two with which its largest number does not saturate.
    scale : float, optional
        What the grid is multiplied by where `scaled`; fixed by `fit`.

    Notes
    -----
    A NaN stays a NaN of its sign. Stochastic rounding takes float64 as it takes float32, rounded to odd: the
    probability is off by up to 2^-20.

    Source: Micikevicius et al. 2022, section 3, table 1.

    Examples
    --------
    >>> import numpy as np
    >>> encoded = FP8().encode(np.float32([1, -2, 448]))
    >>> [f"{code:08b}" for code in encoded.codes]
    ['00111000', '11000000', '01111110']
    >>> FP8(scaled=True).fit(np.float32([0.001, -0.02])).scale
    6.103515625e-05
    """

    format: str = "e4m3"
    saturate: bool = True
    rounding: str = "nearest-even"
    seed: int = 0
    scaled: bool = False
    scale: float | None = None
    bits = 8  # without annotation: a constant, not a field

    def __post_init__(self) -> None:
        if self.format not in FIELDS:
            raise ValueError(f"format: expected {' or '.join(FIELDS)}, got {self.format!r}")
        check_rounding(self.rounding)
        if self.scale is not None and not self.scaled:
            raise ValueError(f"scale: expected none without scaled=True, got {self.scale!r}")
        self._check_scale()

    @property
    def _scales_itself(self) -> bool:
        return self.scaled

    def _exponents(self) -> tuple[int, int, int]:
        exponent_bits, mantissa_bits, bias, specials = FIELDS[self.format]
        low, high = biases(exponent_bits, mantissa_bits, True, specials)
        return largest_exponent(exponent_bits, mantissa_bits, bias, specials), bias - high, bias - low

    def _exponent_for(self, largest: float) -> int:
        given, exponent = frexp(largest)
        own, top = frexp(LARGEST[self.format])
        return exponent - top + (given > own)

    def _grid_at(self, exponent: int) -> FloatGrid:
        exponent_bits, mantissa_bits, bias, specials = FIELDS[self.format]
        return float_grid(exponent_bits, mantissa_bits, bias - exponent, True, specials, self.saturate)
