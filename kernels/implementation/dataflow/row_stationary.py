"""Row-stationary: rows of filters and inputs stay in processing elements, each of which slides one over the other."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.energy import OPERAND_BYTES
from kernels.implementation.dataflow.cost_model import Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, positive_integer
from kernels.implementation.dataflow.systolic import ACCUMULATOR_BYTES, SystolicArray, fetched

__all__ = ["Mapping", "RowStationary"]


@dataclass(frozen=True)
class Mapping:
    """How a layer lies on the array.

    Attributes
    ----------
    strip : int
        Output rows that a set computes side by side, one a column.
    strips : int
        Sets of columns that a layer's output rows need, one after another.
    bands : int
        Pieces that a filter taller than the array is cut into.
    sets : int
        Sets of processing elements at work at one time, below and beside each other.
    filters, channels : int
        Filters and channels that an element interleaves, from what fits its registers.
    """

    strip: int
    strips: int
    bands: int
    sets: int
    filters: int
    channels: int


@dataclass(frozen=True)
class RowStationary(SystolicArray):
    r"""An array on which a filter's row stays in one processing element, and an input's row meets it there.

    The convolution of two rows is the primitive: element (i, j) slides filter row i over input row i + s j and makes
    a row of partial sums of output row j. A *set* of kernel height x output rows elements makes a plane of them:
    filter rows are shared along its rows, input rows along its diagonals, and partial sums are added up its columns.
    As many sets as fit work at once, on other channels and filters; an output with more rows than the array has
    columns is done in strips, a filter taller than the array in bands.

    .. math:: \text{cycles} = \left\lceil \frac{n\,c}{\text{sets}} \right\rceil \cdot \text{strips} \cdot \text{bands}
              \cdot (k_w \cdot \text{output width})

    for n filters of c channels. An element interleaves `filters` filters and `channels` channels as its registers
    allow: an input row is then read from the buffer once for so many filters, and a row of partial sums written once
    for so many channels.

    Parameters
    ----------
    rows, columns, ifmap_kib, filter_kib, ofmap_kib, format
        As in `SystolicArray`; the convention is its own, "corrected".
    ifmap_words, filter_words, psum_words : int
        Registers of an element: input and filter words, partial sums.

    Source: Chen et al., "Eyeriss: A Spatial Architecture for Energy-Efficient Dataflow for Convolutional Neural
    Networks", ISCA 2016, section V: primitives, logical sets, folding and replication.

    Examples
    --------
    >>> layer = Layer(64, 64, 56, 56, kernel=3, padding=1)
    >>> RowStationary(rows=12, columns=14).mapping(layer)
    Mapping(strip=14, strips=4, bands=1, sets=4, filters=16, channels=4)
    >>> counts = RowStationary(rows=12, columns=14).cost(layer)
    >>> f"{counts.utilization:.2f}", counts.sram.filter == 4 * 64 * 64 * 9
    ('1.00', True)
    """

    ifmap_words: int = 12
    filter_words: int = 224
    psum_words: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ifmap_words", "filter_words", "psum_words"):
            positive_integer(getattr(self, name), name)
        if self.convention != "corrected":
            raise ValueError(f"convention: SCALE-Sim keeps no rows; expected 'corrected', got {self.convention!r}")

    def mapping(self, layer: Layer) -> Mapping:
        """How a layer lies on the array."""
        height, _ = layer.output_size()
        tall, wide = _pair(layer.kernel)
        strip, band = min(height * layer.batch, self.columns), min(tall, self.rows)
        beside = self.columns // strip
        each = layer.in_channels // layer.groups
        channels = max(1, min(each, self.ifmap_words // wide))
        filters = min(layer.out_channels // layer.groups, self.psum_words, self.filter_words // (channels * wide))
        return Mapping(
            strip,
            -(-height * layer.batch // strip),
            -(-tall // band),
            self.rows // band * beside,
            max(1, filters),
            channels,
        )

    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer."""
        laid = self.mapping(layer)
        _, width = layer.output_size()
        _, wide = _pair(layer.kernel)
        planes = layer.out_channels // layer.groups * (layer.in_channels // layer.groups)
        cycles = layer.groups * -(-planes // laid.sets) * laid.strips * laid.bands * wide * width
        sram, dram = (traffic * layer.groups for traffic in self._traffic(layer))
        slots = cycles * self.rows * self.columns
        return Counts(cycles, layer.macs, slots, layer.macs, sram, dram, self._energy(layer.macs, sram, dram))

    def _mapping(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        return m, n, k  # only as an extent: rows, and not elements of a product, are what stays

    def _traffic(self, layer: Layer) -> tuple[Traffic, Traffic]:
        laid, word = self.mapping(layer), OPERAND_BYTES[self.format]
        m, n, k = layer.gemm_shape()
        each = layer.in_channels // layer.groups
        # inputs: once for the filters that an element interleaves; sets on other filters share the bus's one delivery
        inputs, rounds = layer.ifmap_elements * word, -(-n // laid.filters)
        # filters: once a strip, handed to all columns of the set
        weights = k * n * word
        # sums of so many channels are complete in an element; the rest meets in the buffer
        meetings = -(-each // laid.channels) * laid.bands
        sums = (2 * meetings - 1) * m * n * ACCUMULATOR_BYTES
        on_chip = Traffic(inputs * rounds * laid.bands, weights * laid.strips, sums)
        _, width = layer.output_size()
        open_sums = laid.filters * laid.strip * width * ACCUMULATOR_BYTES if meetings > 1 else 0
        off_chip = Traffic(
            fetched(self.ifmap_kib, (inputs, inputs), (0, inputs * rounds * laid.bands)),
            fetched(self.filter_kib, (weights, weights), (0, weights * laid.strips)),
            m * n * word + fetched(self.ofmap_kib, (open_sums, 0), (0, 2 * (meetings - 1) * m * n * ACCUMULATOR_BYTES)),
        )
        return on_chip, off_chip


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
