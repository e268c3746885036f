"""Input-stationary dataflow: inputs stay in the array, filters and partial sums move."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.energy import OPERAND_BYTES
from kernels.implementation.dataflow.cost_model import Traffic
from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.systolic import SystolicArray, fetched

__all__ = ["InputStationary"]


@dataclass(frozen=True)
class InputStationary(SystolicArray):
    """A tile of R inputs of C windows stays; the n filters stream past, and partial sums fall down the columns.

        cycles = ceil(k / R) ceil(m / C) (2 R + C + n - 2)

    Every window enters the array once, and overlapping windows share what they have in common where one row of windows
    stays on chip. The filters come anew for each of the ceil(m / C) column tiles, from DRAM unless all of them stay on
    chip; the n x C partial sums of a column tile meet ceil(k / R) times.

    Parameters
    ----------
    rows, columns, ifmap_kib, filter_kib, ofmap_kib, format, convention
        As in `SystolicArray`.

    Source: Parashar et al., "SCNN: An accelerator for compressed-sparse convolutional neural networks",
    arXiv 1708.04485, on keeping inputs still; cycles as in Samajdar et al., arXiv 1811.02883.

    Examples
    --------
    >>> counts = InputStationary(rows=32, columns=32).cost_gemm(128, 1000, 512)
    >>> counts.cycles, counts.sram.ifmap
    (70016, 65536)
    """

    def _mapping(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        return k, m, n

    def _traffic(self, layer: Layer) -> tuple[Traffic, Traffic]:
        m, n, k = layer.gemm_shape()
        _, column_folds, _ = self._folds(m, n, k)
        word = OPERAND_BYTES[self.format]
        inputs = layer.ifmap_elements * word
        filters = k * n * column_folds * word
        sums_on_chip, sums_off_chip = self._falling_sums(m, n, k)
        on_chip = Traffic(m * k * word, filters, sums_on_chip)
        off_chip = Traffic(
            fetched(self.ifmap_kib, (layer.band_elements * word, inputs), (0, m * k * word)),
            fetched(self.filter_kib, (k * n * word, k * n * word), (0, filters)),
            sums_off_chip,
        )
        return on_chip, off_chip
