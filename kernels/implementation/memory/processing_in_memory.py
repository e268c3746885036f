"""Processing in memory: products in crossbars of resistive cells, whose columns add currents and are then converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar

import numpy as np
from numba import njit

from kernels.arithmetic.prepared_product import Prepared, PreparedProduct
from kernels.arrays import as_array, describe
from kernels.implementation.dataflow.cost_model import CostModel, Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, positive_integer
from kernels.implementation.dataflow.systolic import IdealArray

__all__ = ["ProcessingInMemory", "plain_product", "resolution"]


def resolution(rows: int, input_bits: int, cell_bits: int, flip: bool = False) -> int:
    r"""Bits that a converter needs to tell every sum of a column from every other.

    .. math:: A = \left\lceil \log_2\left(R\,(2^v - 1)(2^w - 1) + 1\right) \right\rceil

    for R rows, inputs of v bits and cells of w. With R a power of two that is :math:`\log_2 R + v + w` where both v and
    w exceed one, and one less where one of them is one. A column whose cells sum to more than half of what they could
    may hold their complements instead (`flip`): its sums reach half as far, and the converter needs one bit less.

    Source: Shafiee et al., "ISAAC", ISCA 2016: 128 rows, one input bit and two-bit cells, flipped, take 8 bits.

    Examples
    --------
    >>> resolution(128, 1, 2), resolution(128, 1, 2, flip=True), resolution(128, 2, 2)
    (9, 8, 11)
    """
    return max(1, _largest_sum(rows, input_bits, cell_bits, flip).bit_length())


def _largest_sum(rows: int, input_bits: int, cell_bits: int, flip: bool) -> int:
    cells = rows * (2**cell_bits - 1)
    return (cells // 2 if flip else cells) * (2**input_bits - 1)


def plain_product(x: np.ndarray, w: np.ndarray, model: ProcessingInMemory) -> np.ndarray:
    r"""The definition: bit by bit of the inputs, slice by slice of the weights, rows by rows of a crossbar.

    .. math:: x w = \sum_b \pm 2^b \sum_s 2^{c s} \sum_\text{crossbars} \mathrm{ADC}\left(\sum_r x_{r b} g_{r s}\right)
              - 2^{B-1} \sum_r x_r

    with the inputs in two's complement, their sign bit negative, and :math:`w + 2^{B-1} \ge 0` in cells of c bits.

    Parameters
    ----------
    x : ndarray of int, shape (m, k)
    w : ndarray of int, shape (k, n)
    model : ProcessingInMemory

    Returns
    -------
    ndarray of float64, shape (m, n)

    Examples
    --------
    >>> x, w = np.array([[3, -2, 127]]), np.array([[1], [-128], [5]])
    >>> plain_product(x, w, ProcessingInMemory()), x @ w
    (array([[894.]]), array([[894]]))
    """
    total = np.zeros((len(x), w.shape[1]))
    for first in range(0, len(w), model.rows):
        rows = slice(first, first + model.rows)
        for s, (conductances, flipped) in enumerate(model._programmed(w[rows], first)):
            for b in range(model.input_bits):
                bits = (x[:, rows] >> b & 1).astype(np.float64)
                read = model._converted(bits @ conductances.astype(np.float64))
                ones = bits.sum(axis=1, keepdims=True)
                read = np.where(flipped, model.highest * ones - read, read)
                total += (-1 if b == model.input_bits - 1 else 1) * 2.0 ** (b + model.cell_bits * s) * read
    return total - 2.0 ** (model.weight_bits - 1) * x.sum(axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Crossbars(Prepared):
    """Weights as conductances.

    Attributes
    ----------
    scale : float
        Of the weights' integers.
    cells : list of (ndarray of float32, shape (rows, slices * n), ndarray of bool, shape (slices * n,))
        For each crossbar's worth of rows, slice by slice; which columns are flipped.
    """

    scale: float
    cells: list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class PimCounts(Counts):
    """What crossbars do besides: columns converted, and cells that conducted or could have."""

    conversions: int = 0
    cell_reads: int = 0

    def figures(self) -> dict[str, float | None]:
        """Every figure by its name."""
        return {**super().figures(), "conversions": self.conversions, "cell_reads": self.cell_reads}


@dataclass(frozen=True)
class ProcessingInMemory(CostModel, PreparedProduct):
    r"""Weights stay as conductances in crossbars; an input drives a row, and a column adds the products as a current.

    Inputs come one bit at a time, so that a row is driven or not; weights lie in cells of a few bits, side by side. A
    converter turns each column's sum into a number, and shifts and adds make the product of them. With as many bits as
    `resolution` says the product is exact, whatever the operands. With fewer, the converter divides the same range into
    coarser steps. A cell whose conductance is off by some share adds that share of its current.

    As a cost model: every layer has crossbars of its own and keeps its weights there for good. All crossbars of a layer
    work at once, a read of every column a cycle, so that a layer takes one cycle for each bit of each window. Layers
    run one after another, and their inputs and results cross the chip's edge once; weights never do.

    Parameters
    ----------
    adc_bits : int
        Of the converters.
    variation : float
        σ of the logarithm of a cell's conductance: each cell is off by its own factor, whose mean is one, from when it
        was programmed on.
    cell_bits : int
    rows, columns : int
        Of a crossbar.
    weight_bits, input_bits : int
        Of the integers that weights and inputs are rounded to, symmetric around zero.
    flip : bool
        Whether columns may hold complements.
    seed : int
        Of the cells' factors.
    scale : float
        Of the inputs' integers, as `fit` finds it; 0 takes the largest of the operand.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Source: Shafiee et al., "ISAAC", ISCA 2016 (the scheme, and the defaults); Chi et al., "PRIME", ISCA 2016 (crossbars
    in main memory).

    Examples
    --------
    >>> x, w = np.eye(3, dtype=np.float32), np.array([[0.5, -1.0], [0.25, 0.0], [1.0, 0.75]], np.float32)
    >>> np.abs(ProcessingInMemory().matmul(x, w) - w).max() < 0.01
    np.True_
    >>> counts = ProcessingInMemory().cost_gemm(1, 10, 300)
    >>> counts.cycles, counts.conversions, counts.dram
    (8, 960, Traffic(ifmap=300, filter=0, ofmap=10))
    """

    adc_bits: int = 8
    variation: float = 0.0
    cell_bits: int = 2
    rows: int = 128
    columns: int = 128
    weight_bits: int = 8
    input_bits: int = 8
    flip: bool = True
    seed: int = 0
    scale: float = 0.0

    counts: ClassVar[type[Counts]] = PimCounts
    missing: ClassVar[Mapping[str, str]] = {
        "energy": "the cited table has no coefficient for a cell that conducts or a column that is converted",
    }

    def __post_init__(self) -> None:
        for name in ("adc_bits", "cell_bits", "rows", "columns"):
            positive_integer(getattr(self, name), name)
        for name in ("weight_bits", "input_bits"):
            positive_integer(getattr(self, name), name, least=2)
            if getattr(self, name) > 16:
                raise ValueError(f"{name}: expected at most 16, got {getattr(self, name)}")
        if self.rows * self.highest >= 2**24:
            raise ValueError(f"rows: expected columns that sum to less than 2^24, got {self.rows} of {self.highest}")
        if self.cell_bits > self.weight_bits:
            raise ValueError(f"cell_bits: expected at most weight_bits, {self.weight_bits}, got {self.cell_bits}")
        for name in ("variation", "scale"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)!r}")

    @property
    def slices(self) -> int:
        """Cells of a weight."""
        return -(-self.weight_bits // self.cell_bits)

    @property
    def highest(self) -> int:
        """Of a cell."""
        return int(2**self.cell_bits) - 1

    @property
    def needed_bits(self) -> int:
        """Of a converter whose product is exact."""
        return resolution(self.rows, 1, self.cell_bits, self.flip)

    @property
    def random(self) -> bool:
        """Whether the seed matters."""
        return self.variation > 0

    # --- the product ------------------------------------------------------------------------------------------------

    def fit(self, weight: np.ndarray, inputs: np.ndarray) -> ProcessingInMemory:
        """The same with the scale that a layer's inputs ask for, of shape (items, k)."""
        return replace(self, scale=_scale(inputs, self.input_bits))

    def prepare(self, w: Any) -> Crossbars:
        """Round weights to integers, and program them.

        Parameters
        ----------
        w : array_like or torch.Tensor of shape (k, n)

        Raises
        ------
        TypeError, ValueError
            If it is no matrix of finite numbers.
        """
        matrix = as_array(w, "w", ndim=2)
        if not np.isfinite(matrix).all():
            raise ValueError(f"w: expected finite numbers, got {describe(w)} with others")
        scale = _scale(matrix, self.weight_bits)
        integers = _integers(matrix, scale, self.weight_bits)
        cells = []
        for first in range(0, len(integers), self.rows):
            parts = self._programmed(integers[first : first + self.rows], first)
            cells.append((np.concatenate([g for g, _ in parts], axis=1), np.concatenate([f for _, f in parts])))
        return Crossbars(self, (matrix.shape[0], matrix.shape[1]), scale, cells)

    def product(self, x: np.ndarray, cells: list[tuple[np.ndarray, np.ndarray]], n: int) -> np.ndarray:
        """`plain_product` with all slices of a crossbar's rows in one product of matrices.

        Parameters
        ----------
        x : ndarray of int, shape (m, k)
        cells : list
            Of `Crossbars`.
        n : int
            Columns of the result.
        """
        total = -(2.0 ** (self.weight_bits - 1)) * np.repeat(x.sum(axis=1, keepdims=True).astype(np.float64), n, axis=1)
        for tile, (conductances, flipped) in enumerate(cells):
            part = x[:, tile * self.rows : (tile + 1) * self.rows]
            for b in range(self.input_bits):
                bits = (part >> b & 1).astype(np.float32)
                weight = (-1 if b == self.input_bits - 1 else 1) * 2.0**b
                _read(bits @ conductances, bits.sum(axis=1), flipped, self._step, self._top, self.highest,
                      weight, 2.0**self.cell_bits, total)  # fmt: skip
        return total

    def _times(self, x: np.ndarray, w: Crossbars) -> np.ndarray:
        if not np.isfinite(x).all():
            raise ValueError("x: expected finite numbers")
        scale = self.scale or _scale(x, self.input_bits)
        integers = _integers(x, scale, self.input_bits)
        return (self.product(integers, w.cells, w.shape[1]) * (scale * w.scale)).astype(np.float32)

    def _programmed(self, w: np.ndarray, first: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Conductances of each slice of the weights in the rows from `first` on, and which columns are flipped."""
        stored = w.astype(np.int64) + 2 ** (self.weight_bits - 1)
        found = []
        for s in range(self.slices):
            cells = stored >> (self.cell_bits * s) & self.highest
            flipped = self.flip & (2 * cells.sum(axis=0) > self.rows * self.highest)
            conductances = np.where(flipped, self.highest - cells, cells).astype(np.float32)
            if self.variation:
                draws = np.random.default_rng([self.seed, first, s]).standard_normal(cells.shape, np.float32)
                conductances *= np.exp(np.float32(self.variation) * draws - np.float32(self.variation**2 / 2))
            found.append((conductances, flipped))
        return found

    @property
    def _top(self) -> int:
        """The highest code of a converter."""
        return int(2**self.adc_bits) - 1

    @property
    def _step(self) -> float:
        """Of a converter, in units of a cell: one, or what spreads its codes over the largest sum."""
        return max(1.0, _largest_sum(self.rows, 1, self.cell_bits, self.flip) / self._top)

    def _converted(self, sums: np.ndarray) -> np.ndarray:
        return np.minimum(np.floor(sums / self._step + 0.5), self._top) * self._step

    # --- the cost ---------------------------------------------------------------------------------------------------

    def crossbars(self, layer: Layer) -> int:
        """How many crossbars hold a layer's weights."""
        _, n, k = layer.gemm_shape()
        return layer.groups * ceil(k / self.rows) * ceil(n * self.slices / self.columns)

    def cost_of(self, layer: Layer) -> PimCounts:
        """The cost of one layer."""
        m, n, k = layer.gemm_shape()
        word, reads = ceil(self.input_bits / 8), m * self.input_bits
        cells = layer.groups * k * n * self.slices
        converted = layer.groups * ceil(k / self.rows) * n * self.slices * reads
        moved = Traffic(layer.ifmap_elements * word, 0, m * n * word) * layer.groups
        buffered = Traffic(m * k * word, 0, m * n * word) * layer.groups
        slots = reads * self.crossbars(layer) * self.rows * self.columns
        return PimCounts(
            reads, layer.macs, slots, cells * reads, buffered, moved, None, converted, cells * reads
        )  # fmt: skip

    def ideal(self) -> CostModel:
        """A digital array of as many multipliers as a crossbar has cells, to which every operand comes once."""
        return IdealArray(self.rows, self.columns)


@njit(cache=True, nogil=True)
def _read(sums, ones, flipped, step, top, highest, weight, radix, total):
    """Convert sums (m, slices * n), undo what is flipped, and add them with their weights to the total (m, n)."""
    m, n = total.shape
    inverse = 1.0 / step
    for i in range(m):
        at, value = 0, weight
        while at < sums.shape[1]:
            for j in range(n):
                read = min(np.floor(sums[i, at + j] * inverse + 0.5), top) * step
                if flipped[at + j]:
                    read = highest * ones[i] - read
                total[i, j] += value * read
            at += n
            value *= radix


def _scale(x: np.ndarray, bits: int) -> float:
    largest = float(np.abs(x).max(initial=0.0))
    return largest / (2 ** (bits - 1) - 1) if largest else 1.0


def _integers(x: np.ndarray, scale: float, bits: int) -> np.ndarray:
    limit = 2 ** (bits - 1) - 1
    return np.clip(np.rint(np.asarray(x, np.float64) / scale), -limit, limit).astype(np.int64)
