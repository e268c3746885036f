"""Loop tiling: the same multiplications in another order, so that what was fetched once is used many times.

    C[i, j] = sum_p A[i, p] B[p, j]

In the textbook's order of loops each multiply-add waits for two loads: 2 n^3 of them, though there are only 2 n^2
numbers. A tile of T x T numbers that stays in a nearby memory is used T times for each time it is fetched; a tile for
each memory of the hierarchy (registers, first- and second-level cache) is what a BLAS is made of. The ladder:

    naive       i, j, p: the definition, one dot product after another
    reordered   i, p, j: the innermost loop walks rows of B and C, so that it runs on vectors
    tiled       blocks of B that stay in the cache, four rows of it to one pass over a row of C
    packed      tiles in registers, fed from operands that were copied into the order in which they are read
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arrays import as_array, describe, is_tensor, like
from kernels.implementation.loops import packed_gemm
from kernels.implementation.loops.packed_gemm import Panels
from kernels.simd import LANES

__all__ = ["LoopTiling", "Prepared", "error_bound", "plain_matmul"]

RUNGS = ("naive", "reordered", "tiled", "packed")
TILE = (64, 1024)  # of the rung `tiled`: a block of B of 256 KiB stays in the second-level cache


def plain_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The definition, C[i, j] = sum_p A[i, p] B[p, j], in float64 and rounded once to float32.

    Examples
    --------
    >>> plain_matmul(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
    array([[11.]], dtype=float32)
    """
    exact = np.einsum("ip,pj->ij", a.astype(np.float64), b.astype(np.float64))
    with np.errstate(over="ignore"):
        return exact.astype(np.float32)


