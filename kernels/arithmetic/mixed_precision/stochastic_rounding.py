r"""Stochastic rounding: to one of the two neighbours by chance, the nearer the likelier, so as to be right on average.

With a <= x < b neighbours on the grid of a format,

    P(round(x) = b) = (x - a) / (b - a),       so that the mean of round(x) is x

Rounding to nearest loses every change that is smaller than half a step, always the same way: a weight to which a small
update is added again and again does not move. Rounded stochastically it moves by a step once in a while, and on average
as far as it should; errors of a long sum cancel, and grow as the root of its length. The price is random bits, and a
single rounding that is off by up to a step in place of half a step.

The bits come from a hash of a number's place and a seed: nothing is carried along, so the loop is vectorised, threads
draw what one thread would, and a result can be had again.

Source: S. Gupta et al., "Deep Learning with Limited Numerical Precision", 2015, section 3.1; M. Croci et al.,
"Stochastic rounding: implementation, error analysis and applications", 2022.

Examples
--------
>>> import numpy as np
>>> x = np.full(1000, 1.001, np.float32)              # bfloat16 has 1 and 1.0078125 there
>>> rounded = StochasticRounding().round(x)
>>> np.unique(rounded)
array([1.       , 1.0078125], dtype=float32)
>>> f"{rounded.mean():.3f}"
'1.001'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernels.arithmetic.fixed_point.fixed_point import FixedPoint
from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.floating_point.fp8 import FP8
from kernels.arithmetic.floating_point.fp16 import FP16
from kernels.arithmetic.number_format import NumberFormat

__all__ = ["FORMATS", "StochasticRounding", "stochastic_round"]

FORMATS: dict[str, Callable[[int], NumberFormat]] = {
    "bfloat16": lambda seed: BFloat16("stochastic", seed),
    "fp16": lambda seed: FP16("stochastic", seed),
    "fp8-e4m3": lambda seed: FP8("e4m3", rounding="stochastic", seed=seed),
    "fp8-e5m2": lambda seed: FP8("e5m2", rounding="stochastic", seed=seed),
    "fixed-point": lambda seed: FixedPoint(6, 10, "stochastic", seed),
}
"""FP8 saturates, and fixed point, which has 6 bits before the binary point, the sign among them, and 10 after it."""


def stochastic_round(x: np.ndarray, grid: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The plain statement, for any grid.

    Parameters
    ----------
    x : ndarray of floats, within the grid's ends
    grid : ndarray of float64
        The format's numbers, ascending.
    draws : ndarray of floats from 0 up to 1, of the shape of `x`
        Uniform, independent.

    Returns
    -------
    ndarray of float64

    Examples
    --------
    >>> stochastic_round(np.array([0.25, 0.25, 1.0]), np.array([0.0, 1.0]), np.array([0.2, 0.3, 0.9]))
    array([1., 0., 1.])
    """
    x = np.asarray(x, np.float64)
    below = np.clip(np.searchsorted(grid, x, side="right") - 1, 0, len(grid) - 2)
    a, b = grid[below], grid[below + 1]
    return np.where(draws < (x - a) / (b - a), b, a)


@dataclass(frozen=True)
class StochasticRounding(NumberFormat):
    """A format whose numbers are reached by chance, P(round(x) = b) = (x - a) / (b - a).

    Parameters
    ----------
    format : {"bfloat16", "fp16", "fp8-e4m3", "fp8-e5m2", "fixed-point"}
    seed : int
        What is drawn depends on it and on a number's place in memory order, and on nothing else.

    Notes
    -----
    The probability is exact for float32 where the format's numbers are normal, and right to 2^-24 where they are
    subnormal; of fixed point, to 2^-31. A float64 is first rounded to odd float32, which shifts the probability by at
    most 2^-16 (bfloat16), 2^-13 (FP16), 2^-20 (E4M3), 2^-21 (E5M2). Two calls with the same seed draw the same: take
    another seed for another step.

    Source: Gupta et al. 2015, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> StochasticRounding("fp8-e4m3", seed=1).round(np.full(8, 0.26, np.float32))
    array([0.28125, 0.28125, 0.28125, 0.25   , 0.28125, 0.28125, 0.28125,
           0.25   ], dtype=float32)
    """

    format: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format: expected {', '.join(FORMATS)}, got {self.format!r}")

    @cached_property
    def _inner(self) -> NumberFormat:
        return FORMATS[self.format](self.seed)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one code of the format."""
        return self._inner.bits

    @property
    def dtype(self) -> type[np.floating]:
        """The float type of the format's numbers."""
        return self._inner.dtype

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        self._inner._round(numbers, out, first)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        self._inner._encode(numbers, codes, first)

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        self._inner._decode(codes, out)
