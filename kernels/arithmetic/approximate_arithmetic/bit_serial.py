"""Bit-serial product: integers bit plane by bit plane, in a time proportional to their bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kernels.arithmetic.approximate_arithmetic.bit_planes import (
    Planes,
    pack_planes,
    plain_planes_product,
    planes_product,
    tile_shape,
)
from kernels.arithmetic.approximate_arithmetic.codes import Coded, CodedProduct, InCodes
from kernels.arrays import as_array, describe
from kernels.simd import LANES

__all__ = ["BitSerial", "plain_bit_serial"]


def plain_bit_serial(a: np.ndarray, b: np.ndarray, a_bits: int, b_bits: int) -> np.ndarray:
    """The definition for two's complement integers: a plane's weight is 2^i, that of the highest -2^(bits - 1).

    Examples
    --------
    >>> plain_bit_serial(np.array([[-3, 2]]), np.array([[1], [-2]]), 3, 2)
    array([[-7]])
    """
    shifted = a + 2 ** (a_bits - 1), b + 2 ** (b_bits - 1)
    product = plain_planes_product(shifted[0], shifted[1].T, a_bits, b_bits)  # (a + za)(b + zb), then what is too much
    za, zb = 2 ** (a_bits - 1), 2 ** (b_bits - 1)
    return product - zb * shifted[0].sum(1)[:, None] - za * shifted[1].sum(0)[None, :] + za * zb * a.shape[1]


@dataclass(frozen=True)
class BitSerial(CodedProduct):
    """Matrix product of integers of any widths from 1 to 8, one pair of bit planes after the other.

        A B = sum_{i, j} 2^(i + j) A_i B_j,        (A_i B_j)[r, c] = popcount(A_i[r] & B_j[:, c])

    A product of one bit by one bit is an AND, a sum of such products a count of ones: 64 multiply-adds in three
    instructions on words. There are input_bits times weight_bits pairs of planes, so the time is proportional to the
    product of the widths, and no width is wasted. Integers come out exact.

    Real matrices are rounded to integers first: inputs row by row, weights column by column, each to the full range of
    its bits. Inputs without a negative number spend no code on a sign. Codes of one bit stand for -1 and 1.

    Parameters
    ----------
    weight_bits, input_bits : int, 1 to 8
    lanes : {0, 2, 4, 8}
        Words of 64 bits in a vector register; 0 is this machine's own width.

    Notes
    -----
    Source: Umuroglu et al., "BISMO", arXiv 1806.08862 (the sum over pairs of planes); Judd et al.,
    "Stripes", MICRO 2016 (time proportional to the width). Codes are shifted to be unsigned and the shift is taken out
    by sums of rows and columns, where the papers give the highest plane a negative weight; the integers are the same.

    Examples
    --------
    >>> a, b = np.array([[-3, 2, 1]]), np.array([[1], [-2], [3]])
    >>> BitSerial(weight_bits=3, input_bits=3).multiply(a, b)
    array([[-4]])
    >>> x, w = np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)
    >>> for bits in (2, 4, 8):
    ...     print(bits, f"{np.abs(BitSerial(bits, bits).matmul(x, w) - x @ w).max() / np.abs(x @ w).max():.3f}")
    2 1.491
    4 0.177
    8 0.010
    """

    weight_bits: int = 8
    input_bits: int = 8
    lanes: int = 0

    arithmetic: ClassVar[str] = "an AND of two words and a count of its ones"

    def __post_init__(self) -> None:
        for name in ("weight_bits", "input_bits"):
            bits = getattr(self, name)
            if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
                raise ValueError(f"{name}: expected an integer from 1 to 8, got {bits!r}")
        if self.lanes not in (0, 2, 4, 8):
            raise ValueError(f"lanes: expected 0, 2, 4 or 8, got {self.lanes!r}")

    def multiply(self, a: Any, b: Any) -> np.ndarray:
        """The exact product of integer matrices.

        Parameters
        ----------
        a : array_like of integers, shape (m, k)
            In two's complement of `input_bits` bits, or in as many unsigned; of one bit, -1 and 1, or 0 and 1.
        b : array_like of integers, shape (k, n)
            In `weight_bits` bits.

        Returns
        -------
        ndarray of int64, shape (m, n)

        Raises
        ------
        TypeError, ValueError
            If an operand is not a matrix of integers within its width, or shapes do not fit.
        """
        left, right = _integers(a, "a", self.input_bits), _integers(np.asarray(b).T, "b", self.weight_bits)
        if left.depth != right.depth:
            raise ValueError(f"b: expected {left.depth} rows, as many as a has columns, got {describe(np.asarray(b))}")
        exact = np.empty((len(left.codes), len(right.codes)), np.int64)
        return self._product(left, right, self._form(right), exact)

    @property
    def _lanes(self) -> int:
        return self.lanes or LANES // 2

    def _form(self, coded: Coded) -> Planes:
        return pack_planes(coded.codes, coded.bits, tile_shape(self._lanes)[1] * self._lanes)

    def _multiplied(self, a: Coded, w: InCodes) -> np.ndarray:
        return self._product(a, w.coded, w.form, np.empty((len(a.codes), w.shape[1]), np.float32))

    def _product(self, a: Coded, w: Coded, planes: Planes, out: np.ndarray) -> np.ndarray:
        # (sa u - za) (sb v - zb), summed: sa sb uv - sa zb u - sb za v + k za zb
        rows = w.zero * (a.depth * a.zero - a.step * a.sums)
        columns = -w.step * a.zero * w.sums
        own = pack_planes(a.codes, a.bits, tile_shape(self._lanes)[0])
        scales = (a.scales, w.scales) if out.dtype == np.float32 else (None, None)
        return planes_product(own, planes, self._lanes, out, a.step * w.step // 2, rows, columns, *scales)


def _integers(x: Any, name: str, bits: int) -> Coded:
    matrix = as_array(x, name, ndim=2)
    if not (np.issubdtype(matrix.dtype, np.integer) or matrix.dtype == bool):
        raise TypeError(f"{name}: expected integers, got {describe(x)}")
    low, high = (int(matrix.min()), int(matrix.max())) if matrix.size else (0, 0)
    if low >= 0 and high < 2**bits:
        step, zero = 1, 0
    elif bits == 1 and low == -1 and high <= 1 and not (matrix == 0).any():
        step, zero = 2, 1
    elif bits > 1 and low >= -(2 ** (bits - 1)) and high < 2 ** (bits - 1):
        step, zero = 1, 2 ** (bits - 1)
    else:
        raise ValueError(f"{name}: expected integers of {bits} bits, signed or unsigned; they go from {low} to {high}")
    codes = np.zeros((matrix.shape[0], -(-matrix.shape[1] // 64) * 64), np.uint8)
    codes[:, : matrix.shape[1]] = (matrix.astype(np.int64) + zero) // step
    scales, sums = np.ones(len(codes), np.float32), codes.sum(1, dtype=np.int64)
    return Coded(codes, scales, sums, matrix.shape[1], bits, step, zero)
