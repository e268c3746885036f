"""Two-sided sparsity: an engine that multiplies only where a weight and an input both differ from zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kernels.energy import DRAM_ENERGY, OPERAND_BYTES, mac_energy, sram_energy
from kernels.implementation.dataflow.cost_model import CostModel, Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, ValuedLayer, positive_integer

__all__ = ["TwoSidedSparsity", "compressed_bytes", "matches"]


def matches(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each window and filter, how many of their places hold a non-zero in both.

    Parameters
    ----------
    inputs : ndarray, shape (..., m, k)
    weights : ndarray, shape (..., n, k)

    Returns
    -------
    ndarray of int64, shape (..., m, n)

    Examples
    --------
    >>> matches(np.array([[1.0, 0.0, 2.0]]), np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]))
    array([[1, 1]])
    """
    there = (inputs != 0).astype(np.float32), (weights != 0).astype(np.float32).swapaxes(-1, -2)
    return np.rint(there[0] @ there[1]).astype(np.int64)


def compressed_bytes(elements: int, nonzeros: float, word: int) -> float:
    """Bytes of values stored as a bitmap and the non-zeros, or as they are where that is less.

    Examples
    --------
    >>> compressed_bytes(64, 10, word=1), compressed_bytes(64, 64, word=1)
    (18.0, 64.0)
    """
    return float(min(elements / 8 + nonzeros * word, elements * word))


@dataclass(frozen=True)
class TwoSidedSparsity(CostModel):
    r"""An array whose elements each work through the common non-zeros of one window and one filter.

    Element (r, c) of a tile takes window r and filter c, finds the places where both differ from zero (the *and* of two
    bitmaps) and multiplies `lanes` of them a cycle. The tile is done when its slowest element is:

    .. math:: \text{cycles} = \sum_\text{tiles} \max\left(1, \max_{r, c}
              \left\lceil \frac{|\{t : x_{rt} \ne 0,\, w_{ct} \ne 0\}|}{\text{lanes}} \right\rceil\right)

    A dense array of as many multipliers takes ⌈k / lanes⌉ for every tile. Filters may be dealt out so that those of
    a tile have like numbers of non-zeros (`balanced`), since waiting for the slowest is what is lost. Weights and
    inputs move compressed, as bitmaps and non-zeros; outputs too, at the density of the inputs.

    A `ValuedLayer` is counted on its numbers, over the items it has; a plain `Layer` has none and counts as dense.

    Parameters
    ----------
    rows, columns : int
        Elements.
    lanes : int
        Multipliers of an element.
    sides : {"both", "weights", "inputs"}
        Whose zeros are skipped.
    balanced : bool
        Whether filters are ordered by their non-zeros.
    kib : int
        Capacity of the buffer, for its energy.
    format : {"int8", "fp16", "fp32"}

    Raises
    ------
    ValueError, KeyError
        If a parameter is none of these, or the table of energies knows it not.

    Source: Parashar et al., "SCNN", ISCA 2017, for both sides compressed; Gondimalla et al., "SparTen", MICRO 2019, for
    bitmaps, inner products and greedy balancing of filters.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> w, x = (rng.standard_normal((1, n, 64)) * (rng.random((1, n, 64)) < 0.3) for n in (32, 100))
    >>> layer = ValuedLayer(64, 32, 10, 10, weights=w, inputs=x[None])
    >>> for sides in ("weights", "inputs", "both"):
    ...     counts = TwoSidedSparsity(8, 8, lanes=4, sides=sides).cost(layer)
    ...     print(f"{sides:8} {counts.cycles:5.0f} cycles, {counts.utilization:.0%} busy")
    weights    338 cycles, 69% busy
    inputs     332 cycles, 69% busy
    both       162 cycles, 41% busy
    """

    rows: int = 8
    columns: int = 8
    lanes: int = 4
    sides: str = "both"
    balanced: bool = False
    kib: int = 1024
    format: str = "int8"

    needs_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "lanes", "kib"):
            positive_integer(getattr(self, name), name)
        if self.sides not in ("both", "weights", "inputs"):
            raise ValueError(f"sides: expected both, weights or inputs, got {self.sides!r}")
        sram_energy(self.kib)
        mac_energy(self.format)

    def ideal(self) -> CostModel:
        """A dense array of as many multipliers, never idle."""
        return _Dense(self.rows, self.columns, self.lanes, kib=self.kib, format=self.format)

    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer, the mean over items where there are several."""
        inputs, weights = self._values(layer)
        if self.sides == "weights":
            inputs = np.ones_like(inputs)
        elif self.sides == "inputs":
            weights = np.ones_like(weights)
        if self.balanced:
            weights = np.stack([group[np.argsort((group != 0).sum(1), kind="stable")] for group in weights])
        pairs = np.stack([matches(item, weights) for item in inputs])  # items, groups, m, n
        items = len(pairs)
        cycles = _tiles(-(-pairs // self.lanes), self.rows, self.columns).sum() / items
        return self._counted(layer, cycles, pairs.sum() / items, _share(inputs), _share(weights))

    def _values(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        m, n, k = layer.gemm_shape()
        if isinstance(layer, ValuedLayer):
            return layer.inputs, layer.weights
        return np.ones((1, layer.groups, m, k), bool), np.ones((layer.groups, n, k), bool)

    def _counted(self, layer: Layer, cycles: float, used: float, inputs: float, weights: float) -> Counts:
        m, n, k = layer.gemm_shape()
        word = OPERAND_BYTES[self.format]
        moved = [
            compressed_bytes(count, count * share, word)
            for count, share in ((layer.ifmap_elements, inputs), (n * k, weights), (m * n, inputs))
        ]
        dram = Traffic(*(round(layer.groups * x) for x in moved))
        windows = compressed_bytes(m * k, m * k * inputs, word) * -(-n // self.columns)
        filters = compressed_bytes(n * k, n * k * weights, word) * -(-m // self.rows)
        sram = Traffic(round(layer.groups * windows), round(layer.groups * filters), layer.groups * m * n * word)
        energy = used * mac_energy(self.format) + (sram + dram).total * sram_energy(self.kib) + dram.total * DRAM_ENERGY
        return Counts(cycles, layer.macs, cycles * self.rows * self.columns * self.lanes, used, sram, dram, energy)


@dataclass(frozen=True)
class _Dense(TwoSidedSparsity):
    def cost_of(self, layer: Layer) -> Counts:
        macs = layer.macs
        return self._counted(layer, macs / (self.rows * self.columns * self.lanes), macs, 1.0, 1.0)


def _share(values: np.ndarray) -> float:
    return float(np.count_nonzero(values)) / values.size if values.size else 0.0


def _tiles(cycles: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The slowest element of each tile, and one cycle at least."""
    m, n = cycles.shape[-2:]
    wide = np.pad(cycles, [(0, 0)] * (cycles.ndim - 2) + [(0, -m % rows), (0, -n % columns)])
    shape = (*wide.shape[:-2], wide.shape[-2] // rows, rows, wide.shape[-1] // columns, columns)
    return np.maximum(1, wide.reshape(shape).max(axis=(-3, -1)))
