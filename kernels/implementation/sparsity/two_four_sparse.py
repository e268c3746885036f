r"""Two of four: of any four neighbours in a row two are kept, and two bits say where each of them was.

A row of k weights becomes k / 2 values v and as many places q of two bits. With group g the columns 4 g up to 4 g + 3,

.. math:: y_i = \sum_g \left( v_{i, 2 g}\, x_{4 g + q_{i, 2 g}} + v_{i, 2 g + 1}\, x_{4 g + q_{i, 2 g + 1}} \right)

A place of two bits cannot lead far: both operands of a group lie within four neighbours of x, sixteen bytes. GPUs
choose among them in front of the multiplier. A CPU has an instruction for that too: within each sixteen bytes of a
register, pick for every lane one of four numbers by two bits (`vpermilps`). Two rows at a time fill the four lanes, two
values each. So a step loads x as it lies, picks, and multiplies, with no index and no gather; x is loaded once for
several pairs of rows, and the bits once for several columns.
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

from kernels.implementation.sparsity.sparse_left import SparseForm, SparseLeft, aligned, dense_matrix
from kernels.simd import LANES, Tile, tile_zero

__all__ = ["TwoFourMatrix", "TwoFourSparse", "selected_sums"]

CHUNK = 16
"""Columns that are padded to, a register of the widest machine."""


@dataclass(frozen=True, eq=False)
class TwoFourMatrix(SparseForm):
    """A matrix of which two of any four neighbours in a row are kept, by pairs of rows.

    Attributes
    ----------
    values : ndarray of float32, shape (pairs of rows, groups, 2, 2)
        Of each group of columns the two values of the upper and those of the lower row; rows and groups are padded
        with zeros to whole pairs and to whole chunks of four groups.
    places : ndarray of uint16, shape (pairs of rows, groups / 2)
        Of two groups the places of their eight values, two bits each, the first in the lowest.
    """

    values: np.ndarray
    places: np.ndarray

    def positions(self) -> np.ndarray:
        """The place within its group of every value, shaped like `values`."""
        bits = (self.places[..., None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
        return bits.reshape(self.values.shape).astype(np.int64)

    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros, float32."""
        pairs, groups = self.values.shape[:2]
        dense = np.zeros((pairs, groups, 2, 4), np.float32)
        np.put_along_axis(dense, self.positions(), self.values, axis=-1)
        return dense.transpose(0, 2, 1, 3).reshape(2 * pairs, 4 * groups)[: self.shape[0], : self.shape[1]]


def selected_sums(a: TwoFourMatrix, b: np.ndarray) -> np.ndarray:
    """The product as the equation says it: of each group of B's rows the two that the bits name.

    Examples
    --------
    >>> a = TwoFourSparse().prepare([[0, 2, 0, 1], [5, 0, 0, 0]])
    >>> selected_sums(a, np.array([[1], [10], [100], [1000]], np.float32)).ravel()
    array([1020.,    5.], dtype=float32)
    """
    pairs, groups = a.values.shape[:2]
    b = np.pad(b, ((0, 4 * groups - b.shape[0]), (0, 0)))
    rows = np.arange(0, 4 * groups, 4)[:, None, None] + a.positions()  # pairs, groups, 2, 2
    y = np.einsum("pgrv,pgrvn->prn", a.values, b[rows])
    return y.reshape(2 * pairs, b.shape[1])[: a.shape[0]]


