"""Loop reordering: the same three loops in each of their six orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.prepared_product import Prepared, PreparedProduct
from kernels.arrays import as_array

__all__ = ["ORDERS", "LoopReordering", "Plain", "innermost_strides", "plain_product"]

ORDERS = ("ikj", "ijk", "jik", "jki", "kij", "kji")
"""Loops over rows i, columns j and the sum's k, the outermost first."""


def plain_product(a: np.ndarray, b: np.ndarray, order: str) -> np.ndarray:
    """The definition: three loops in an order, one multiply-add inside, in float64.

    Examples
    --------
    >>> plain_product(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), "kji")
    array([[11.]])
    """
    extent = {"i": len(a), "k": a.shape[1], "j": b.shape[1]}
    c = np.zeros((len(a), b.shape[1]))
    for place in np.ndindex(*(extent[x] for x in order)):
        at = dict(zip(order, place, strict=True))
        c[at["i"], at["j"]] += a[at["i"], at["k"]] * b[at["k"], at["j"]]
    return c


def innermost_strides(order: str) -> dict[str, int | str]:
    """By how much each operand's address moves from one step of the innermost loop to the next, rows being contiguous.

    Examples
    --------
    >>> innermost_strides("ikj"), innermost_strides("ijk")
    ({'a': 0, 'b': 1, 'c': 1}, {'a': 1, 'b': 'row', 'c': 0})
    """
    inner = order[-1]
    dims = {"a": "ik", "b": "kj", "c": "ij"}
    return {x: 1 if d[1] == inner else "row" if d[0] == inner else 0 for x, d in dims.items()}


@dataclass(frozen=True, eq=False)
class Plain(Prepared):
    """A constant operand as it is."""

    data: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.data.nbytes


@dataclass(frozen=True)
class LoopReordering(PreparedProduct):
    r"""A matrix product by three loops in one order.

    .. math:: C_{ij} \leftarrow C_{ij} + A_{ik} B_{kj} \quad \text{for all } i, j, k

    The order changes no operation, only what the innermost loop walks over. With j innermost it walks along rows of B
    and C and keeps a number of A: vectors load and store what lies side by side. With k innermost it walks down a
    column of B, a new cache line for every number, and with i innermost down columns of two matrices at once.

    Every entry's sum runs over k in ascending order whatever the loops' order, so all six give the same to rounding of
    multiply-adds; the error stays within that of any summation.

    Parameters
    ----------
    order : {"ikj", "ijk", "jik", "jki", "kij", "kji"}
        The outermost loop first.

    Source: the six variants of the product as in Golub and Van Loan, "Matrix Computations", section 1.1.

    Examples
    --------
    >>> LoopReordering("kij").matmul([[1.0, 2.0]], [[3.0], [4.0]])
    array([[11.]], dtype=float32)
    """

    order: str = "ikj"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {self.order!r}")

    def prepare(self, w: Any) -> Plain:
        """A copy of the constant operand, rows contiguous."""
        matrix = as_array(w, "w", ndim=2, dtype=np.float32)
        return Plain(self, (matrix.shape[0], matrix.shape[1]), np.array(matrix, order="C"))

    def _times(self, x: np.ndarray, w: Plain) -> np.ndarray:
        c = np.zeros((len(x), w.shape[1]), np.float32)
        _loops(self.order)(np.ascontiguousarray(x, np.float32), w.data, c)
        return c


def _loops(order: str) -> Callable[..., None]:
    return {"ikj": _ikj, "ijk": _ijk, "jik": _jik, "jki": _jki, "kij": _kij, "kji": _kji}[order]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _ikj(a, b, c):
    for i in range(c.shape[0]):
        for k in range(a.shape[1]):
            for j in range(c.shape[1]):
                c[i, j] += a[i, k] * b[k, j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _ijk(a, b, c):
    for i in range(c.shape[0]):
        for j in range(c.shape[1]):
            for k in range(a.shape[1]):
                c[i, j] += a[i, k] * b[k, j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _jik(a, b, c):
    for j in range(c.shape[1]):
        for i in range(c.shape[0]):
            for k in range(a.shape[1]):
                c[i, j] += a[i, k] * b[k, j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _jki(a, b, c):
    for j in range(c.shape[1]):
        for k in range(a.shape[1]):
            for i in range(c.shape[0]):
                c[i, j] += a[i, k] * b[k, j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _kij(a, b, c):
    for k in range(a.shape[1]):
        for i in range(c.shape[0]):
            for j in range(c.shape[1]):
                c[i, j] += a[i, k] * b[k, j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _kji(a, b, c):
    for k in range(a.shape[1]):
        for j in range(c.shape[1]):
            for i in range(c.shape[0]):
                c[i, j] += a[i, k] * b[k, j]
