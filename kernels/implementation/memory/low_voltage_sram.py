r"""Memory on the chip at a low supply voltage: a bit that cannot be trusted is masked, not corrected.

Reading or writing a memory cell charges wires of capacitance C to the supply voltage V, which takes C V² joules; a
lower voltage saves with the square, and more and more cells fail. Sense amplifiers that sample twice (Razor) notice
which bit was late, not what it should have been. What is read in its place decides what the weight is worth:

.. math:: \tilde w = \begin{cases} w \wedge \neg f & w \ge 0 \\ w \vee f & w < 0 \end{cases}
          \quad\text{(bit masking)}, \qquad \tilde w = w\,[f = 0] \quad\text{(word masking)},

f being the flags. In two's complement that is the sign bit in place of every flagged bit; a float holds sign and
magnitude, where its own flagged bits are cleared whatever the sign. Either way the weight moves towards zero, where
most weights are anyway. A flagged sign says nothing of the direction: such a weight reads as zero.

Which voltage leads to which rate of failing bits is a property of one chip, so the axis here is the bit-error rate. One
point of one published curve could be checked, and is all that energy is modelled at: a 14 nm memory has no errors down
to some voltage, and one bit in a hundred fails at 0.83 of it.

Source: Reagen et al., "Minerva: Enabling Low-Power, Highly-Accurate Deep Neural Network Accelerators", ISCA 2016, for
both masks on fixed point; floats and the flagged sign are this module's own. The point of the curve: Sun et al.,
"NeuralFuse", NeurIPS 2024, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from kernels.energy import sram_energy
from kernels.implementation.memory.zero_space_ecc import Protected, ZeroSpaceEcc

__all__ = ["VOLTAGES", "Flagged", "LowVoltageSram", "masked"]

VOLTAGES = {0.0: 1.0, 0.01: 0.83}
"""Bit-error rate to the highest voltage that causes it, over the lowest that causes none."""


@dataclass(frozen=True, eq=False)
class Flagged:
    """Weights as they are read, beside the flags of the sense amplifiers.

    Parameters
    ----------
    read : Protected
        The words as they come out of the memory.
    flags : ndarray of the words' shape and dtype
        A one for each bit that cannot be trusted.
    """

    read: Protected
    flags: np.ndarray

    @property
    def words(self) -> np.ndarray:
        """The words as they come out of the memory."""
        return self.read.words


@dataclass(frozen=True)
class LowVoltageSram:
    """Store weights in a memory whose bits fail, and mask what its detectors flag.

    Parameters
    ----------
    format : {"int8", "bfloat16", "float32"}
        How weights are stored. INT8 codes are symmetric with one scale a tensor, in two's complement.
    recovery : {"bit-mask", "word-mask", "none"}
        What is read in place of a flagged bit: the sign bit (of a float a zero), or zero for the whole word.

    Raises
    ------
    ValueError
        If the format or the recovery is unknown.

    Source: Reagen et al., ISCA 2016.

    Examples
    --------
    >>> w = np.array([0.5, -0.5, 0.1], np.float32)
    >>> for recovery in ("none", "bit-mask", "word-mask"):
    ...     sram = LowVoltageSram(recovery=recovery)
    ...     print(sram.recover(sram.corrupt(sram.protect(w), rate=0.1, seed=7)).round(2))
    [ 0.25 -0.5   0.35]
    [ 0.25 -0.5   0.09]
    [ 0.  -0.5  0. ]
    """

    format: str = "int8"
    recovery: str = "bit-mask"

    def __post_init__(self) -> None:
        if self.recovery not in ("bit-mask", "word-mask", "none"):
            raise ValueError(f"recovery: expected 'bit-mask', 'word-mask' or 'none', got {self.recovery!r}")
        self.store  # noqa: B018  # an unknown format is refused at once

    @cached_property
    def store(self) -> ZeroSpaceEcc:
        """How the words are encoded, without check bits."""
        return ZeroSpaceEcc(self.format, "none")

    def unprotected(self) -> LowVoltageSram:
        """The same memory, what it reads taken as it is."""
        return replace(self, recovery="none")

    def others(self) -> dict[str, LowVoltageSram]:
        """The other mask, by name."""
        other = {"bit-mask": "word-mask", "word-mask": "bit-mask"}.get(self.recovery)
        return {} if other is None else {other: replace(self, recovery=other)}

    def protect(self, weights: Any) -> Flagged:
        """Weights in the stored format, nothing flagged.

        Parameters
        ----------
        weights : array_like of any shape, float32

        Raises
        ------
        ValueError
            If a weight is not finite, or too large for bfloat16.
        """
        stored = self.store.protect(weights)
        return Flagged(stored, np.zeros_like(stored.words))

    def corrupt(self, protected: Flagged, rate: float, seed: int | Sequence[int]) -> Flagged:
        """A copy in which every bit has failed with probability `rate`, independently, and every failure is flagged.

        Parameters
        ----------
        protected : Flagged
        rate : float in [0, 1]
            The bit-error rate. A failing bit reads inverted, which is the worst case.
        seed : int or sequence of int
            The same seed fails the same bits, whatever is done about them.

        Raises
        ------
        ValueError
            If the rate is out of range.
        """
        read = self.store.corrupt(protected.read, rate, seed)
        return Flagged(read, protected.flags | read.words ^ protected.words)

    def recover(self, protected: Flagged) -> np.ndarray:
        """The weights as read, flagged bits masked.

        Returns
        -------
        ndarray of the weights' shape, float32
            Finite unless nothing is masked.
        """
        return self.store.recover(replace(protected.read, words=self.mask(protected.words, protected.flags)))

    def mask(self, words: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """Words with what is flagged masked; again with the same flags, nothing changes.

        Parameters
        ----------
        words, flags : ndarray of the same shape, unsigned integers of the stored width

        Examples
        --------
        >>> sram = LowVoltageSram()
        >>> words, flags = np.array([0b01000001, 0b11100000], np.uint8), np.array([64, 8], np.uint8)
        >>> [f"{word:08b}" for word in sram.mask(words, flags)]
        ['00000001', '11101000']
        """
        if self.recovery == "none":
            return words
        if self.recovery == "word-mask":
            return np.where(flags == 0, words, 0).astype(words.dtype)
        sign = words.dtype.type(1 << 8 * words.itemsize - 1)
        towards_zero = words & ~flags
        if self.format == "int8":
            towards_zero = np.where(words & sign, words | flags, towards_zero)
        return np.where(flags & sign, 0, towards_zero).astype(words.dtype)

    def stored_bits(self, shape: Sequence[int]) -> int:
        """Bits in memory for weights of this shape; flags are made in reading and stored nowhere."""
        return self.store.stored_bits(shape)

    def energy(self, bits: int, rate: float) -> float:
        """Joules of reading so many bits once, at the voltage of this bit-error rate: E = C V², C from a cited table.

        The table's figure is taken as that of the lowest voltage without errors; detectors and masks are not counted.

        Parameters
        ----------
        bits : int
            All of them in one memory, the smallest of the table that holds them.
        rate : float

        Raises
        ------
        LookupError
            If `VOLTAGES` does not say the rate's voltage, or the table holds no memory as large.

        Examples
        --------
        >>> sram = LowVoltageSram()
        >>> f"{sram.energy(8000, rate=0.01) / sram.energy(8000, rate=0.0):.2f}"
        '0.69'
        """
        if rate not in VOLTAGES:
            raise LookupError(f"at which voltage {rate:g} of the bits fail no source that could be checked says")
        return bits / 8 * sram_energy(bits / 8192) * VOLTAGES[rate] ** 2


def masked(word: int, flags: int, bits: int, recovery: str, *, twos_complement: bool) -> int:
    """One word masked, bit by bit: the plain statement of `LowVoltageSram.mask`.

    Examples
    --------
    >>> f"{masked(0b1110_0000, 0b0000_1000, 8, 'bit-mask', twos_complement=True):08b}"
    '11101000'
    """
    if recovery == "none" or flags == 0:
        return word
    sign = word >> bits - 1 & 1
    if recovery == "word-mask" or flags >> bits - 1 & 1:
        return 0
    fill = sign if twos_complement else 0
    return sum((fill if flags >> b & 1 else word >> b & 1) << b for b in range(bits))
