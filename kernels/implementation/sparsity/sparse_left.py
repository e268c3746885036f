"""Products of matrices whose left operand is constant and sparse: what such operators share.

Source: none; the checks, panels of the dense operand as `csr` has them, and a linear layer on top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from kernels.arrays import as_array, describe, is_tensor, like
from kernels.implementation.sparsity.csr import CsrMatrix

__all__ = ["SparseForm", "SparseLeft", "aligned", "dense_matrix", "panels"]


@dataclass(frozen=True, eq=False)
class SparseForm(ABC):
    """A constant left operand in an operator's own form; made by `prepare`.

    Attributes
    ----------
    operator : SparseLeft
        Who made it, and reads it.
    shape : tuple of two ints
        (m, k), of the matrix that it was.
    """

    operator: Any
    shape: tuple[int, int]

    @abstractmethod
    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros, float32 of shape (m, k)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))

    def stored_bits(self) -> int:
        """Bits of all that is stored."""
        return 8 * self.nbytes


class SparseLeft(ABC):
    """What such operators, frozen dataclasses, share: the checks, and tensors for tensors."""

    @abstractmethod
    def prepare(self, a: Any) -> SparseForm:
        """Bring a constant left operand, of shape (m, k), into form, once.

        Parameters
        ----------
        a : array_like, torch.Tensor, CsrMatrix, or sparse matrix of scipy; shape (m, k)
            Converted to float32; what compares equal to zero counts as absent.

        Raises
        ------
        TypeError, ValueError
            If it is not a matrix of real numbers that the operator can take.
        """

    @abstractmethod
    def _times(self, a: Any, b: np.ndarray) -> np.ndarray:
        """The product with what `prepare` made, float32 of shape (m, n), or larger, its first rows and columns.

        `b` is float32 of any memory order; neither it nor the result is empty.
        """

    def matmul(self, a: Any, b: Any) -> Any:
        """The product A B of a sparse and a dense matrix.

        Parameters
        ----------
        a : SparseForm, or what `prepare` takes; shape (m, k)
        b : array_like or torch.Tensor, shape (k,) or (k, n)
            Of any memory order; converted to float32.

        Returns
        -------
        ndarray of float32, or torch.Tensor where `b` is one; shape (m,) or (m, n)

        Raises
        ------
        TypeError
            If an operand is not real numbers.
        ValueError
            If the shapes do not fit, or `a` was prepared by another operator.

        Notes
        -----
        A row's s terms are added in float32, in some order, so that the result is within s u / (1 - s u) of |A| |B|,
        with u = 2^-24.
        """
        if isinstance(b, SparseForm):
            raise TypeError(f"b: expected a dense matrix, got a {type(b).__name__}; linear(x, w) computes x W^T")
        left = self._own(a, "a")
        dense = as_array(b, "b", ndim=(1, 2), dtype=np.float32)
        if dense.shape[0] != left.shape[1]:
            raise ValueError(
                f"b: expected {left.shape[1]} rows, as a of shape {left.shape} has columns, got {describe(b)}"
            )
        shape = (left.shape[0], *dense.shape[1:])
        if dense.size == 0 or 0 in shape:
            return like(np.zeros(shape, np.float32), b)
        y = self._times(left, dense.reshape(dense.shape[0], -1))[: shape[0], : shape[1] if dense.ndim == 2 else 1]
        return like(np.ascontiguousarray(y).reshape(shape), b)

    def linear(self, x: Any, w: Any, bias: Any = None) -> Any:
        """A linear layer with sparse weights, x W^T + bias.

        Parameters
        ----------
        x : array_like or torch.Tensor, shape (..., k)
        w : SparseForm, or what `prepare` takes; shape (m, k)
        bias : array_like or torch.Tensor, shape (m,), optional

        Returns
        -------
        ndarray of float32, or torch.Tensor where `x` is one; shape (..., m)
            A view of (W x^T)^T: features are contiguous over the batch. The next sparse layer reads it as it lies.
        """
        rows = as_array(x, "x", dtype=np.float32)
        w = self._own(w, "w")
        if rows.ndim == 0 or rows.shape[-1] != w.shape[1]:
            raise ValueError(
                f"x: expected {w.shape[1]} features last, as w of shape {w.shape} takes, got {describe(x)}"
            )
        y = self.matmul(w, rows.reshape(int(np.prod(rows.shape[:-1])), w.shape[1]).T)
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

    def _own(self, a: Any, name: str) -> Any:
        form = a if isinstance(a, SparseForm) else self.prepare(a)
        if form.operator != self:
            raise ValueError(f"{name}: it was prepared by {form.operator}, not by {self}")
        return form


def dense_matrix(a: Any, name: str = "a") -> np.ndarray:
    """A dense float32 matrix of what `prepare` takes.

    Raises
    ------
    TypeError, ValueError
        If it is not a matrix of real numbers.
    """
    if isinstance(a, CsrMatrix | SparseForm):
        return a.to_dense()
    if hasattr(a, "tocsr"):
        a = a.toarray()
    elif is_tensor(a) and str(a.layout) != "torch.strided":
        raise TypeError(f"{name}: expected a dense tensor, got layout {a.layout}; call .to_dense() first")
    return np.ascontiguousarray(as_array(a, name, ndim=2, dtype=np.float32))


def aligned(size: int) -> np.ndarray:
    """Empty float32 that begin with a cache line: loads that straddle two lines cost a third of the speed."""
    memory = np.empty(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size]


def panels(b: np.ndarray, widths: Sequence[int], height: int) -> tuple[Iterator[tuple[np.ndarray, int]], np.ndarray]:
    """The columns of a matrix in panels, each packed row after row, and a result that has room for them.

    Parameters
    ----------
    b : ndarray of float32, shape (k, n)
    widths : sequence of int
        Ascending. The panels are of the least width that holds all columns, or else of the largest.
    height : int
        Rows of the result.

    Returns
    -------
    iterator of (panel, column)
        panel : ndarray of float32, shape (k * width,), the last one filled up with zeros; one memory for all.
    y : ndarray of float32, shape (height, panels * width)
        Empty.

    Examples
    --------
    >>> parts, y = panels(np.arange(10, dtype=np.float32).reshape(2, 5), (1, 4), height=3)
    >>> [(panel.tolist(), column) for panel, column in parts], y.shape
    ([([0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0], 0), ([4.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0], 4)], (3, 8))
    """
    rows, columns = b.shape
    width = next((width for width in widths if width >= columns), widths[-1])

    def packed() -> Iterator[tuple[np.ndarray, int]]:
        memory = aligned(rows * width)
        panel = memory.reshape(rows, width)
        for column in range(0, columns, width):
            part = b[:, column : column + width]
            panel[:, : part.shape[1]] = part
            panel[:, part.shape[1] :] = 0
            yield memory, column

    return packed(), aligned(height * (-(-columns // width) * width)).reshape(height, -1)
