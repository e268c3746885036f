r"""Zero skipping: inputs that are zero are looked for when they come, and whatever they would multiply is left out.

Weights are known beforehand, inputs are not: half of a rectified layer's are zero, every time other ones. Each column x
of the inputs is packed into its non-zeros and their places, and the product runs over those,

.. math:: y = \sum_{c\,:\, x_c \ne 0} x_c\, W_{:, c}, \qquad
          \text{multiply-adds} = \sum_{c\,:\, x_c \ne 0} |\{r : W_{rc} \ne 0\}| \text{ instead of } m k

so W is kept by columns. Either all of a column is multiplied, 64 rows of Y in registers: then the zeros of x save
multiply-adds and the bytes of the columns that they stand for. Or only its non-zeros are, stored as compressed columns:
then the zeros of both sides are skipped, one number at a time, each sum found by its index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arrays import as_array, describe
from kernels.implementation.sparsity.sparse_left import SparseForm, SparseLeft, aligned, dense_matrix
from kernels.simd import broadcast, fma, load, store, zero

__all__ = ["ColumnMatrix", "ZeroSkipping", "column_sums"]

WIDTH = 64
"""Rows of Y at a time: eight registers of AVX2 or four of AVX-512."""


@dataclass(frozen=True, eq=False)
class ColumnMatrix(SparseForm):
    """A matrix by columns.

    Attributes
    ----------
    values : ndarray of float32, shape (panels, k, 64) or (non-zeros,)
        Whole columns, 64 rows to a panel, the last one filled up with zeros; or the non-zeros, column after column.
    indices : ndarray of uint32, shape (non-zeros,)
        Their rows, rising within a column; empty where columns are whole.
    indptr : ndarray of int32, shape (k + 1,)
        Where each column begins; empty where columns are whole.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray

    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros, float32."""
        m, k = self.shape
        if self.values.ndim == 3:
            return np.ascontiguousarray(self.values.transpose(0, 2, 1).reshape(len(self.values) * WIDTH, k)[:m])
        dense = np.zeros((m, k), np.float32)
        dense[self.indices, np.repeat(np.arange(k), np.diff(self.indptr))] = self.values
        return dense


def column_sums(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The product as the equation says it: of every input column, the weights' columns where it is not zero.

    Examples
    --------
    >>> column_sums(np.array([[1, 2, 3], [4, 5, 6]], np.float32), np.array([[0], [1], [10]], np.float32)).ravel()
    array([32., 65.], dtype=float32)
    """
    y = np.zeros((w.shape[0], x.shape[1]), np.float32)
    for j in range(x.shape[1]):
        there = x[:, j] != 0
        y[:, j] = w[:, there] @ x[there, j]
    return y


@njit(cache=True)
def _packed(x, values, places, starts):
    """The non-zeros of every row of x and their places, without a branch: what is zero is written over."""
    at = np.int64(0)
    for j in range(x.shape[0]):
        starts[j] = at
        for c in range(x.shape[1]):
            values[at] = x[j, c]
            places[at] = c
            at += np.int64(x[j, c] != 0)
    starts[x.shape[0]] = at


