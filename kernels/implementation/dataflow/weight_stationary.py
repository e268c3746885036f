"""Weight-stationary dataflow: filters stay in the array, inputs and partial sums move."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.energy import OPERAND_BYTES
from kernels.implementation.dataflow.systolic import ACCUMULATOR_BYTES, SystolicArray, Traffic, fetched

__all__ = ["WeightStationary"]


@dataclass(frozen=True)
class WeightStationary(SystolicArray):
    """A tile of R weights of C filters stays; the m windows stream past, and partial sums fall down the columns.

        cycles = ceil(k / R) ceil(n / C) (2 R + C + m - 2)

    Every weight enters the array once. The inputs come anew for each of the ceil(n / C) column tiles, from DRAM unless
    all of them stay on chip; the m x C partial sums of a column tile meet ceil(k / R) times.

    Parameters
    ----------
    rows, columns, ifmap_kib, filter_kib, ofmap_kib, format, convention
        As in `SystolicArray`.

    Source: Jouppi et al., "In-datacenter performance analysis of a tensor processing unit", arXiv 1704.04760; cycles as
    in Samajdar et al., arXiv 1811.02883.

    Examples
    --------
    >>> counts = WeightStationary(rows=32, columns=32).cost_gemm(256, 256, 256)
    >>> counts.cycles, counts.sram.filter, round(counts.utilization, 3)
    (22400, 65536, 0.731)
    >>> WeightStationary(convention="scale-sim").cost_gemm(256, 256, 256).cycles
    22399
    """

    def _mapping(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        return k, n, m

    def _traffic(
        self, m: int, n: int, k: int, row_folds: int, column_folds: int, inputs: int, band: int
    ) -> tuple[Traffic, Traffic]:
        word = OPERAND_BYTES[self.format]
        windows = m * k * column_folds * word
        partial_sums = (2 * row_folds - 1) * m * n * ACCUMULATOR_BYTES  # all but the first fold read them too
        on_chip = Traffic(windows, k * n * word, partial_sums)
        column_tile = m * min(n, self.columns) * ACCUMULATOR_BYTES if row_folds > 1 else 0
        spilled = 2 * (row_folds - 1) * m * n * ACCUMULATOR_BYTES
        off_chip = Traffic(
            fetched(self.ifmap_kib, (inputs * word, inputs * word), (0, windows)),
            k * n * word,
            m * n * word + fetched(self.ofmap_kib, (column_tile, 0), (0, spilled)),
        )
        return on_chip, off_chip