# --- the step of the kernel ----------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def _tile_select(typingctx, tile, values, places, i, step, x, j, leap):
    """`_tile_select(tile, values, places, i, step, x, j, leap)`: values times what the places pick from x, added.

    Row r of the tile takes the values at i + r * step and the places that belong to them; column c, the x at
    j + c * leap.
    """
    if not isinstance(tile, Tile):
        return None
    vector = tile.vector

    def build(context, builder, sig, args):
        value, values_in, places_in, i, step, x_in, j, leap = args
        lanes = vector.lanes
        numbers, words = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(ir.IntType(32), lanes)
        permute = {8: "llvm.x86.avx.vpermilvar.ps.256", 16: "llvm.x86.avx512.vpermilvar.ps.512"}.get(lanes)

        def picked(source, picks):
            if permute:
                form = ir.FunctionType(numbers, [numbers, words])
                return builder.call(cgutils.get_or_insert_function(builder.module, form, permute), [source, picks])
            result = ir.Constant(numbers, ir.Undefined)
            for lane in map(ir.IntType(32), range(lanes)):  # any machine; a group is a register here
                place = builder.and_(builder.extract_element(picks, lane), ir.IntType(32)(3))
                result = builder.insert_element(result, builder.extract_element(source, place), lane)
            return result

        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(numbers, [numbers] * 3), f"llvm.fma.v{lanes}f32"
        )
        own = ir.IntType(2 * lanes)
        shifts = ir.Constant(words, list(range(0, 2 * lanes, 2)))

        def loaded(array, array_in, at, form, align):
            data = context.make_array(array)(context, builder, array_in).data
            pointer = builder.bitcast(builder.gep(data, [at]), form.as_pointer())
            return builder.load(pointer, align=align)

        def times(number, factor):
            return builder.mul(number, ir.Constant(number.type, factor))

        inputs = [loaded(x, x_in, builder.add(j, times(leap, c)), numbers, 4) for c in range(tile.columns)]
        for r in range(tile.rows):
            at = builder.add(i, times(step, r))
            weights = loaded(values, values_in, at, numbers, 4)
            bits = loaded(places, places_in, builder.lshr(at, ir.Constant(at.type, 2)), own, 1)
            bits = builder.zext(bits, ir.IntType(32)) if lanes < 16 else bits
            spread = builder.insert_element(ir.Constant(words, ir.Undefined), bits, ir.Constant(ir.IntType(32), 0))
            spread = builder.shuffle_vector(spread, spread, ir.Constant(words, [0] * lanes))
            picks = builder.lshr(spread, shifts)  # of each lane the two lowest bits count
            for c in range(tile.columns):
                place = r * tile.columns + c
                total = builder.call(fused, [weights, picked(inputs[c], picks), builder.extract_value(value, place)])
                value = builder.insert_value(value, total, place)
        return value

    return tile(tile, values, places, types.intp, types.intp, x, types.intp, types.intp), build


@intrinsic
def _tile_pair_sums(typingctx, tile, y, i, step):
    """`_tile_pair_sums(tile, y, i, step)`: of row r, column c of the tile both sums to y[i + c * step + 2 r], + 1.

    A group's four lanes hold two terms of the upper and two of the lower row.
    """
    if not isinstance(tile, Tile):
        return None

    def build(context, builder, sig, args):
        value, y_in, i, step = args
        data = context.make_array(y)(context, builder, y_in).data
        number = ir.IntType(32)
        for r in range(tile.rows):
            for c in range(tile.columns):
                part, lanes = builder.extract_value(value, r * tile.columns + c), tile.vector.lanes
                while lanes > 4:
                    lanes //= 2
                    halves = [
                        builder.shuffle_vector(
                            part, part, ir.Constant(ir.VectorType(number, lanes), [*range(first, first + lanes)])
                        )
                        for first in (0, lanes)
                    ]
                    part = builder.fadd(*halves)
                at = builder.add(builder.add(i, builder.mul(step, ir.Constant(step.type, c))), step.type(2 * r))
                for row in range(2):
                    both = [builder.extract_element(part, number(2 * row + v)) for v in range(2)]
                    pointer = builder.gep(data, [builder.add(at, step.type(row))])
                    builder.store(builder.fadd(*both), pointer)
        return context.get_dummy_value()

    return types.void(tile, y, types.intp, types.intp), build


@lru_cache
def _kernel(rows: int, columns: int, lanes: int) -> Callable:
    """`rows` pairs of rows and `columns` columns at a time; at the edges, the last ones once more."""

    @njit(cache=True)
    def product(values, places, xt, y, pairs, groups, n):
        wide, leap, stride = 4 * groups, 4 * groups + CHUNK, 2 * pairs + CHUNK
        for first in range(0, pairs, rows):
            pair = min(first, pairs - rows)
            for column in range(0, n, columns):
                j = min(column, n - columns)
                tile = tile_zero(rows, columns, lanes)
                for at in range(0, wide, lanes):
                    tile = _tile_select(tile, values, places, pair * wide + at, wide, xt, j * leap + at, leap)
                _tile_pair_sums(tile, y, j * stride + 2 * pair, stride)

    return product


