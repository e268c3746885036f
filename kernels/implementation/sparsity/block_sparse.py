r"""Block-sparse matrices: zeros come and go in dense blocks, so that one index serves a register full of values.

A matrix of blocks of R x C keeps, for every row of blocks, the blocks that hold a non-zero and their places. With V_p
the block p, c_p its first column, and the blocks of row i lying from s_i up to s_{i+1},

.. math:: Y_{iR : iR + R,\, :} = \sum_{p = s_i}^{s_{i+1} - 1} V_p \, B_{c_p : c_p + C,\, :}

Every row of B that is loaded meets R values. The kernel keeps R x w numbers of Y in registers while a row of blocks
passes; a load of w numbers of B then serves R w multiply-adds, as in a dense micro-kernel, where compressed rows get w.
With a single column the R values of a block's column are one vector, and the number of B that they meet is broadcast:
nothing is gathered at all. The price is what fills the blocks up: zeros inside a block are stored and multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from kernels.implementation.sparsity.sparse_left import SparseForm, SparseLeft, dense_matrix, panels
from kernels.simd import LANES, broadcast, fma, load, store, tile_fma, tile_store, tile_zero, zero

__all__ = ["BlockMatrix", "BlockSparse", "block_sums"]


@dataclass(frozen=True, eq=False)
class BlockMatrix(SparseForm):
    """A sparse matrix by rows of blocks.

    Attributes
    ----------
    values : ndarray of float32, shape (blocks, columns, rows)
        Each block column by column, since a vector holds one of its columns.
    indices : ndarray of uint32, shape (blocks,)
        The first column of each block, in blocks, rising within a row of them.
    indptr : ndarray of int32, shape (rows of blocks + 1,)
        Where each row of blocks begins.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray

    @property
    def density(self) -> float:
        """The share of entries that are stored, zeros inside blocks included."""
        return self.values.size / max(1, self.shape[0] * self.shape[1])

    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros, float32."""
        _, columns, rows = self.values.shape
        height, width = (-(-size // block) for size, block in zip(self.shape, (rows, columns), strict=True))
        dense = np.zeros((height, width, columns, rows), np.float32)
        dense[np.repeat(np.arange(height), np.diff(self.indptr)), self.indices] = self.values
        return dense.transpose(0, 3, 1, 2).reshape(height * rows, width * columns)[: self.shape[0], : self.shape[1]]


def block_sums(a: BlockMatrix, b: np.ndarray) -> np.ndarray:
    """The product as the equation says it: each row of blocks adds up its blocks times the rows of B that they meet.

    Examples
    --------
    >>> a = BlockSparse(rows=2).prepare([[0, 2, 0], [0, 1, 3]])
    >>> block_sums(a, np.array([[1], [10], [100]], np.float32)).ravel()
    array([ 20., 310.], dtype=float32)
    """
    _, columns, rows = a.values.shape
    b = np.pad(b, ((0, -b.shape[0] % columns), (0, 0)))
    y = np.zeros((len(a.indptr) - 1, rows, b.shape[1]), np.float32)
    for i in range(len(y)):
        for p in range(a.indptr[i], a.indptr[i + 1]):
            first = int(a.indices[p]) * columns
            y[i] += a.values[p].T @ b[first : first + columns]
    return y.reshape(-1, b.shape[1])[: a.shape[0]]


@lru_cache
def _panel_kernel(rows: int, columns: int, width: int, lanes: int) -> Callable:
    lanes = min(lanes, width)
    vectors = width // lanes
    tall = min(rows, max(1, (24 if lanes == 16 else 12) // vectors))  # what registers hold, a row of B beside it
    tall = next(part for part in range(tall, 0, -1) if rows % part == 0)
    step = rows * columns

    @njit(cache=True)
    def product(values, indices, indptr, panel, y, column):
        """`width` columns of Y, of whole rows of blocks, from the same columns of B, packed."""
        stride, y = y.shape[1], y.reshape(-1)
        for i in range(indptr.size - 1):
            for top in range(0, rows, tall):
                tile = tile_zero(tall, vectors, lanes)
                for p in range(indptr[i], indptr[i + 1]):
                    place = np.uint64(p)  # numba looks whether a signed index counts from the end
                    first = np.int64(indices[place]) * (columns * width)
                    for c in range(columns):
                        tile = tile_fma(tile, values, p * step + c * rows + top, 1, panel, first + c * width)
                tile_store(tile, y, (i * rows + top) * stride + column, stride)

    return product


@lru_cache
def _vector_kernel(rows: int, columns: int) -> Callable:
    step = rows * columns

    @njit(cache=True)
    def product(values, indices, indptr, x, y):
        """All of Y, one column: a block's column is a vector. Two sums, since each waits for its last addition."""
        for i in range(indptr.size - 1):
            begin, end = np.int64(indptr[i]), np.int64(indptr[i + 1])
            even, odd, one = zero(rows), zero(rows), broadcast(np.float32(1), rows)
            for p in range(begin, end - 1, 2):
                place = np.uint64(p)
                left, right = np.int64(indices[place]) * columns, np.int64(indices[place + np.uint64(1)]) * columns
                for c in range(columns):
                    even = fma(load(values, p * step + c * rows, rows), broadcast(x[np.uint64(left + c)], rows), even)
                    at = (p + 1) * step + c * rows
                    odd = fma(load(values, at, rows), broadcast(x[np.uint64(right + c)], rows), odd)
            if (end - begin) % 2:
                left = np.int64(indices[np.uint64(end - 1)]) * columns
                for c in range(columns):
                    at = (end - 1) * step + c * rows
                    even = fma(load(values, at, rows), broadcast(x[np.uint64(left + c)], rows), even)
            store(fma(even, one, odd), y, i * rows)

    return product


