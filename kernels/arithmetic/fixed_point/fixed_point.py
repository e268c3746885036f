r"""Fixed point: an integer whose binary point stands at a place agreed for all numbers.

With IL integer bits, the sign among them, and FL fraction bits, a code is an integer k of IL + FL bits in two's
complement, and

    x = k 2^-FL,        -2^(IL - 1) <= x <= 2^(IL - 1) - 2^-FL

Rounding goes to the nearest multiple of 2^-FL, ties to the even k; or towards zero; or to one of the two neighbours by
chance, the nearer the likelier, so that it is right on average. What lies beyond the ends stays at the end: fixed point
saturates, infinities too. There is one zero and no NaN: a NaN is refused.

Source: S. Gupta et al., "Deep Learning with Limited Numerical Precision", 2015, sections 3.1 and 3.2.

Examples
--------
>>> FixedPoint(4, 4).round(np.float32([3.14159265, 0.03, -9.0, np.inf]))
array([ 3.125 ,  0.    , -8.    ,  7.9375], dtype=float32)
>>> FixedPoint(4, 4, rounding="stochastic", seed=1).round(np.full(8, 0.03, np.float32))
array([0.    , 0.0625, 0.    , 0.    , 0.    , 0.0625, 0.0625, 0.0625],
      dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.arithmetic.fixed_point.steps import MODES, decode_steps, encode_steps, refuse_nan, round_steps, steps
from kernels.arithmetic.number_format import NumberFormat
from kernels.arithmetic.rounding import check_rounding

__all__ = ["FixedPoint", "fixed_point_round"]


def fixed_point_round(
    x: np.ndarray, integer_bits: int, fraction_bits: int, rounding: str = "nearest-even"
) -> np.ndarray:
    """The plain statement of the paper's rounding, stochastic rounding left out.

    Parameters
    ----------
    x : ndarray of floats
        No NaN.
    integer_bits, fraction_bits : int
        IL, the sign among them, and FL.
    rounding : {"nearest-even", "toward-zero"}

    Returns
    -------
    ndarray of float64

    Examples
    --------
    >>> fixed_point_round(np.array([0.3, 0.625, 5.0]), integer_bits=2, fraction_bits=2)
    array([0.25, 0.5 , 1.75])
    """
    largest = 2 ** (integer_bits + fraction_bits - 1)
    k = steps(np.asarray(x, np.float64), 2.0**fraction_bits, -largest, largest - 1, rounding)
    return k * 2.0**-fraction_bits


@dataclass(frozen=True)
class FixedPoint(NumberFormat):
    """Saturating fixed point, x = k 2^-FL; a code is k in two's complement.

    Parameters
    ----------
    integer_bits : int
        IL, bits before the binary point, the sign among them; none or fewer where all numbers are small.
    fraction_bits : int
        FL, bits after it. Together they are 2 to 32.
    rounding : {"nearest-even", "toward-zero", "stochastic"}
    seed : int
        Of stochastic rounding: what is drawn depends on it and on a number's place in the array.

    Notes
    -----
    Results are float32 up to 23 bits, where it holds every midpoint with a bit to spare, else float64. The chance of
    stochastic rounding is right to 2^-31.

    Source: Gupta et al. 2015, sections 3.1 and 3.2.

    Examples
    --------
    >>> encoded = FixedPoint(4, 4).encode(np.float32([1, -1, 3.14159265]))
    >>> encoded.codes
    array([ 16, 240,  50], dtype=uint8)
    >>> FixedPoint(4, 4).decode(encoded)
    array([ 1.   , -1.   ,  3.125], dtype=float32)
    """

    integer_bits: int = 8
    fraction_bits: int = 8
    rounding: str = "nearest-even"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("integer_bits", "fraction_bits"):
            if getattr(self, name) not in range(-64, 65):
                raise ValueError(f"{name}: expected an integer from -64 to 64, got {getattr(self, name)!r}")
        if self.bits not in range(2, 33):
            raise ValueError(f"integer_bits + fraction_bits: expected a sum from 2 to 32, got {self.bits}")
        check_rounding(self.rounding)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one code, IL + FL."""
        return self.integer_bits + self.fraction_bits

    @property
    def dtype(self) -> type[np.floating]:
        """float32 where it holds every midpoint, with a bit to spare that rounding float64 once needs, else float64."""
        return np.float32 if self.bits <= 23 else np.float64

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        number, top = self.dtype, 2 ** (self.bits - 1)
        up, down = number(2.0**self.fraction_bits), number(2.0**-self.fraction_bits)
        mode = MODES[self.rounding]
        refuse_nan(round_steps(numbers, out, up, down, number(-top), number(top - 1), mode, first, self.seed))

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        number, top = self.dtype, 2 ** (self.bits - 1)
        low, high, mask = number(-top), number(top - 1), 2 * top - 1
        up, mode = number(2.0**self.fraction_bits), MODES[self.rounding]
        refuse_nan(encode_steps(numbers, codes, up, low, high, mask, 0, mode, first, self.seed))

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        decode_steps(codes, out, self.dtype(2.0**-self.fraction_bits), 2 ** (self.bits - 1), 0)
