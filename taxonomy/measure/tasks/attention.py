"""Attention of several heads: queries change from call to call, keys and values are those of a context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from taxonomy.measure.tasks.task import Shape, Task

__all__ = ["Attention"]


def unfused(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """PyTorch, operation by operation: the scores are stored, read by the softmax, stored, and read again."""
    import torch

    q, k, v = torch.from_numpy(x), torch.from_numpy(w[0]), torch.from_numpy(w[1])
    root = shape["head"] ** 0.5
    return lambda: torch.softmax(q @ k.mT / root, -1) @ v


def sdpa(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """PyTorch's scaled_dot_product_attention, which on a processor runs a fused kernel."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (torch.from_numpy(t)[None] for t in (x, w[0], w[1]))
    return lambda: scaled_dot_product_attention(q, k, v)[0]


class Attention(Task):
    """`heads` heads of `head` numbers, `queries` queries on `keys` keys."""

    name = "attention"
    keys = frozenset({"heads", "head", "queries", "keys"})
    peers: ClassVar = {"torch": unfused, "torch-sdpa": sdpa}

    @classmethod
    def of(cls, shape: Shape, seed: int) -> Self:
        rng = np.random.default_rng(seed)
        heads, size, queries, keys = (shape[name] for name in ("heads", "head", "queries", "keys"))
        context = rng.standard_normal((2, heads, keys, size), np.float32)
        return cls(shape, context, rng.standard_normal((heads, queries, size), np.float32))

    def call(self, operator: Any, constant: Any) -> Callable[[], Any]:
        return lambda: operator.attention(self.varying, constant)

    def exact(self) -> np.ndarray:
        return np.asarray(unfused(self.constant.astype(np.float64), self.varying.astype(np.float64), self.shape)())

    def macs(self) -> tuple[int, int]:
        macs = 2 * self.shape["heads"] * self.shape["queries"] * self.shape["keys"] * self.shape["head"]
        return macs, macs

    @property
    def result_shape(self) -> tuple[int, ...]:
        return self.shape["heads"], self.shape["queries"], self.shape["head"]
