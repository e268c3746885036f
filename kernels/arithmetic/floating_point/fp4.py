r"""FP4: four bits a number, sixteen codes, and two ways to spend them.

    E2M1      0, ±1/2, ±1, ±3/2, ±2, ±3, ±4, ±6         two exponent bits, one of fraction, as the OCP's
    radix 4   0, ±4^-3, ±4^-2, ... ±4^3                 three exponent bits, no fraction, powers of four

Neither has infinity or NaN. E2M1 tells numbers of like size apart; radix 4 reaches from 1 to 4096, for gradients, whose
sizes differ more than their exact values matter. Both are of use only with a scale that brings the largest numbers of
a tensor to the top of the range (the OCP gives every 32 numbers one of their own, and Sun et al. every layer). Here a
tensor has one, a power of two.

Rounding goes to the nearest, ties to the even code; between 4^k and 4^(k + 1) the middle is 2.5 4^k. What is too large
becomes the largest number, infinities too, and a NaN a zero of its sign.

Source: X. Sun et al., "Ultra-Low Precision 4-bit Training of Deep Neural Networks", 2020 (radix 4); Open Compute
Project, "OCP Microscaling Formats (MX) Specification", version 1.0, 2023 (E2M1).

Examples
--------
>>> import numpy as np
>>> x = np.float32([0.3, 0.1, -0.02, 0.004])
>>> FP4().round(x)
array([ 0.25   ,  0.09375, -0.03125,  0.     ], dtype=float32)
>>> FP4("radix4").round(x)
array([ 0.25      ,  0.0625    , -0.015625  ,  0.00390625], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.arithmetic.floating_point.grid import FloatFormat, FloatGrid, biases, float_grid, radix4_grid

__all__ = ["FP4", "MAGNITUDES", "fp4_round"]

MAGNITUDES = {"e2m1": (0, 0.5, 1, 1.5, 2, 3, 4, 6), "radix4": (0, *(4.0**k for k in range(-3, 4)))}
"""The magnitudes by their codes, at scale one."""
BIAS = 4
"""Of radix 4: code c stands for 4^(c - BIAS)."""


def fp4_round(x: np.ndarray, format: str, scale: float = 1.0) -> np.ndarray:
    """The plain statement: of the eight magnitudes the nearest, of two as near that with the even code.

    Parameters
    ----------
    x : ndarray of floats
    format : {"e2m1", "radix4"}
    scale : float

    Returns
    -------
    ndarray of float64

    Examples
    --------
    >>> fp4_round(np.array([2.5, -9.0, 0.2]), "radix4")
    array([ 1.  , -4.  ,  0.25])
    """
    magnitudes = np.array(MAGNITUDES[format])
    x = np.where(np.isnan(x), np.copysign(0.0, x), np.asarray(x, np.float64))
    middles = (magnitudes[:-1] + magnitudes[1:]) / 2 * scale
    below = np.searchsorted(middles, np.abs(x), side="left")  # the code that x goes to, ties downwards
    tie = np.append(middles, np.nan)[below] == np.abs(x)
    return np.copysign(magnitudes[below + (tie & (below % 2 == 1))] * scale, x)


@dataclass(frozen=True)
class FP4(FloatFormat):
    """Four bits a number and a scale a tensor: ±{0, 1/2, 1, 3/2, 2, 3, 4, 6}, or ±{0, 4^-3 ... 4^3}.

    Parameters
    ----------
    format : {"e2m1", "radix4"}
    scale : float, optional
        What the grid is multiplied by, a power of two; fixed by `fit`, else fitted to each array. With 1.0, E2M1 is the
        OCP's element.

    Notes
    -----
    `fit` gives the largest number of the grid the exponent of the largest magnitude, as the OCP's shared exponents.

    Source: Sun et al. 2020; OCP MX 1.0 (E2M1).

    Examples
    --------
    >>> import numpy as np
    >>> FP4(scale=1.0).round(np.float32([0.7, 2.5, 100]))
    array([0.5, 2. , 6. ], dtype=float32)
    >>> [f"{code:04b}" for code in FP4("radix4", scale=1.0).encode(np.float32([1, -64, 0.01])).codes]
    ['0100', '1111', '0001']
    """

    format: str = "e2m1"
    scale: float | None = None
    bits = 4  # without annotation: constants, not fields
    rounding = "nearest-even"
    seed = 0

    def __post_init__(self) -> None:
        if self.format not in MAGNITUDES:
            raise ValueError(f"format: expected {' or '.join(MAGNITUDES)}, got {self.format!r}")
        self._check_scale()

    @property
    def _scales_itself(self) -> bool:
        return True

    def _exponents(self) -> tuple[int, int, int]:
        if self.format == "radix4":
            return 6, -119, 121  # half the smallest stays normal, the largest finite
        low, high = biases(2, 1, True, "none")
        return 2, 1 - high, 1 - low

    def _grid_at(self, exponent: int) -> FloatGrid:
        if self.format == "radix4":
            return radix4_grid(3, BIAS, exponent)
        return float_grid(2, 1, 1 - exponent, specials="none")
