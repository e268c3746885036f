r"""Block floating point: integers that share one exponent, so that a dot product inside a block is integer arithmetic.

The largest magnitude of a block decides its exponent; with mantissas of m bits, sign included,

    x_i = M_i 2^(e - (m - 2)),       e = floor(log2 max |x|),       |M_i| <= 2^(m - 1) - 1

M_i is x_i / 2^(e - (m - 2)) rounded to the nearest integer, ties to even; what would need one more bit stays at the
largest. All numbers of a block have the same absolute error, half of 2^(e - (m - 2)), so small ones beside a large one
lose their relative precision, down to zero. The exponent takes 8 bits, from -127 to 127.

The product of two blocks is the integer sum of M_i N_i, then one multiplication by a power of two:

    sum x_i y_i = 2^(e + f - 2 (m - 2)) sum M_i N_i

A block as large as the tensor is Flexpoint, whose mantissas have 16 bits; there the exponent is predicted from the
tensor's past, here it is that of the tensor itself. MSFP and HBFP take blocks of a row or a tile.

Source: U. Köster et al., "Flexpoint: An Adaptive Numerical Format for Efficient Training of Deep Neural Networks",
2017; M. Drumond et al., "Training DNNs with Hybrid Block Floating Point", 2018; Z. Song et al., "Computation Error
Analysis of Block Floating Point Arithmetic Oriented Convolution Neural Network Accelerator Design", 2018.

Examples
--------
>>> form = BlockFloatingPoint(mantissa_bits=4, block=4)
>>> form.round(np.float32([1.0, 0.3, -0.1, 0.7, 64, 1, -15, 40]))       # steps of 1/4 and of 16
array([ 1.  ,  0.25,  0.  ,  0.75, 64.  ,  0.  , -16.  , 32.  ], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.bits import cast
from kernels.arithmetic.block_format import (
    BlockFormat,
    in_blocks,
    largest_exponents,
    power_of_two_scales,
    same_order,
)
from kernels.arithmetic.number_format import Encoded
from kernels.arrays import describe

__all__ = ["BlockFloatingPoint", "block_floating_point_round", "decode_integers", "encode_integers", "round_integers"]

MAGIC = 1.5 * 2.0**23
"""Added to a float32 below 2^22 and subtracted again, it rounds to an integer, ties to even."""


def block_floating_point_round(x: np.ndarray, mantissa_bits: int, block: int | str) -> np.ndarray:
    """The plain statement: each block to multiples of 2^(e - (m - 2)), e being the exponent of its largest magnitude.

    Parameters
    ----------
    x : ndarray of floats, any shape
    mantissa_bits : int
        Sign included.
    block : int or "tensor"

    Returns
    -------
    ndarray of float64
    """
    blocks = in_blocks(x, block)
    step = np.exp2(np.clip(largest_exponents(blocks), -127, 127) - (mantissa_bits - 2))
    most = 2.0 ** (mantissa_bits - 1) - 1
    with np.errstate(invalid="ignore"):
        mantissas = np.clip(np.rint(blocks / step), -most, most)
        return same_order(mantissas * step + 0.0, np.shape(x))


@dataclass(frozen=True)
class BlockFloatingPoint(BlockFormat):
    """Block floating point, x_i = M_i 2^(e - (m - 2)); a code is M_i in two's complement, a scale is 2^e.

    Parameters
    ----------
    mantissa_bits : int
        Bits of a mantissa, sign included, 2 to 16.
    block : int or "tensor"
        Numbers of a row that share an exponent; "tensor" for one exponent in all.

    Notes
    -----
    Zero has no sign. A block with a NaN or an infinity becomes NaN.

    Source: Köster et al. 2017 (one exponent a tensor), Drumond et al. 2018, Song et al. 2018 (blocks).

    Examples
    --------
    >>> encoded = BlockFloatingPoint(mantissa_bits=4, block=4).encode(np.float32([1.0, 0.3, -0.1, 0.7, 64, 1, -15, 40]))
    >>> encoded.codes.tolist(), encoded.scales.tolist()
    ([4, 1, 0, 3, 4, 0, 15, 2], [1.0, 64.0])
    >>> form = BlockFloatingPoint()
    >>> a, b = form.encode(np.float32([1, 2, 3])), form.encode(np.float32([0.5, 0.25, -4]))
    >>> form.dot(a, b)
    -11.0
    """

    mantissa_bits: int = 8
    block: int | str = 32
    scale_bits = 8

    def __post_init__(self) -> None:
        if self.mantissa_bits not in range(2, 17):
            raise ValueError(f"mantissa_bits: expected an integer from 2 to 16, got {self.mantissa_bits!r}")
        if self.block != "tensor" and not (isinstance(self.block, int) and self.block >= 1):
            raise ValueError(f"block: expected a positive integer or 'tensor', got {self.block!r}")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one mantissa; the exponent is counted by `stored_bits`."""
        return self.mantissa_bits

    def element_values(self) -> np.ndarray:
        """The grid of a block whose exponent is zero: M / 2^(m - 2).

        Examples
        --------
        >>> BlockFloatingPoint(mantissa_bits=3).element_values()
        array([-1.5, -1. , -0.5,  0. ,  0.5,  1. ,  1.5])
        """
        most = 2 ** (self.mantissa_bits - 1) - 1
        return np.arange(-most, most + 1) * 2.0 ** (2 - self.mantissa_bits)

    def dot(self, a: Any, b: Any) -> float:
        """The dot product of two vectors, in the format.

        Parameters
        ----------
        a, b : Encoded, or array_like of floats to be encoded, of shape (k,)

        Returns
        -------
        float
            As `matmul` gives it for one row each.
        """
        a, b = (self._operand(v, name, 1) for v, name in ((a, "a"), (b, "b")))
        return float(self._product(a, b, 1, 1)[0, 0])

    def matmul(self, a: Any, b: Any) -> np.ndarray:
        """The product ``a @ b.T`` in the format: blocks run along the dimension that is summed over.

        Inside a pair of blocks everything is integer; its sum is exact. One multiplication by a power of two, exact
        too, brings it to its place, and pairs are added in float64 from left to right: rounded only where 53 bits do
        not hold the sum.

        Parameters
        ----------
        a : Encoded, or array_like of floats to be encoded, of shape (m, k)
        b : likewise, of shape (n, k)
            As the weight of a linear layer: a row for each output.

        Returns
        -------
        ndarray of float64, shape (m, n)

        Raises
        ------
        ValueError
            If the shapes do not fit.

        Examples
        --------
        >>> form = BlockFloatingPoint(mantissa_bits=8, block=2)
        >>> form.matmul(np.eye(2, 3, dtype=np.float32), np.float32([[1, 2, 3], [4, 5, 6]]))
        array([[1., 4.],
               [2., 5.]])
        """
        a, b = (self._operand(v, name, 2) for v, name in ((a, "a"), (b, "b")))
        return self._product(a, b, a.shape[0], b.shape[0])

    def _operand(self, x: Any, name: str, ndim: int) -> Encoded:
        encoded = x if isinstance(x, Encoded) else self.encode(x)
        if len(encoded.shape) != ndim:
            raise ValueError(f"{name}: expected {ndim} dimensions, got {describe(encoded.codes)}")
        return encoded

    def _product(self, a: Encoded, b: Encoded, m: int, n: int) -> np.ndarray:
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(f"b: expected rows of length {a.shape[-1]}, as those of a, got shape {b.shape}")
        k, out = a.shape[-1], np.zeros((m, n))
        block = max(k, 1) if self.block == "tensor" else int(self.block)
        mantissas, steps = [], []
        for operand, rows in ((a, m), (b, n)):
            wide = np.empty(operand.shape, np.int16)
            sign_extended(np.ascontiguousarray(operand.codes).reshape(-1), wide.reshape(-1), self.mantissa_bits)
            step = np.float64(operand.scales) * 2.0 ** (2 - self.mantissa_bits)
            each = (
                step.reshape(rows, step.size // max(rows, 1))
                if self.block != "tensor"
                else np.broadcast_to(step, (rows, step.size))
            )
            mantissas.append(wide.reshape(rows, k))
            steps.append(np.ascontiguousarray(each))
        narrow = block * 4 ** (self.mantissa_bits - 1) < 2**31
        zero = np.int32(0) if narrow else np.int64(0)
        _product(mantissas[0], mantissas[1], steps[0], steps[1], block, zero, out)
        return out

    def _settle(self, largest: np.ndarray, scales: np.ndarray) -> None:
        power_of_two_scales(largest, scales, 0)

    def _round_blocks(self, numbers, out, row, block, largest, scales) -> None:
        round_integers(numbers, out, row, block, scales, self.mantissa_bits)

    def _encode_blocks(self, numbers, codes, row, block, largest, scales) -> None:
        encode_integers(numbers, codes, row, block, scales, self.mantissa_bits)

    def _decode_blocks(self, codes, out, row, block, scales) -> None:
        decode_integers(codes, out, row, block, scales, self.mantissa_bits)


@njit(cache=True, nogil=True, inline="always")
def _mantissa(x, inverse, wide, most):
    """The mantissa of one number as a float; `inverse` is 2^-e, `wide` 2^(m - 2): their product might overflow."""
    integer = np.float32(np.float32(np.float32(x * inverse) * wide) + np.float32(MAGIC)) - np.float32(MAGIC)
    return max(min(np.float32(integer), most), np.float32(-most))


@njit(cache=True, nogil=True)
def round_integers(x, out, row, block, scales, bits):
    """Round contiguous rows to mantissas of `bits` bits under power-of-two scales; NaN where the scale is."""
    wide, narrow = np.float32(2.0 ** (bits - 2)), np.float32(2.0 ** (2 - bits))
    most = np.float32(2.0 ** (bits - 1) - 1)
    at = 0
    for start in range(0, x.size, row):
        end = min(start + row, x.size)
        for first in range(start, end, block):
            scale = scales[at]
            inverse = np.float32(1) / scale
            at += 1
            stop = min(first + block, end)
            numbers, rounded = x[first:stop], out[first:stop]
            for i in range(numbers.size):
                rounded[i] = np.float32(_mantissa(numbers[i], inverse, wide, most) * narrow) * scale


@njit(cache=True, nogil=True)
def encode_integers(x, codes, row, block, scales, bits):
    """The mantissas of contiguous rows in two's complement; zeros where the scale is NaN."""
    wide = np.float32(2.0 ** (bits - 2))
    most = np.float32(2.0 ** (bits - 1) - 1)
    mask = np.int32(2**bits - 1)
    at = 0
    for start in range(0, x.size, row):
        end = min(start + row, x.size)
        for first in range(start, end, block):
            number = scales[at] == scales[at]
            inverse = np.float32(1) / scales[at]
            at += 1
            stop = min(first + block, end)
            numbers, own = x[first:stop], codes[first:stop]
            for i in range(numbers.size):
                mantissa = _mantissa(numbers[i], inverse, wide, most) if number else np.float32(0)
                own[i] = np.int32(np.int32(mantissa) & mask)


@njit(cache=True, nogil=True)
def decode_integers(codes, out, row, block, scales, bits):
    """The inverse of `encode_integers`."""
    narrow = np.float32(2.0 ** (2 - bits))
    shift = np.int32(32 - bits)
    at = 0
    for start in range(0, codes.size, row):
        end = min(start + row, codes.size)
        for first in range(start, end, block):
            scale = scales[at]
            at += 1
            stop = min(first + block, end)
            own, numbers = codes[first:stop], out[first:stop]
            for i in range(own.size):
                mantissa = np.int32(np.int32(np.int32(own[i]) << shift) >> shift)
                numbers[i] = np.float32(np.float32(mantissa) * narrow) * scale


@njit(cache=True, nogil=True)
def sign_extended(codes, out, bits):
    """Mantissas as integers from codes in two's complement."""
    shift = np.int32(32 - bits)
    for i in range(codes.size):
        out[i] = np.int32(np.int32(np.int32(codes[i]) << shift) >> shift)


@njit(cache=True, nogil=True)
def _product(a, b, a_steps, b_steps, block, zero, out):
    """The products of rows; integers are added in the type of `zero`, which holds those of a pair of blocks."""
    k = a.shape[1]
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            total = 0.0
            for at, first in enumerate(range(0, k, block)):
                inner = cast(0, zero)
                for p in range(first, min(first + block, k)):
                    inner = cast(inner + cast(a[i, p], zero) * cast(b[j, p], zero), zero)
                total += inner * (a_steps[i, at] * b_steps[j, at])
            out[i, j] = total
