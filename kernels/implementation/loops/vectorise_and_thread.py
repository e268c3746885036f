"""Unroll, vectorise, thread: one step of a product on whole registers, several at once, rows divided among threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.prepared_product import PreparedProduct
from kernels.arrays import as_array
from kernels.implementation.loops.loop_reordering import Plain
from kernels.simd import LANES, tile_fma, tile_store, tile_zero

__all__ = ["VectoriseAndThread", "split_rows"]


def split_rows(rows: int, threads: int, step: int = 1) -> list[tuple[int, int]]:
    """Rows divided into as many runs as there are threads, as equal as multiples of `step` allow.

    Examples
    --------
    >>> split_rows(10, 3), split_rows(10, 2, step=4)
    ([(0, 3), (3, 6), (6, 10)], [(0, 4), (4, 10)])
    """
    units = -(-rows // step)
    ends = [min(rows, units * t // threads * step) for t in range(threads)] + [rows]
    return [(ends[t], ends[t + 1]) for t in range(threads)]


@dataclass(frozen=True)
class VectoriseAndThread(PreparedProduct):
    r"""A matrix product that fills the lanes of vectors, the units that work in parallel, and the cores.

    .. math:: C[r : r + U,\; j : j + V] \leftarrow C[r : r + U,\; j : j + V] + A[r : r + U,\; k]\, B[k,\; j : j + V]

    Vectors: V columns are one register, and one instruction multiplies and adds them. Unrolling: a multiply-add takes
    four cycles and two can start in each, so at least eight independent sums must be under way; U rows by two
    registers are, and each number loaded serves several of them. Threads: rows of C are independent, so each thread
    takes a run of them.

    Nothing is tiled for the caches or copied into another order; that is the next step (`LoopTiling`).

    Parameters
    ----------
    unroll : {1, 2, 4, 8}
        U.
    lanes : {0, 1, 4, 8, 16}
        V: numbers of a register; 1 is no vector, 0 the machine's own width.
    threads : int

    Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, for the
    register tile.

    Examples
    --------
    >>> a, b = np.arange(6.0).reshape(2, 3), np.ones((3, 4))
    >>> VectoriseAndThread(threads=2).matmul(a, b)
    array([[ 3.,  3.,  3.,  3.],
           [12., 12., 12., 12.]], dtype=float32)
    """

    unroll: int = 4
    lanes: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.unroll not in (1, 2, 4, 8):
            raise ValueError(f"unroll: expected 1, 2, 4 or 8, got {self.unroll!r}")
        if self.lanes not in (0, 1, 4, 8, 16):
            raise ValueError(f"lanes: expected 0, 1, 4, 8 or 16, got {self.lanes!r}")
        if not (isinstance(self.threads, int) and self.threads >= 1):
            raise ValueError(f"threads: expected a positive integer, got {self.threads!r}")

    @property
    def _columns(self) -> int:
        """Columns of a tile: two registers."""
        return 2 * (self.lanes or LANES)

    def prepare(self, w: Any) -> Plain:
        """A copy of the constant operand, padded with zeros to whole tiles of columns."""
        matrix = as_array(w, "w", ndim=2, dtype=np.float32)
        wide = -(-matrix.shape[1] // self._columns) * self._columns
        data = np.zeros((matrix.shape[0], wide), np.float32)
        data[:, : matrix.shape[1]] = matrix
        return Plain(self, (matrix.shape[0], matrix.shape[1]), data)

    def _times(self, x: np.ndarray, w: Plain) -> np.ndarray:
        rows = -(-len(x) // self.unroll) * self.unroll
        left = np.zeros((rows, x.shape[1]), np.float32)
        left[: len(x)] = x
        c = np.empty((rows, w.data.shape[1]), np.float32)
        kernel = _kernel(self.unroll, self.lanes or LANES)
        runs = split_rows(rows, self.threads, self.unroll)
        if self.threads == 1:
            kernel(left, w.data, c, 0, rows)
        else:
            with ThreadPoolExecutor(self.threads) as pool:  # the kernel lets go of the interpreter's lock
                list(pool.map(lambda run: kernel(left, w.data, c, *run), runs))
        return np.ascontiguousarray(c[: len(x), : w.shape[1]])


@lru_cache(maxsize=32)
def _kernel(unroll: int, lanes: int) -> Callable[..., None]:
    wide = 2 * lanes

    @njit(cache=True, nogil=True)
    def product(a, b, c, first, last):
        depth, n = b.shape
        left, right, out = a.reshape(-1), b.reshape(-1), c.reshape(-1)
        for i in range(first, last, unroll):
            for j in range(0, n, wide):
                tile = tile_zero(unroll, 2, lanes)
                for k in range(depth):
                    tile = tile_fma(tile, left, i * depth + k, depth, right, k * n + j)
                tile_store(tile, out, i * n + j, n)

    return product
