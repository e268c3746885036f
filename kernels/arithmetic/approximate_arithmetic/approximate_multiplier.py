"""Approximate multipliers: circuits that leave out part of a product."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from kernels.arithmetic.approximate_arithmetic.circuit_errors import circuit_errors
from kernels.arithmetic.approximate_arithmetic.codes import Coded, CodedProduct, InCodes
from kernels.arithmetic.approximate_arithmetic.table_product import signed_table, table_product
from kernels.arrays import as_array, describe

__all__ = ["ApproximateMultiplier", "drum", "mitchell", "truncated"]

DESIGNS = ("mitchell", "drum", "truncated", "exact")
WIDTH = 8


def _leading_one(x: np.ndarray) -> np.ndarray:
    """The place of the highest bit set; -1 of zero."""
    return np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1


def mitchell(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Multiply by adding logarithms, log2(2^k (1 + f)) taken to be k + f, and as crude an antilogarithm.

        x = 2^k1 (1 + f1), y = 2^k2 (1 + f2)
        x y ~ 2^(k1 + k2) (1 + f1 + f2)     where f1 + f2 < 1
              2^(k1 + k2 + 1) (f1 + f2)     else

    An integer in either case; never too large, and too small by a ninth at most, where f1 = f2 = 1/2.

    Parameters
    ----------
    x, y : ndarray of int64, at least 0

    Examples
    --------
    >>> mitchell(np.array([3, 5, 12]), np.array([3, 4, 12]))
    array([  8,  20, 128])
    """
    k1, k2 = _leading_one(x), _leading_one(y)
    some = (x > 0) & (y > 0)
    k1, k2 = np.where(some, k1, 0), np.where(some, k2, 0)
    fractions = (x - (1 << k1) << k2) + (y - (1 << k2) << k1)  # 2^(k1 + k2) (f1 + f2)
    whole = np.int64(1) << (k1 + k2)
    return np.where(some, np.where(fractions < whole, whole + fractions, 2 * fractions), 0)


def drum(x: np.ndarray, y: np.ndarray, bits: int) -> np.ndarray:
    """Multiply so many bits of each operand from its highest one on, the last of them set to one.

    Setting it puts the operand in the middle of those that it stands for, so that errors of both signs occur and
    cancel in a sum. An operand that fits is taken as it is.

    Parameters
    ----------
    x, y : ndarray of int64, at least 0
    bits : int, at least 2

    Examples
    --------
    >>> drum(np.array([5, 200]), np.array([7, 100]), bits=3)         # 200 becomes 224, 100 becomes 112
    array([   35, 25088])
    """

    def kept(n: np.ndarray) -> np.ndarray:
        cut = np.maximum(_leading_one(n) + 1 - bits, 0)
        return np.where(cut > 0, (n >> cut | 1) << cut, n)

    return kept(x) * kept(y)


def truncated(x: np.ndarray, y: np.ndarray, bits: int) -> np.ndarray:
    """Add up the partial products x_i y_j 2^(i + j) with i + j >= bits only.

    Parameters
    ----------
    x, y : ndarray of int64, at least 0
    bits : int
        Lowest columns of the array of partial products that are not built.

    Examples
    --------
    >>> truncated(np.array([3, 16]), np.array([3, 16]), bits=2)
    array([  4, 256])
    """
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.int64)
    for i in range(16):
        cut = max(bits - i, 0)
        total += (x >> i & 1) * (y >> cut << cut) << i
    return total


