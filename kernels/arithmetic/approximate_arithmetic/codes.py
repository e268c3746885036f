"""Integer codes of real matrices: what every technique of this family computes with.

Each row of a matrix has its own scale, half the range of its codes over its largest magnitude, so that the code of a
number depends on its row alone. A weight matrix is coded by columns: its transpose by rows.

    x[i, p] = scale[i] (step u[i, p] - zero)        u an unsigned code of `bits` bits

    signed, bits > 1   zero = 2^(bits - 1), step 1: the codes stand for -(2^(bits - 1) - 1) .. 2^(bits - 1) - 1
    unsigned           zero = 0, step 1: for 0 .. 2^bits - 1, where no number is negative
    signed, one bit    zero = 1, step 2: for -1 and 1, at a scale of the row's mean magnitude

Source: symmetric rounding to integers as in Stripes (Judd et al., 2016); one bit as in Rastegari et al., "XNOR-Net",
2016, section 3.1, where the mean magnitude is shown to be the best scale.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit

from kernels.arithmetic.prepared_product import Prepared, PreparedProduct
from kernels.arrays import as_array

__all__ = ["Coded", "CodedProduct", "InCodes", "code_rows", "plain_code_rows"]


RUN = 2**20


@dataclass(frozen=True, eq=False)
class Coded:
    """Rows in codes.

    Attributes
    ----------
    codes : ndarray of uint8, shape (rows, at least k)
        Padded with zeros to whole words of 64 codes.
    scales : ndarray of float32, shape (rows,)
    sums : ndarray of int64, shape (rows,)
        Of each row's codes.
    depth : int
        k, the length of a row.
    bits, step, zero : int
    """

    codes: np.ndarray
    scales: np.ndarray
    sums: np.ndarray
    depth: int
    bits: int
    step: int
    zero: int

    def integers(self) -> np.ndarray:
        """What the codes stand for, without their scales: int64 of shape (rows, k)."""
        return self.step * self.codes[:, : self.depth].astype(np.int64) - self.zero


def plain_code_rows(x: np.ndarray, bits: int, signed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The definition in numpy: integers of shape (m, k), and the scale of each row.

    Examples
    --------
    >>> plain_code_rows(np.float32([[0.5, -1.0, 0.26]]), bits=3)
    (array([[ 2., -3.,  1.]], dtype=float32), array([0.33333334], dtype=float32))
    """
    size = np.abs(x)
    if bits == 1 and signed:
        return np.where(x < 0, np.float32(-1), np.float32(1)), size.mean(1, dtype=np.float64).astype(np.float32)
    top = np.float32(2 ** (bits - signed) - 1)
    largest = size.max(1)
    inverse = np.divide(top, largest, out=np.zeros_like(largest), where=largest > 2.0**-100)
    return np.rint(x * inverse[:, None]), np.where(largest > 2.0**-100, largest, 0) / top


