"""The base of formats whose grid is multiplied by a power of two, 2^exponent, that suits the numbers to be rounded."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Self

import numpy as np

from kernels.arithmetic.number_format import NumberFormat
from kernels.arrays import as_array

__all__ = ["ExponentFormat"]


class ExponentFormat(NumberFormat):
    """A format with an exponent for a whole array: given, or fitted to what is rounded where it is None."""

    exponent: int | None

    @property
    @abstractmethod
    def _exponents(self) -> tuple[int, int]:
        """The least and the largest exponent."""

    @abstractmethod
    def _exponent_for(self, largest: float) -> int:
        """The exponent that suits numbers of which this is the largest magnitude, were there no ends."""

    def _check_exponent(self) -> None:
        low, high = self._exponents
        if self.exponent is not None and self.exponent not in range(low, high + 1):
            raise ValueError(f"exponent: expected an integer from {low} to {high}, got {self.exponent!r}")

    def fit(self, x: Any) -> Self:
        """The format with the exponent that suits the largest magnitude in `x`.

        Raises
        ------
        ValueError
            If a number is NaN or infinite.
        """
        super().fit(x)
        numbers = as_array(x, "x")
        largest = max(float(numbers.max()), -float(numbers.min())) if numbers.size else 0.0
        if not np.isfinite(largest):
            raise ValueError("x: expected finite numbers to fit an exponent to, got NaN or infinity")
        return self._at(self._exponent_for(largest))

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """The codes, and eight bits for the exponent."""
        return super().stored_bits(shape) + 8

    def _at(self, exponent: int) -> Self:
        low, high = self._exponents
        return replace(self, exponent=min(max(int(exponent), low), high))  # type: ignore[type-var]

    def _fitted(self, x: np.ndarray) -> Self:
        return self.fit(x) if self.exponent is None else self

    def _scales(self) -> np.ndarray:
        return np.array([2.0 ** (self.exponent or 0)], np.float32)

    def _scaled(self, scales: np.ndarray) -> Self:
        scale = np.asarray(scales, np.float32)
        mantissas, exponents = np.frexp(scale)
        if scale.shape != (1,) or mantissas[0] != 0.5:
            raise ValueError(f"encoded: expected one power of two as a scale, got {scale}")
        return replace(self, exponent=int(exponents[0]) - 1)  # type: ignore[type-var]
