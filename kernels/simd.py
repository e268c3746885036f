"""Vectors and register tiles for numba: what a compiler cannot find in plain loops, a kernel says itself.

A *vector* is `lanes` numbers in one register; a *tile* is `rows` x `columns` vectors that stay in registers while a
loop runs over them. Tiles carry every micro-kernel of the house, since matrix product, sparse product and convolution
all repeat one step, the rank-one update of a tile:

    C[r, v] <- C[r, v] + a[r] * B[v]          one fused multiply-add each, r < rows, v < columns

The functions are called inside `@njit`. An array argument comes with the index of its first element, counted in
elements of its C-contiguous memory; nothing checks bounds. Numbers are float32 or float64; an array of uint16 holds
bfloat16 codes, the upper halves of float32: widened when loaded, rounded to nearest, ties to even, when stored.
`lanes`, `rows` and `columns` are constants of the compiled function: literals, globals or closure variables.

Examples
--------
>>> import numpy as np
>>> from numba import njit
>>> @njit
... def axpy(a, x, y):
...     for i in range(0, x.size, 8):
...         store(fma(broadcast(a, 8), load(x, i, 8), load(y, i, 8)), y, i)
>>> x, y = np.arange(16, dtype=np.float32), np.ones(16, np.float32)
>>> axpy(np.float32(2), x, y)
>>> y[:4], y[-1]
(array([1., 3., 5., 7.], dtype=float32), np.float32(31.0))
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, register_model

__all__ = [
    "LANES",
    "bit_plane",
    "broadcast",
    "counts_add",
    "counts_double",
    "counts_store",
    "counts_zero",
    "fma",
    "host_lanes",
    "load",
    "store",
    "tile_fma",
    "tile_load",
    "tile_store",
    "tile_transpose",
    "tile_zero",
    "total",
    "zero",
]


def host_lanes() -> int:
    """Float32 numbers in the widest vector register that numba compiles for: 16 with AVX-512, 8 with AVX2, else 4.

    That is this machine's, unless `NUMBA_CPU_FEATURES` asks for another one's.
    """
    asked = getattr(config, "CPU_FEATURES", None)
    has = set((get_host_cpu_features() if asked is None else asked).split(","))
    return 16 if "+avx512f" in has else 8 if {"+avx2", "+fma"} <= has else 4


LANES = host_lanes()


class Vector(types.Type):
    """The numba type of `lanes` numbers of type `dtype`."""

    def __init__(self, dtype: types.Float, lanes: int):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"Vector({dtype}, {lanes})")


class Tile(types.Type):
    """The numba type of `rows` x `columns` vectors."""

    def __init__(self, vector: Vector, rows: int, columns: int):
        self.vector, self.rows, self.columns = vector, rows, columns
        super().__init__(f"Tile({vector}, {rows}, {columns})")


def _number(dtype):
    return ir.DoubleType() if dtype is types.float64 else ir.FloatType()


def _registers(vector: Vector):
    return ir.VectorType(_number(vector.dtype), vector.lanes)


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _registers(kind))


@register_model(Tile)
class _TileModel(PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.ArrayType(_registers(kind.vector), kind.rows * kind.columns))


# --- what the intrinsics are made of -------------------------------------------------------------------------------


def _loaded(array: types.Array, lanes: int) -> Vector:
    """The type of a vector loaded from an array."""
    return Vector(types.float64 if array.dtype is types.float64 else types.float32, lanes)


def _pointer(context, builder, array, value, index, offset=0):
    """The address of element `index + offset` of an array, the offset known as the code is made."""
    data = context.make_array(array)(context, builder, value).data
    return builder.gep(builder.gep(data, [index]), [ir.Constant(ir.IntType(64), offset)])


def _load(builder, array, pointer, lanes):
    """A vector (or, without lanes, a number) from memory; bfloat16 codes are widened."""

    def shaped(number):
        return ir.VectorType(number, lanes) if lanes else number

    size = array.dtype.bitwidth // 8
    if array.dtype is not types.uint16:
        return builder.load(builder.bitcast(pointer, shaped(_number(array.dtype)).as_pointer()), align=size)
    codes = builder.load(builder.bitcast(pointer, shaped(ir.IntType(16)).as_pointer()), align=size)
    wide = builder.zext(codes, shaped(ir.IntType(32)))
    sixteen = ir.Constant(ir.IntType(32), 16) if not lanes else ir.Constant(wide.type, [16] * lanes)
    return builder.bitcast(builder.shl(wide, sixteen), shaped(ir.FloatType()))


def _store(builder, array, vector, pointer):
    """A vector to memory, rounded to bfloat16 codes where the array holds those."""
    if array.dtype is types.uint16:
        vector = _bfloat16(builder, vector)
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=array.dtype.bitwidth // 8)


def _bfloat16(builder, vector):
    """The codes of float32: add half of what is cut off, less one where the code is even; NaN stays NaN."""
    words = ir.VectorType(ir.IntType(32), vector.type.count)

    def constant(number):
        return ir.Constant(words, [number] * words.count)

    bits = builder.bitcast(vector, words)
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
    kept = builder.select(builder.fcmp_unordered("uno", vector, vector), builder.or_(bits, constant(1 << 22)), rounded)
    return builder.trunc(builder.lshr(kept, constant(16)), ir.VectorType(ir.IntType(16), words.count))


def _spread(builder, number, lanes):
    """A vector that repeats one number."""
    empty = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _zero(vector: Vector):
    return ir.Constant(_registers(vector), [0.0] * vector.lanes)


def _fma(builder, a, b, c):
    number = "f64" if isinstance(a.type.element, ir.DoubleType) else "f32"
    signature = ir.FunctionType(a.type, [a.type] * 3)
    name = f"llvm.fma.v{a.type.count}{number}"
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [a, b, c])


def _is_array(*arrays):
    numbers = (types.float32, types.float64, types.uint16)
    return all(isinstance(array, types.Array) and array.dtype in numbers for array in arrays)


# --- vectors -------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def zero(typingctx, lanes):
    """`zero(lanes)`: a vector of float32 zeros."""
    vector = Vector(types.float32, lanes.literal_value)
    return vector(lanes), lambda context, builder, sig, args: _zero(vector)


@intrinsic(prefer_literal=True)
def broadcast(typingctx, number, lanes):
    """`broadcast(number, lanes)`: a vector that repeats a float32 or float64."""
    if number not in (types.float32, types.float64):
        return None
    vector = Vector(number, lanes.literal_value)
    return vector(number, lanes), lambda context, builder, sig, args: _spread(builder, args[0], vector.lanes)


@intrinsic(prefer_literal=True)
def load(typingctx, array, index, lanes):
    """`load(array, index, lanes)`: the vector that starts at an element of an array."""
    if not _is_array(array):
        return None

    def build(context, builder, sig, args):
        return _load(builder, array, _pointer(context, builder, array, args[0], args[1]), lanes.literal_value)

    return _loaded(array, lanes.literal_value)(array, types.intp, lanes), build


@intrinsic
def store(typingctx, vector, array, index):
    """`store(vector, array, index)`: write a vector from an element of an array on."""
    if not isinstance(vector, Vector) or not _is_array(array) or _loaded(array, vector.lanes) != vector:
        return None

    def build(context, builder, sig, args):
        _store(builder, array, args[0], _pointer(context, builder, array, args[1], args[2]))
        return context.get_dummy_value()

    return types.void(vector, array, types.intp), build


@intrinsic
def fma(typingctx, a, b, c):
    """`fma(a, b, c)`: a * b + c lane by lane, rounded once."""
    if not isinstance(a, Vector) or not a == b == c:
        return None
    return a(a, b, c), lambda context, builder, sig, args: _fma(builder, *args)


@intrinsic
def total(typingctx, vector):
    """`total(vector)`: the sum of a vector's lanes, added pairwise."""
    if not isinstance(vector, Vector):
        return None

    def build(context, builder, sig, args):
        part, lanes = args[0], vector.lanes
        while lanes > 1:
            lanes //= 2
            picks = ([*range(lanes)], [*range(lanes, 2 * lanes)])
            halves = (ir.Constant(ir.VectorType(ir.IntType(32), lanes), pick) for pick in picks)
            part = builder.fadd(*(builder.shuffle_vector(part, part, half) for half in halves))
        return builder.extract_element(part, ir.Constant(ir.IntType(32), 0))

    return vector.dtype(vector), build


