"""A constant sparse matrix times a dense one: of its entries as many differ from zero as `density` says, anywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from taxonomy.measure.tasks.task import Shape, Task

__all__ = ["SparseProduct"]


def openblas(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """numpy's BLAS, zeros multiplied like other numbers."""
    return lambda: w @ x


def torch_dense(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import torch

    left, right = torch.from_numpy(w), torch.from_numpy(x)
    return lambda: left @ right


def scipy(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import scipy.sparse

    left = scipy.sparse.csr_matrix(w)
    return lambda: left @ x


def torch_sparse(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        left, right = torch.from_numpy(w).to_sparse_csr(), torch.from_numpy(x)
    return lambda: left @ right


def mkl(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """MKL, through a wrapper that makes MKL's handle of the matrix in every call."""
    import os
    import sys
    from pathlib import Path

    import scipy.sparse

    # the wheel installs a versioned library where the wrapper does not look
    for library in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
        os.environ.setdefault("MKL_RT", str(library))
    from sparse_dot_mkl import dot_product_mkl

    left = scipy.sparse.csr_matrix(w)
    return lambda: dot_product_mkl(left, x)


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
    }
    baselines: ClassVar = {"dense": openblas}

    @classmethod
    def of(cls, shape: Shape, seed: int) -> Self:
        rng = np.random.default_rng(seed)
        m, n, k = (shape[name] for name in "mnk")
        sparse = rng.standard_normal((m, k), np.float32)
        sparse.flat[rng.permutation(m * k)[round(shape["density"] * m * k) :]] = 0
        return cls(shape, sparse, rng.standard_normal((k, n), np.float32))

    def call(self, operator: Any, constant: Any) -> Callable[[], Any]:
        return lambda: operator.matmul(constant, self.varying)

    def exact(self) -> np.ndarray:
        return np.asarray(torch_dense(self.constant.astype(np.float64), self.varying.astype(np.float64), self.shape)())

    def macs(self) -> tuple[int, int]:
        columns = self.shape["n"]
        return self.constant.size * columns, int(np.count_nonzero(self.constant)) * columns

    @property
    def result_shape(self) -> tuple[int, ...]:
        return self.shape["m"], self.shape["n"]
