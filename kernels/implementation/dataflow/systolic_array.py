"""The systolic array as a machine: a dataflow, and a memory that may be too slow for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from kernels.implementation.dataflow.cost_model import CostModel, Counts
from kernels.implementation.dataflow.input_stationary import InputStationary
from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.output_stationary import OutputStationary
from kernels.implementation.dataflow.systolic import IdealArray, SystolicArray
from kernels.implementation.dataflow.weight_stationary import WeightStationary

__all__ = ["DATAFLOWS", "StallCounts", "StallingArray"]

DATAFLOWS: dict[str, type[SystolicArray]] = {
    "weight": WeightStationary, "output": OutputStationary, "input": InputStationary,
}  # fmt: skip


@dataclass(frozen=True)
class StallCounts(Counts):
    """What layers cost on an array that waits for its memory.

    Parameters
    ----------
    stalls : float
        Cycles among the others in which the array stands still.
    """

    stalls: float = 0

    def figures(self) -> dict[str, float | None]:
        """Every figure by its name."""
        return {**super().figures(), "stall_cycles": self.stalls}


@dataclass(frozen=True)
class StallingArray(CostModel):
    r"""Time on a systolic array: fill, stream and drain of every fold, and what the memory makes it wait.

    A product is done in F folds, each of c = 2R + C + T - 2 cycles. While one is computed, half of each buffer is
    filled for the next. With D bytes from off chip in all, evenly over the folds, and B bytes a cycle, a fold's
    operands take d = D / (F B), and

    .. math:: \text{cycles} = d + (F - 1) \max(c, d) + c,

    since the first fold waits for its operands and nothing is left to fetch during the last. The array is as fast as
    its arithmetic where c exceeds d, and as fast as its memory elsewhere.

    Parameters
    ----------
    dataflow : {"output", "weight", "input"}
        Which operand stays.
    rows, columns : int
        Processing elements.
    bandwidth : float
        B, bytes a cycle from off-chip memory.
    ifmap_kib, filter_kib, ofmap_kib, format
        As in `SystolicArray`.

    Raises
    ------
    ValueError, KeyError
        As `SystolicArray`; if the dataflow is unknown, or the bandwidth not above zero.

    Source: Jouppi et al., "In-datacenter performance analysis of a tensor processing unit", 2017, section 2: the array,
    and memory that fills while it computes; cycles of a fold as in Samajdar et al., arXiv 1811.02883.

    Examples
    --------
    >>> layer = Layer.gemm(1, 1000, 512)                                    # one vector: every weight is used once
    >>> for bandwidth in (8, 64, 512):
    ...     counts = StallingArray(bandwidth=bandwidth).cost(layer)
    ...     print(f"{counts.cycles:8,.0f} cycles, {counts.stalls / counts.cycles:.0%} of them waiting")
      64,795 cycles, 70% of them waiting
      19,643 cycles, 1% of them waiting
      19,423 cycles, 0% of them waiting
    """

    dataflow: str = "output"
    rows: int = 32
    columns: int = 32
    bandwidth: float = 16
    ifmap_kib: int = 1024
    filter_kib: int = 1024
    ofmap_kib: int = 1024
    format: str = "int8"

    counts: ClassVar[type[Counts]] = StallCounts

    def __post_init__(self) -> None:
        if self.dataflow not in DATAFLOWS:
            raise ValueError(f"dataflow: expected {', '.join(DATAFLOWS)}, got {self.dataflow!r}")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth: expected bytes a cycle, above 0, got {self.bandwidth!r}")
        self._array()

    def _array(self) -> SystolicArray:
        names = {f.name for f in fields(SystolicArray)} - {"convention"}
        return DATAFLOWS[self.dataflow](**{name: getattr(self, name) for name in names})

    def ideal(self) -> IdealArray:
        """An array of this size that never waits and never fills."""
        return self._array().ideal()

    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer."""
        array = self._array()
        counts = array.cost_of(layer)
        row_folds, column_folds, _ = array._folds(*layer.gemm_shape())
        folds = layer.groups * row_folds * column_folds
        computing, fetching = counts.cycles / folds, counts.dram.total / (folds * self.bandwidth)
        cycles = fetching + (folds - 1) * max(computing, fetching) + computing
        return StallCounts(
            cycles, counts.macs, cycles * self.rows * self.columns, counts.used, counts.sram, counts.dram,
            counts.energy, cycles - counts.cycles,
        )  # fmt: skip
