r"""Where the non-zeros are, said without indices: a bit for every place, or the lengths of the runs of zeros.

An index of 16 or 32 bits names one place among all columns. A *bitmap* spends one bit on every place, b_c = 1 where
there is a value; *run lengths* spend r bits on every value, for the number z of zeros before it:

.. math:: \text{bitmap:}\; m k + 32\, s \text{ bits}, \qquad
          \text{run lengths:}\; r\,(s + f) + 32\, s \text{ bits}, \qquad c_{j + 1} = c_j + 1 + z_{j + 1}

for s values, and f codes for runs that are too long. The largest code says only that so many zeros pass and no value
follows. Neither form says where a row begins: the product reads both from their beginning to their end, and what it
reads is all that there is. A bitmap's next value is found by counting trailing zeros; with a single column a wide
machine spreads the values over their places instead (`vpexpandps`) and multiplies sixteen places at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import intrinsic

from kernels.implementation.sparsity.sparse_left import SparseForm, SparseLeft, dense_matrix, panels
from kernels.simd import LANES, Vector, broadcast, fma, load, store, total, zero

__all__ = ["BitmapAndRunLength", "CodedMatrix", "decoded", "run_lengths"]


@dataclass(frozen=True, eq=False)
class CodedMatrix(SparseForm):
    """A sparse matrix as its values, row after row, and a code that tells their places.

    Attributes
    ----------
    values : ndarray of float32, shape (non-zeros,)
    code : ndarray of uint64, shape (m, words), or of uint8
        A bitmap: of each row the places from the lowest bit up. Or the codes of runs, `run_bits` each, from the lowest
        bit of the first byte up, with a byte to spare.
    codes : int
        How many codes of runs there are; none in a bitmap.
    """

    values: np.ndarray
    code: np.ndarray
    codes: int

    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros, float32."""
        dense = np.zeros(self.shape, np.float32)
        dense.flat[decoded(self)] = self.values
        return dense

    def code_bits(self) -> int:
        """Bits that tell the places, those that fill up the last word left out."""
        return self.codes * self.operator.run_bits if self.codes else self.shape[0] * self.shape[1]


def run_lengths(places: np.ndarray, run_bits: int) -> np.ndarray:
    """The codes of the zeros before each place; the largest passes that many zeros, and no value follows it.

    Examples
    --------
    >>> run_lengths(np.array([0, 1, 9]), run_bits=2)  # no zero, none, seven: 3 + 3 + 1
    array([0, 0, 3, 3, 1])
    """
    most = 2**run_bits - 1
    zeros = np.diff(places, prepend=-1) - 1
    counts = zeros // most + 1
    codes = np.full(counts.sum(), most, np.int64)
    codes[np.cumsum(counts) - 1] = zeros % most
    return codes


def decoded(a: CodedMatrix) -> np.ndarray:
    """The definition: the places of the values in the matrix, counted row after row.

    Examples
    --------
    >>> matrix = np.array([[0, 2, 0], [1, 0, 3]])
    >>> [decoded(BitmapAndRunLength(code).prepare(matrix)).tolist() for code in ("bitmap", "run-length")]
    [[1, 3, 5], [1, 3, 5]]
    """
    if a.operator.code == "bitmap":
        bits = np.unpackbits(a.code.view(np.uint8), axis=1, bitorder="little")
        return np.flatnonzero(bits[:, : a.shape[1]])
    run_bits = a.operator.run_bits
    bits = np.unpackbits(a.code, bitorder="little")[: a.codes * run_bits].reshape(-1, run_bits)
    runs = bits @ (1 << np.arange(run_bits))
    last = runs == 2**run_bits - 1
    return (np.cumsum(runs + ~last) - 1)[~last]


# --- products straight from the code -------------------------------------------------------------------------------


@njit(inline="always")
def _run(code, j, run_bits):
    bit = np.uint64(j * run_bits)
    byte = bit >> np.uint64(3)
    both = np.uint64(code[byte]) | np.uint64(code[byte + np.uint64(1)]) << np.uint64(8)
    return np.int64((both >> (bit & np.uint64(7))) & np.uint64((1 << run_bits) - 1))


@lru_cache
def _bitmap_panel(width: int) -> Callable:
    @njit(cache=True)
    def product(values, code, panel, y, column):
        at, stride, y = np.int64(0), y.shape[1], y.reshape(-1)
        for i in range(code.shape[0]):
            sums = zero(width)
            for q in range(code.shape[1]):
                word = code[i, q]
                while word:
                    place = np.int64(64 * q) + np.int64(trailing_zeros(word))
                    word &= word - np.uint64(1)
                    sums = fma(broadcast(values[np.uint64(at)], width), load(panel, place * width, width), sums)
                    at += 1
            store(sums, y, i * stride + column)

    return product


@lru_cache
def _run_panel(width: int, run_bits: int) -> Callable:
    most = 2**run_bits - 1

    @njit(cache=True)
    def product(values, code, codes, panel, y, column, k):
        at, place, passed = np.int64(0), np.int64(-1), np.int64(0)  # the value's place, and zeros since the last one
        j, (rows, stride), y = np.int64(0), y.shape, y.reshape(-1)
        for i in range(rows):
            sums, begin = zero(width), i * k
            while True:
                while passed == 0 and j < codes:  # the next value's place
                    run = _run(code, j, run_bits)
                    j += 1
                    place += run
                    if run < most:
                        place += 1
                        passed = 1
                if passed == 0 or place >= begin + k:
                    break
                b = load(panel, (place - begin) * width, width)
                sums = fma(broadcast(values[np.uint64(at)], width), b, sums)
                at += 1
                passed = 0
            store(sums, y, i * stride + column)

    return product


