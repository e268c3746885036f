r"""Sparse kernels unrolled for vector units: several rows at a time, a panel of columns of each in registers.

A core starts two fused multiply-adds a cycle and waits four for each result: eight sums or more must be on their way.
One row of compressed rows has as many sums as its panel has vectors, so a narrow panel leaves the units waiting, and a
wide one needs a wide B. Here R rows pass together, R w numbers of Y in registers,

.. math:: Y_{\pi(r),\, J} \leftarrow Y_{\pi(r),\, J} + v_{s_r + t}\; B_{c_{s_r + t},\, J}
          \qquad r = 1, \dots, R, \quad t = 0, 1, \dots

in step t each with its own next value, and R w is chosen to fill the registers whatever the width w of B. Rows of
unequal length would wait for each other: they are sorted by length, pi, so that those of a group are nearly alike.
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
from numba.extending import intrinsic

from kernels.implementation.sparsity import csr
from kernels.implementation.sparsity.sparse_left import SparseForm, SparseLeft, dense_matrix, panels
from kernels.simd import LANES, Tile, tile_zero

__all__ = ["GroupedRows", "SparseSimd", "stepped_sums"]


@dataclass(frozen=True, eq=False)
class GroupedRows(SparseForm):
    """A sparse matrix by rows, the longest first.

    Attributes
    ----------
    values : ndarray of float32, shape (non-zeros,)
    indices : ndarray of uint32, shape (non-zeros,)
        The column of each value, rising within a row.
    starts : ndarray of int64, shape (rows + 1,)
        Where each row begins, in the order in which they are stored; the last group is filled up with empty rows.
    order : ndarray of int64, shape (rows,)
        The row of the matrix that each of them is.
    """

    values: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    order: np.ndarray

    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros, float32."""
        dense = np.zeros(self.shape, np.float32)
        dense[np.repeat(self.order, np.diff(self.starts)), self.indices] = self.values
        return dense


def stepped_sums(a: GroupedRows, b: np.ndarray) -> np.ndarray:
    """The product as the equation says it: in step t every row that is long enough adds its value t.

    Examples
    --------
    >>> a = SparseSimd().prepare([[0, 2, 0], [1, 0, 3]])
    >>> stepped_sums(a, np.array([[1], [10], [100]], np.float32)).ravel()
    array([ 20., 301.], dtype=float32)
    """
    y = np.zeros((a.order.size, b.shape[1]), np.float32)
    lengths = np.diff(a.starts)
    for t in range(lengths.max(initial=0)):
        there = lengths > t
        at = a.starts[:-1][there] + t
        y[a.order[there]] += a.values[at, None] * b[a.indices[at]]
    return y[: a.shape[0]]


@intrinsic(prefer_literal=True)
def _tile_step(typingctx, tile, values, indices, starts, first, t, panel, width, masked):
    """`_tile_step(tile, values, indices, starts, first, t, panel, width, masked)`: each row adds its value t.

    Row r begins at starts[first + r]; masked, what lies beyond its end leaves its sums as they are.
    """
    if not isinstance(tile, Tile):
        return None

    def build(context, builder, sig, args):
        value, values_in, indices_in, starts_in, first, t, panel_in = args[:7]
        lanes = tile.vector.lanes
        numbers, one = ir.VectorType(ir.FloatType(), lanes), ir.Constant(first.type, 1)
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(numbers, [numbers] * 3), f"llvm.fma.v{lanes}f32"
        )

        def pointer(array, array_in, index):
            return builder.gep(context.make_array(array)(context, builder, array_in).data, [index])

        for r in range(tile.rows):
            row = builder.add(first, ir.Constant(first.type, r))
            at = builder.add(builder.load(pointer(starts, starts_in, row)), t)
            inside = None
            if masked.literal_value:
                inside = builder.icmp_signed("<", at, builder.load(pointer(starts, starts_in, builder.add(row, one))))
                at = builder.select(inside, at, ir.Constant(at.type, 0))
            number = builder.load(pointer(values, values_in, at))
            spread = builder.insert_element(ir.Constant(numbers, ir.Undefined), number, ir.IntType(32)(0))
            spread = builder.shuffle_vector(
                spread, spread, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            )
            column = builder.zext(builder.load(pointer(indices, indices_in, at)), first.type)
            column = builder.mul(column, ir.Constant(first.type, width.literal_value))
            source = pointer(panel, panel_in, column)
            for v in range(tile.columns):
                near = builder.gep(source, [ir.Constant(ir.IntType(64), v * lanes)])
                b = builder.load(builder.bitcast(near, numbers.as_pointer()), align=4)
                old = builder.extract_value(value, r * tile.columns + v)
                new = builder.call(fused, [spread, b, old])
                new = builder.select(inside, new, old) if inside else new
                value = builder.insert_value(value, new, r * tile.columns + v)
        return value

    return tile(tile, values, indices, starts, types.intp, types.intp, panel, width, masked), build