@dataclass(frozen=True)
class BlockSparse(SparseLeft):
    """The product of a matrix that is sparse in blocks with a dense one, on one thread.

    Blocks that are all zero do not take part. Zeros inside a kept block do, so that there zero times infinity is NaN,
    as in the dense product.

    Parameters
    ----------
    rows : {4, 8, 16, 2, 1}
        Rows of a block: numbers of a column that lie in one vector.
    columns : int, 1 to 16
        Columns of a block.

    Raises
    ------
    ValueError
        If a side is none of these.

    Source: Gray, Radford and Kingma, GPU Kernels for Block-Sparse Weights, OpenAI, 2017, for blocks that fill the
    vector units; the form is the block compressed rows (BSR) of sparse linear algebra.

    Examples
    --------
    >>> op = BlockSparse(rows=2)
    >>> w = op.prepare([[0, 2, 0], [0, 1, 3]])
    >>> w.values.tolist(), w.indices, w.indptr
    ([[[2.0, 1.0]], [[0.0, 3.0]]], array([1, 2], dtype=uint32), array([0, 2], dtype=int32))
    >>> op.matmul(w, np.ones((3, 2)))
    array([[2., 2.],
           [4., 4.]], dtype=float32)
    """

    rows: int = 4
    columns: int = 1

    def __post_init__(self) -> None:
        if self.rows not in (1, 2, 4, 8, 16):
            raise ValueError(f"rows: expected 1, 2, 4, 8 or 16, got {self.rows!r}")
        if self.columns not in range(1, 17):
            raise ValueError(f"columns: expected an integer from 1 to 16, got {self.columns!r}")

    def prepare(self, a: Any) -> BlockMatrix:
        """The matrix in blocks; rows and columns are filled up with zeros to whole ones.

        Raises
        ------
        TypeError, ValueError
            If `a` is not a matrix of real numbers.
        """
        dense = dense_matrix(a)
        filled = np.pad(dense, ((0, -dense.shape[0] % self.rows), (0, -dense.shape[1] % self.columns)))
        height, width = filled.shape[0] // self.rows, filled.shape[1] // self.columns
        blocks = filled.reshape(height, self.rows, width, self.columns).transpose(0, 2, 3, 1)
        kept, places = np.nonzero((blocks != 0).any((2, 3)))
        return BlockMatrix(
            self,
            dense.shape,
            np.ascontiguousarray(blocks[kept, places]),
            places.astype(np.uint32),
            np.searchsorted(kept, np.arange(height + 1)).astype(np.int32),
        )

    def _times(self, a: BlockMatrix, b: np.ndarray) -> np.ndarray:
        filled = np.pad(b, ((0, -b.shape[0] % self.columns), (0, 0))) if b.shape[0] % self.columns else b
        height = (a.indptr.size - 1) * self.rows
        values = a.values.reshape(-1)
        if b.shape[1] == 1:
            y = np.empty((height, 1), np.float32)
            x = np.ascontiguousarray(filled.reshape(-1))
            _vector_kernel(self.rows, self.columns)(values, a.indices, a.indptr, x, y.reshape(-1))
            return y
        parts, y = panels(filled, self._widths(), height)
        for panel, column in parts:
            kernel = _panel_kernel(self.rows, self.columns, panel.size // len(filled), LANES)
            kernel(values, a.indices, a.indptr, panel, y, column)
        return y

    def _widths(self) -> tuple[int, ...]:
        """Widths of panels: few enough for the registers, enough that an index serves many numbers."""
        most = 64 if LANES == 16 else max(8, min(64, 64 // self.rows))
        return tuple(width for width in (8, 16, 32, 64) if width <= most)
