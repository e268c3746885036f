"""Products of matrices of bytes: four products of unsigned by signed bytes, added into each 32-bit lane of a register.

    C[i, j] += sum over t < 4 of a[i, 4 q + t] b[4 q + t, j]          one step of a lane; a unsigned, b signed

How a machine does it (`instruction`):

    vnni    one instruction (vpdpbusd), exact
    avx2    pmaddubsw, pmaddwd with ones, add: pairs are added in 16 bits, with saturation, so it is exact only where no
            pair leaves them: |a| <= 127 with any signed byte, since 2 * 127 * 128 < 2^15
    int16   both operands widened to 16 bits, pmaddwd, add: exact for all bytes, two products a lane
    narrow  pmaddubsw, added in 16 bits, which are widened before they can overflow: for codes of at most 4 bits

The weights lie in panels of as many columns as a tile has, four (or two) rows of a column side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, config, types
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, register_model

from kernels.simd import LANES

__all__ = ["INSTRUCTIONS", "BytePanels", "best_instruction", "byte_product", "pack_bytes", "plain_byte_product"]

INSTRUCTIONS = ("vnni", "avx2", "int16", "narrow")
COLUMNS = 2
FLUSH = 64
"""Steps that 16 bits hold of codes of 4 bits: a step adds at most 2 * 15 * 8, and 64 of them 15360."""
MOST = 2**31 // (255 * 128)
"""Terms whose sum 32 bits hold."""


def plain_byte_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The definition: unsigned (m, k) times signed (k, n), in 64 bits.

    Examples
    --------
    >>> plain_byte_product(np.array([[255, 1]], np.uint8), np.array([[-128], [2]], np.int8))
    array([[-32638]])
    """
    return a.astype(np.int64) @ b.astype(np.int64)


def has_vnni() -> bool:
    """Whether numba compiles for a machine with vpdpbusd on whole registers."""
    asked: Any = vars(config).get("CPU_FEATURES")
    features = get_host_cpu_features() if asked is None else asked
    return LANES == 16 and "+avx512vnni" in features


def best_instruction(a_bits: int, b_bits: int) -> str:
    """The fastest exact instruction of this machine for unsigned codes by signed ones.

    Examples
    --------
    >>> best_instruction(8, 8) in ("vnni", "int16")
    True
    """
    if has_vnni():
        return "vnni"
    if a_bits <= 4 and b_bits <= 4:
        return "narrow"
    return "avx2" if a_bits <= 7 else "int16"


def tile_rows() -> int:
    """Rows of a register tile: 8 x 2 of 32 registers, 4 x 2 of 16."""
    return 8 if LANES == 16 else 4


class BytePanels(NamedTuple):
    """Signed bytes (k, n) in panels, and what they were."""

    data: np.ndarray
    depth: int
    columns: int
    instruction: str


