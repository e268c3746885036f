"""Computation reuse: where weights repeat, inputs are added first and multiplied once for each distinct weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.approximate_arithmetic.codes import code_rows
from kernels.arithmetic.prepared_product import Prepared, PreparedProduct
from kernels.arrays import as_array

__all__ = ["ComputationReuse", "Factored", "plain_reuse"]


def plain_reuse(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, int]:
    """The equation for a row of inputs and a matrix of weights; also how many multiplications it took.

    Examples
    --------
    >>> plain_reuse(np.array([1.0, 2.0, 4.0, 8.0]), np.array([[3.0], [5.0], [3.0], [0.0]]))
    (array([25.]), 2)
    """
    y, multiplications = np.zeros(w.shape[1]), 0
    for j in range(w.shape[1]):
        for u in np.unique(w[:, j]):
            if u:
                y[j] += u * x[w[:, j] == u].sum()
                multiplications += 1
    return y, multiplications


@dataclass(frozen=True, eq=False)
class Factored(Prepared):
    """A constant operand as lists of places, grouped by the weight that stands there.

    Attributes
    ----------
    values : ndarray of float32
        The distinct non-zero weights, column after column.
    starts : ndarray of int32
        Where each weight's places begin; one more at the end.
    columns : ndarray of int32, shape (n + 1,)
        Where each column's weights begin.
    places : ndarray of int32
    """

    values: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    places: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of the four arrays."""
        return self.values.nbytes + self.starts.nbytes + self.columns.nbytes + self.places.nbytes


@dataclass(frozen=True)
class ComputationReuse(PreparedProduct):
    r"""A product that multiplies once for each distinct weight of a column.

    .. math:: y_j = \sum_{u \ne 0} u \sum_{i :\, w_{ij} = u} x_i

    A column of k weights with U distinct values takes k additions and U multiplications in place of k of each; zeros
    take neither. With `bits` the weights are rounded first, column by column, to at most 2^bits - 1 values; without,
    they are taken as they are, and nothing is approximate.

    On a processor whose multiply-add costs what an addition costs, nothing is gained in time: what falls is the
    number of multiplications, which a circuit pays for.

    Parameters
    ----------
    bits : int, 2 to 8, optional

    Source: Hegde et al., "UCNN: Exploiting Computational Reuse in Deep Neural Networks via Weight Repetition", arXiv
    1804.06508, equation 2: factorized dot products.

    Examples
    --------
    >>> w = np.array([[3.0, 0.0], [5.0, 2.0], [3.0, 2.0]])
    >>> operator = ComputationReuse(bits=None)
    >>> operator.matmul(np.ones((1, 3)), w), operator.multiplications(operator.prepare(w))
    (array([[11.,  4.]], dtype=float32), 3)
    """

    bits: int | None = 4

    def __post_init__(self) -> None:
        if self.bits is not None and not (isinstance(self.bits, int) and 2 <= self.bits <= 8):
            raise ValueError(f"bits: expected None or an integer from 2 to 8, got {self.bits!r}")

    def energy(self, macs: int, moved: int) -> float:
        """There is none: the cited table's coefficients are for multiply-adds, and most of these are additions."""
        raise KeyError(
            "no energy: most operations are additions without a product, of which the operator's count depends on w"
        )

    def prepare(self, w: Any) -> Factored:
        """Group the places of each column by their weight, once.

        Parameters
        ----------
        w : array_like or torch.Tensor of shape (k, n)

        Raises
        ------
        TypeError, ValueError
            If `w` is not a matrix of real numbers, or is to be rounded and holds infinity or NaN.
        """
        matrix = as_array(w, "w", ndim=2, dtype=np.float32)
        columns = np.ascontiguousarray(matrix.T)
        if self.bits is not None:
            coded = code_rows(columns, self.bits, "w", signed=True)
            columns = coded.integers().astype(np.float32) * coded.scales[:, None]
        values, starts, ends, places = [], [0], [0], []
        for column in columns:
            order = np.argsort(column, kind="stable")
            order = order[column[order] != 0]
            change = np.flatnonzero(np.diff(column[order])) + 1
            for group in np.split(order, change) if len(order) else []:
                values.append(column[group[0]])
                places.append(group)
                starts.append(starts[-1] + len(group))
            ends.append(len(values))
        flat = np.concatenate(places) if places else np.zeros(0)
        arrays = (np.array(starts, np.int32), np.array(ends, np.int32), flat.astype(np.int32))
        return Factored(self, (matrix.shape[0], matrix.shape[1]), np.array(values, np.float32), *arrays)

    @staticmethod
    def multiplications(prepared: Factored) -> int:
        """Multiplications for one row of inputs: one for each distinct weight that is not zero of each column."""
        return len(prepared.values)

    def effective_macs(self, x: np.ndarray, w: np.ndarray) -> int:
        """Multiplications of the product of two matrices."""
        return len(x) * self.multiplications(self.prepare(w))

    def _times(self, x: np.ndarray, w: Factored) -> np.ndarray:
        y = np.empty((w.shape[1], len(x)), np.float32)
        rows = np.ascontiguousarray(x.T, np.float32)
        _factored(rows, w.values, w.starts, w.columns, w.places, y)
        return np.ascontiguousarray(y.T)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _factored(x, values, starts, columns, places, y):
    m = x.shape[1]
    total, part = np.empty(m, np.float32), np.empty(m, np.float32)
    for j in range(y.shape[0]):
        total[:] = 0
        for group in range(columns[j], columns[j + 1]):
            part[:] = 0
            for at in range(starts[group], starts[group + 1]):
                row = x[places[at]]
                for t in range(m):
                    part[t] += row[t]
            u = values[group]
            for t in range(m):
                total[t] += u * part[t]
        y[j] = total