def code_rows(x: np.ndarray, bits: int, name: str, signed: bool | None = None) -> Coded:
    """A float32 matrix in codes of so many bits.

    Parameters
    ----------
    x : ndarray of float32, shape (m, k)
    bits : int, 1 to 8
    name : str
        The argument's name in the error.
    signed : bool, optional
        Whether codes have a sign; if absent, they have one where a number is negative, or there is only one bit.

    Raises
    ------
    ValueError
        If a number is infinite or NaN.

    Examples
    --------
    >>> code_rows(np.float32([[0.5, -1.0, 0.26]]), 3, "x").integers()
    array([[ 2, -3,  1]])
    >>> code_rows(np.float32([[0.5, 1.0, 0.26]]), 3, "x").integers()
    array([[4, 7, 2]])
    """
    m, k = x.shape
    x = np.ascontiguousarray(x)
    largest, negative = np.empty(m, np.float32), np.empty(m, np.bool_)
    _extremes(x.view(np.uint32), largest.view(np.uint32), negative)
    if not np.isfinite(largest).all():
        raise ValueError(f"{name}: expected finite numbers, which have integer codes; it holds infinity or NaN")
    if signed is None:
        signed = bits == 1 or bool(negative.any())
    codes, sums = np.zeros((m, -(-k // 64) * 64), np.uint8), np.empty(m, np.int64)
    if bits == 1 and signed:
        _signs(x, codes, sums, means := np.empty(m, np.float32))
        return Coded(codes, means, sums, k, 1, 2, 1)
    top = np.float32(2 ** (bits - signed) - 1)
    zero = 2 ** (bits - 1) if signed else 0
    useful = largest > 2.0**-100  # a row of smaller numbers is a row of zeros: 1 / x must not overflow
    inverses = np.divide(top, largest, out=np.zeros_like(largest), where=useful)
    _code(x, inverses, codes, sums, np.float32(zero))
    return Coded(codes, np.where(useful, largest, np.float32(0)) / top, sums, k, bits, 1, zero)


@dataclass(frozen=True, eq=False)
class InCodes(Prepared):
    """A constant right operand in codes.

    Attributes
    ----------
    coded : Coded
        Its columns.
    form
        What the operator that made it reads; None where it reads the codes.
    """

    coded: Coded
    form: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, or of the planes that stand for them, and of one scale a column."""
        planes = getattr(self.form, "data", None)
        return (self.shape[0] * self.shape[1] if planes is None else planes.nbytes) + self.coded.scales.nbytes

    def stored_bits(self) -> int:
        """Bits of the codes and of one scale a column."""
        return self.shape[0] * self.shape[1] * self.coded.bits + 32 * self.shape[1]


class CodedProduct(PreparedProduct):
    """What the operators on codes share: rounding real operands to them, inputs by rows and weights by columns.

    A subclass gives `_multiplied`, and may give `_form` and other widths.
    """

    arithmetic: ClassVar[str] = "this arithmetic"

    weight_bits: int = 8
    input_bits: int = 8
    signed_inputs: ClassVar[bool | None] = None

    @property
    def operand_bits(self) -> int:
        """Bits of an operand as it crosses the memory bus: those of the wider one."""
        return max(self.weight_bits, self.input_bits)

    def energy(self, macs: int, moved: int) -> float:
        """There is none: the cited table holds no coefficient for this arithmetic, and the error says so."""
        raise KeyError(f"no cited energy for {self.arithmetic}")

    def prepare(self, w: Any) -> InCodes:
        """Round a constant right operand, once.

        Parameters
        ----------
        w : array_like or torch.Tensor of shape (k, n)

        Raises
        ------
        TypeError, ValueError
            If `w` is not a matrix of finite real numbers.
        """
        matrix = as_array(w, "w", ndim=2, dtype=np.float32)
        coded = code_rows(matrix.T, self.weight_bits, "w", signed=True)
        return InCodes(self, (matrix.shape[0], matrix.shape[1]), coded, self._form(coded))

    def _times(self, x: np.ndarray, w: InCodes) -> np.ndarray:
        coded = code_rows(x.astype(np.float32, copy=False), self.input_bits, "x", self.signed_inputs)
        return self._multiplied(coded, w)

    def _form(self, coded: Coded) -> Any:
        """The constant operand as `_multiplied` reads it."""
        return None

    @abstractmethod
    def _multiplied(self, a: Coded, w: InCodes) -> np.ndarray:
        """The product, float32 of shape (m, n)."""


@njit(cache=True, nogil=True)
def _extremes(patterns, largest, negative):
    # floats of one sign are ordered as their patterns are, negative ones above positive ones
    for i in range(patterns.shape[0]):
        high, highest = np.uint32(0), np.uint32(0)
        for p in range(patterns.shape[1]):
            high = max(high, np.uint32(patterns[i, p] & np.uint32(0x7FFFFFFF)))
            highest = max(highest, patterns[i, p])
        largest[i], negative[i] = high, highest > np.uint32(0x80000000)  # zero with a sign is not negative


@njit(cache=True, nogil=True)
def _code(x, inverses, codes, sums, zero):
    for i in range(x.shape[0]):
        sums[i] = 0
        for start in range(0, x.shape[1], RUN):  # as many codes as 32 bits add up
            total = np.int32(0)
            for p in range(start, min(start + RUN, x.shape[1])):
                code = np.int32(np.rint(x[i, p] * inverses[i]) + zero)
                codes[i, p] = np.uint8(code)
                total = np.int32(total + code)
            sums[i] += total


@njit(cache=True, nogil=True)
def _signs(x, codes, sums, means):
    m, k = x.shape
    whole = k - k % 16
    for i in range(m):
        parts, positive = np.zeros(16), np.int32(0)  # sixteen sums side by side, whatever the machine's vectors
        for p in range(0, whole, 16):
            for t in range(16):
                parts[t] += abs(x[i, p + t])
        for p in range(whole, k):
            parts[p - whole] += abs(x[i, p])
        for p in range(k):
            code = np.int32(not x[i, p] < 0)
            codes[i, p] = np.uint8(code)
            positive = np.int32(positive + code)
        total = 0.0
        for t in range(16):
            total += parts[t]
        sums[i], means[i] = positive, total / max(k, 1)
