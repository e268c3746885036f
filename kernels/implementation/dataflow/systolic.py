"""The cost of a layer on a systolic array, in closed form; the three dataflows differ in what they keep still.

An array of R rows and C columns multiplies and accumulates while operands step from neighbour to neighbour. A product
of an m x k by a k x n matrix is cut into *folds*: tiles of R x C of the operand that stays, past which the others
stream. One fold holds the array for

    2 R + C + T - 2   cycles,

T being the length of the stream: R cycles to load the stationary tile (or to drain the finished outputs), T to stream,
R + C - 2 for the skew with which operands enter the rows and columns.

    dataflow            rows hold   columns hold   T
    weight-stationary   k           n              m
    output-stationary   m           n              k
    input-stationary    k           m              n

**Conventions.** ``"corrected"`` counts as above and floors the output size of a strided convolution, as networks do.
``"scale-sim"`` reproduces the totals of SCALE-Sim 3.0.0, which differ in three ways: output-stationary folds take
R + C + T - 2 (outputs drain while they are still being accumulated), the output size of a strided convolution is
rounded up, and the total is one less, being the index of the last cycle. Bytes and multiply-accumulates are the same
under both.

**Buffers.** Each operand has an on-chip buffer, of which one half serves the array while the other is filled. Folds run
column by column of tiles, the row tiles of a column in turn. An operand comes from DRAM once where the set that will be
used again fits its half, else every time the array asks for it; each class states its sets. Partial sums that do not
fit go out and come back at the accumulator's width. Memory is assumed fast enough never to stall the array. The groups
of a convolution run one after another.

Source: Samajdar et al., "SCALE-Sim: Systolic CNN accelerator simulator", arXiv 1811.02883; Sze et al.,
"Efficient processing of deep neural networks: a tutorial and survey", arXiv 1703.09039, on dataflows.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from kernels.energy import DRAM_ENERGY, OPERAND_BYTES, mac_energy, sram_energy
from kernels.implementation.dataflow.cost_model import CostModel, Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, positive_integer

__all__ = ["IdealArray", "SystolicArray"]

ACCUMULATOR_BYTES = 4


@dataclass(frozen=True)
class SystolicArray(CostModel):
    """The array's parameters and what the dataflows share; a dataflow is a subclass.

    Energy is that of multiply-accumulates, on-chip and off-chip bytes; not of what moves inside the array, for which
    the cited table has no coefficient.

    Parameters
    ----------
    rows, columns : int
        Processing elements.
    ifmap_kib, filter_kib, ofmap_kib : int
        On-chip buffers in KiB, halved by double buffering.
    format : {"int8", "fp16", "fp32"}
        Of the operands; accumulators have 32 bits.
    convention : {"corrected", "scale-sim"}

    Raises
    ------
    ValueError
        If a size is not a positive integer, or the convention is unknown.
    KeyError
        If the table of energies knows neither the format nor a buffer as large.
    """

    rows: int = 32
    columns: int = 32
    ifmap_kib: int = 1024
    filter_kib: int = 1024
    ofmap_kib: int = 1024
    format: str = "int8"
    convention: str = "corrected"

    scale_sim_waits: ClassVar[int] = 2
    """How often a fold waits for R cycles in SCALE-Sim's count."""

    def __post_init__(self) -> None:
        for field in ("rows", "columns", "ifmap_kib", "filter_kib", "ofmap_kib"):
            positive_integer(getattr(self, field), field)
            if field.endswith("kib"):
                sram_energy(getattr(self, field))
        if self.convention not in ("corrected", "scale-sim"):
            raise ValueError(f"convention: expected 'corrected' or 'scale-sim', got {self.convention!r}")
        mac_energy(self.format)

    def ideal(self) -> IdealArray:
        """The lower bound for an array of this size."""
        return IdealArray(**{f.name: getattr(self, f.name) for f in fields(IdealArray)})

    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer."""
        quirks = self.convention == "scale-sim"
        row_folds, column_folds, stream = self._folds(*layer.gemm_shape(ceil=quirks))
        waits = self.scale_sim_waits if quirks else 2
        cycles = layer.groups * row_folds * column_folds * (waits * self.rows + self.columns + stream - 2)
        sram, dram = (traffic * layer.groups for traffic in self._traffic(layer))
        slots = cycles * self.rows * self.columns
        return Counts(cycles - quirks, layer.macs, slots, layer.macs, sram, dram, self._energy(layer.macs, sram, dram))

    def _folds(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        """Tiles along the rows, tiles along the columns, length of the stream."""
        on_rows, on_columns, stream = self._mapping(m, n, k)
        return -(-on_rows // self.rows), -(-on_columns // self.columns), stream

    def _falling_sums(self, m: int, n: int, k: int) -> tuple[int, int]:
        """Bytes on chip, and off chip, of outputs whose partial sums meet from row tile to row tile of a column."""
        row_folds, _, stream = self._folds(m, n, k)
        _, on_columns, _ = self._mapping(m, n, k)
        on_chip = (2 * row_folds - 1) * m * n * ACCUMULATOR_BYTES  # all but the first fold read them too
        column_tile = stream * min(on_columns, self.columns) * ACCUMULATOR_BYTES if row_folds > 1 else 0
        spilled = 2 * (row_folds - 1) * m * n * ACCUMULATOR_BYTES
        return on_chip, m * n * OPERAND_BYTES[self.format] + fetched(self.ofmap_kib, (column_tile, 0), (0, spilled))

    @abstractmethod
    def _mapping(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        """What the rows hold, what the columns hold, the length of the stream."""

    @abstractmethod
    def _traffic(self, layer: Layer) -> tuple[Traffic, Traffic]:
        """Bytes of one group between array and buffers, and between buffers and off-chip memory."""

    def _energy(self, macs: int, sram: Traffic, dram: Traffic) -> float:
        accesses = sram + dram  # what comes from off chip is written to a buffer before it is read
        on_chip = (
            accesses.ifmap * sram_energy(self.ifmap_kib)
            + accesses.filter * sram_energy(self.filter_kib)
            + accesses.ofmap * sram_energy(self.ofmap_kib)
        )
        return macs * mac_energy(self.format) + on_chip + dram.total * DRAM_ENERGY


def fetched(kib: int, *choices: tuple[float, int]) -> int:
    """Bytes from DRAM: of the first choice (bytes to keep, bytes then fetched) that fits half a buffer of `kib` KiB."""
    return next(traffic for kept, traffic in choices if kept <= kib * 1024 // 2)


@dataclass(frozen=True)
class IdealArray(SystolicArray):
    """The lower bound: never idle, and every operand crosses each level once.

    Examples
    --------
    >>> IdealArray(32, 32).cost_gemm(256, 256, 256).cycles
    16384
    """

    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer."""
        once, _ = self._traffic(layer)
        once *= layer.groups
        cycles = -(-layer.macs // (self.rows * self.columns))
        slots = cycles * self.rows * self.columns
        return Counts(cycles, layer.macs, slots, layer.macs, once, once, self._energy(layer.macs, once, once))

    def _mapping(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        return m, n, k

    def _traffic(self, layer: Layer) -> tuple[Traffic, Traffic]:
        m, n, k = layer.gemm_shape()
        word = OPERAND_BYTES[self.format]
        once = Traffic(layer.ifmap_elements * word, k * n * word, m * n * word)
        return once, once