def _groups(a: np.ndarray) -> np.ndarray:
    """The entries of a matrix by groups of four, filled up with zeros to whole pairs of rows and whole chunks."""
    m, k = a.shape
    rows, chunks = -(-m // 2) * 2, -(-k // CHUNK)
    return np.pad(a, ((0, rows - m), (0, chunks * CHUNK - k))).reshape(rows, chunks * CHUNK // 4, 4)


@njit(cache=True)
def _transpose(x, y):
    """The transpose, in squares that stay in the first cache."""
    rows, columns = x.shape
    for top in range(0, rows, 16):
        for left in range(0, columns, 16):
            for i in range(top, min(top + 16, rows)):
                for j in range(left, min(left + 16, columns)):
                    y[j, i] = x[i, j]


@dataclass(frozen=True)
class TwoFourSparse(SparseLeft):
    """The product of a 2:4 sparse matrix with a dense one, on one thread.

    What is not kept does not take part; where a group has fewer than two non-zeros a stored zero does, so that it meets
    a NaN or an infinity as in the dense product.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378: two values of four,
    and two bits for the place of each.

    Examples
    --------
    >>> op = TwoFourSparse()
    >>> w = op.prepare([[0, 2, 0, 1], [5, 0, 0, 0]])
    >>> w.values[0, 0], w.positions()[0, 0]
    (array([[2., 1.],
           [5., 0.]], dtype=float32), array([[1, 3],
           [0, 1]]))
    >>> op.matmul(w, np.ones((4, 2)))
    array([[3., 3.],
           [5., 5.]], dtype=float32)
    """

    def prepare(self, a: Any) -> TwoFourMatrix:
        """The matrix as values and two-bit places.

        Raises
        ------
        TypeError, ValueError
            If `a` is not a matrix of real numbers, or one of its groups of four has more than two non-zeros.
        """
        dense = dense_matrix(a)
        groups = _groups(dense)
        crowded = np.argwhere((groups != 0).sum(-1) > 2)
        if len(crowded):
            row, group = (int(x) for x in crowded[0])
            raise ValueError(
                f"a: expected at most two non-zeros in any four neighbours of a row, got {groups[row, group]} in row "
                f"{row} from column {4 * group} on; prune it to 2:4 first"
            )
        kept = np.sort(np.argsort(groups == 0, axis=-1, kind="stable")[..., :2], axis=-1)
        values = np.take_along_axis(groups, kept, axis=-1)
        values, kept = (x.reshape(len(x) // 2, 2, x.shape[1], 2).transpose(0, 2, 1, 3) for x in (values, kept))
        bits = kept.reshape(len(kept), kept.shape[1] // 2, 8).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
        return TwoFourMatrix(self, dense.shape, np.ascontiguousarray(values), bits.sum(-1, dtype=np.uint16))

    def _times(self, a: TwoFourMatrix, b: np.ndarray) -> np.ndarray:
        pairs, groups = a.values.shape[:2]
        k, n = b.shape
        xt = aligned(n * (4 * groups + CHUNK))  # a row of its own length a cache's set would hold all columns
        by_column = xt.reshape(n, -1)
        _transpose(b, by_column)
        by_column[:, k : 4 * groups] = 0
        y = np.empty((n, 2 * pairs + CHUNK), np.float32)
        rows, columns = self._tile(pairs, n)
        _kernel(rows, columns, LANES)(
            a.values.reshape(-1), a.places.view(np.uint8).reshape(-1), xt, y.reshape(-1), pairs, groups, n
        )
        result = np.empty((2 * pairs, n), np.float32)
        _transpose(y[:, : 2 * pairs], result)
        return result

    @staticmethod
    def _tile(pairs: int, n: int) -> tuple[int, int]:
        """How many pairs of rows and columns registers hold sums for; for few, at least enough sums to keep busy."""
        rows = next(
            rows for rows in ((8, 4, 2, 1) if n == 1 else (4, 2, 1) if LANES == 16 else (2, 1)) if rows <= pairs
        )
        return rows, next(columns for columns in (4, 2, 1) if columns <= n)

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer's product can run here: a linear layer in FP32 whose weights are 2:4."""
        if not super().supports(layer, format):
            return False
        weight = layer.weight.detach().numpy()
        return bool(np.all((_groups(weight) != 0).sum(-1) <= 2))
