"""Products of matrices whose right operand is constant, as a layer's weights are, and is brought into form once.

Source: none; how libraries of kernels divide the work of a layer (packed weights of oneDNN, FBGEMM, XNNPACK).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.arrays import as_array, describe, is_tensor, like

__all__ = ["Prepared", "PreparedProduct"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A constant right operand; made by `prepare`.

    Attributes
    ----------
    operator : PreparedProduct
        Who made it, and reads it.
    shape : tuple of int
        (k, n), of the matrix that it was.
    """

    operator: Any
    shape: tuple[int, int]


class PreparedProduct(ABC):
    """What such operators, frozen dataclasses, share: the checks, and tensors for tensors."""

    @abstractmethod
    def prepare(self, w: Any) -> Prepared:
        """Bring a constant right operand, of shape (k, n), into form, once.

        Raises
        ------
        TypeError, ValueError
            If it is not a matrix of real numbers that the operator can take.
        """

    @abstractmethod
    def _times(self, x: np.ndarray, w: Any) -> np.ndarray:
        """The product with what `prepare` made, float32 of shape (m, n); `x` is a matrix of real numbers."""

    def matmul(self, x: Any, w: Any) -> Any:
        """The product of two matrices.

        Parameters
        ----------
        x : array_like or torch.Tensor of shape (m, k)
        w : array_like, torch.Tensor or Prepared of shape (k, n)

        Returns
        -------
        numpy.ndarray or torch.Tensor of shape (m, n), float32
            A tensor where an operand that was not prepared is one.

        Raises
        ------
        TypeError
            If an operand is not real numbers.
        ValueError
            If shapes do not fit, an operand is none that the operator can take, or `w` was prepared by another one.
        """
        right = w if isinstance(w, Prepared) else self.prepare(w)
        if right.operator != self:
            raise ValueError(f"w: it was prepared by {right.operator}, not by {self}")
        left = as_array(x, "x", ndim=2)
        if left.shape[1] != right.shape[0]:
            raise ValueError(
                f"x: expected {right.shape[0]} columns, as many as w of shape {right.shape} has rows, got {describe(x)}"
            )
        return like(self._times(left, right), next((t for t in (x, w) if is_tensor(t)), None))

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer in a number format runs here as that format: none does, unless the operator says otherwise.

        Parameters
        ----------
        layer : torch.nn.Module
        format : str or NumberFormat, optional
            FP32 if absent.
        """
        return False
