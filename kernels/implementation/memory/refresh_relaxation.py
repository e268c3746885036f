r"""Refresh what matters as often as ever, and the rest seldom.

A DRAM cell is a capacitor that leaks; reading and writing it back, a refresh, is due before the weakest cell has lost
its charge, for all cells at once. Most hold it far longer. Refreshed k times as seldom, a part of the memory takes a
k-th of the refreshes, and the cells that leak fastest lose their bits. Of the refreshes of a memory whose share s
is relaxed there remain

.. math:: \rho = 1 - s + s / k .

What may be lost is chosen: the upper bits of every value (sign, exponent) and the short vectors of biases and norms
stay in the part that is refreshed as before, the lower bits go to the relaxed part.

Which interval leads to which rate of lost bits is a property of one chip and its temperature. No published curve could
be checked, so the axis here is the bit-error rate of the relaxed part, and k counts refreshes only.

Source: Liu et al., "Flikker: Saving DRAM Refresh-power through Critical Data Partitioning", ASPLOS 2011, for the two
parts; Tu et al., "RANA: Towards Efficient Neural Acceleration with Refresh-Optimized Embedded DRAM", ISCA 2018, for
networks that tolerate it. Which bits are critical is this module's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, NoReturn

import numpy as np

from kernels.implementation.memory.zero_space_ecc import Protected, ZeroSpaceEcc

__all__ = ["RefreshRelaxation"]


@dataclass(frozen=True)
class RefreshRelaxation:
    """Store weights in two parts of a DRAM, of which one is refreshed seldom and loses bits.

    Parameters
    ----------
    format : {"float32", "int8", "bfloat16"}
        How weights are stored. INT8 codes are symmetric with one scale a tensor.
    critical : int
        How many of the upper bits of each value stay in the part that is refreshed as before; 9 are the sign and the
        exponent of a float32 or bfloat16.
    vectors : bool
        Whether tensors of fewer than two dimensions (biases, scales of norms) stay there whole.
    interval : float
        Time between two refreshes of the relaxed part over that of the other, at least 1.

    Raises
    ------
    ValueError
        If the format is unknown, `critical` is not a number of its bits, or the interval is below 1.

    Source: Liu et al., ASPLOS 2011.

    Examples
    --------
    >>> w = np.full((1, 4), 0.75, np.float32)
    >>> dram = RefreshRelaxation()
    >>> read = dram.recover(dram.corrupt(dram.protect(w), rate=0.5, seed=0))
    >>> bool(((read >= 0.5) & (read < 1)).all())               # sign and exponent are what they were
    True
    >>> dram.refresh_rate([(1, 4)])                            # 9 bits of 32 as before, 23 a sixteenth as often
    0.326171875
    """

    format: str = "float32"
    critical: int = 9
    vectors: bool = True
    interval: float = 16.0

    def __post_init__(self) -> None:
        if not 0 <= self.critical <= self.width:
            raise ValueError(f"critical: expected 0 to {self.width} bits of a {self.format}, got {self.critical!r}")
        if not self.interval >= 1:
            raise ValueError(f"interval: expected at least 1, got {self.interval!r}")

    @cached_property
    def store(self) -> ZeroSpaceEcc:
        """How the words are encoded, without check bits."""
        return ZeroSpaceEcc(self.format, "none")

    @property
    def width(self) -> int:
        """Bits of a value."""
        return 8 * np.dtype(self.store.layout.dtype).itemsize

    def unprotected(self) -> RefreshRelaxation:
        """Everything in the relaxed part."""
        return replace(self, critical=0, vectors=False)

    def others(self) -> dict[str, RefreshRelaxation]:
        """Partition by data alone: the vectors are critical, of the other tensors nothing."""
        return {"by-tensor": replace(self, critical=0, vectors=True)}

    def protect(self, weights: Any) -> Protected:
        """Weights in the stored format.

        Parameters
        ----------
        weights : array_like of any shape, float32

        Raises
        ------
        ValueError
            If a weight is not finite, or too large for bfloat16.
        """
        return self.store.protect(weights)

    def corrupt(self, protected: Protected, rate: float, seed: int | Sequence[int]) -> Protected:
        """A copy in which every bit of the relaxed part has flipped with probability `rate`, independently.

        Parameters
        ----------
        protected : Protected
        rate : float in [0, 1]
        seed : int or sequence of int
            The same seed flips the same bits, as far as they are relaxed.

        Raises
        ------
        ValueError
            If the rate is out of range.
        """
        relaxed = (1 << self.relaxed_width(protected.shape)) - 1
        flips = self.store.corrupt(protected, rate, seed).words ^ protected.words
        return replace(protected, words=protected.words ^ flips & protected.words.dtype.type(relaxed))

    def recover(self, protected: Protected) -> np.ndarray:
        """The weights as read.

        Returns
        -------
        ndarray of the weights' shape, float32
            Finite if sign and exponent are critical.
        """
        return self.store.recover(protected)

    def relaxed_width(self, shape: Sequence[int]) -> int:
        """How many of the lower bits of each value of a tensor of this shape are relaxed."""
        return 0 if self.vectors and len(shape) < 2 else self.width - self.critical

    def stored_bits(self, shape: Sequence[int]) -> int:
        """Bits in memory for weights of this shape, both parts."""
        return self.store.stored_bits(shape)

    def relaxed_bits(self, shape: Sequence[int]) -> int:
        """Bits of weights of this shape that lie in the relaxed part."""
        return prod(shape) * self.relaxed_width(shape)

    def refresh_rate(self, shapes: Iterable[Sequence[int]]) -> float:
        """Refreshes of the memory of tensors of these shapes, over those of refreshing all of it as before."""
        shapes = list(shapes)
        bits = sum(map(self.stored_bits, shapes))
        share = sum(map(self.relaxed_bits, shapes)) / bits if bits else 0.0
        return 1 - share + share / self.interval

    def energy(self, bits: int, rate: float) -> NoReturn:
        """None: refreshes are counted in its place.

        Raises
        ------
        LookupError
            Always, with that reason.
        """
        raise LookupError("the cited table has no coefficient for a refresh; refreshes are counted in its place")
