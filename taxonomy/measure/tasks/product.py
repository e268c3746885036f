"""The product of two matrices, the right one constant: C = A B with A of shape (m, k) and B of shape (k, n).

Entries are normally distributed, around `mean` where the setting says one: sums of numbers with a mean grow with their
length, those of numbers without only with its root.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from kernels.implementation.loops.loop_tiling import LoopTiling
from taxonomy.measure.tasks.task import Shape, Task, onednn

__all__ = ["Product"]


def naive(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """Three nested loops, compiled."""
    return lambda: LoopTiling(rung="naive").matmul(x, w)


def openblas(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """numpy's BLAS."""
    return lambda: x @ w


def torch_product(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import torch

    left, right = torch.from_numpy(x), torch.from_numpy(w)
    return lambda: left @ right


def packed(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """oneDNN as PyTorch's compiler calls it, the constant operand packed once for so many rows."""
    import torch

    onednn(torch)
    left, rows = torch.from_numpy(x), len(x)
    right = torch.ops.mkldnn._reorder_linear_weight(torch.from_numpy(w).t().contiguous(), rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


class Product(Task):
    """A dense product."""

    name = "product"
    keys = frozenset("mnk")
    peers: ClassVar = {"openblas": openblas, "torch": torch_product, "torch-packed": packed}
    baselines: ClassVar = {"naive": naive, "dense": openblas, "fp32": openblas}
    times_unprepared = True

    @classmethod
    def of(cls, shape: Shape, seed: int) -> Self:
        rng, mean = np.random.default_rng(seed), np.float32(shape.get("mean", 0))
        m, n, k = (shape[name] for name in "mnk")
        return cls(
            shape, rng.standard_normal((k, n), np.float32) + mean, rng.standard_normal((m, k), np.float32) + mean
        )

    def call(self, operator: Any, constant: Any) -> Callable[[], Any]:
        return lambda: operator.matmul(self.varying, constant)

    def exact(self) -> np.ndarray:
        return np.asarray(
            torch_product(self.constant.astype(np.float64), self.varying.astype(np.float64), self.shape)()
        )

    def macs(self) -> tuple[int, int]:
        macs = self.shape["m"] * self.shape["n"] * self.shape["k"]
        return macs, macs

    @property
    def result_shape(self) -> tuple[int, ...]:
        return self.shape["m"], self.shape["n"]