def error_bound(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What every rung's error stays within, whatever the order of the sum: gamma_k |A| |B|.

    gamma_k = k u / (1 - k u), u = 2^-24 the unit roundoff of float32: no product passes through more than k roundings,
    its own and those of the sum. It holds where nothing over- or underflows; rounding the stored operand to bfloat16
    adds at most 2^-8 (1 + gamma_k) |A| |B|.
    """
    k = a.shape[1]
    gamma = k * 2.0**-24 / (1 - k * 2.0**-24)
    return gamma * (np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)))


@dataclass(frozen=True, eq=False)
class Prepared:
    """A constant operand in the form that one operator reads; made by `LoopTiling.prepare`.

    Attributes
    ----------
    shape : tuple of int
        The shape of the matrix that it was.
    nbytes : int
        What it occupies.
    """

    operator: LoopTiling
    side: str
    shape: tuple[int, int]
    _data: Any

    @property
    def nbytes(self) -> int:
        return self._data.data.nbytes  # of panels, and of an array, the bytes of `data`


@dataclass(frozen=True)
class LoopTiling:
    """Matrix product at one rung of the ladder; one thread, numbers in float32.

    Parameters
    ----------
    rung : {"packed", "tiled", "reordered", "naive"}
    mc : int
        Rows of the block of A that stays in the second-level cache; a multiple of 8. Read by `packed`.
    kc : int
        Length of a block of the contracted dimension; a multiple of 16. Read by `packed`.
    storage : {"float32", "bfloat16"}
        How `prepare` keeps the constant operand. bfloat16 halves the bytes that a product bound by memory waits for;
        each number is widened in a register, and the sums stay float32. Only `packed`.
    lanes : {0, 4, 8, 16}
        Numbers in a vector register; 0 is this machine's own width. Read by `packed`.

    Notes
    -----
    Source: Goto and van de Geijn (2008), where the block of A in the second-level cache, the packed panels and the
    inner kernel come from; Zhang et al. (2015) tile loops in the same way for the memories of an accelerator.

    Every rung's error stays within `error_bound`.

    Examples
    --------
    >>> a, b = np.arange(6.0).reshape(2, 3), np.ones((3, 4))
    >>> LoopTiling().matmul(a, b)
    array([[ 3.,  3.,  3.,  3.],
           [12., 12., 12., 12.]], dtype=float32)
    >>> operator = LoopTiling(storage="bfloat16")
    >>> weights = operator.prepare(b)
    >>> operator.matmul(a, weights)[:, 0]
    array([ 3., 12.], dtype=float32)
    """

    rung: str = "packed"
    mc: int = 96
    kc: int = 512
    storage: str = "float32"
    lanes: int = 0

    def __post_init__(self) -> None:
        if self.rung not in RUNGS:
            raise ValueError(f"rung: expected one of {', '.join(RUNGS)}, got {self.rung!r}")
        if self.storage not in ("float32", "bfloat16"):
            raise ValueError(f"storage: expected float32 or bfloat16, got {self.storage!r}")
        if self.storage == "bfloat16" and self.rung != "packed":
            raise ValueError(f"storage: only the packed rung keeps bfloat16, not {self.rung}")
        if self.lanes not in (0, 4, 8, 16):
            raise ValueError(f"lanes: expected 0, 4, 8 or 16, got {self.lanes!r}")
        for name, unit in (("mc", 8), ("kc", 16)):
            size = getattr(self, name)
            if not isinstance(size, int) or size < unit or size % unit:
                raise ValueError(f"{name}: expected a positive multiple of {unit}, got {size!r}")

    def prepare(self, w: Any, side: str = "right") -> Prepared:
        """Bring a constant operand, once, into the form that `matmul` reads.

        Parameters
        ----------
        w : array_like or torch.Tensor of shape (rows, columns)
            It is copied: a later change of it is not seen.
        side : {"right", "left"}
            Where it will stand: `matmul(a, prepared)` or `matmul(prepared, b)`.

        Returns
        -------
        Prepared

        Raises
        ------
        TypeError, ValueError
            If `w` is not a matrix of real numbers, or `side` neither.
        """
        matrix = as_array(w, "w", ndim=2, dtype=np.float32)
        if side not in ("left", "right"):
            raise ValueError(f"side: expected 'left' or 'right', got {side!r}")
        data: Any
        if self.rung == "packed":
            dtype = np.uint16 if self.storage == "bfloat16" else np.float32
            data = self._pack(matrix if side == "left" else matrix.T, self._width, dtype)
        else:
            data = np.array(matrix, order="C")
        return Prepared(self, side, matrix.shape, data)

    def matmul(self, a: Any, b: Any) -> Any:
        """The product A B.

        Parameters
        ----------
        a : array_like, torch.Tensor or Prepared of shape (m, k)
        b : array_like, torch.Tensor or Prepared of shape (k, n)
            Real numbers, computed with as float32.

        Returns
        -------
        numpy.ndarray or torch.Tensor of shape (m, n), float32
            A tensor where an operand that was not prepared is one. NaN and infinities propagate as in numpy.

        Raises
        ------
        TypeError
            If an operand is not real numbers.
        ValueError
            If the shapes do not fit, or an operand was prepared for the other side or by another operator.
        """
        left, right = self._operand(a, "a", "left"), self._operand(b, "b", "right")
        if left.shape[1] != right.shape[0]:
            raise ValueError(
                f"b: expected {left.shape[1]} rows, as many as a of shape {tuple(left.shape)} has columns, "
                f"got {_described(b)}"
            )
        result = self._packed(left, right) if self.rung == "packed" else self._looped(left, right)
        return like(result, next((x for x in (a, b) if is_tensor(x)), None))

    def memory_access(self, m: int, n: int, k: int, cache_bytes: int) -> int:
        """Bytes that one product moves between a cache and the memory behind it, modelled.

        Parameters
        ----------
        m, n, k : int
            The left operand is m x k, the right one k x n and prepared.
        cache_bytes : int
            What the cache holds, fully associative, the least recently used number leaving first. It holds at least
            a few rows and columns of the operands.

        Returns
        -------
        int
            Each operand once for every pass over it that the cache does not absorb. Rows of B that follow each other
            in a pass over a B larger than the cache are gone when the next pass comes for them: nothing of it is kept.

        Examples
        --------
        >>> 4 * 3 * 1024**2                                            # every number once
        12582912
        >>> LoopTiling(rung="naive").memory_access(1024, 1024, 1024, 2**20)
        4303355904
        >>> LoopTiling().memory_access(1024, 1024, 1024, 2**20)
        71303168
        """
        size = 2 if self.storage == "bfloat16" else 4
        a, b, c = 4 * m * k, size * k * n, 4 * m * n
        if self.rung in ("naive", "reordered"):  # row after row of C, each with a pass over all of B
            return a + c + b * (1 if b + 4 * (n + k) <= cache_bytes else m)
        if self.rung == "tiled":
            deep, wide = min(TILE[0], k), min(TILE[1], n)  # a block of B stays; a strip of C passes by for each
            strip = 4 * (m * wide + deep * wide + deep)
            return a * -(-n // wide) + b + c * (1 if strip <= cache_bytes else 2 * -(-k // deep) - 1)
        rows, deep = min(self.mc, m), min(self.kc, k)  # a block of A stays; a strip of B passes by for each
        strip = size * deep * n + 4 * rows * (deep + self._width)
        packing = a * (1 if a + c + strip <= cache_bytes else 2) if m > 1 else 0  # written; read again where it left
        passes = 1 if strip <= cache_bytes else -(-m // rows)
        blocks = -(-k // deep)
        return a + packing + b * passes + c * (1 if c + strip <= cache_bytes else 2 * blocks - 1)

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer in a number format runs here as that format: linear layers in FP32, or stored as bfloat16.

        Parameters
        ----------
        layer : torch.nn.Module
        format : str or NumberFormat, optional
            FP32 if absent.
        """
        import torch

        name = "fp32" if format is None else format if isinstance(format, str) else type(format).__name__
        wanted = "bfloat16" if self.storage == "bfloat16" else "fp32"
        return isinstance(layer, torch.nn.Linear) and name.lower() == wanted

    def _operand(self, x: Any, name: str, side: str) -> Prepared | np.ndarray:
        if not isinstance(x, Prepared):
            return as_array(x, name, ndim=2, dtype=np.float32)
        if x.side != side:
            raise ValueError(f"{name}: {_described(x)} was prepared to stand on the {x.side}; prepare(w, {side!r})")
        if x.operator != self:
            raise ValueError(f"{name}: {_described(x)} was prepared by {x.operator}, not by {self}")
        return x

    def _looped(self, a: Prepared | np.ndarray, b: Prepared | np.ndarray) -> np.ndarray:
        left, right = (x._data if isinstance(x, Prepared) else np.ascontiguousarray(x) for x in (a, b))
        c = np.zeros((a.shape[0], b.shape[1]), np.float32)
        {"naive": _naive, "reordered": _reordered, "tiled": _tiled}[self.rung](left, right, c)
        return c

    def _packed(self, a: Prepared | np.ndarray, b: Prepared | np.ndarray) -> np.ndarray:
        if b.shape[1] == 1 and isinstance(b, np.ndarray):
            # A times a column is, transposed, a row times the panels of A: nothing is padded from one row to eight
            return self._product(b.T, a).T
        return self._product(a, b if isinstance(b, Prepared) else b.T)

    def _product(self, a: Prepared | np.ndarray, b: Prepared | np.ndarray) -> np.ndarray:
        """The product of two operands, each with its outer dimension first."""
        lanes = self.lanes or LANES
        if isinstance(a, Prepared):
            left = a._data
        elif a.shape[0] != 1:
            left = self._pack(a, lanes)
        elif isinstance(b, Prepared):
            left = packed_gemm.one_row(a, lanes)
        else:
            return _row_times(a, b)
        right = b._data if isinstance(b, Prepared) else self._pack(b, self._width)
        return packed_gemm.product(left, right, lanes, self.mc, self.kc)

    def _pack(self, x: np.ndarray, width: int, dtype: type = np.float32) -> Panels:
        return packed_gemm.pack(x, width, self.lanes or LANES, self.kc, dtype)

    @property
    def _width(self) -> int:
        """Of a panel of B, and of a prepared operand, which a product with a vector puts in the place of B."""
        lanes = self.lanes or LANES
        return lanes * packed_gemm.tile_shape(lanes)[1]


def _described(x: Any) -> str:
    return f"a prepared matrix of shape {x.shape}" if isinstance(x, Prepared) else describe(x)


def _row_times(x: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A row times a matrix, given as (n, k), that is read once: to pack it would cost more than the product."""
    c = np.zeros((1, b.shape[0]), np.float32)
    if b.flags.f_contiguous:
        _tiled(np.ascontiguousarray(x), b.T, c)
    else:
        _dots(np.ascontiguousarray(x), np.ascontiguousarray(b), c)
    return c


# `contract` lets the compiler fuse a product and a sum into one multiply-add, which rounds once instead of twice


@njit(cache=True, nogil=True, fastmath={"contract"})
def _naive(a, b, c):
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for p in range(a.shape[1]):
                c[i, j] += a[i, p] * b[p, j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _reordered(a, b, c):
    for i in range(a.shape[0]):
        for p in range(a.shape[1]):
            for j in range(b.shape[1]):
                c[i, j] += a[i, p] * b[p, j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _tiled(a, b, c):
    (m, k), n = a.shape, b.shape[1]
    deep, wide = TILE
    for j in range(0, n, wide):
        for p0 in range(0, k, deep):
            p1 = min(p0 + deep, k)
            fours = p1 - (p1 - p0) % 4
            for i in range(m):
                row = c[i, j : j + wide]
                for p in range(p0, fours, 4):
                    a0, a1, a2, a3 = a[i, p], a[i, p + 1], a[i, p + 2], a[i, p + 3]
                    b0, b1 = b[p, j : j + wide], b[p + 1, j : j + wide]
                    b2, b3 = b[p + 2, j : j + wide], b[p + 3, j : j + wide]
                    for t in range(row.size):
                        row[t] += a0 * b0[t] + a1 * b1[t] + a2 * b2[t] + a3 * b3[t]
                for p in range(fours, p1):
                    last = b[p, j : j + wide]
                    for t in range(row.size):
                        row[t] += a[i, p] * last[t]


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _dots(x, b, c):
    for j in range(b.shape[0]):
        total = np.float32(0)
        for p in range(b.shape[1]):
            total += x[0, p] * b[j, p]
        c[0, j] = total