@intrinsic
def _tile_scatter(typingctx, tile, y, order, first, stride, column):
    """`_tile_scatter(tile, y, order, first, stride, column)`: row r of the tile to row order[first + r] of y."""
    if not isinstance(tile, Tile):
        return None

    def build(context, builder, sig, args):
        value, y_in, order_in, first, stride, column = args
        data, rows = (
            context.make_array(kind)(context, builder, array).data for kind, array in ((y, y_in), (order, order_in))
        )
        for r in range(tile.rows):
            row = builder.load(builder.gep(rows, [builder.add(first, ir.Constant(first.type, r))]))
            at = builder.gep(data, [builder.add(builder.mul(row, stride), column)])
            for v in range(tile.columns):
                vector = builder.extract_value(value, r * tile.columns + v)
                near = builder.gep(at, [ir.Constant(ir.IntType(64), v * tile.vector.lanes)])
                builder.store(vector, builder.bitcast(near, vector.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(tile, y, order, types.intp, types.intp, types.intp), build


@lru_cache
def _kernel(rows: int, width: int, lanes: int) -> Callable:
    lanes = min(lanes, width)
    vectors = width // lanes

    @njit(cache=True)
    def product(values, indices, starts, order, panel, y, column):
        """`width` columns of Y from the same columns of B, packed."""
        stride, y = y.shape[1], y.reshape(-1)
        for first in range(0, order.size, rows):
            shortest = starts[first + rows] - starts[first + rows - 1]
            longest = starts[first + 1] - starts[first]
            tile = tile_zero(rows, vectors, lanes)
            for t in range(shortest):
                tile = _tile_step(tile, values, indices, starts, first, t, panel, width, False)
            for t in range(shortest, longest):
                tile = _tile_step(tile, values, indices, starts, first, t, panel, width, True)
            _tile_scatter(tile, y, order, first, stride, column)

    return product


@dataclass(frozen=True)
class SparseSimd(SparseLeft):
    """The product of a sparse matrix with a dense one, several rows at a time, on one thread.

    Zeros that are not stored do not take part: where the dense product turns 0 times NaN or infinity into NaN, this one
    leaves them out.

    Parameters
    ----------
    rows : {4, 1, 2, 8}
        Rows at a time.

    Raises
    ------
    ValueError
        If it is none of these.

    Source: Elsen, Dukhan, Gale and Simonyan, "Fast Sparse ConvNets", arXiv 1911.09723, for unrolled kernels
    whose sums stay in registers; Gale et al., "Sparse GPU Kernels for Deep Learning", arXiv 2006.10901, for
    rows sorted by length.

    Examples
    --------
    >>> op = SparseSimd(rows=2)
    >>> w = op.prepare([[0, 2, 0], [1, 0, 3]])
    >>> w.order, w.values, w.indices
    (array([1, 0]), array([1., 3., 2.], dtype=float32), array([0, 2, 1], dtype=uint32))
    >>> op.matmul(w, np.ones((3, 2)))
    array([[2., 2.],
           [4., 4.]], dtype=float32)
    """

    rows: int = 4

    def __post_init__(self) -> None:
        if self.rows not in (1, 2, 4, 8):
            raise ValueError(f"rows: expected 1, 2, 4 or 8, got {self.rows!r}")

    def prepare(self, a: Any) -> GroupedRows:
        """The matrix by rows, sorted by their number of non-zeros.

        Raises
        ------
        TypeError, ValueError
            If `a` is not a matrix of real numbers.
        """
        dense = dense_matrix(a)
        lengths = np.count_nonzero(dense, axis=1)
        order = np.argsort(-lengths, kind="stable")
        by_length = dense[order]
        rows, columns = np.nonzero(by_length)
        order = np.concatenate([order, np.arange(len(order), len(order) + -len(order) % self.rows)])
        starts = np.concatenate([[0], np.cumsum(np.pad(lengths, (0, len(order) - len(lengths)))[order])])
        return GroupedRows(self, dense.shape, by_length[rows, columns], columns.astype(np.uint32), starts, order)

    def _times(self, a: GroupedRows, b: np.ndarray) -> np.ndarray:
        if b.shape[1] == 1:
            sums = np.empty(a.order.size, np.float32)
            csr._vector_product(a.values, a.indices, a.starts, np.ascontiguousarray(b.reshape(-1)), sums)
            y = np.empty((a.order.size, 1), np.float32)
            y[a.order, 0] = sums
            return y
        parts, y = panels(b, self._widths(), a.order.size)
        for panel, column in parts:
            kernel = _kernel(self.rows, panel.size // len(b), LANES)
            kernel(a.values, a.indices, a.starts, a.order, panel, y, column)
        return y

    def _widths(self) -> tuple[int, ...]:
        """Widths of panels: as many vectors, for all rows together, as the registers hold beside what they read."""
        most = max(8, (16 if LANES == 16 else 8) // self.rows * LANES)
        return tuple(width for width in (8, 16, 32, 64, 128) if width <= most)
