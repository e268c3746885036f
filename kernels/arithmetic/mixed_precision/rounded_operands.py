"""Products of matrices whose operands are numbers of a float format; how they are summed is the operator's own.

Source: N. Wang et al., "Training Deep Neural Networks with 8-bit Floating Point Numbers", NeurIPS 2018, for the format
with six exponent bits; the others are those of `kernels.arithmetic.floating_point`.

Examples
--------
>>> {name: format.bits for name, format in FORMATS.items()}
{'fp16': 16, 'fp16-e6m9': 16, 'bfloat16': 16, 'fp8-e4m3': 8, 'fp8-e5m2': 8}
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.floating_point.fp8 import FP8
from kernels.arithmetic.floating_point.fp16 import FP16
from kernels.arithmetic.floating_point.grid import FloatFormat, FloatGrid
from kernels.arithmetic.floating_point.minifloat import Minifloat
from kernels.arithmetic.prepared_product import Prepared, PreparedProduct
from kernels.arrays import as_array

__all__ = ["FORMATS", "Rounded", "RoundedOperands", "grid_of"]

FORMATS: dict[str, FloatFormat] = {
    "fp16": FP16(),
    "fp16-e6m9": Minifloat(6, 9),
    "bfloat16": BFloat16(),
    "fp8-e4m3": FP8("e4m3"),
    "fp8-e5m2": FP8("e5m2"),
}
"""By name; beside them there is "fp32"."""


def grid_of(name: str) -> FloatGrid | None:
    """The grid of a format, for compiled loops; None for "fp32"."""
    return None if name == "fp32" else FORMATS[name].grid


@dataclass(frozen=True, eq=False)
class Rounded(Prepared):
    """A right operand, rounded to the operator's format of operands."""

    values: np.ndarray
    bits: int

    @property
    def nbytes(self) -> int:
        """As stored: in the format's bits."""
        return -(-self.values.size * self.bits // 8)


class RoundedOperands(PreparedProduct):
    """What its subclasses, frozen dataclasses, share: operands are rounded once, to the nearest, and multiplied."""

    @property
    @abstractmethod
    def _operands(self) -> str:
        """The name of their format."""

    @abstractmethod
    def _product(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, turned: bool) -> None:
        """Fill `c` with the product of (m, k) and (k, n), float32 in memory order that are numbers of the format.

        Turned, it is the transpose of the product that was asked for.
        """

    @property
    def operand_bits(self) -> int:
        """Bits of an operand as stored."""
        return 32 if self._operands == "fp32" else FORMATS[self._operands].bits

    def prepare(self, w: Any) -> Rounded:
        """Round the right operand, of shape (k, n), once.

        Raises
        ------
        TypeError, ValueError
            If it is not real numbers in two dimensions.
        """
        values = self._rounded(as_array(w, "w", ndim=2))
        return Rounded(self, (values.shape[0], values.shape[1]), values, self.operand_bits)

    def dot(self, a: Any, b: Any) -> np.float32:
        """The sum of products of two vectors of the same length.

        Raises
        ------
        ValueError
            If they are not vectors of one length.
        """
        a, b = (as_array(x, name, ndim=1) for x, name in ((a, "a"), (b, "b")))
        return self.matmul(a[None], b[:, None])[0, 0]

    def _times(self, x: np.ndarray, w: Rounded) -> np.ndarray:
        a, b = self._rounded(x), w.values
        turned = len(a) > b.shape[1]  # vectors lie along the longer side; the products and their order are the same
        if turned:
            a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
        c = np.empty((len(a), b.shape[1]), np.float32)
        self._product(a, b, c, turned)
        return np.ascontiguousarray(c.T) if turned else c

    def _rounded(self, numbers: np.ndarray) -> np.ndarray:
        """Float32 of one memory layout for the compiled loops; what is no float32 is rounded from float64, once."""
        if self._operands != "fp32":
            wide = numbers if numbers.dtype == np.float32 else numbers.astype(np.float64)
            numbers = FORMATS[self._operands].round(wide)
        return np.require(numbers, np.float32, ["C", "W"])