@njit(cache=True)
def _whole_columns(w, values, places, starts, yt, k):
    """Row j of Y^T from the columns of W that input j asks for; a panel of them serves all inputs while it is near."""
    n, height = starts.size - 1, yt.size // (starts.size - 1)
    for panel in range(height // WIDTH):
        first = panel * k * WIDTH
        for j in range(n):
            sums = zero(WIDTH)
            for p in range(starts[j], starts[j + 1]):
                place = np.uint64(p)
                column = load(w, first + np.int64(places[place]) * WIDTH, WIDTH)
                sums = fma(broadcast(values[place], WIDTH), column, sums)
            store(sums, yt, j * height + panel * WIDTH)


@njit(cache=True)
def _both(w, rows, indptr, values, places, starts, yt):
    for j in range(yt.shape[0]):
        y = yt[j]
        y[:] = 0
        for p in range(starts[j], starts[j + 1]):
            x, column = values[p], places[p]
            for q in range(indptr[column], indptr[column + 1]):
                place = np.uint64(q)
                y[np.uint64(rows[place])] += w[place] * x


@dataclass(frozen=True)
class ZeroSkipping(SparseLeft):
    """The product of constant weights with inputs whose zeros are found and skipped, on one thread.

    What is skipped meets neither NaN nor infinity, which the dense product would turn into NaN.

    Parameters
    ----------
    sides : {"inputs", "both"}
        Whose zeros are skipped. Those of the weights alone are `csr`.

    Raises
    ------
    ValueError
        If it is neither.

    Source: Albericio et al., "Cnvlutin", ISCA 2016, for inputs packed as values and offsets; Zhang et al.,
    "Cambricon-X", MICRO 2016, and Reagen et al., "Minerva", ISCA 2016, for products of zeros left out.

    Examples
    --------
    >>> w, x = np.array([[0, 2, 0], [1, 0, 3]]), np.array([[0], [5], [1]])
    >>> for sides in ("inputs", "both"):
    ...     op = ZeroSkipping(sides)
    ...     print(op.matmul(w, x).ravel(), op.effective_macs(w, x), "of 6 products")
    [10.  3.] 4 of 6 products
    [10.  3.] 2 of 6 products
    """

    sides: str = "inputs"

    def __post_init__(self) -> None:
        if self.sides not in ("inputs", "both"):
            raise ValueError(f"sides: expected inputs or both, got {self.sides!r}")

    def prepare(self, a: Any) -> ColumnMatrix:
        """The matrix by columns.

        Raises
        ------
        TypeError, ValueError
            If `a` is not a matrix of real numbers.
        """
        dense = dense_matrix(a)
        m, k = dense.shape
        if self.sides == "both":
            columns, rows = np.nonzero(dense.T)
            starts = np.searchsorted(columns, np.arange(k + 1)).astype(np.int32)
            return ColumnMatrix(self, (m, k), dense[rows, columns], rows.astype(np.uint32), starts)
        height = -(-m // WIDTH) * WIDTH
        values = aligned(height * k).reshape(height // WIDTH, k, WIDTH)
        values[:] = np.pad(dense, ((0, height - m), (0, 0))).reshape(height // WIDTH, WIDTH, k).transpose(0, 2, 1)
        return ColumnMatrix(self, (m, k), values, np.empty(0, np.uint32), np.empty(0, np.int32))

    def effective_macs(self, a: Any, b: Any) -> int:
        """How many multiply-adds the product of two dense matrices takes.

        Parameters
        ----------
        a : what `prepare` takes; shape (m, k)
        b : array_like or torch.Tensor, shape (k, n)

        Raises
        ------
        TypeError, ValueError
            If they are not matrices of real numbers that fit.
        """
        weights, inputs = dense_matrix(a), as_array(b, "b", ndim=2)
        if weights.shape[1] != inputs.shape[0]:
            raise ValueError(f"b: expected {weights.shape[1]} rows, got {describe(b)}")
        asked = np.count_nonzero(inputs, axis=1)
        return int(asked @ np.count_nonzero(weights, axis=0) if self.sides == "both" else asked.sum() * len(weights))

    def _times(self, a: ColumnMatrix, b: np.ndarray) -> np.ndarray:
        (m, k), n = a.shape, b.shape[1]
        xt = np.ascontiguousarray(b.T)
        values, places = np.empty(n * k + 1, np.float32), np.empty(n * k + 1, np.uint32)
        starts = np.empty(n + 1, np.int64)
        _packed(xt, values, places, starts)
        if self.sides == "both":
            yt = np.empty((n, m), np.float32)
            _both(a.values, a.indices, a.indptr, values, places, starts, yt)
        else:
            yt = np.empty((n, a.values.shape[0] * WIDTH), np.float32)
            _whole_columns(a.values.reshape(-1), values, places, starts, yt.reshape(-1), k)
        return yt.T