def pack_bytes(b: np.ndarray, instruction: str) -> BytePanels:
    """A matrix of signed bytes, shape (k, n), in panels for an instruction.

    Raises
    ------
    ValueError
        If there is no such instruction.
    """
    if instruction not in INSTRUCTIONS:
        raise ValueError(f"instruction: expected one of {', '.join(INSTRUCTIONS)}, got {instruction!r}")
    (k, n), width = b.shape, COLUMNS * LANES
    group = 2 if instruction == "int16" else 4
    padded = np.zeros((-(-k // 4) * 4, -(-n // width) * width), np.int16 if group == 2 else np.int8)
    padded[:k, :n] = b
    deep, wide = padded.shape
    # (groups, within, panels, columns of a panel) -> panels, groups, columns, within
    laid = padded.reshape(deep // group, group, wide // width, width).transpose(2, 0, 3, 1)
    return BytePanels(np.ascontiguousarray(laid).ravel(), k, n, instruction)


def byte_product(
    a: np.ndarray, b: BytePanels, out: np.ndarray, rows: np.ndarray | None = None, columns: np.ndarray | None = None,
    row_scales: np.ndarray | None = None, column_scales: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """out[i, j] = row_scales[i] * column_scales[j] * (C[i, j] + rows[i] + columns[j]), C = A B.

    Parameters
    ----------
    a : ndarray of uint8, shape (m, at least k), padded with zeros to a multiple of four columns
        Within what the panels' instruction takes.
    b : BytePanels
    out : ndarray of int32 or float32, shape (m, n)
        Integers take no scales.
    rows, columns : ndarray of int32, optional
    row_scales, column_scales : ndarray of float32, optional

    Raises
    ------
    ValueError
        If a sum of so many terms might not fit 32 bits.
    """
    if b.depth > MOST:
        raise ValueError(f"a: expected at most {MOST} columns, whose products 32 bits can add up, got {b.depth}")
    (m, n), deep = out.shape, -(-b.depth // 4) * 4
    if a.shape[1] < deep or not a.flags.c_contiguous:
        a = np.ascontiguousarray(np.pad(a, ((0, 0), (0, max(0, deep - a.shape[1])))))
    if b.instruction == "int16":
        a = a.astype(np.int16)

    def whole(x: np.ndarray | None, size: int, dtype: type, fill: int) -> np.ndarray:
        return np.full(size, fill, dtype) if x is None else np.ascontiguousarray(x, dtype)

    tall = tile_rows()
    if m % tall:  # the last tile reads whole rows
        a = np.concatenate([a, np.zeros((tall - m % tall, a.shape[1]), a.dtype)])
    _kernel(b.instruction, out.dtype == np.float32)(
        a.ravel(), a.shape[1], b.data, deep, out, whole(rows, m, np.int32, 0), whole(columns, n, np.int32, 0),
        whole(row_scales, m, np.float32, 1), whole(column_scales, n, np.float32, 1),
    )  # fmt: skip
    return out


@lru_cache(maxsize=8)
def _kernel(instruction: str, real: bool) -> Callable[..., None]:
    tall, wide = tile_rows(), COLUMNS * LANES
    group = 2 if instruction == "int16" else 4
    block = 128

    @njit(cache=True, nogil=True)
    def product(a, stride, b, deep, out, rows, columns, row_scales, column_scales):
        m, n = out.shape
        tile = np.empty(tall * wide, np.int32)
        for i1 in range(0, m, block):
            for j0 in range(0, n, wide):
                panel = j0 * deep
                for i0 in range(i1, min(m, i1 + block), tall):
                    sums = dots_zero(tall, COLUMNS, LANES)
                    if instruction == "narrow":
                        for p0 in range(0, deep, 4 * FLUSH):
                            short = dots_zero(tall, COLUMNS, LANES)
                            for p in range(p0, min(deep, p0 + 4 * FLUSH), 4):
                                short = dots(short, a, i0 * stride + p, stride, b, panel + p * wide, instruction)
                            sums = dots_widen(sums, short)
                    else:
                        for p in range(0, deep, group):
                            sums = dots(sums, a, i0 * stride + p, stride, b, panel + p * wide, instruction)
                    dots_store(sums, tile, 0)
                    more, scales = columns[j0 : j0 + wide], column_scales[j0 : j0 + wide]
                    for i in range(min(tall, m - i0)):
                        row, counted = out[i0 + i, j0 : j0 + wide], tile[i * wide : i * wide + wide]
                        added, scale = rows[i0 + i], row_scales[i0 + i]
                        for j in range(row.size):
                            if real:
                                row[j] = np.float32(counted[j] + added + more[j]) * (scale * scales[j])
                            else:
                                row[j] = counted[j] + added + more[j]

    return product


# --- registers of 32-bit sums --------------------------------------------------------------------------------------


class Dots(types.Type):
    """The numba type of `rows` x `columns` registers of `lanes` sums of 32 bits."""

    def __init__(self, rows: int, columns: int, lanes: int):
        self.rows, self.columns, self.lanes = rows, columns, lanes
        super().__init__(f"Dots({rows}, {columns}, {lanes})")


def _words(lanes: int, bits: int = 32):
    return ir.VectorType(ir.IntType(bits), lanes * 32 // bits)


@register_model(Dots)
class _DotsModel(PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.ArrayType(_words(kind.lanes), kind.rows * kind.columns))


@intrinsic(prefer_literal=True)
def dots_zero(typingctx, rows, columns, lanes):
    """`dots_zero(rows, columns, lanes)`: sums at zero."""
    kind = Dots(rows.literal_value, columns.literal_value, lanes.literal_value)

    def build(context, builder, sig, args):
        zeros = ir.Constant(_words(kind.lanes), [0] * kind.lanes)
        return ir.Constant(context.get_value_type(kind), [zeros] * (kind.rows * kind.columns))

    return kind(rows, columns, lanes), build


def _call(builder, name, result, *operands):
    signature = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), operands)


_MADDUBS = {4: "llvm.x86.ssse3.pmadd.ub.sw.128", 8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}
_MADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def _step(builder, instruction, lanes, total, a, b):
    """Add the products of a register of a by one of b, both given as 32-bit words, to a register of sums."""
    words, shorts, octets = _words(lanes), _words(lanes, 16), _words(lanes, 8)
    if instruction == "vnni":
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", words, total, a, b)
    if instruction == "int16":
        pairs = _call(builder, _MADDWD[lanes], words, builder.bitcast(a, shorts), builder.bitcast(b, shorts))
        return builder.add(total, pairs)
    pairs = _call(builder, _MADDUBS[lanes], shorts, builder.bitcast(a, octets), builder.bitcast(b, octets))
    if instruction == "narrow":
        return builder.bitcast(builder.add(builder.bitcast(total, shorts), pairs), words)
    ones = ir.Constant(shorts, [1] * shorts.count)
    return builder.add(total, _call(builder, _MADDWD[lanes], words, pairs, ones))


@intrinsic(prefer_literal=True)
def dots(typingctx, sums, a, i, step, b, j, instruction):
    """`dots(sums, a, i, step, b, j, instruction)`: add the products of a word of a (from element i + r * step on for
    row r) by the registers of b from element j on."""
    if not isinstance(sums, Dots) or not isinstance(instruction, types.StringLiteral):
        return None

    def build(context, builder, sig, args):
        value, a_value, i, step, b_value, j, _ = args
        word = _words(sums.lanes)

        def at(array, value, index):
            return builder.gep(context.make_array(array)(context, builder, value).data, [index])

        size = sums.lanes * 4 // (b.dtype.bitwidth // 8)
        right = []
        for v in range(sums.columns):
            pointer = at(b, b_value, builder.add(j, j.type(v * size)))
            right.append(builder.load(builder.bitcast(pointer, word.as_pointer()), align=1))
        for r in range(sums.rows):
            pointer = at(a, a_value, builder.add(i, builder.mul(step, step.type(r))))
            number = builder.load(builder.bitcast(pointer, ir.IntType(32).as_pointer()), align=1)
            empty = ir.Constant(word, ir.Undefined)
            first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
            left = builder.shuffle_vector(first, empty, ir.Constant(_words(sums.lanes), [0] * sums.lanes))
            for v in range(sums.columns):
                at_v = r * sums.columns + v
                total = _step(builder, instruction.literal_value, sums.lanes, builder.extract_value(value, at_v), left,
                              right[v])  # fmt: skip
                value = builder.insert_value(value, total, at_v)
        return value

    return sums(sums, a, types.intp, types.intp, b, types.intp, instruction), build


@intrinsic
def dots_widen(typingctx, sums, short):
    """`dots_widen(sums, short)`: add pairs of 16-bit sums to the 32-bit ones."""
    if not isinstance(sums, Dots) or sums != short:
        return None

    def build(context, builder, sig, args):
        value, shorts = args[0], _words(sums.lanes, 16)
        ones = ir.Constant(shorts, [1] * shorts.count)
        for v in range(sums.rows * sums.columns):
            pair = builder.bitcast(builder.extract_value(args[1], v), shorts)
            wide = _call(builder, _MADDWD[sums.lanes], _words(sums.lanes), pair, ones)
            value = builder.insert_value(value, builder.add(builder.extract_value(value, v), wide), v)
        return value

    return sums(sums, short), build


@intrinsic
def dots_store(typingctx, sums, array, index):
    """`dots_store(sums, array, index)`: write the sums, row by row, from an element of an int32 array on."""
    if not isinstance(sums, Dots) or not isinstance(array, types.Array) or array.dtype is not types.int32:
        return None

    def build(context, builder, sig, args):
        data = context.make_array(array)(context, builder, args[1]).data
        for v in range(sums.rows * sums.columns):
            pointer = builder.gep(data, [builder.add(args[2], args[2].type(v * sums.lanes))])
            word = _words(sums.lanes)
            builder.store(builder.extract_value(args[0], v), builder.bitcast(pointer, word.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(sums, array, types.intp), build
