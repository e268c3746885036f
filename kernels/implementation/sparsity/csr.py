"""Compressed sparse rows: only the nonzeros are stored, read and multiplied.

Row i of an m x k matrix keeps its nonzero values v and their columns c, one row after the other; p_i tells where row i
begins. The product with a dense k x n matrix then is

    Y[i, :] = sum over j in [p_i, p_{i+1}) of v_j B[c_j, :]

Its work falls with the density, but every term asks for a row of B that no prefetcher foresees. The kernel hides that
behind width: 64 columns of Y stay in registers while a row's nonzeros pass, so one value and one index, read once,
serve 64 multiply-adds, and the 64 columns of B are copied next to each other first, so that no row of B straddles more
cache lines than it fills. With a single column nothing is left to share, and the product is bound by its gathers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from kernels.arrays import as_array, describe, is_tensor, like
from kernels.simd import Vector, broadcast, fma, load, store, total, zero

__all__ = ["Csr", "CsrMatrix", "row_sums"]


@dataclass(frozen=True, eq=False)
class CsrMatrix:
    """A sparse matrix by rows, immutable.

    Parameters
    ----------
    values : ndarray of float32, shape (nonzeros,)
    indices : ndarray of uint32 or uint16, shape (nonzeros,)
        The column of each value, rising within a row.
    indptr : ndarray of int32, shape (rows + 1,)
        Where each row begins; the last entry is the number of values.
    shape : tuple of two ints

    Raises
    ------
    ValueError
        If the three arrays do not describe a matrix of this shape.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    def __post_init__(self):
        rows, columns = self.shape
        if self.indptr.shape != (rows + 1,) or self.indptr[0] != 0 or self.indptr[-1] != self.values.size:
            raise ValueError(
                f"indptr: expected {rows + 1} entries from 0 to {self.values.size}, got {describe(self.indptr)}"
            )
        if np.any(np.diff(self.indptr) < 0):
            raise ValueError("indptr: expected entries that never fall")
        if self.indices.shape != self.values.shape or np.any(self.indices >= columns):
            raise ValueError(
                f"indices: expected one column below {columns} for each of {self.values.size} values, "
                f"got {describe(self.indices)}"
            )
        if np.any(np.diff(self._rows() * columns + self.indices) <= 0):
            raise ValueError("indices: expected columns that rise within each row, without duplicates")
        for array in (self.values, self.indices, self.indptr):
            array.flags.writeable = False

    def _rows(self) -> np.ndarray:
        return np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))

    @property
    def density(self) -> float:
        """The share of entries that are stored."""
        return self.values.size / max(1, self.shape[0] * self.shape[1])

    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros, float32."""
        dense = np.zeros(self.shape, np.float32)
        dense[self._rows(), self.indices] = self.values
        return dense

    def stored_bits(self) -> int:
        """Bits of values, indices and row beginnings together."""
        return 8 * (self.values.nbytes + self.indices.nbytes + self.indptr.nbytes)


def row_sums(a: CsrMatrix, b: np.ndarray) -> np.ndarray:
    """The product as the equation says it: each row adds up the rows of B that its columns name.

    Examples
    --------
    >>> a = Csr().prepare([[0, 2, 0], [1, 0, 3]])
    >>> row_sums(a, np.array([1, 10, 100], np.float32))
    array([ 20., 301.], dtype=float32)
    """
    y = np.zeros((a.shape[0], *b.shape[1:]), np.float32)
    for i, (begin, end) in enumerate(pairwise(a.indptr)):
        y[i] = a.values[begin:end] @ b[a.indices[begin:end]]
    return y


# --- many columns: a panel of them in registers --------------------------------------------------------------------


def _panel_kernel(width: int) -> Callable:
    @njit(cache=True)
    def product(values, indices, indptr, panel, y, column):
        """Columns [column, column + width) of Y from the same columns of B, packed."""
        rows, columns = y.shape
        kept = min(width, columns - column)
        row, y = np.empty(width, np.float32), y.reshape(-1)
        end = np.int64(0)
        for i in range(rows):
            begin, end = end, np.int64(indptr[i + 1])
            sums = zero(width)
            for j in range(begin, end):
                place = np.uint64(j)  # numba looks whether a signed index counts from the end
                b = load(panel, indices[place] * width, width)
                sums = fma(broadcast(values[place], width), b, sums)
            if kept == width:
                store(sums, y, i * columns + column)
            else:
                store(sums, row, 0)
                for v in range(kept):
                    y[i * columns + column + v] = row[v]

    return product


# 64 columns are eight registers of AVX2 or four of AVX-512: enough independent sums to hide a multiply-add's latency.
_PANELS = {width: _panel_kernel(width) for width in (8, 16, 32, 64)}


def _aligned(rows: int, columns: int) -> np.ndarray:
    """An empty matrix that begins with a cache line: loads that straddle two lines cost a third of the speed."""
    memory = np.empty(rows * columns + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + rows * columns].reshape(rows, columns)


# --- one column: gathers -------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def _gather(typingctx, x, indices, j, lanes):
    """`_gather(x, indices, j, lanes)`: x[indices[j]], x[indices[j + 1]], ... as a vector.

    One load a lane: the gather instruction of AVX2 is no faster, on some machines much slower.
    """
    vector = Vector(types.float32, lanes.literal_value)

    def build(context, builder, sig, args):
        data = context.make_array(x)(context, builder, args[0]).data
        columns = context.make_array(indices)(context, builder, args[1]).data
        value = context.get_constant_undef(vector)
        for lane in range(vector.lanes):
            place = context.get_constant(types.intp, lane)
            column = builder.load(builder.gep(columns, [builder.add(args[2], place)]))
            column = context.cast(builder, column, indices.dtype, types.intp)
            value = builder.insert_element(value, builder.load(builder.gep(data, [column])), place)
        return value

    return vector(x, indices, types.intp, lanes), build


@njit(cache=True)
def _vector_product(values, indices, indptr, x, y):
    for i in range(y.size):
        begin, end = indptr[i], indptr[i + 1]
        whole = begin + (end - begin) // 8 * 8
        sums = zero(8)
        for j in range(begin, whole, 8):
            sums = fma(load(values, j, 8), _gather(x, indices, j, 8), sums)
        rest = total(sums)
        for j in range(whole, end):
            rest += values[j] * x[indices[j]]
        y[i] = rest


@dataclass(frozen=True)
class Csr:
    """The product of a sparse matrix by rows with a dense one, on one thread.

    Zeros that are not stored do not take part: where the dense product turns 0 times NaN or infinity into NaN, this one
    leaves them out. Stored values follow IEEE arithmetic.

    Parameters
    ----------
    index_bits : {32, 16}
        The width of a column index. 16 bits address 65 536 columns and take a quarter off what is read.

    Source
    ------
    Han et al., EIE: Efficient Inference Engine on Compressed Deep Neural Network, 2016 (columns in place of rows).
    Park et al., Faster CNNs with Direct Sparse Convolutions and Guided Pruning, 2017.

    Examples
    --------
    >>> op = Csr()
    >>> w = op.prepare([[0, 2, 0], [1, 0, 3]])
    >>> w.values, w.indices, w.indptr
    (array([2., 1., 3.], dtype=float32), array([1, 0, 2], dtype=uint32), array([0, 1, 3], dtype=int32))
    >>> op.matmul(w, np.ones((3, 2)))
    array([[2., 2.],
           [4., 4.]], dtype=float32)
    """

    index_bits: int = 32

    def __post_init__(self):
        if self.index_bits not in (16, 32):
            raise ValueError(f"index_bits: expected 16 or 32, got {self.index_bits}")

    def prepare(self, a: Any) -> CsrMatrix:
        """The matrix in compressed rows.

        Parameters
        ----------
        a : array_like, torch.Tensor, or sparse matrix of scipy; shape (m, k)
            Converted to float32. Of a dense one, what compares equal to zero is dropped; of a sparse one, duplicates
            are added up and stored zeros stay stored.

        Raises
        ------
        ValueError
            If `a` has not two dimensions, or more columns than the indices reach.
        TypeError
            If it is neither dense numbers nor a sparse matrix with `tocsr`.
        """
        if isinstance(a, CsrMatrix):
            values, columns, indptr, shape = a.values, a.indices, a.indptr, a.shape
        elif hasattr(a, "tocsr"):
            a = a.tocsr(copy=True)
            a.sum_duplicates()
            values, columns, indptr, shape = a.data, a.indices, a.indptr, a.shape
        elif is_tensor(a) and str(a.layout) != "torch.strided":
            raise TypeError(f"a: expected a dense tensor, got layout {a.layout}; call .to_dense() first")
        else:
            dense = as_array(a, "a", ndim=2)
            rows, columns = np.nonzero(dense)
            values, shape = dense[rows, columns], dense.shape
            indptr = np.searchsorted(rows, np.arange(shape[0] + 1))
        if shape[1] > 2**self.index_bits:
            raise ValueError(
                f"a: expected at most {2**self.index_bits} columns for indices of {self.index_bits} bits, "
                f"got shape {tuple(shape)}"
            )
        if values.size >= 2**31:
            raise ValueError(f"a: expected fewer than 2^31 nonzeros, got {values.size}")
        return CsrMatrix(
            np.ascontiguousarray(values, np.float32),
            np.ascontiguousarray(columns, f"uint{self.index_bits}"),
            np.ascontiguousarray(indptr, np.int32),
            (int(shape[0]), int(shape[1])),
        )

    def matmul(self, a: Any, b: Any) -> Any:
        """The product A B of a sparse and a dense matrix.

        Parameters
        ----------
        a : CsrMatrix, or what `prepare` takes; shape (m, k)
        b : array_like or torch.Tensor, shape (k,) or (k, n)
            Of any memory order; converted to float32.

        Returns
        -------
        ndarray of float32, or torch.Tensor where `b` is one; shape (m,) or (m, n)

        Raises
        ------
        ValueError
            If the shapes do not fit.
        TypeError
            If an operand is not real numbers.

        Notes
        -----
        Each of a row's s terms is added in float32 (with a fused multiply-add where there are many columns), so the
        result is within s u / (1 - s u) of |A| |B|, with u = 2^-24.
        """
        if isinstance(b, CsrMatrix):
            raise TypeError("b: expected a dense matrix, got a CsrMatrix; linear(x, w) computes x W^T")
        if not isinstance(a, CsrMatrix):
            a = self.prepare(a)
        dense = as_array(b, "b", ndim=(1, 2), dtype=np.float32)
        if dense.shape[0] != a.shape[1]:
            raise ValueError(f"b: expected {a.shape[1]} rows, as a of shape {a.shape} has columns, got {describe(b)}")
        y = np.empty((a.shape[0], *dense.shape[1:]), np.float32)
        if dense.size == y.size == 0:
            return like(y, b)
        if dense.ndim == 1 or dense.shape[1] == 1:
            _vector_product(a.values, a.indices, a.indptr, np.ascontiguousarray(dense.reshape(-1)), y.reshape(-1))
            return like(y, b)
        columns = dense.shape[1]
        width = next((width for width in _PANELS if width >= columns), 64)
        panel = _aligned(a.shape[1], width)
        for column in range(0, columns, width):
            part = dense[:, column : column + width]
            panel[:, : part.shape[1]] = part
            panel[:, part.shape[1] :] = 0
            _PANELS[width](a.values, a.indices, a.indptr, panel.reshape(-1), y, column)
        return like(y, b)

    def linear(self, x: Any, w: Any, bias: Any = None) -> Any:
        """A linear layer with sparse weights, x W^T + bias.

        Parameters
        ----------
        x : array_like or torch.Tensor, shape (..., k)
        w : CsrMatrix, or what `prepare` takes; shape (m, k)
        bias : array_like or torch.Tensor, shape (m,), optional

        Returns
        -------
        ndarray of float32, or torch.Tensor where `x` is one; shape (..., m)
            A view of (W x^T)^T: features are contiguous over the batch. The next sparse layer reads it as it lies.

        Examples
        --------
        >>> Csr().linear([[1, 1, 1]], [[0, 2, 0], [1, 0, 3]], bias=[0, 10])
        array([[ 2., 14.]], dtype=float32)
        """
        rows = as_array(x, "x", dtype=np.float32)
        w = w if isinstance(w, CsrMatrix) else self.prepare(w)
        if rows.ndim == 0 or rows.shape[-1] != w.shape[1]:
            raise ValueError(
                f"x: expected {w.shape[1]} features last, as w of shape {w.shape} takes, got {describe(x)}"
            )
        y = self.matmul(w, rows.reshape(-1, w.shape[1]).T)
        if bias is not None:
            added = as_array(bias, "bias", ndim=1, dtype=np.float32)
            if added.size != w.shape[0]:
                raise ValueError(f"bias: expected {w.shape[0]} numbers, one a row of w, got {describe(bias)}")
            y += added[:, None]
        return like(y.T.reshape(*rows.shape[:-1], w.shape[0]), x)

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer's product can run here: a linear layer in FP32."""
        from torch import nn

        return isinstance(layer, nn.Linear) and format in (None, "fp32")