# --- tiles ---------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def tile_zero(typingctx, rows, columns, lanes):
    """`tile_zero(rows, columns, lanes)`: a tile of float32 zeros."""
    tile = Tile(Vector(types.float32, lanes.literal_value), rows.literal_value, columns.literal_value)

    def build(context, builder, sig, args):
        return ir.Constant(context.get_value_type(tile), [_zero(tile.vector)] * (tile.rows * tile.columns))

    return tile(rows, columns, lanes), build


@intrinsic(prefer_literal=True)
def tile_load(typingctx, array, index, step, rows, columns, lanes):
    """`tile_load(array, index, step, rows, columns, lanes)`: row r of the tile starts at element index + r * step."""
    if not _is_array(array):
        return None
    tile = Tile(_loaded(array, lanes.literal_value), rows.literal_value, columns.literal_value)

    def build(context, builder, sig, args):
        value = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for r in range(tile.rows):
            row = builder.mul(args[2], ir.Constant(args[2].type, r))
            for v in range(tile.columns):
                at = builder.gep(_pointer(context, builder, array, args[0], args[1], v * tile.vector.lanes), [row])
                value = builder.insert_value(value, _load(builder, array, at, tile.vector.lanes), r * tile.columns + v)
        return value

    return tile(array, types.intp, types.intp, rows, columns, lanes), build


