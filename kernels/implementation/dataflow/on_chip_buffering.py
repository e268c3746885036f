"""On-chip buffering: what a scratchpad of some size saves, and what keeping one operand in it costs the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from kernels.energy import DRAM_ENERGY, OPERAND_BYTES, mac_energy, sram_energy
from kernels.implementation.dataflow.cost_model import CostModel, Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, positive_integer
from kernels.implementation.dataflow.tiled_product import ORDERS, Tiling, best_tiling, sum_bytes

__all__ = ["HOLDS", "OnChipBuffering"]

HOLDS = {"output": ("mnk", "nmk"), "weight": ("knm", "nkm"), "input": ("kmn", "mkn"), "any": ORDERS}
"""Orders of the loops in which a tile of an operand stays until it is done with: its dimension that is missing runs
innermost."""


@dataclass(frozen=True)
class OnChipBuffering(CostModel):
    r"""An array of multipliers behind one buffer, with the best tiles for its size.

    A layer is a product C (m, n) = A (m, k) B (k, n), whose tiles pass through the buffer: a tile of each operand,
    chosen so that the fewest bytes cross the chip's edge. With `hold` one operand is kept until all that needs it is
    done:

    ======  ===================================================================
    output  sums never leave unfinished; A and B come once for every tile of C
    weight  a tile of B comes once; sums leave and come back for every tile of k
    input   a tile of A comes once; likewise
    any     the best of all six orders
    ======  ===================================================================

    Between buffer and array an operand is read once for each multiplier that it is shared by: `rows` outputs share an
    input, `columns` share a weight, and sums stay in the array while a tile's k runs. The time is that of the
    arithmetic.

    Parameters
    ----------
    hold : {"any", "output", "weight", "input"}
    kib : int
        Capacity of the buffer.
    rows, columns : int
        Multipliers.
    format : {"int8", "fp16", "fp32"}

    Raises
    ------
    ValueError, KeyError
        If a parameter is none of these, or the table of energies knows no buffer as large.

    Source: Chen et al., "DaDianNao: A Machine-Learning Supercomputer", MICRO 2014, for keeping data near the
    multipliers; Sze et al., arXiv 1703.09039, section V, for which operand stays.

    Examples
    --------
    >>> layer = Layer(64, 64, 56, 56, kernel=3, padding=1)
    >>> for kib in (1, 8, 64):
    ...     counts = OnChipBuffering(kib=kib).cost(layer)
    ...     print(f"{kib:2} KiB: {counts.dram.total:,} bytes, {counts.energy * 1e6:.0f} uJ")
     1 KiB: 21,876,736 bytes, 4781 uJ
     8 KiB: 7,061,504 bytes, 1205 uJ
    64 KiB: 2,043,904 bytes, 493 uJ
    """

    hold: str = "any"
    kib: int = 64
    rows: int = 32
    columns: int = 32
    format: str = "int8"

    def __post_init__(self) -> None:
        if self.hold not in HOLDS:
            raise ValueError(f"hold: expected one of {', '.join(HOLDS)}, got {self.hold!r}")
        for name in ("kib", "rows", "columns"):
            positive_integer(getattr(self, name), name)
        sram_energy(self.kib)
        mac_energy(self.format)

    def tiling(self, layer: Layer) -> Tiling:
        """The best tiles of one group of a layer."""
        word = OPERAND_BYTES[self.format]
        return _best(*layer.gemm_shape(), self.kib * 1024, HOLDS[self.hold], word)

    def ideal(self) -> CostModel:
        """The same array behind a buffer that holds everything: every operand crosses once."""
        return _Unlimited(**{name: getattr(self, name) for name in ("kib", "rows", "columns", "format")})

    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer."""
        m, n, k = layer.gemm_shape()
        words = self.tiling(layer).words(m, n, k)
        word = OPERAND_BYTES[self.format]
        moved = Traffic(words["ifmap"] * word, words["filter"] * word, sum_bytes(words["ofmap"], m * n, word, 4))
        return self._counted(layer, moved)

    def _counted(self, layer: Layer, moved: Traffic) -> Counts:
        m, n, k = layer.gemm_shape()
        word, tiles = OPERAND_BYTES[self.format], -(-k // self._depth(layer))
        # rows of the array take outputs' m, columns their n: an input serves a row of it, a weight a column
        inputs, weights = m * k * -(-n // self.columns) * word, k * n * -(-m // self.rows) * word
        read = Traffic(inputs, weights, (2 * tiles - 1) * m * n * 4)
        cycles = layer.groups * -(-m // self.rows) * -(-n // self.columns) * k
        moved, read = moved * layer.groups, read * layer.groups
        energy = layer.macs * mac_energy(self.format) + (read + moved).total * sram_energy(self.kib)
        slots = cycles * self.rows * self.columns
        return Counts(cycles, layer.macs, slots, layer.macs, read, moved, energy + moved.total * DRAM_ENERGY)

    def _depth(self, layer: Layer) -> int:
        """Length of a tile's k, after which sums go back to the buffer."""
        return self.tiling(layer).k


@dataclass(frozen=True)
class _Unlimited(OnChipBuffering):
    def cost_of(self, layer: Layer) -> Counts:
        m, n, k = layer.gemm_shape()
        word = OPERAND_BYTES[self.format]
        return self._counted(layer, Traffic(m * k * word, k * n * word, m * n * word))

    def ideal(self) -> CostModel:
        return replace(self)

    def _depth(self, layer: Layer) -> int:
        return layer.gemm_shape()[2]


@lru_cache(maxsize=4096)
def _best(m: int, n: int, k: int, room: int, orders: tuple[str, ...], word: int) -> Tiling:
    return best_tiling(m, n, k, room, orders, word, 4)
