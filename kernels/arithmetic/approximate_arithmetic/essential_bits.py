"""The cost of layers on an array that takes one operand bit by bit and skips the bits that are zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar

import numpy as np

from kernels.implementation.dataflow.cost_model import CostModel, Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, ValuedLayer, positive_integer

__all__ = ["BitCounts", "BitParallel", "EssentialBits", "digits", "fixed_point", "plain_signed_digits"]


def plain_signed_digits(x: int) -> list[int]:
    """The canonical signed digits of an integer of at least 0, lowest first: -1, 0 or 1, no two neighbours set.

    Examples
    --------
    >>> plain_signed_digits(7)                                      # 8 - 1
    [-1, 0, 0, 1]
    """
    found = []
    while x:
        digit = 2 - x % 4 if x % 2 else 0
        found.append(digit)
        x = (x - digit) // 2
    return found


def digits(codes: np.ndarray, recoding: str) -> np.ndarray:
    """How many digits of each magnitude are not zero.

    Parameters
    ----------
    codes : ndarray of integers
        Their signs play no part.
    recoding : {"binary", "signed-digit"}
        The canonical signed digits of n differ from zero where n and 3 n differ.

    Returns
    -------
    ndarray of uint8

    Examples
    --------
    >>> digits(np.array([0, 7, -8]), "binary"), digits(np.array([0, 7, -8]), "signed-digit")
    (array([0, 3, 1], dtype=uint8), array([0, 2, 1], dtype=uint8))
    """
    size = np.abs(codes.astype(np.int64))
    return np.bitwise_count(size if recoding == "binary" else size ^ (3 * size))


def fixed_point(x: np.ndarray, bits: int) -> np.ndarray:
    """Integers of a sign and bits - 1 bits, at the power of two at which the largest number just fits.

    Raises
    ------
    ValueError
        If a number is infinite or NaN.

    Examples
    --------
    >>> fixed_point(np.array([0.75, -1.5, 0.0]), bits=4)            # in steps of 1/4
    array([ 3, -6,  0])
    """
    x = np.asarray(x, np.float64)
    largest = np.abs(x).max(initial=0)
    if not np.isfinite(largest):
        raise ValueError("values: expected finite numbers, which have a fixed point; they hold infinity or NaN")
    top = 2 ** (bits - 1) - 1
    step = np.exp2(np.frexp(largest)[1] - (bits - 1)) if largest else 1.0
    return np.clip(np.rint(x / step), -top, top).astype(np.int64)


@dataclass(frozen=True)
class BitCounts(Counts):
    """What a list of layers costs; its operations are of one bit, and those used have a digit that is not zero.

    Parameters
    ----------
    values : float
        Serial operands that were taken, each as often as it comes; cycles and digits are means over items where there
        are several.
    """

    values: float = 0

    @property
    def essential_bits(self) -> float:
        """Digits other than zero of a serial operand, on average."""
        return self.used / self.values if self.values else 0.0

    def figures(self) -> dict[str, float | None]:
        """Every figure by its name."""
        return {**super().figures(), "essential_bits": self.essential_bits}


@dataclass(frozen=True)
class EssentialBits(CostModel):
    """An array of one-bit lanes that spends cycles on set bits only.

    A bit-parallel array multiplies a brick of `rows` operands of one window by those of `columns` filters in a cycle,
    zeros of their bits included. This one has as many one-bit lanes as that one has bits in its multipliers: it takes
    `bits` windows at once, each operand digit by digit from its highest set digit to its lowest, and adds the other
    operand, shifted. All lanes of a window wait for its operand with most digits set; with one word for all windows
    (`pallet`) they wait for that of all windows:

        cycles = ceil(n / columns) sum over pallets and bricks of max(1, max over windows and rows of digits)

    If every operand had all its bits set it would take as long as the bit-parallel array, and never longer where there
    are windows enough: a fully connected layer has one for each item, and all other lanes idle.

    Parameters
    ----------
    rows, columns : int
    bits : int, 2 to 16
        Of the fixed-point operands, sign included; and windows taken at once.
    recoding : {"binary", "signed-digit"}
        How the serial operand is written: magnitudes in binary, or canonical signed digits, at most every other set.
    operand : {"inputs", "weights"}
        Which operand is taken bit by bit. With weights, filters take the place of windows, and windows that of filters.
    sync : {"pallet", "column"}
        Whether all windows wait for each other after each brick, or each goes on through its own.

    Raises
    ------
    ValueError
        If a parameter is none of these.

    Notes
    -----
    Source: Albericio et al., "Bit-Pragmatic deep neural network computing", MICRO 2017, arXiv 1610.06920: essential
    bits, pallets and bricks, both kinds of synchronization, an improved encoding in signed digits. The paper limits how
    far lanes may shift apart in a cycle; lanes here may shift by any amount.

    A `ValuedLayer` is counted on its numbers; a plain `Layer`, which has none, at the expected value for codes of which
    each is as likely as any other (with `column`, of a window by itself, which the slowest of them exceeds).

    Examples
    --------
    >>> layer = Layer(64, 64, 14, 14, kernel=3, padding=1)
    >>> array = EssentialBits()
    >>> round(array.ideal().cost(layer).cycles), round(array.cost(layer).cycles)
    (28224, 23706)
    >>> numbers = np.abs(np.random.default_rng(0).standard_normal((1, 1, 196, 576)))         # half as many as it looks
    >>> valued = ValuedLayer(64, 64, 14, 14, 3, 1, 1, weights=numbers[0, :, :64], inputs=numbers)
    >>> array.cost(valued).cycles < array.ideal().cost(valued).cycles
    True
    """

    rows: int = 16
    columns: int = 16
    bits: int = 16
    recoding: str = "binary"
    operand: str = "inputs"
    sync: str = "pallet"

    counts = BitCounts
    needs_values = True
    missing: ClassVar[Mapping[str, str]] = {
        "energy": "no cited energy for a shift-and-add of one bit, nor for a 16-bit multiplication"
    }

    def __post_init__(self) -> None:
        positive_integer(self.rows, "rows")
        positive_integer(self.columns, "columns")
        positive_integer(self.bits, "bits", least=2)
        if self.bits > 16:
            raise ValueError(f"bits: expected an integer from 2 to 16, got {self.bits!r}")
        for name, known in (
            ("recoding", ("binary", "signed-digit")),
            ("operand", ("inputs", "weights")),
            ("sync", ("pallet", "column")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")

    def ideal(self) -> BitParallel:
        """The bit-parallel array that has as many bits in its multipliers as this one has lanes."""
        return BitParallel(**{f.name: getattr(self, f.name) for f in fields(self)})

    def cost_of(self, layer: Layer) -> BitCounts:
        """The cost of one layer."""
        m, n, k = layer.gemm_shape()
        serial, parallel = (m, n) if self.operand == "inputs" else (n, m)
        passes = -(-parallel // self.columns)
        cycles, ones = 0.0, 0.0
        for share, counted in self._digits(layer):
            ones += share * float(counted.sum())
            cycles += share * self._cycles(counted) * passes
        if not isinstance(layer, ValuedLayer):
            cycles, ones = layer.groups * passes * self._expected(serial, k), layer.macs / parallel * self._mean()
        word = self.bits / 8
        inputs, weights, outputs = m * k, k * n, m * n
        again = {"inputs": (passes, self._reads(m)), "weights": (self._reads(n), passes)}[self.operand]
        sram = Traffic(*(round(x * word) for x in (inputs * again[0], weights * again[1], outputs))) * layer.groups
        once = (layer.ifmap_elements, weights, outputs)
        dram = Traffic(*(round(x * word) for x in once)) * layer.groups
        lanes = cycles * self.rows * self.columns * self.bits
        return BitCounts(cycles, layer.macs, lanes, ones * parallel, sram, dram, None, layer.macs)

    def _digits(self, layer: Layer) -> Iterator[tuple[float, np.ndarray]]:
        """Digits of the serial operand, a matrix (serial, k) for each item and group, and the share it counts for."""
        if not isinstance(layer, ValuedLayer):
            return
        values = layer.inputs if self.operand == "inputs" else layer.weights[None]
        m, n, k = layer.gemm_shape()
        expected = (layer.groups, m if self.operand == "inputs" else n, k)
        if values.shape[1:] != expected:
            raise ValueError(
                f"layers: expected {self.operand} of shape (items, {', '.join(map(str, expected))}) "
                f"for {layer.name!r}, got {values.shape}"
            )
        for item in digits(fixed_point(values, self.bits), self.recoding):
            for group in item:
                yield 1 / len(values), group

    def _cycles(self, counted: np.ndarray) -> float:
        """Cycles of one pass over operands with so many digits, (serial, k)."""
        serial, k = counted.shape
        bricks, rounds = -(-k // self.rows), -(-serial // self.bits)
        whole = np.zeros((rounds * self.bits, bricks * self.rows), np.uint8)
        whole[:serial, :k] = counted
        waits = np.maximum(whole.reshape(rounds, self.bits, bricks, self.rows).max(3), 1).astype(np.int64)
        return float(waits.max(1).sum() if self.sync == "pallet" else waits.sum((0, 2)).max())

    def _expected(self, serial: int, k: int) -> float:
        """The expected cycles of one pass over operands of any codes, each as likely as the other."""
        below = np.cumsum(_histogram(self.bits, self.recoding))
        whole, rest = divmod(k, self.rows)
        total = 0.0
        for lanes, bricks in ((self.rows, whole), (rest, 1 if rest else 0)):
            if not bricks:
                continue
            if self.sync == "column":  # the mean over windows of what each waits for
                total += bricks * _largest(below, lanes) * -(-serial // self.bits)
                continue
            full, few = divmod(serial, self.bits)
            for windows, rounds in ((self.bits, full), (few, 1 if few else 0)):
                total += bricks * rounds * _largest(below, lanes * windows) if windows else 0
        return total

    def _mean(self) -> float:
        chances = _histogram(self.bits, self.recoding)
        return float(np.arange(len(chances)) @ chances)

    def _reads(self, serial: int) -> int:
        """How often the parallel operand is read on chip: once for all windows that are taken together."""
        return -(-serial // self.bits)


@dataclass(frozen=True)
class BitParallel(EssentialBits):
    """The array that multiplies whole operands, whatever their bits: a brick of a window each cycle.

        cycles = ceil(n / columns) m ceil(k / rows)

    Examples
    --------
    >>> BitParallel().cost_gemm(196, 64, 576).cycles
    28224.0
    """

    def _cycles(self, counted: np.ndarray) -> float:
        return float(len(counted) * -(-counted.shape[1] // self.rows))

    def _expected(self, serial: int, k: int) -> float:
        return float(serial * -(-k // self.rows))

    def _reads(self, serial: int) -> int:
        return serial


def _largest(below: np.ndarray, draws: int) -> float:
    """The expected largest of so many independent draws, at least 1: sum over t of P(largest > t)."""
    return 1 + float((1 - below[1:] ** draws).sum())


@lru_cache(maxsize=64)
def _histogram(bits: int, recoding: str) -> np.ndarray:
    """The chance of each number of digits, of a magnitude of bits - 1 bits."""
    counted = digits(np.arange(2 ** (bits - 1)), recoding)
    return np.bincount(counted, minlength=bits + 1) / counted.size