@intrinsic
def tile_store(typingctx, tile, array, index, step):
    """`tile_store(tile, array, index, step)`: write row r of the tile from element index + r * step on."""
    if not isinstance(tile, Tile) or not _is_array(array) or _loaded(array, tile.vector.lanes) != tile.vector:
        return None

    def build(context, builder, sig, args):
        for r in range(tile.rows):
            row = builder.mul(args[3], ir.Constant(args[3].type, r))
            for v in range(tile.columns):
                at = builder.gep(_pointer(context, builder, array, args[1], args[2], v * tile.vector.lanes), [row])
                _store(builder, array, builder.extract_value(args[0], r * tile.columns + v), at)
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, types.intp), build


@intrinsic
def tile_transpose(typingctx, tile):
    """`tile_transpose(tile)`: rows and lanes exchanged, of a tile of one column and as many rows as lanes.

    Each of log2(lanes) steps exchanges one bit of the row number with one bit of the lane number.
    """
    if not isinstance(tile, Tile) or tile.columns != 1 or tile.rows != tile.vector.lanes:
        return None

    def build(context, builder, sig, args):
        lanes = tile.vector.lanes
        rows = [builder.extract_value(args[0], r) for r in range(lanes)]
        for bit in (1 << b for b in range(lanes.bit_length() - 1)):
            low = [lane + (lanes - bit if lane & bit else 0) for lane in range(lanes)]
            high = [lane + (lanes if lane & bit else bit) for lane in range(lanes)]
            low, high = (ir.Constant(ir.VectorType(ir.IntType(32), lanes), pick) for pick in (low, high))
            rows = [
                builder.shuffle_vector(rows[r & ~bit], rows[r | bit], high if r & bit else low) for r in range(lanes)
            ]
        value = args[0]
        for r in range(lanes):
            value = builder.insert_value(value, rows[r], r)
        return value

    return tile(tile), build


@intrinsic
def tile_fma(typingctx, tile, a, i, step, b, j):
    """`tile_fma(tile, a, i, step, b, j)`: add the outer product of a[i + r * step], r < rows, and the row of b at j."""
    if not isinstance(tile, Tile) or not _is_array(a, b):
        return None

    def build(context, builder, sig, args):
        value, a_value, i, step, b_value, j = args
        lanes, columns = tile.vector.lanes, range(tile.columns)
        row = [_load(builder, b, _pointer(context, builder, b, b_value, j, v * lanes), lanes) for v in columns]
        for r in range(tile.rows):
            at = builder.gep(_pointer(context, builder, a, a_value, i), [builder.mul(step, ir.Constant(step.type, r))])
            number = _spread(builder, _load(builder, a, at, None), lanes)
            for v in columns:
                old = builder.extract_value(value, r * tile.columns + v)
                value = builder.insert_value(value, _fma(builder, number, row[v], old), r * tile.columns + v)
        return value

    return tile(tile, a, types.intp, types.intp, b, types.intp), build


# --- bits ----------------------------------------------------------------------------------------------------------


