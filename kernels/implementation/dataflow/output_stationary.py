"""Output-stationary dataflow: partial sums stay in the array until they are finished, both operands move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kernels.energy import OPERAND_BYTES
from kernels.implementation.dataflow.cost_model import Traffic
from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.systolic import ACCUMULATOR_BYTES, SystolicArray, fetched

__all__ = ["OutputStationary"]


@dataclass(frozen=True)
class OutputStationary(SystolicArray):
    """A tile of R windows by C filters of outputs stays; the k products of each stream in, finished sums drain out.

        cycles = ceil(m / R) ceil(n / C) (2 R + C + k - 2)

    A partial sum never leaves its processing element. The filters of a column tile come anew for each of the
    ceil(m / R) row tiles, from DRAM unless the column tile stays on chip; the inputs come anew for each of the
    ceil(n / C) column tiles.

    Parameters
    ----------
    rows, columns, ifmap_kib, filter_kib, ofmap_kib, format, convention
        As in `SystolicArray`.

    Source: Du et al., "ShiDianNao: Shifting vision processing closer to the sensor", ISCA 2015; cycles as in Samajdar
    et al., arXiv 1811.02883.

    Examples
    --------
    >>> counts = OutputStationary(rows=32, columns=32).cost_gemm(256, 256, 256)
    >>> counts.cycles, counts.sram.ofmap
    (22400, 262144)
    >>> OutputStationary(convention="scale-sim").cost_gemm(256, 256, 256).cycles
    20351
    """

    scale_sim_waits: ClassVar[int] = 1

    def _mapping(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        return m, n, k

    def _traffic(self, layer: Layer) -> tuple[Traffic, Traffic]:
        m, n, k = layer.gemm_shape()
        row_folds, column_folds, _ = self._folds(m, n, k)
        word = OPERAND_BYTES[self.format]
        inputs = layer.ifmap_elements * word
        windows, filters = m * k * column_folds * word, k * n * row_folds * word
        on_chip = Traffic(windows, filters, m * n * ACCUMULATOR_BYTES)
        off_chip = Traffic(
            fetched(
                self.ifmap_kib,
                (inputs, inputs),
                (layer.band_elements * word, inputs * column_folds),
                (0, windows),
            ),
            fetched(self.filter_kib, (k * min(n, self.columns) * word, k * n * word), (0, filters)),
            m * n * word,
        )
        return on_chip, off_chip
