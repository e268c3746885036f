r"""Balanced non-zeros: every worker gets as many multiply-adds as the others, not as many rows.

A product ends when its last worker does. Of rows with s_i non-zeros, dealt out to W workers in ranges R_w,

.. math:: \text{time} \propto \max_w \sum_{i \in R_w} s_i \;\ge\; \frac{1}{W} \sum_i s_i

and the ratio of the two sides is the balance, 1 at best. Pruning takes more from some rows than from others, so ranges
of equally many rows may be far from it. Ranges that end where a W-th of the non-zeros is reached miss it by less than
one row: the longest worker has at most its share and the longest row more.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit

from kernels.implementation.sparsity.sparse_left import SparseForm, SparseLeft, aligned, dense_matrix
from kernels.simd import broadcast, fma, load, store, zero

__all__ = ["DealtRows", "NonzeroBalancing", "dealt"]

WIDTHS = (1, 8, 16, 32, 64)
"""Columns at a time; 64 are eight registers of AVX2 or four of AVX-512."""


@dataclass(frozen=True, eq=False)
class DealtRows(SparseForm):
    """A sparse matrix by rows, and which worker has which of them.

    Attributes
    ----------
    values : ndarray of float32, shape (non-zeros,)
    indices : ndarray of uint32, shape (non-zeros,)
        The column of each value, rising within a row.
    indptr : ndarray of int32, shape (m + 1,)
        Where each row begins.
    bounds : ndarray of int64, shape (workers + 1,)
        Where each worker's rows begin.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    bounds: np.ndarray

    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros, float32."""
        dense = np.zeros(self.shape, np.float32)
        dense[np.repeat(np.arange(self.shape[0]), np.diff(self.indptr)), self.indices] = self.values
        return dense

    @property
    def loads(self) -> np.ndarray:
        """The non-zeros of every worker."""
        return np.diff(self.indptr[self.bounds])

    @property
    def balance(self) -> float:
        """The most non-zeros of a worker over their mean; 1 where there are none."""
        return float(self.loads.max() / self.loads.mean()) if self.loads.any() else 1.0


def dealt(lengths: np.ndarray, workers: int) -> np.ndarray:
    """Where each worker's rows begin: at the row that is nearest to its share of the non-zeros.

    Examples
    --------
    >>> dealt(np.array([6, 3, 1, 1, 1]), workers=2)  # six and six
    array([0, 1, 5])
    """
    reached = np.concatenate([[0], np.cumsum(lengths)])
    shares = reached[-1] * np.arange(1, workers) / workers
    after = np.searchsorted(reached, shares)
    before = np.maximum(after - 1, 0)
    inner = np.where(shares - reached[before] < reached[after] - shares, before, after)
    return np.concatenate([[0], inner, [len(lengths)]]).astype(np.int64)


def _pack(b: np.ndarray, packed: np.ndarray, first: int, last: int) -> None:
    """Columns of B, from panel `first` up to `last`, next to each other."""
    width = packed.shape[2]
    for panel in range(first, last):
        part = b[:, panel * width : (panel + 1) * width]
        packed[panel, :, : part.shape[1]] = part
        packed[panel, :, part.shape[1] :] = 0


@lru_cache
def _rows(width: int) -> Callable:
    @njit(cache=True, nogil=True)
    def product(values, indices, indptr, packed, y, first, last):
        """Rows [first, last) of Y, a panel of columns after the other."""
        stride, k, y, packed = y.shape[1], packed.shape[1], y.reshape(-1), packed.reshape(-1)
        for column in range(0, stride, width):
            for i in range(first, last):
                sums = zero(width)
                for j in range(np.int64(indptr[i]), np.int64(indptr[i + 1])):
                    place = np.uint64(j)
                    b = load(packed, column * k + np.int64(indices[place]) * width, width)
                    sums = fma(broadcast(values[place], width), b, sums)
                store(sums, y, i * stride + column)

    return product


@lru_cache
def _threads(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="nonzero-balancing")


@dataclass(frozen=True)
class NonzeroBalancing(SparseLeft):
    """The product of a sparse matrix with a dense one, its rows dealt out to threads.

    Zeros that are not stored do not take part: where the dense product turns 0 times NaN or infinity into NaN, this one
    leaves them out. The result does not depend on who computes it.

    Parameters
    ----------
    workers : int, 1 to 64
        Threads, the caller's among them.
    split : {"nonzeros", "rows"}
        What each of them gets as much of.

    Raises
    ------
    ValueError
        If a parameter is none of these.

    Source: Han et al., "ESE: Efficient Speech Recognition Engine with Sparse LSTM on FPGA", arXiv 1612.00694: a
    product waits for its longest worker. There pruning makes the workers' parts alike, here they are dealt out so.

    Examples
    --------
    >>> w = np.tril(np.ones((8, 8)))
    >>> for split in ("rows", "nonzeros"):
    ...     form = NonzeroBalancing(split=split).prepare(w)
    ...     print(split, form.loads, f"{form.balance:.2f}")
    rows [10 26] 1.44
    nonzeros [21 15] 1.17
    """

    workers: int = 2
    split: str = "nonzeros"

    def __post_init__(self) -> None:
        if self.workers not in range(1, 65):
            raise ValueError(f"workers: expected an integer from 1 to 64, got {self.workers!r}")
        if self.split not in ("nonzeros", "rows"):
            raise ValueError(f"split: expected nonzeros or rows, got {self.split!r}")

    def prepare(self, a: Any) -> DealtRows:
        """The matrix by rows, dealt out.

        Raises
        ------
        TypeError, ValueError
            If `a` is not a matrix of real numbers.
        """
        dense = dense_matrix(a)
        rows, columns = np.nonzero(dense)
        lengths = np.count_nonzero(dense, axis=1)
        counted = lengths if self.split == "nonzeros" else np.ones_like(lengths)
        return DealtRows(
            self,
            dense.shape,
            dense[rows, columns],
            columns.astype(np.uint32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            dealt(counted, self.workers),
        )

    def _times(self, a: DealtRows, b: np.ndarray) -> np.ndarray:
        (m, k), n = a.shape, b.shape[1]
        width = next((width for width in WIDTHS if width >= n), WIDTHS[-1])
        panels = -(-n // width)
        packed = aligned(panels * k * width).reshape(panels, k, width)
        y = aligned(m * panels * width).reshape(m, -1)
        self._run(_pack, (b, packed), [panels * w // self.workers for w in range(self.workers + 1)])
        self._run(_rows(width), (a.values, a.indices, a.indptr, packed, y), a.bounds.tolist())
        return y

    def _run(self, kernel: Any, operands: tuple, bounds: list[int]) -> None:
        """A kernel on every worker's range; the first one's in the thread that asks."""
        parts = [(first, last) for first, last in pairwise(bounds) if first < last]
        others = [_threads(self.workers).submit(kernel, *operands, *part) for part in parts[1:]]
        for part in parts[:1]:
            kernel(*operands, *part)
        for other in others:
            other.result()