class Counts(types.Type):
    """The numba type of `rows` x `columns` vectors of `lanes` counters of 64 bits."""

    def __init__(self, rows: int, columns: int, lanes: int):
        self.rows, self.columns, self.lanes = rows, columns, lanes
        super().__init__(f"Counts({rows}, {columns}, {lanes})")

    @property
    def vectors(self) -> int:
        return self.rows * self.columns


def _words(lanes: int):
    return ir.VectorType(ir.IntType(64), lanes)


@register_model(Counts)
class _CountsModel(PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.ArrayType(_words(kind.lanes), kind.vectors))


@intrinsic
def bit_plane(typingctx, array, index, bit):
    """`bit_plane(array, index, bit)`: a bit of each of the 64 bytes that start at an element, as a uint64."""
    if not isinstance(array, types.Array) or array.dtype is not types.uint8:
        return None

    def build(context, builder, sig, args):
        sixty_four = ir.VectorType(ir.IntType(8), 64)
        pointer = _pointer(context, builder, array, args[0], args[1])
        codes = builder.load(builder.bitcast(pointer, sixty_four.as_pointer()), align=1)
        one = builder.trunc(builder.shl(ir.Constant(ir.IntType(64), 1), args[2]), ir.IntType(8))
        picked = builder.and_(codes, _spread(builder, one, 64))
        return builder.bitcast(builder.icmp_unsigned("!=", picked, ir.Constant(sixty_four, [0] * 64)), ir.IntType(64))

    return types.uint64(array, types.intp, types.intp), build


@intrinsic(prefer_literal=True)
def counts_zero(typingctx, rows, columns, lanes):
    """`counts_zero(rows, columns, lanes)`: counters at zero."""
    kind = Counts(rows.literal_value, columns.literal_value, lanes.literal_value)

    def build(context, builder, sig, args):
        zeros = ir.Constant(_words(kind.lanes), [0] * kind.lanes)
        return ir.Constant(context.get_value_type(kind), [zeros] * kind.vectors)

    return kind(rows, columns, lanes), build


@intrinsic
def counts_add(typingctx, counts, a, i, b, j):
    """`counts_add(counts, a, i, b, j)`: to row r, column c add the ones of a[i + r] & b[j + c], words of 64 bits."""
    if not isinstance(counts, Counts) or not all(
        isinstance(array, types.Array) and array.dtype is types.uint64 for array in (a, b)
    ):
        return None

    def build(context, builder, sig, args):
        value, a_value, i, b_value, j = args
        kind = _words(counts.lanes)
        popcount = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.ctpop.v{counts.lanes}i64"
        )
        row = []
        for v in range(counts.columns):
            pointer = _pointer(context, builder, b, b_value, j, v * counts.lanes)
            row.append(builder.load(builder.bitcast(pointer, kind.as_pointer()), align=8))
        for r in range(counts.rows):
            word = _spread(builder, builder.load(_pointer(context, builder, a, a_value, i, r), align=8), counts.lanes)
            for v in range(counts.columns):
                at = r * counts.columns + v
                ones = builder.call(popcount, [builder.and_(word, row[v])])
                value = builder.insert_value(value, builder.add(builder.extract_value(value, at), ones), at)
        return value

    return counts(counts, a, types.intp, b, types.intp), build


@intrinsic
def counts_double(typingctx, counts):
    """`counts_double(counts)`: every counter times two."""
    if not isinstance(counts, Counts):
        return None

    def build(context, builder, sig, args):
        value = args[0]
        for at in range(counts.vectors):
            old = builder.extract_value(value, at)
            value = builder.insert_value(value, builder.add(old, old), at)
        return value

    return counts(counts), build


@intrinsic
def counts_store(typingctx, counts, array, index):
    """`counts_store(counts, array, index)`: write the counters, row by row, from an element on: int64 or int32."""
    if not isinstance(counts, Counts) or not isinstance(array, types.Array):
        return None
    if array.dtype not in (types.int64, types.int32):
        return None
    kind = ir.VectorType(ir.IntType(array.dtype.bitwidth), counts.lanes)

    def build(context, builder, sig, args):
        for at in range(counts.vectors):
            pointer = _pointer(context, builder, array, args[1], args[2], at * counts.lanes)
            vector = builder.extract_value(args[0], at)
            vector = vector if array.dtype is types.int64 else builder.trunc(vector, kind)
            builder.store(vector, builder.bitcast(pointer, kind.as_pointer()), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(counts, array, types.intp), build
