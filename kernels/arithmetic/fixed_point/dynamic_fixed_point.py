r"""Dynamic fixed point: integers that share one power of two a tensor, which follows the numbers as they change.

A group of numbers (the weights of a layer, its inputs, its gradients) has one exponent e, and each number an integer k
of b bits in two's complement:

    x = k 2^e,          -2^(b - 1) <= k <= 2^(b - 1) - 1

`fit` takes the smallest e with max |x| < 2^(b - 1 + e): nothing saturates by more than a rounding. During training,
where the numbers move, `update` reads two counts instead, of those that overflow now and of those that would if e were
one less: with r the share that may,

    e + 1   if more than r of the x overflow,
    e - 1   if at most r of the 2x overflow,
    e       else.

A power of two costs an adder nothing and a multiplier a shift. Infinities saturate; a NaN is refused.

Source: M. Courbariaux, Y. Bengio and J.-P. David, "Training deep neural networks with low precision multiplications",
2014, section 5 and algorithm 1; for fitting to trained networks, P. Gysel et al., "Hardware-oriented Approximation of
Convolutional Neural Networks", 2016.

Examples
--------
>>> x = np.float32([0.021, -0.3, 0.125])
>>> form = DynamicFixedPoint(bits=8).fit(x)
>>> form.exponent, form.round(x)
(-8, array([ 0.01953125, -0.30078125,  0.125     ], dtype=float32))
>>> form.update(100 * x).exponent, form.update(x / 100).exponent, form.update(x).exponent
(-7, -9, -8)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kernels.arithmetic.exponent_format import ExponentFormat
from kernels.arithmetic.fixed_point.steps import MODES, decode_steps, encode_steps, refuse_nan, round_steps, steps
from kernels.arithmetic.number_format import _floats
from kernels.arithmetic.rounding import check_rounding

__all__ = ["DynamicFixedPoint", "dynamic_round", "overflows"]


def dynamic_round(x: np.ndarray, bits: int, exponent: int) -> np.ndarray:
    """The plain statement: k = round(x 2^-e), kept within b bits, times 2^e.

    Parameters
    ----------
    x : ndarray of floats
        No NaN.
    bits, exponent : int
        b and e.

    Returns
    -------
    ndarray of float64

    Examples
    --------
    >>> dynamic_round(np.array([3.0, 5.1, 700.0]), bits=8, exponent=1)
    array([  4.,   6., 254.])
    """
    top = 2 ** (bits - 1)
    return steps(np.asarray(x, np.float64), 2.0**-exponent, -top, top - 1) * 2.0**exponent


def overflows(x: np.ndarray, bits: int, exponent: int) -> float:
    """The plain statement of an overflow rate: the share of numbers beyond the range of k 2^e.

    Parameters
    ----------
    x : ndarray of floats
    bits, exponent : int

    Examples
    --------
    >>> overflows(np.array([127.0, 128.0, -128.0, 1.0]), bits=8, exponent=0)
    0.25
    """
    with np.errstate(over="ignore"):
        k = np.asarray(x, np.float64) * 2.0**-exponent
    return float(np.mean((k < -(2 ** (bits - 1))) | (k > 2 ** (bits - 1) - 1))) if np.size(x) else 0.0


@dataclass(frozen=True)
class DynamicFixedPoint(ExponentFormat):
    """Integers with a shared power of two, x = k 2^e; a code is k in two's complement.

    Parameters
    ----------
    bits : int
        b, 2 to 32.
    rounding : {"nearest-even", "toward-zero", "stochastic"}
    seed : int
        Of stochastic rounding.
    overflow_rate : float
        r, the share of numbers that `update` lets saturate.
    exponent : int, optional
        e, from -126 to 128 - b; set by `fit` and `update`.

    Notes
    -----
    Results are float32 up to 23 bits, else float64. Exponents end where float32 does: numbers of 2^127 and beyond
    saturate.

    Source: Courbariaux et al. 2014, algorithm 1; Gysel et al. 2016.

    Examples
    --------
    >>> DynamicFixedPoint(bits=4).round(np.float32([7, 6.2, -1]))
    array([ 7.,  6., -1.], dtype=float32)
    >>> DynamicFixedPoint(bits=4).round(np.float32([70, 62, -10]))
    array([ 64.,  64., -16.], dtype=float32)
    """

    bits: int = 8
    rounding: str = "nearest-even"
    seed: int = 0
    overflow_rate: float = 1e-4
    exponent: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in range(2, 33):
            raise ValueError(f"bits: expected an integer from 2 to 32, got {self.bits!r}")
        check_rounding(self.rounding)
        if not 0 <= self.overflow_rate < 1:
            raise ValueError(f"overflow_rate: expected a share from 0 to below 1, got {self.overflow_rate!r}")
        self._check_exponent()

    @property
    def dtype(self) -> type[np.floating]:
        """float32 where it holds every midpoint, with a bit to spare that rounding float64 once needs, else float64."""
        return np.float32 if self.bits <= 23 else np.float64

    def _exponent_for(self, largest: float) -> int:
        """The smallest e with max |x| < 2^(b - 1 + e), zeros taking 2^0 for their largest."""
        return (int(np.frexp(largest)[1]) if largest else 1) + 1 - self.bits

    def update(self, x: Any) -> Self:
        """The format for the next numbers, one step up, one down or the same, by what `x` would lose.

        Parameters
        ----------
        x : array_like or torch.Tensor of floats, any shape
            A format without an exponent is fitted to it.

        Raises
        ------
        ValueError
            If a number is NaN.
        """
        numbers = _floats(x)
        if self.exponent is None:
            return self.fit(x)
        refuse_nan(bool(np.isnan(numbers).any()))
        if overflows(numbers, self.bits, self.exponent) > self.overflow_rate:
            return self._at(self.exponent + 1)
        room = numbers.size and overflows(numbers, self.bits, self.exponent - 1) <= self.overflow_rate
        return self._at(self.exponent - 1) if room else self

    @property
    def _exponents(self) -> tuple[int, int]:
        return -126, 128 - self.bits

    @property
    def _scale(self) -> tuple[np.floating, np.floating]:
        exponent = 0 if self.exponent is None else self.exponent
        return self.dtype(2.0**-exponent), self.dtype(2.0**exponent)

    @property
    def _ends(self) -> tuple[np.floating, np.floating]:
        top = 2 ** (self.bits - 1)
        return self.dtype(-top), self.dtype(top - 1)

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        mode = MODES[self.rounding]
        refuse_nan(round_steps(numbers, out, *self._scale, *self._ends, mode, first, self.seed))

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        mode, mask = MODES[self.rounding], 2**self.bits - 1
        refuse_nan(encode_steps(numbers, codes, self._scale[0], *self._ends, mask, 0, mode, first, self.seed))

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        decode_steps(codes, out, self._scale[1], 2 ** (self.bits - 1), 0)
