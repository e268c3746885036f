"""Shuffle lookup: a table in a register, looked up by as many places at once as the register has bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.arithmetic.approximate_arithmetic.codes import Coded, InCodes
from kernels.arrays import as_array, describe
from kernels.implementation.low_precision_kernels.byte_dots import dots_store, dots_zero
from kernels.implementation.low_precision_kernels.code_convolution import CodedConvolution
from kernels.simd import LANES

__all__ = ["ShuffleLookup", "plain_lookup"]

BYTES = 32 if LANES >= 8 else 16
"""Columns that one shuffle serves: the bytes of an AVX2 register, in which each half looks up a table of its own."""
WORDS = BYTES // 4
ROWS = 4
"""Rows of inputs that share an index while it is in a register."""
FLUSH = 64
"""Pairs of groups whose sums 16 bits hold: each adds at most 2 * 4 * 31."""


def plain_lookup(a: np.ndarray, b: np.ndarray, bits: int) -> np.ndarray:
    """The definition: for each four of a row a table of their 16 partial sums, looked up by a bit plane of the weights.

    Parameters
    ----------
    a : ndarray of integers, shape (m, k), k a multiple of 4
    b : ndarray of integers from 0 to 2^bits - 1, shape (k, n)

    Examples
    --------
    >>> plain_lookup(np.array([[1, 2, 3, 4]]), np.array([[1], [0], [3], [2]]), bits=2)
    array([[18]])
    """
    m, k = a.shape
    groups = a.reshape(m, k // 4, 4)
    patterns = (np.arange(16)[:, None] >> np.arange(4)) & 1
    tables = groups @ patterns.T  # (m, groups, 16)
    total = np.zeros((m, b.shape[1]), np.int64)
    for bit in range(bits):
        index = ((b.reshape(k // 4, 4, -1) >> bit & 1) * (1 << np.arange(4))[None, :, None]).sum(1)  # (groups, n)
        for g in range(k // 4):
            total += tables[:, g, index[g]] << bit
    return total


@dataclass(frozen=True)
class ShuffleLookup(CodedConvolution):
    r"""Products by weights of few bits that look partial sums up in place of multiplying.

    .. math:: \sum_t a_t b_t = \sum_{i} 2^i \sum_g T_g[\, b^{(i)}_{4g} + 2 b^{(i)}_{4g+1} + 4 b^{(i)}_{4g+2}
              + 8 b^{(i)}_{4g+3} \,], \qquad T_g[p] = \sum_{t < 4} p_t\, a_{4g+t}

    Four inputs have 16 partial sums, a table of 16 bytes, which a byte shuffle (pshufb) looks up: for 32 columns
    at once on AVX2. A bit plane of four weights is the index, four bits, so two groups share a byte. Inputs have 6
    bits, so that sums of four fit a signed byte and nothing is approximate but the rounding of the operands.

    Where the codes are learned prototypes in place of bit planes, this is the kernel of MADDNESS
    (`kernels.arithmetic.approximate_arithmetic.lut_matmul`).

    Parameters
    ----------
    weight_bits : int, 1 to 4
        Of one bit, -1 and 1.

    Source: Blalock and Guttag, "Multiplying Matrices Without Multiplying", 2021, section 4.3, for tables in registers
    and the shuffle that looks them up.

    Examples
    --------
    >>> a, b = np.array([[3, -2, 31, 7]]), np.array([[1], [-2], [0], [1]])
    >>> ShuffleLookup(weight_bits=2).multiply(a, b)
    array([[14]], dtype=int32)
    """

    weight_bits: int = 2

    arithmetic: ClassVar[str] = "a lookup in a register and an addition"
    input_bits: ClassVar[int] = 6  # type: ignore[misc]
    signed_inputs: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        if self.weight_bits not in (1, 2, 3, 4):
            raise ValueError(f"weight_bits: expected an integer from 1 to 4, got {self.weight_bits!r}")

    def multiply(self, a: Any, b: Any) -> np.ndarray:
        """The exact product of integer matrices.

        Parameters
        ----------
        a : array_like of integers from -31 to 31, shape (m, k)
        b : array_like of integers, shape (k, n)
            Of `weight_bits` bits, signed; of one bit, -1 and 1.

        Returns
        -------
        ndarray of int32, shape (m, n)

        Raises
        ------
        TypeError, ValueError
            If an operand is no matrix of integers within its width, or shapes do not fit.
        """
        left, right = (as_array(x, name, ndim=2) for x, name in ((a, "a"), (b, "b")))
        low = -(2 ** (self.weight_bits - 1)) if self.weight_bits > 1 else -1
        high = 2 ** (self.weight_bits - 1) - 1 if self.weight_bits > 1 else 1
        for x, name, least, most in ((left, "a", -31, 31), (right, "b", low, high)):
            if not np.issubdtype(x.dtype, np.integer):
                raise TypeError(f"{name}: expected integers, got {describe(x)}")
            if x.size and not (least <= x.min() and x.max() <= most):
                raise ValueError(f"{name}: expected integers from {least} to {most}, got {x.min()} to {x.max()}")
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"b: expected {left.shape[1]} rows, as many as a has columns, got {describe(right)}")
        step, zero = (2, 1) if self.weight_bits == 1 else (1, 2 ** (self.weight_bits - 1))
        codes = ((right + zero) // step).astype(np.uint8)
        if self.weight_bits == 1 and (step * codes.astype(np.int64) - zero != right).any():
            raise ValueError("b: of one bit, expected -1 and 1 alone")
        sums = self._looked_up(left.astype(np.int8), self._indices(codes), right.shape[1])
        return step * sums - zero * left.sum(1, dtype=np.int32)[:, None]

    def _form(self, coded: Coded) -> np.ndarray:
        return self._indices(np.ascontiguousarray(coded.codes[:, : coded.depth].T))

    def _multiplied(self, a: Coded, w: InCodes) -> np.ndarray:
        left = a.integers()
        sums = self._looked_up(left.astype(np.int8), w.form, w.shape[1])
        exact = w.coded.step * sums - w.coded.zero * left.sum(1)[:, None]
        return exact.astype(np.float32) * (a.scales[:, None] * w.coded.scales)

    def _indices(self, codes: np.ndarray) -> np.ndarray:
        """Codes (k, n) as indices: (panels, pairs of groups, planes, columns of a panel), two groups in a byte."""
        k, n = codes.shape
        padded = np.zeros((-(-k // 8) * 8, -(-n // BYTES) * BYTES), np.uint8)
        padded[:k, :n] = codes
        deep, wide = padded.shape
        planes = padded[None] >> np.arange(self.weight_bits, dtype=np.uint8)[:, None, None] & 1
        index = (planes.reshape(self.weight_bits, deep // 4, 4, wide) << np.arange(4, dtype=np.uint8)[:, None]).sum(2)
        pairs = index.reshape(self.weight_bits, deep // 8, 2, wide)
        both = (pairs[:, :, 0] | pairs[:, :, 1] << 4).astype(np.uint8)
        return np.ascontiguousarray(
            both.reshape(self.weight_bits, deep // 8, wide // BYTES, BYTES).transpose(2, 1, 0, 3)
        )

    def _looked_up(self, a: np.ndarray, indices: np.ndarray, n: int) -> np.ndarray:
        m, k = a.shape
        left = np.zeros((m, -(-k // 8) * 8), np.int8)
        left[:, :k] = a
        out = np.zeros((m, len(indices) * BYTES), np.int32)
        if left.size and out.size:
            _kernel(self.weight_bits)(left, indices.reshape(-1), indices.shape[1], out)
        return out[:, :n]


@lru_cache(maxsize=4)
def _kernel(bits: int) -> Callable[..., None]:
    @njit(cache=True, nogil=True)
    def product(a, indices, pairs, out):
        m = a.shape[0]
        tables = np.zeros((ROWS, pairs, 2, 16), np.int8)
        table, tile = tables.reshape(-1), np.empty(ROWS * BYTES // 2, np.int32)
        short = tile.view(np.int16)
        for i0 in range(0, m, ROWS):
            rows = min(ROWS, m - i0)
            for r in range(rows):
                for p in range(pairs):
                    for half in range(2):
                        at = 8 * p + 4 * half
                        sums = tables[r, p, half]
                        sums[0] = 0
                        for t in range(4):  # a pattern's sum is that without its highest input, and that input
                            for pattern in range(1 << t):
                                sums[pattern + (1 << t)] = sums[pattern] + a[i0 + r, at + t]
            for panel in range(out.shape[1] // BYTES):
                for bit in range(bits):
                    for p0 in range(0, pairs, FLUSH):
                        part = dots_zero(ROWS, 2, WORDS)
                        for p in range(p0, min(pairs, p0 + FLUSH)):
                            at = ((panel * pairs + p) * bits + bit) * BYTES
                            part = look_up(part, table, p * 32, pairs * 32, indices, at)
                        dots_store(part, tile, 0)
                        for r in range(rows):
                            for j in range(BYTES):
                                out[i0 + r, panel * BYTES + placed(j)] += np.int32(short[r * BYTES + j]) << bit

    return product


@njit(cache=True, inline="always")
def placed(j):
    """The column of a 16-bit sum: each half of a register unpacks its own low and high bytes."""
    half = BYTES // 2
    return (j % half) // 8 * 16 + j % 8 + j // half * 8 if BYTES == 32 else j


@intrinsic
def look_up(typingctx, sums, tables, table, step, indices, at):
    """`look_up(sums, tables, table, step, indices, at)`: add, to the two registers of 16-bit sums of row r, what that
    row's
    two tables of 16 bytes, from `table + r * step` on, hold at the low and high halves of the index bytes at `at`."""

    def build(context, builder, sig, args):
        def pointer(array, value, index, kind):
            data = context.make_array(array)(context, builder, value).data
            return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

        octet, sixteen, word = ir.IntType(8), ir.VectorType(ir.IntType(8), 16), ir.IntType(32)
        octets, shorts = ir.VectorType(octet, BYTES), ir.VectorType(ir.IntType(16), BYTES // 2)
        words = ir.VectorType(word, BYTES // 4)
        shuffle, add = (
            ("llvm.x86.avx2.pshuf.b", "llvm.x86.avx2.pmadd.ub.sw")
            if BYTES == 32
            else ("llvm.x86.ssse3.pshuf.b.128", "llvm.x86.ssse3.pmadd.ub.sw.128")
        )

        def shuffled(x, y, picks):
            return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(word, len(picks)), picks))

        def call(name, result, *operands):
            kind = ir.FunctionType(result, [operand.type for operand in operands])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)

        value = args[0]
        both = builder.load(pointer(indices, args[4], args[5], octets), align=1)
        halves = (
            builder.and_(both, ir.Constant(octets, [15] * BYTES)),
            builder.lshr(both, ir.Constant(octets, [4] * BYTES)),
        )
        ones = ir.Constant(octets, [1] * BYTES)
        for r in range(sums.rows):
            found = []
            for t, index in enumerate(halves):
                where = builder.add(args[2], builder.mul(args[3], args[3].type(r)))
                where = builder.add(where, where.type(16 * t))
                small = builder.load(pointer(tables, args[1], where, sixteen), align=1)
                found.append(call(shuffle, octets, shuffled(small, small, [*range(16)] * (BYTES // 16)), index))
            for part in range(2):  # the two tables' bytes of a column side by side, so that one instruction adds them
                picks = []
                for lane in range(BYTES // 16):
                    for j in range(8):
                        picks += [16 * lane + 8 * part + j, BYTES + 16 * lane + 8 * part + j]
                pairs = call(add, shorts, ones, shuffled(*found, picks))
                old = builder.bitcast(builder.extract_value(value, 2 * r + part), shorts)
                value = builder.insert_value(value, builder.bitcast(builder.add(old, pairs), words), 2 * r + part)
        return value

    return sums(sums, tables, types.intp, types.intp, indices, types.intp), build
