"""A system of equations: x of A x = b, in FP64, the matrix of a given condition number and new in every call.

A = U S Vᵀ with random orthogonal U and V, and singular values that fall geometrically from one to 1 / `condition`. The
exact solution is that of FP64 factors refined with residuals, and a solution, in extended precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from taxonomy.measure.protocol import Missing
from taxonomy.measure.tasks.task import Shape, Task

__all__ = ["Solve"]


def scipy_solve(a: np.ndarray, b: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """LAPACK's FP64 factorisation by scipy, which looks at the matrix for structure and at its condition."""
    import scipy.linalg

    return lambda: scipy.linalg.solve(a, b, assume_a="gen")


def numpy_solve(a: np.ndarray, b: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """LAPACK's FP64 factorisation by numpy."""
    return lambda: np.linalg.solve(a, b)


def torch_solve(a: np.ndarray, b: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import torch

    left, right = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: torch.linalg.solve(left, right)


class Solve(Task):
    """`n` equations; nothing is prepared, since a matrix is factored once for each solution."""

    name = "solve"
    keys = frozenset({"n", "condition"})
    peers: ClassVar = {"scipy": scipy_solve, "numpy": numpy_solve, "torch": torch_solve}
    baselines: ClassVar = {"fp64": numpy_solve}

    @classmethod
    def of(cls, shape: Shape, seed: int) -> Self:
        rng, n = np.random.default_rng(seed), shape["n"]
        left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
        singular = np.geomspace(1, 1 / shape["condition"], n)
        return cls(shape, (left * singular) @ right, rng.standard_normal((n,)))

    def prepared(self, operator: Any) -> Any:
        return self.constant

    def call(self, operator: Any, constant: Any) -> Callable[[], Any]:
        return lambda: operator.solve(constant, self.varying)

    def exact(self) -> np.ndarray:
        import scipy.linalg

        factors = scipy.linalg.lu_factor(self.constant)
        a, b = self.constant.astype(np.longdouble), self.varying.astype(np.longdouble)
        x = np.zeros_like(b)
        for _ in range(30):
            correction = scipy.linalg.lu_solve(factors, (b - a @ x).astype(np.float64))
            x = x + correction
            if np.abs(correction).max() <= 2.0**-56 * np.abs(x).max():
                break
        return x.astype(np.float64)

    def macs(self) -> tuple[int, int]:
        """Those of an elimination and two substitutions, whoever solves."""
        macs = self.shape["n"] ** 3 // 3 + self.shape["n"] ** 2
        return macs, macs

    @property
    def result_shape(self) -> tuple[int, ...]:
        return (self.shape["n"],)

    def figures(self, operator: Any, result: Any) -> dict[str, float | Missing]:
        """Backward error; steps and bit operations of an operator that tells them by `refine`, else of FP64 factors."""
        x = np.asarray(result, np.float64)
        residual = (self.varying.astype(np.longdouble) - self.constant.astype(np.longdouble) @ x).astype(np.float64)
        scale = np.abs(self.constant).sum(1).max() * np.abs(x).max() + np.abs(self.varying).max()
        values: dict[str, float | Missing] = {
            "backward_error": float(np.abs(residual).max() / scale),
            "memory_access": self.constant.nbytes + self.varying.nbytes + x.nbytes,
            "energy": Missing("no cited energy for an FP64 multiplication"),
        }
        if operator is None:
            return {**values, "bit_operations": 64**2 * self.macs()[0]}
        solution = operator.refine(self.constant, self.varying)
        gave_up = Missing("refinement did not converge; FP64 factors gave the solution")
        return {
            **values,
            "iterations": solution.iterations if solution.converged else gave_up,
            "bit_operations": solution.bit_operations,
        }
