"""Sub-word SIMD: a register of 32-bit lanes holds four bytes in each, and one instruction multiplies them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit

from kernels.arithmetic.approximate_arithmetic.codes import Coded, InCodes, code_rows
from kernels.arithmetic.prepared_product import Prepared
from kernels.arrays import as_array, describe
from kernels.energy import DRAM_ENERGY, mac_energy
from kernels.implementation.low_precision_kernels.byte_dots import (
    BytePanels,
    best_instruction,
    byte_product,
    pack_bytes,
    plain_byte_product,
)
from kernels.implementation.low_precision_kernels.code_convolution import CodedConvolution

__all__ = ["GROUP", "NibbleColumns", "SubWordSIMD", "plain_sub_word"]

GROUP = 64
"""Weights of a column that share a scale, where the weights alone are narrow."""


def plain_sub_word(a: np.ndarray, b: np.ndarray, zero: int) -> np.ndarray:
    """The definition: unsigned codes u = a + zero by signed weights, and what the shift added taken back.

    Examples
    --------
    >>> plain_sub_word(np.array([[-2, 3]]), np.array([[5], [-7]]), zero=128)
    array([[-31]])
    """
    return plain_byte_product(a + zero, b) - zero * b.astype(np.int64).sum(0)


@dataclass(frozen=True, eq=False)
class NibbleColumns(Prepared):
    """A constant right operand in codes of 4 bits, two to a byte, with a scale for each group of a column.

    Attributes
    ----------
    data : ndarray of uint8, shape (k, columns / 2)
        Column j in the low half and column j + columns / 2 in the high half of a byte; code 8 is zero.
    scales : ndarray of float32, shape (groups, columns)
    """

    data: np.ndarray
    scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.data.nbytes + self.scales.nbytes


@dataclass(frozen=True)
class SubWordSIMD(CodedConvolution):
    r"""Products of integers of a few bits by instructions that take many of them at once.

    .. math:: A B = s_A s_B \left( U V - z\, \mathbf{1} (\mathbf{1}^\top V) \right), \qquad u = a + z \ge 0

    Processors multiply *unsigned* bytes by *signed* ones: inputs are shifted by z to be unsigned (or have no sign to
    begin with), and what the shift adds is a multiple of the weights' column sums, known beforehand. Sums have 32
    bits and are exact. Real matrices are rounded to integers first, inputs row by row and images as a whole, weights
    column by column.

    ====================  =============================================================================
    8 by 8 bits           one instruction where the machine has vpdpbusd; else both widened to 16 bits
    7-bit inputs          pairs of products cannot leave 16 bits, so bytes are multiplied as they are
    4 by 4 bits           pairs are added up in 16 bits for 64 steps before they are widened
    4-bit weights alone   inputs stay real; codes become numbers in registers, and what is saved is traffic
    ====================  =============================================================================

    Parameters
    ----------
    weight_bits : int, 2 to 8
    input_bits : int, 2 to 8, or 32
        32 leaves the inputs as they are; weights then have 4 bits.

    Raises
    ------
    ValueError
        If a width is none of these.

    Source: Vanhoucke et al., "Improving the speed of neural networks on CPUs", 2011, for bytes and their
    instructions; for exact sums of the shifted operand, Jacob et al., arXiv 1712.05877, section 2.3.

    Examples
    --------
    >>> a, b = np.array([[-3, 2, 127]], np.int8), np.array([[1], [-2], [-128]], np.int8)
    >>> SubWordSIMD().multiply(a, b)
    array([[-16263]], dtype=int32)
    >>> x, w = np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)
    >>> for bits in (8, 4):
    ...     print(bits, f"{np.abs(SubWordSIMD(bits, bits).matmul(x, w) - x @ w).max() / np.abs(x @ w).max():.3f}")
    8 0.010
    4 0.177
    """

    weight_bits: int = 8
    input_bits: int = 8

    arithmetic: ClassVar[str] = "integers of these widths"

    def __post_init__(self) -> None:
        widths = range(2, 9)
        if self.weight_bits not in widths or (self.input_bits not in widths and self.input_bits != 32):
            raise ValueError(
                f"weight_bits, input_bits: expected integers from 2 to 8 (inputs also 32), got {self.weight_bits!r}, "
                f"{self.input_bits!r}"
            )
        if self.input_bits == 32 and self.weight_bits != 4:
            raise ValueError(f"weight_bits: weights alone are narrow with 4 bits, not {self.weight_bits}")

    def energy(self, macs: int, moved: int) -> float:
        """Joules of the multiply-adds and of the bytes from off-chip memory; the table knows eight bits and 32.

        Raises
        ------
        KeyError
            For other widths.
        """
        if self.input_bits == 32:
            return macs * mac_energy("fp32") + moved * DRAM_ENERGY
        if (self.weight_bits, self.input_bits) != (8, 8):
            raise KeyError(f"no cited energy for a {self.weight_bits} by {self.input_bits} bit multiplication")
        return macs * mac_energy("int8") + moved * DRAM_ENERGY

    @property
    def instruction(self) -> str:
        """What multiplies on this machine, a name of `byte_dots.INSTRUCTIONS`."""
        return best_instruction(self.input_bits, self.weight_bits)

    def multiply(self, a: Any, b: Any) -> np.ndarray:
        """The exact product of integer matrices.

        Parameters
        ----------
        a : array_like of integers, shape (m, k)
            Of `input_bits` bits, signed or unsigned.
        b : array_like of integers, shape (k, n)
            Of `weight_bits` bits, signed.

        Returns
        -------
        ndarray of int32, shape (m, n)

        Raises
        ------
        TypeError, ValueError
            If an operand is no matrix of integers within its width, or shapes do not fit.
        """
        left, right = _integers(a, "a"), _integers(b, "b")
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"b: expected {left.shape[1]} rows, as many as a has columns, got {describe(right)}")
        _within(right, "b", -(2 ** (self.weight_bits - 1)), 2 ** (self.weight_bits - 1) - 1)
        signed = bool((left < 0).any())
        zero = 2 ** (self.input_bits - 1) if signed else 0
        _within(left, "a", -zero, 2**self.input_bits - 1 - zero)
        panels = pack_bytes(right.astype(np.int8), self.instruction)
        out = np.empty((len(left), right.shape[1]), np.int32)
        shift = -zero * right.sum(0)
        return byte_product((left + zero).astype(np.uint8), panels, out, columns=shift.astype(np.int32))

    def _matrix(self, w: Any) -> Any:
        if self.input_bits < 32:
            return super()._matrix(w)
        return _nibbles(self, as_array(w, "w", ndim=2, dtype=np.float32))

    def _form(self, coded: Coded) -> BytePanels:
        return pack_bytes(np.ascontiguousarray(coded.integers().T.astype(np.int8)), self.instruction)

    def _convolved(self, image: np.ndarray, filters: Any, geometry: Any, channels: int) -> np.ndarray:
        if self.input_bits < 32:
            return super()._convolved(image, filters, geometry, channels)
        kernel, stride, padding, dilation, shape = geometry
        wide = np.pad(image, ((0, 0), (padding[0],) * 2, (padding[1],) * 2))
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(wide, reach, (1, 2))
        windows = windows[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
        products = []
        for g, right in enumerate(filters.groups):
            part = windows[g * channels : (g + 1) * channels].transpose(1, 2, 0, 3, 4)
            products.append(self._times(part.reshape(shape[0] * shape[1], -1), right).T)
        return np.concatenate(products).reshape(-1, *shape)

    def _times(self, x: np.ndarray, w: Any) -> np.ndarray:
        if self.input_bits < 32:
            return self._multiplied(code_bytes(x.astype(np.float32, copy=False), self.input_bits, "x"), w)
        y = np.empty((len(x), w.shape[1]), np.float32)
        _nibble_product(np.ascontiguousarray(x, np.float32), w.data, w.scales, y)
        return y

    def _multiplied(self, a: Coded, w: InCodes) -> np.ndarray:
        out = np.empty((len(a.codes), w.shape[1]), np.float32)
        integers_sum = w.coded.sums - w.coded.depth * w.coded.zero
        return byte_product(
            a.codes, w.form, out, None, (-a.zero * integers_sum).astype(np.int32), a.scales, w.coded.scales
        )


def code_bytes(x: np.ndarray, bits: int, name: str) -> Coded:
    """As `code_rows`, for rows that are only multiplied: their sums are not taken, and rounding runs on whole vectors.

    Examples
    --------
    >>> code_bytes(np.float32([[0.5, -1.0, 0.26]]), 8, "x").integers()
    array([[  64, -127,   33]])
    """
    (m, k), x = x.shape, np.ascontiguousarray(x)
    codes, scales = np.zeros((m, -(-k // 4) * 4), np.uint8), np.empty(m, np.float32)
    signed = _any_negative(x)
    zero = 2 ** (bits - 1) if signed else 0
    if not _code_bytes(x, np.float32(2 ** (bits - signed) - 1), zero, codes, scales):
        raise ValueError(f"{name}: expected finite numbers, which have integer codes; it holds infinity or NaN")
    return Coded(codes, scales, np.zeros(0, np.int64), k, bits, 1, zero)


@njit(cache=True, nogil=True)
def _any_negative(x):
    for i in range(x.shape[0]):
        for p in range(x.shape[1]):
            if x[i, p] < 0:
                return True
    return False


@njit(cache=True, nogil=True)
def _code_bytes(x, top, zero, codes, scales):
    magic = np.float32(
        12582912
    )  # 1.5 * 2^23: added to a small number, it leaves its nearest integer in the lowest bits
    rounded = np.empty(x.shape[1], np.float32)
    bits, patterns = rounded.view(np.uint32), x.view(np.uint32)
    shift = np.uint32(zero)
    for i in range(x.shape[0]):
        highest = np.uint32(0)  # magnitudes are ordered as their patterns are
        for p in range(x.shape[1]):
            highest = max(highest, np.uint32(patterns[i, p] & np.uint32(0x7FFFFFFF)))
        if highest >= np.uint32(0x7F800000):
            return False
        largest = np.uint32(highest)
        bits[:1] = largest
        size = rounded[0] if x.shape[1] else np.float32(0)
        useful = size > np.float32(2.0**-100)
        inverse = top / size if useful else np.float32(0)
        scales[i] = size / top if useful else np.float32(0)
        for p in range(x.shape[1]):
            rounded[p] = x[i, p] * inverse + magic
        for p in range(x.shape[1]):
            codes[i, p] = np.uint8(bits[p] + shift)
    return True


def _integers(x: Any, name: str) -> np.ndarray:
    matrix = as_array(x, name, ndim=2)
    if not np.issubdtype(matrix.dtype, np.integer):
        raise TypeError(f"{name}: expected integers, got {describe(x)}")
    return matrix.astype(np.int64)


def _within(x: np.ndarray, name: str, low: int, high: int) -> None:
    if x.size and not (low <= x.min() and x.max() <= high):
        raise ValueError(f"{name}: expected integers from {low} to {high}; they go from {x.min()} to {x.max()}")


def _nibbles(operator: Any, w: np.ndarray) -> NibbleColumns:
    """Codes of 4 bits, group by group: -7 to 7, as 1 to 15."""
    (k, n), half = w.shape, -(-w.shape[1] // 32) * 16
    deep = -(-k // GROUP) * GROUP
    padded = np.zeros((deep, 2 * half), np.float32)
    padded[:k, :n] = w
    groups = deep // GROUP
    rows = np.ascontiguousarray(padded.reshape(groups, GROUP, 2 * half).transpose(0, 2, 1))
    rows = rows.reshape(groups * 2 * half, GROUP)
    coded = code_rows(rows, 4, "w", signed=True)
    codes = coded.codes.reshape(groups, 2 * half, GROUP).transpose(0, 2, 1)
    codes = codes.reshape(deep, 2 * half)[:k]
    data = np.ascontiguousarray(codes[:, :half] | codes[:, half:] << 4)
    return NibbleColumns(operator, (k, n), data, np.ascontiguousarray(coded.scales.reshape(groups, 2 * half)))


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _nibble_product(x, data, scales, y):
    k, half = data.shape
    n = y.shape[1]
    low, high, sums = np.empty(half, np.float32), np.empty(half, np.float32), np.empty(2 * half, np.float32)
    for i in range(x.shape[0]):
        sums[:] = 0
        for g in range(scales.shape[0]):
            low[:], high[:] = 0, 0
            total = np.float32(0)
            last = min(k, (g + 1) * GROUP)
            for p in range(g * GROUP, last):
                total += x[i, p]
            p = g * GROUP
            while p + 4 <= last:  # four rows to one pass over the sums
                a, b, c, d = x[i, p], x[i, p + 1], x[i, p + 2], x[i, p + 3]
                for j in range(half):
                    q, r, s, t = data[p, j], data[p + 1, j], data[p + 2, j], data[p + 3, j]
                    low[j] += (a * np.float32(q & 15) + b * np.float32(r & 15)) + (
                        c * np.float32(s & 15) + d * np.float32(t & 15)
                    )
                    high[j] += (a * np.float32(q >> 4) + b * np.float32(r >> 4)) + (
                        c * np.float32(s >> 4) + d * np.float32(t >> 4)
                    )
                p += 4
            while p < last:
                for j in range(half):
                    low[j] += x[i, p] * np.float32(data[p, j] & 15)
                    high[j] += x[i, p] * np.float32(data[p, j] >> 4)
                p += 1
            for j in range(half):  # code 8 is zero
                sums[j] += scales[g, j] * (low[j] - 8 * total)
                sums[half + j] += scales[g, half + j] * (high[j] - 8 * total)
        for j in range(n):
            y[i, j] = sums[j]