@dataclass(frozen=True)
class ApproximateMultiplier(CodedProduct):
    """A multiplier of 8 bits that is not exact, and the matrix product that is made of it.

    The array of a multiplier grows with the square of its width. Three ways to leave part of it out:

        mitchell    add logarithms instead:  log2(x y) ~ k1 + f1 + k2 + f2
        drum        multiply the `bits` leading bits of each operand, wherever they are
        truncated   do not build the `bits` lowest columns of the array

    Circuits multiply magnitudes; signs go round them. In a matrix product inputs and weights are rounded to 8 bits, row
    by row and column by column, every product is looked up in the circuit's table, and the sums are exact.

    Parameters
    ----------
    design : {"mitchell", "drum", "truncated", "exact"}
    bits : int
        Kept bits of `drum`, 2 to 8; left out columns of `truncated`, 1 to 15; 0 for the others.

    Notes
    -----
    Source: Mitchell, "Computer multiplication and division using binary logarithms", 1962; Hashemi, Bahar and Reda,
    "DRUM", ICCAD 2015; products of a network by tables of a circuit as in Mrazek et al., "ALWANN", arXiv
    1907.07229.

    Examples
    --------
    >>> multiplier = ApproximateMultiplier()
    >>> multiplier.multiply(np.array([24, -24]), np.array([24, 100]))
    array([  512, -2176])
    >>> {name: round(value, 3) for name, value in multiplier.errors().items()}   # doctest: +NORMALIZE_WHITESPACE
    {'error_rate': 0.931, 'mean_absolute_error': 606.398, 'worst_absolute_error': 4096, 'mean_relative_error': 0.038,
     'error_bias': -606.398}
    >>> ApproximateMultiplier("drum", 4).matmul(np.float32([[1, 2]]), np.float32([[3], [4]]))
    array([[10.244743]], dtype=float32)
    """

    design: str = "mitchell"
    bits: int = 0

    arithmetic: ClassVar[str] = "a multiplier that leaves bits out"

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise ValueError(f"design: expected one of {', '.join(DESIGNS)}, got {self.design!r}")
        low, high = {"drum": (2, WIDTH), "truncated": (1, 2 * WIDTH - 1)}.get(self.design, (0, 0))
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not low <= self.bits <= high:
            raise ValueError(f"bits: expected an integer from {low} to {high} for {self.design}, got {self.bits!r}")

    def multiply(self, x: Any, y: Any) -> np.ndarray:
        """The circuit's product of integers, element by element.

        Parameters
        ----------
        x, y : array_like of integers
            Of magnitude below 2^8; shapes broadcast.

        Returns
        -------
        ndarray of int64

        Raises
        ------
        TypeError, ValueError
            If an operand is not integers of 8 bits and a sign.
        """
        a, b = (_integers(operand, name) for operand, name in ((x, "x"), (y, "y")))
        sizes = np.abs(a), np.abs(b)
        if self.design == "mitchell":
            product = mitchell(*sizes)
        elif self.design == "drum":
            product = drum(*sizes, self.bits)
        elif self.design == "truncated":
            product = truncated(*sizes, self.bits)
        else:
            product = sizes[0] * sizes[1]
        return np.sign(a) * np.sign(b) * product

    def table(self) -> np.ndarray:
        """All products of two unsigned numbers of 8 bits: int64 of shape (256, 256)."""
        every = np.arange(2**WIDTH)
        return self.multiply(every[:, None], every[None, :])

    def errors(self) -> dict[str, float]:
        """Error rate, mean and worst absolute error, mean relative error and bias over all 65536 pairs."""
        every = np.arange(2**WIDTH)
        return circuit_errors(self.table(), every[:, None] * every[None, :])

    def _multiplied(self, a: Coded, w: InCodes) -> np.ndarray:
        table = _signed(self, a.zero, w.coded.zero)
        k = a.depth
        sums = table_product(a.codes[:, :k], w.coded.codes[:, :k].T, table)
        return (sums * np.multiply.outer(a.scales, w.coded.scales)).astype(np.float32)


@lru_cache(maxsize=8)
def _signed(multiplier: ApproximateMultiplier, left_zero: int, right_zero: int) -> np.ndarray:
    return signed_table(multiplier.table(), left_zero, right_zero)


def _integers(x: Any, name: str) -> np.ndarray:
    array = as_array(x, name)
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        raise TypeError(f"{name}: expected integers, got {describe(x)}")
    array = array.astype(np.int64)
    if array.size and np.abs(array).max() >= 2**WIDTH:
        raise ValueError(f"{name}: expected magnitudes below {2**WIDTH}, got {np.abs(array).max()}")
    return array
