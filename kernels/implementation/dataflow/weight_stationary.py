"""Weight-stationary dataflow: filters stay in the array, inputs and partial sums move."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.energy import OPERAND_BYTES
from kernels.implementation.dataflow.cost_model import Traffic
from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.systolic import SystolicArray, fetched

__all__ = ["WeightStationary"]


@dataclass(frozen=True)
class WeightStationary(SystolicArray):
    """A tile of R weights of C filters stays; the m windows stream past, and partial sums fall down the columns.

        cycles = ceil(k / R) ceil(n / C) (2 R + C + m - 2)

    Every weight enters the array once. The inputs come anew for each of the ceil(n / C) column tiles, from DRAM unless
    all of them stay on chip. A fold takes pixels of a few channels: where the maps of these stay, a column tile fetches
    every input once; where one row of windows of them stays, once for each fold that takes of its channel. The m x C
    partial sums of a column tile meet ceil(k / R) times.

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

    def _traffic(self, layer: Layer) -> tuple[Traffic, Traffic]:
        m, n, k = layer.gemm_shape()
        _, column_folds, _ = self._folds(m, n, k)
        word = OPERAND_BYTES[self.format]
        inputs = layer.ifmap_elements * word
        windows = m * k * column_folds * word
        sums_on_chip, sums_off_chip = self._falling_sums(m, n, k)
        on_chip = Traffic(windows, k * n * word, sums_on_chip)
        channels = layer.in_channels // layer.groups
        pixels = k // channels
        taken = [(min(row + self.rows, k) - 1) // pixels - row // pixels + 1 for row in range(0, k, self.rows)]
        maps, band = (
            max(taken) * elements * word // channels for elements in (layer.ifmap_elements, layer.band_elements)
        )
        by_band = min(sum(taken) * inputs // channels * column_folds, windows)  # a fold may take few pixels of many
        off_chip = Traffic(
            fetched(self.ifmap_kib, (inputs, inputs), (maps, inputs * column_folds), (band, by_band), (0, windows)),
            k * n * word,
            sums_off_chip,
        )
        return on_chip, off_chip
