"""A constant sparse matrix times a dense one: of its entries as many differ from zero as `density` says.

They lie anywhere, unless a setting says `pattern`: in whole blocks (`16x4`), two of any four neighbours (`2:4`), or in
rows that get ever shorter (`skewed`). Of the dense matrix's entries as many differ from zero as `input_density`
says, all of them if it is absent.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from kernels.implementation.sparsity.csr import Csr
from taxonomy.measure.protocol import Missing
from taxonomy.measure.tasks.task import Shape, Task

__all__ = ["SparseProduct", "csr", "openblas", "sparse_mask"]


def product(left: Any, right: Any) -> Callable[[], Any]:
    """The libraries' operator; a single column is a vector, for which most have a routine of its own."""
    if right.shape[1] > 1:
        return lambda: left @ right
    vector = right[:, 0]
    return lambda: (left @ vector)[:, None]


def openblas(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """numpy's BLAS, zeros multiplied like other numbers."""
    return product(w, x)


def torch_dense(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """PyTorch's, whose product with a matrix of one column is faster than that with a vector."""
    import torch

    left, right = torch.from_numpy(w), torch.from_numpy(x)
    return lambda: left @ right


def scipy(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import scipy.sparse

    return product(scipy.sparse.csr_matrix(w), x)


def torch_sparse(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        return product(torch.from_numpy(w).to_sparse_csr(), torch.from_numpy(x))


def block_of(shape: Shape) -> tuple[int, int]:
    """The blocks of a pattern; the libraries that want square ones get the smaller side."""
    rows, _, columns = str(shape.get("pattern")).partition("x")
    if not (rows.isdigit() and columns.isdigit()):
        raise ValueError("the pattern is not one of blocks")
    return int(rows), int(columns)


def scipy_blocks(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import scipy.sparse

    return product(scipy.sparse.bsr_matrix(w, blocksize=block_of(shape)), x)


def torch_blocks(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import torch

    side = min(block_of(shape))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse BSR tensor support", UserWarning)
        return product(torch.from_numpy(w).to_sparse_bsr((side, side)), torch.from_numpy(x))


def csr(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """This book's own product of compressed rows."""
    operator = Csr()
    prepared = operator.prepare(w)
    return lambda: operator.matmul(prepared, x)


class _General(ctypes.Structure):
    """MKL's description of a matrix without structure."""

    _fields_: ClassVar = [("type", ctypes.c_int), ("mode", ctypes.c_int), ("diagonal", ctypes.c_int)]


def mkl(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """MKL's inspector and executor: the matrix is looked at once, told how often and with how many columns it comes."""
    import scipy.sparse

    found = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    if not found:
        raise ImportError("no libmkl_rt")
    library = ctypes.CDLL(str(found[0]))
    library.MKL_Set_Threading_Layer(1)  # sequential
    left = scipy.sparse.csr_matrix(w)
    (rows, columns), many, one = left.shape, x.shape[1], ctypes.c_float(1)

    def at(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def asked(status: int) -> None:
        if status:
            raise RuntimeError(f"MKL refused, status {status}")

    matrix, general, plain, by_rows, often = ctypes.c_void_p(), _General(20, 0, 0), 10, 101, 1000
    asked(library.mkl_sparse_s_create_csr(
        ctypes.byref(matrix), 0, rows, columns, at(left.indptr), at(left.indptr[1:]), at(left.indices), at(left.data),
    ))  # fmt: skip
    if many > 1:
        asked(library.mkl_sparse_set_mm_hint(matrix, plain, general, by_rows, many, often))
    else:
        asked(library.mkl_sparse_set_mv_hint(matrix, plain, general, often))
    asked(library.mkl_sparse_optimize(matrix))
    none, source = ctypes.c_float(0), at(x)

    def call(read: Any = (left, x)) -> np.ndarray:  # kept, since MKL has nothing but their addresses
        y = np.empty((rows, many), np.float32)
        if many > 1:
            library.mkl_sparse_s_mm(
                plain, one, matrix, general, by_rows, source, many, many, none, ctypes.c_void_p(y.ctypes.data), many
            )
        else:
            library.mkl_sparse_s_mv(plain, one, matrix, general, source, none, ctypes.c_void_p(y.ctypes.data))
        return y

    return call


def sparse_mask(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Which entries of a matrix of shape (m, k) differ from zero, as many as the density says.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sparse_mask({"m": 2, "k": 8, "density": 0.5, "pattern": "2:4"}, rng).reshape(4, 4).sum(1)
    array([2, 2, 2, 2])
    >>> sparse_mask({"m": 4, "k": 4, "density": 0.5, "pattern": "2x2"}, rng).astype(int)
    array([[1, 1, 1, 1],
           [1, 1, 1, 1],
           [0, 0, 0, 0],
           [0, 0, 0, 0]])
    """
    m, k, density, pattern = shape["m"], shape["k"], shape["density"], shape.get("pattern")
    if pattern is None:
        mask = np.zeros(m * k, bool)
        mask[rng.permutation(m * k)[: round(density * m * k)]] = True
        return mask.reshape(m, k)
    if pattern == "2:4":
        if density != 0.5:
            raise ValueError(f"density: two of four are 0.5, not {density}")
        order = rng.random((m, k // 4, 4)).argsort(-1)
        return (order < 2).reshape(m, k)
    if pattern == "skewed":  # row r has a share like 1 / r, up to a full row
        wanted = density * m * k
        shares = 1.0 / np.arange(1, m + 1)
        low, high = 0.0, float(k * m)
        for _ in range(60):
            scale = (low + high) / 2
            low, high = (scale, high) if np.minimum(k, scale * shares).sum() < wanted else (low, scale)
        lengths = np.rint(np.minimum(k, high * shares)).astype(int)
        return rng.random((m, k)).argsort(1) < lengths[:, None]
    rows, columns = block_of(shape)
    blocks = sparse_mask({"m": m // rows, "k": k // columns, "density": density}, rng)
    return blocks.repeat(rows, 0).repeat(columns, 1)


class SparseProduct(Task):
    """A sparse matrix of shape (m, k) times a dense one of shape (k, n)."""

    name = "sparse product"
    keys = frozenset("mnk") | {"density"}
    peers: ClassVar = {
        "openblas": openblas,
        "torch": torch_dense,
        "scipy": scipy,
        "torch-sparse": torch_sparse,
        "mkl": mkl,
        "scipy-bsr": scipy_blocks,
        "torch-bsr": torch_blocks,
        "csr": csr,
    }
    baselines: ClassVar = {"dense": openblas}

    @classmethod
    def of(cls, shape: Shape, seed: int) -> Self:
        rng = np.random.default_rng(seed)
        m, n, k = (shape[name] for name in "mnk")
        sparse = rng.standard_normal((m, k), np.float32)
        sparse[~sparse_mask(shape, rng)] = 0
        dense = rng.standard_normal((k, n), np.float32)
        if "input_density" in shape:
            dense[~sparse_mask({"m": k, "k": n, "density": shape["input_density"]}, rng)] = 0
        return cls(shape, sparse, dense)

    def call(self, operator: Any, constant: Any) -> Callable[[], Any]:
        return lambda: operator.matmul(constant, self.varying)

    def figures(self, operator: Any, result: Any) -> dict[str, float | Missing]:
        """Of an operator that multiplies less often than the weights' zeros say (`effective_macs`), how often."""
        if not hasattr(operator, "effective_macs"):
            return {}
        return {"effective_macs": operator.effective_macs(self.constant, self.varying)}

    def exact(self) -> np.ndarray:
        return np.asarray(torch_dense(self.constant.astype(np.float64), self.varying.astype(np.float64), self.shape)())

    def macs(self) -> tuple[int, int]:
        columns = self.shape["n"]
        return self.constant.size * columns, int(np.count_nonzero(self.constant)) * columns

    @property
    def result_shape(self) -> tuple[int, ...]:
        return self.shape["m"], self.shape["n"]
