"""DSP packing: two products in one wide multiplier of a field-programmable chip, and what that saves on layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.energy import DRAM_ENERGY, mac_energy, sram_energy
from kernels.implementation.dataflow.cost_model import CostModel, Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, positive_integer

__all__ = ["DSPPacking", "packed_products", "packed_sums"]

SHIFT = 18
"""Bits by which the first of two packed operands is shifted: the second one's products stay below."""
WIDE, NARROW, ACCUMULATOR = 27, 18, 48
"""Bits of the multiplier's two inputs and of its accumulator."""


def _signed(x: np.ndarray, bits: int) -> np.ndarray:
    """The lowest bits of an integer, read in two's complement."""
    low = x & ((1 << bits) - 1)
    return low - ((low >> (bits - 1)) << bits)


def packed_products(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a c and b c from one multiplication: the plain statement, and all of it.

        (a 2^18 + b) c = (a c) 2^18 + b c

    The lower half is b c itself, in two's complement. Where it is negative it has borrowed one from the upper half, and
    gives it back: the sign bit is added there.

    Parameters
    ----------
    a, b, c : ndarray of integers from -128 to 127
        c is what both share.

    Returns
    -------
    ndarray of int64, ndarray of int64
        a c and b c.

    Examples
    --------
    >>> packed_products(np.array([100]), np.array([-128]), np.array([127]))
    (array([12700]), array([-16256]))
    """
    return packed_sums(np.asarray(a)[None], np.asarray(b)[None], np.asarray(c)[None])


def packed_sums(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of a c and of b c over the first axis, of packed products that are added before they are taken apart.

    The lower sums stay apart from the upper ones as long as they fit 18 bits: 7 products of any signed bytes do, and as
    many more as are known not to be so large.

    Parameters
    ----------
    a, b, c : ndarray of integers from -128 to 127, of one shape, terms first

    Returns
    -------
    ndarray of int64, ndarray of int64

    Raises
    ------
    ValueError
        If an operand is no signed byte, or there are more than 7 terms.

    Examples
    --------
    >>> packed_sums(*np.full((3, 7), -128))
    (np.int64(114688), np.int64(114688))
    """
    operands = [np.asarray(x).astype(np.int64) for x in (a, b, c)]
    for x, name in zip(operands, "abc", strict=True):
        if x.size and (x.min() < -128 or x.max() > 127):
            raise ValueError(f"{name}: expected signed bytes, from -128 to 127; it goes from {x.min()} to {x.max()}")
    if len(operands[0]) > 7:
        raise ValueError(f"a: expected at most 7 terms, whose lower sums fit {SHIFT} bits, got {len(operands[0])}")
    packed = _signed((operands[0] << SHIFT) + operands[1], WIDE)  # a 27-bit input holds it: 8 + 18 bits and the sign
    total = _signed((packed * operands[2]).sum(0), ACCUMULATOR)
    low = _signed(total, SHIFT)
    return (total - low) >> SHIFT, low


@dataclass(frozen=True)
class DSPPacking(CostModel):
    r"""A chip of multiplier slices, of which each does one product of bytes a cycle, or two that share an operand.

    .. math:: (a\,2^{18} + b)\,c = (a c)\,2^{18} + b c

    Two filters that meet the same input share it, so a layer with n filters needs ⌈n / 2⌉ passes over them in place of
    n; a layer with one filter a group shares nothing. The two sums are taken apart after 7 products at most, which
    needs adders in logic, one addition for each 7 products of a sum, and no slice.

    Parameters
    ----------
    slices : int
        Multipliers of 27 x 18 bits.
    packed : bool
        Whether two products are packed into one slice.
    kib : int
        Capacity of the buffer, for its energy.

    Source: Fu et al., "Deep Learning with INT8 Optimization on Xilinx Devices", white paper WP486, 2016.

    Examples
    --------
    >>> layer = Layer(64, 64, 28, 28, kernel=3, padding=1)
    >>> [DSPPacking(slices=512, packed=packed).cost(layer).cycles for packed in (False, True)]
    [56448, 28224]
    """

    slices: int = 1024
    packed: bool = True
    kib: int = 1024

    def __post_init__(self) -> None:
        positive_integer(self.slices, "slices")
        positive_integer(self.kib, "kib")
        sram_energy(self.kib)

    def ideal(self) -> CostModel:
        """As many slices, each of which always does two products."""
        return _Ideal(self.slices, True, self.kib)

    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer."""
        m, n, k = layer.gemm_shape()
        lanes = -(-n // 2) if self.packed else n
        return self._counted(layer, -(-layer.groups * m * lanes * k // self.slices))

    def _counted(self, layer: Layer, cycles: int) -> Counts:
        m, n, k = layer.gemm_shape()
        moved = Traffic(layer.ifmap_elements, k * n, m * n) * layer.groups
        energy = layer.macs * mac_energy("int8") + 2 * moved.total * sram_energy(self.kib) + moved.total * DRAM_ENERGY
        return Counts(cycles, layer.macs, 2 * cycles * self.slices, layer.macs, moved, moved, energy)


@dataclass(frozen=True)
class _Ideal(DSPPacking):
    def cost_of(self, layer: Layer) -> Counts:
        return self._counted(layer, -(-layer.macs // (2 * self.slices)))
