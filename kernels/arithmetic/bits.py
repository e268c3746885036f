"""Integer operations that keep a width, for loops over the patterns of floats.

Numba widens every integer operation to 64 bits. The compiler narrows sums and masks again when their result is cast
back, but not shifts by a variable count, and a loop with one such shift runs with half the lanes. Casting to the type
of an argument, which Python cannot say, lets one function serve the patterns of float32 and float64.

Examples
--------
>>> import numpy as np
>>> from numba import njit
>>> @njit
... def halved(x, out):
...     for i in range(x.size):
...         out[i] = shift_right(x[i], 1)
>>> out = np.empty(3, np.int32)
>>> halved(np.array([-4, 5, 6], np.int32), out)
>>> out
array([-2,  2,  3], dtype=int32)
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

__all__ = ["as_float", "as_pattern", "cast", "multiply", "shift_left", "shift_right", "width"]


def _shift(number, count, build):
    if not isinstance(number, types.Integer) or not isinstance(count, types.Integer):
        return None

    def codegen(context, builder, signature, args):
        return build(builder, args[0], context.cast(builder, args[1], count, number))

    return number(number, count), codegen


@intrinsic
def cast(typingctx, number, like):
    """`cast(number, like)`: an integer, in the type of another; bits that leave its width are lost."""
    if not isinstance(number, types.Integer) or not isinstance(like, types.Integer):
        return None
    return like(number, like), lambda context, builder, sig, args: context.cast(builder, args[0], number, like)


@intrinsic
def width(typingctx, number):
    """`width(number)`: the bits of an integer's type, known as the code is made."""
    if not isinstance(number, types.Integer):
        return None
    return types.intp(number), lambda context, builder, sig, args: ir.Constant(ir.IntType(64), number.bitwidth)


@intrinsic
def multiply(typingctx, number, factor):
    """`multiply(number, factor)`: in the type of the first; bits that leave its width are lost."""
    if not isinstance(number, types.Integer) or not isinstance(factor, types.Integer):
        return None

    def codegen(context, builder, signature, args):
        return builder.mul(args[0], context.cast(builder, args[1], factor, number))

    return number(number, factor), codegen


@intrinsic
def shift_left(typingctx, number, count):
    """`shift_left(number, count)`: 0 <= count < width; bits that leave the width are lost."""
    return _shift(number, count, lambda builder, n, c: builder.shl(n, c))


@intrinsic
def shift_right(typingctx, number, count):
    """`shift_right(number, count)`: 0 <= count < width; the sign enters a signed number, zeros an unsigned one."""
    signed = isinstance(number, types.Integer) and number.signed
    return _shift(number, count, lambda builder, n, c: builder.ashr(n, c) if signed else builder.lshr(n, c))


@intrinsic
def as_float(typingctx, pattern):
    """`as_float(pattern)`: the float32 with the bits of an integer of 32."""
    if not isinstance(pattern, types.Integer) or pattern.bitwidth != 32:
        return None
    return types.float32(pattern), lambda context, builder, sig, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def as_pattern(typingctx, number):
    """`as_pattern(number)`: the bits of a float32, as an int32."""
    if number != types.float32:
        return None
    return types.int32(number), lambda context, builder, sig, args: builder.bitcast(args[0], ir.IntType(32))