@intrinsic
def _spread_fma(typingctx, sums, values, at, bits, x, j):
    """`_spread_fma(sums, values, at, bits, x, j)`: x from j on, where bits are set, times the values from `at` on."""
    if not isinstance(sums, Vector):
        return None

    def build(context, builder, sig, args):
        total_in, values_in, at, bits, x_in, j = args
        lanes = sums.lanes
        numbers = ir.VectorType(ir.FloatType(), lanes)
        mask = builder.bitcast(builder.trunc(bits, ir.IntType(lanes)), ir.VectorType(ir.IntType(1), lanes))
        none = ir.Constant(numbers, [0.0] * lanes)

        def pointer(array, array_in, index):
            return builder.gep(context.make_array(array)(context, builder, array_in).data, [index])

        def called(name, form, *operands):
            return builder.call(cgutils.get_or_insert_function(builder.module, form, name), operands)

        source = pointer(values, values_in, at)
        form = ir.FunctionType(numbers, [source.type, mask.type, numbers])
        weights = called(f"llvm.masked.expandload.v{lanes}f32", form, source, mask, none)
        inputs = builder.load(builder.bitcast(pointer(x, x_in, j), numbers.as_pointer()), align=4)
        inputs = builder.select(mask, inputs, none)  # what is not stored meets no NaN
        return called(f"llvm.fma.v{lanes}f32", ir.FunctionType(numbers, [numbers] * 3), weights, inputs, total_in)

    return sums(sums, values, types.intp, types.uint64, x, types.intp), build


@intrinsic
def _ones(typingctx, word):
    """`_ones(word)`: how many bits of a uint64 are set."""
    return types.int64(types.uint64), lambda context, builder, sig, args: builder.ctpop(args[0])


@njit(cache=True)
def _bitmap_spread(values, code, x, y):
    """One column on a machine that spreads: `x` is filled up to whole words."""
    at = np.int64(0)
    for i in range(code.shape[0]):
        first, second = zero(16), zero(16)  # two sums, since each waits for its last addition
        for q in range(code.shape[1]):
            word = code[i, q]
            for part in range(0, 64, 32):
                bits = word >> np.uint64(part)
                first = _spread_fma(first, values, at, bits, x, 64 * q + part)
                at += _ones(bits & np.uint64(0xFFFF))
                bits >>= np.uint64(16)
                second = _spread_fma(second, values, at, bits, x, 64 * q + part + 16)
                at += _ones(bits & np.uint64(0xFFFF))
        y[i] = total(first) + total(second)


@dataclass(frozen=True)
class BitmapAndRunLength(SparseLeft):
    """The product of a sparse matrix, its places coded in a bitmap or in run lengths, with a dense one, on one thread.

    Zeros that are not stored do not take part: where the dense product turns 0 times NaN or infinity into NaN, this one
    leaves them out.

    Parameters
    ----------
    code : {"bitmap", "run-length"}
    run_bits : int, 1 to 8
        Bits of a run's code; a bitmap ignores them.

    Raises
    ------
    ValueError
        If a parameter is none of these.

    Source: Gondimalla et al., "SparTen", MICRO 2019, for bitmaps; Chen et al., "Eyeriss", JSSC 2017, for
    runs of 5 bits. There a run that is too long ends in a stored zero, here in none.

    Examples
    --------
    >>> for op in (BitmapAndRunLength(), BitmapAndRunLength("run-length")):
    ...     w = op.prepare([[0, 2, 0], [1, 0, 3]])
    ...     print(w.values, w.code_bits(), op.matmul(w, np.ones(3)))
    [2. 1. 3.] 6 [2. 4.]
    [2. 1. 3.] 15 [2. 4.]
    """

    code: str = "bitmap"
    run_bits: int = 5

    def __post_init__(self) -> None:
        if self.code not in ("bitmap", "run-length"):
            raise ValueError(f"code: expected bitmap or run-length, got {self.code!r}")
        if self.run_bits not in range(1, 9):
            raise ValueError(f"run_bits: expected an integer from 1 to 8, got {self.run_bits!r}")

    def prepare(self, a: Any) -> CodedMatrix:
        """The matrix as values and code.

        Raises
        ------
        TypeError, ValueError
            If `a` is not a matrix of real numbers.
        """
        dense = dense_matrix(a)
        there = dense != 0
        if self.code == "bitmap":
            bits = np.pad(there, ((0, 0), (0, -dense.shape[1] % 64)))
            words = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)
            return CodedMatrix(self, dense.shape, dense[there], words, 0)
        runs = run_lengths(np.flatnonzero(there), self.run_bits)
        bits = (runs[:, None] >> np.arange(self.run_bits)) & 1
        packed = np.packbits(bits.astype(np.uint8), bitorder="little")
        return CodedMatrix(self, dense.shape, dense[there], np.pad(packed, (0, 1)), len(runs))

    def _times(self, a: CodedMatrix, b: np.ndarray) -> np.ndarray:
        (m, k), n = a.shape, b.shape[1]
        if n == 1 and self.code == "bitmap" and LANES == 16:
            y = np.empty(m, np.float32)
            _bitmap_spread(a.values, a.code, np.pad(b.reshape(-1), (0, -k % 64)), y)
            return y[:, None]
        parts, y = panels(b, (1, 8, 16, 32, 64), m)
        for panel, column in parts:
            width = panel.size // k
            if self.code == "bitmap":
                _bitmap_panel(width)(a.values, a.code, panel, y, column)
            else:
                _run_panel(width, self.run_bits)(a.values, a.code, a.codes, panel, y, column, k)
        return y
