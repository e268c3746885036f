"""Approximate adders: the carry chain cut, or its lower part replaced by ORs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numba import njit

from kernels.arithmetic.approximate_arithmetic.circuit_errors import circuit_errors
from kernels.arithmetic.approximate_arithmetic.codes import Coded, CodedProduct, InCodes
from kernels.arrays import as_array, describe

__all__ = ["ApproximateAdder", "plain_add"]

DESIGNS = ("lower-or", "carry-cut", "carry-ahead", "exact")
WIDTH = 8
"""Of the operands in the exhaustive figures."""
ACCUMULATOR = 32
"""Bits of the register in which a matrix product adds up."""


def plain_add(x: int, y: int, design: str, bits: int, width: int) -> int:
    """The definition, block by block, on Python's integers of `width` bits; the sum has one bit more.

        lower-or      the lowest `bits` are x | y; the carry into the rest is the AND of their highest bits
        carry-cut     blocks of `bits`, no carry between them
        carry-ahead   blocks of `bits`, each with the carry that the one below it makes by itself

    The last block's carry is the sum's highest bit. A block of the carry-ahead adder looks at its neighbour only, not
    at what comes into that.

    Examples
    --------
    >>> [plain_add(0b0111, 0b0011, design, 2, 4) for design in ("lower-or", "carry-cut", "carry-ahead")]
    [11, 6, 10]
    """
    if design == "exact":
        return x + y
    mask = 2**bits - 1
    if design == "lower-or":
        carry = (x & y) >> (bits - 1) & 1
        return ((x >> bits) + (y >> bits) + carry << bits) | ((x | y) & mask)
    total, carry = 0, 0
    for low in range(0, width, bits):
        a, b = x >> low & mask, y >> low & mask
        block = a + b + (carry if design == "carry-ahead" else 0)
        last = low + bits >= width
        total |= (block if last else block & mask) << low
        carry = (a + b) >> bits
    return total


@dataclass(frozen=True)
class ApproximateAdder(CodedProduct):
    """An adder that is not exact, and the matrix product whose sums it makes.

    A carry may run from the lowest bit to the highest, and the circuit must wait for it. These do not:

        lower-or      the lowest `bits` are ORed; their highest AND is the carry into the exact upper part
        carry-cut     blocks of `bits` bits, no carry from one to the next
        carry-ahead   blocks of `bits` bits, each carry computed from the block below alone

    In a matrix product inputs and weights are rounded to 8 bits, products are exact, and each is added to a register of
    32 bits by this adder, in the order of k; a k with which it might run over is refused. Positive and negative
    products are added up apart and subtracted exactly at the end: in two's complement a small negative number is a row
    of ones, every change of sign sends a carry through the whole register, and an adder that cuts carries fails on all
    of them (`signs="together"` shows it).

    Parameters
    ----------
    design : {"lower-or", "carry-cut", "carry-ahead", "exact"}
    bits : {2, 4, 8}
        Of the lower part, or of a block.
    signs : {"apart", "together"}

    Notes
    -----
    Source: Mahdiani et al., "Bio-inspired imprecise computational blocks", 2010 (lower-part-OR); Jiang, Han and
    Lombardi, "A comparative review and evaluation of approximate adders", 2015 (equal segmentation is `carry-cut`, the
    error-tolerant adder of type II is `carry-ahead`).

    Examples
    --------
    >>> adder = ApproximateAdder()
    >>> adder.add(np.array([7, 100]), np.array([9, 27]))
    array([ 15, 127])
    >>> {name: round(value, 4) for name, value in adder.errors().items()}        # doctest: +NORMALIZE_WHITESPACE
    {'error_rate': 0.6836, 'mean_absolute_error': 2.875, 'worst_absolute_error': 8, 'mean_relative_error': 0.0149,
     'error_bias': 0.25}
    >>> x = np.ones((1, 64), np.float32)
    >>> for design in ("exact", "lower-or", "carry-cut"):
    ...     print(design, round(float(ApproximateAdder(design, 8).matmul(x, x.T)[0, 0]), 2))
    exact 64.0
    lower-or 64.25
    carry-cut 1.01
    """

    design: str = "lower-or"
    bits: int = 4
    signs: str = "apart"

    arithmetic: ClassVar[str] = "an adder that cuts carries"

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise ValueError(f"design: expected one of {', '.join(DESIGNS)}, got {self.design!r}")
        if self.bits not in (2, 4, 8) or isinstance(self.bits, bool):
            raise ValueError(f"bits: expected 2, 4 or 8, got {self.bits!r}")
        if self.signs not in ("apart", "together"):
            raise ValueError(f"signs: expected 'apart' or 'together', got {self.signs!r}")

    def add(self, x: Any, y: Any, width: int = WIDTH) -> np.ndarray:
        """The circuit's sum of unsigned integers, element by element.

        Parameters
        ----------
        x, y : array_like of integers
            Of `width` bits; shapes broadcast.
        width : int
            A multiple of `bits`, at most 31.

        Returns
        -------
        ndarray of int64
            Of one bit more.

        Raises
        ------
        TypeError, ValueError
            If an operand is not unsigned integers of that width, or the width is no multiple.
        """
        if width % self.bits or not 0 < width < ACCUMULATOR:
            raise ValueError(f"width: expected a multiple of {self.bits} below {ACCUMULATOR}, got {width}")
        a, b = np.broadcast_arrays(*(_integers(operand, name, width) for operand, name in ((x, "x"), (y, "y"))))
        sums = np.empty(a.shape, np.uint32)
        _adders(self.design, self.bits)[0](
            np.ascontiguousarray(a).ravel(), np.ascontiguousarray(b).ravel(), sums.reshape(-1), width
        )
        return sums.astype(np.int64)

    def errors(self) -> dict[str, float]:
        """Error rate, mean and worst absolute error, mean relative error and bias over all pairs of 8 bits."""
        every = np.arange(2**WIDTH)
        return circuit_errors(self.add(every[:, None], every[None, :]), every[:, None] + every[None, :])

    def _multiplied(self, a: Coded, w: InCodes) -> np.ndarray:
        k, coded = a.depth, w.coded
        most = 2 ** (ACCUMULATOR - (self.signs == "together")) // (2**WIDTH * 2**WIDTH)
        if k > most:
            raise ValueError(f"x: expected at most {most} columns, so that sums stay in {ACCUMULATOR} bits, got {k}")
        sums = np.zeros((len(a.codes), len(coded.codes)), np.int64)
        left = a.codes[:, :k].astype(np.int32) - np.int32(a.zero)
        right = coded.codes[:, :k].T.astype(np.int32) - np.int32(coded.zero)
        accumulate = _adders(self.design, self.bits)[1]
        accumulate(np.ascontiguousarray(left), np.ascontiguousarray(right), sums, self.signs == "apart")
        return (sums * np.multiply.outer(a.scales, coded.scales)).astype(np.float32)


@lru_cache(maxsize=16)
def _adders(design: str, bits: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """The circuit on arrays of unsigned integers, and a product that adds up with it."""
    tops = sum(1 << at for at in range(bits - 1, 32, bits))  # the highest bit of each block
    lower, low_mask = np.uint32(bits), np.uint32(2**bits - 1)
    high, rest = np.uint32(tops), np.uint32(~tops & 0xFFFFFFFF)
    one, top = np.uint32(1), np.uint32(bits - 1)

    # All 32 bits at once: blocks add side by side where their highest bits are kept out of the sum and put in by XOR.
    @njit(cache=True, nogil=True, inline="always")
    def add(x, y):
        if design == "exact":
            return np.uint32(x + y)
        if design == "lower-or":
            carry = np.uint32(np.uint32(np.uint32(x & y) >> top) & one)
            above = np.uint32(np.uint32(x >> lower) + np.uint32(y >> lower) + carry)
            return np.uint32(np.uint32(above << lower) | np.uint32(np.uint32(x | y) & low_mask))
        apart = np.uint32(np.uint32(np.uint32(x & rest) + np.uint32(y & rest)) ^ np.uint32(np.uint32(x ^ y) & high))
        if design == "carry-cut":
            return apart
        # the carry of a block by itself: two of x, y and not-sum at its highest bit
        carries = np.uint32(np.uint32(np.uint32(x & y) | np.uint32(np.uint32(x | y) & ~apart)) & high)
        carries = np.uint32(carries << one)
        return np.uint32(np.uint32(np.uint32(apart & rest) + carries) ^ np.uint32(apart & high))

    @njit(cache=True, nogil=True)
    def sums_of(x, y, out, width):
        last = np.uint32(width - bits)
        for i in range(x.size):
            # the carry out of the highest block is the sum's highest bit: that block is added once more, with its carry
            total = add(x[i], y[i])
            if design == "carry-cut" or design == "carry-ahead":
                below = np.uint32(total & np.uint32(np.uint32(one << last) - one))
                block = np.uint32(np.uint32(x[i] >> last) + np.uint32(y[i] >> last))
                if design == "carry-ahead" and width > bits:
                    under = np.uint32(last - lower)
                    a = np.uint32(np.uint32(x[i] >> under) & low_mask)
                    b = np.uint32(np.uint32(y[i] >> under) & low_mask)
                    block = np.uint32(block + np.uint32(np.uint32(a + b) >> lower))
                total = np.uint32(below | np.uint32(block << last))
            out[i] = total

    @njit(cache=True, nogil=True)
    def product(a, b, out, apart):
        (m, k), n = a.shape, b.shape[1]
        plus, minus = np.empty(n, np.uint32), np.empty(n, np.uint32)
        for i in range(m):
            plus[:] = 0
            minus[:] = 0
            for p in range(k):
                x, row = a[i, p], b[p]
                if apart:
                    for j in range(n):
                        y = np.int32(x * row[j])
                        # a product of the other sign adds nothing: zero added is zero added in every design
                        plus[j] = add(plus[j], np.uint32(max(y, np.int32(0))))
                        minus[j] = add(minus[j], np.uint32(max(np.int32(-y), np.int32(0))))
                else:
                    for j in range(n):
                        plus[j] = add(plus[j], np.uint32(np.int32(x * row[j])))
            for j in range(n):
                out[i, j] = np.int64(plus[j]) - np.int64(minus[j]) if apart else np.int64(np.int32(plus[j]))

    return sums_of, product


def _integers(x: Any, name: str, width: int) -> np.ndarray:
    array = as_array(x, name)
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        raise TypeError(f"{name}: expected integers, got {describe(x)}")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 2**width):
        raise ValueError(f"{name}: expected integers from 0 to {2**width - 1}, got {array.min()} to {array.max()}")
    return array.astype(np.uint32)
