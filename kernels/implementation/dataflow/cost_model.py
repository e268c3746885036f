"""What every model of an accelerator offers: the cost of layers that run one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from kernels.implementation.dataflow.layer import Layer

__all__ = ["CostModel", "Counts", "Traffic"]


@dataclass(frozen=True)
class Traffic:
    """Bytes that cross between two levels of memory, by operand."""

    ifmap: int = 0
    filter: int = 0
    ofmap: int = 0

    @property
    def total(self) -> int:
        """All three operands together."""
        return self.ifmap + self.filter + self.ofmap

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.ifmap + other.ifmap, self.filter + other.filter, self.ofmap + other.ofmap)

    def __mul__(self, times: int) -> Traffic:
        return Traffic(self.ifmap * times, self.filter * times, self.ofmap * times)


@dataclass(frozen=True)
class Counts:
    """What a list of layers costs. A model that counts more (registers, stalls) adds fields and figures in a subclass.

    Parameters
    ----------
    cycles : float
    macs : int
        Multiply-accumulates that the layers need.
    slots : float
        Operations that the units could have done in these cycles.
    used : float
        Those among them that did something.
    sram : Traffic
        Bytes between the array and the on-chip buffers.
    dram : Traffic
        Bytes between the buffers and off-chip memory.
    energy : float or None
        Joules, modelled (`kernels.energy`); None where no coefficient is cited.
    """

    cycles: float = 0
    macs: int = 0
    slots: float = 0
    used: float = 0
    sram: Traffic = Traffic()
    dram: Traffic = Traffic()
    energy: float | None = 0.0

    @property
    def utilization(self) -> float:
        """Share of the operations that the units could have done and did."""
        return self.used / self.slots if self.slots else 0.0

    def figures(self) -> dict[str, float | None]:
        """Every figure by its name; what crosses the edge of the chip is written to a buffer, or read from it, too."""
        return {
            "cycles": self.cycles,
            "macs": self.macs,
            "core_utilization": self.utilization,
            "sram_access": self.sram.total + self.dram.total,
            "memory_access": self.dram.total,
            "energy": self.energy,
        }

    def __add__(self, other: Self) -> Self:
        return type(self)(*(_sum(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


def _sum(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b


class CostModel(ABC):
    """Hardware in the constructor, layers in, counts out; a model is a frozen dataclass that costs one layer."""

    counts: ClassVar[type[Counts]] = Counts
    needs_values: ClassVar[bool] = False
    """Whether the cost depends on the numbers: layers should then be `ValuedLayer` objects."""
    missing: ClassVar[Mapping[str, str]] = {}
    """Why a figure of the counts is None, by its name."""

    @abstractmethod
    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer."""

    @abstractmethod
    def ideal(self) -> CostModel:
        """The model that this one is compared with, of the same size."""

    def cost(self, layers: Layer | Iterable[Layer]) -> Any:
        """Cycles, bytes and energy of layers that run one after another.

        Parameters
        ----------
        layers : Layer or iterable of Layer

        Returns
        -------
        Counts
        """
        layers = [layers] if isinstance(layers, Layer) else list(layers)
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"layers: expected Layer objects, got {type(layer).__name__}")
        return sum((self.cost_of(layer) for layer in layers), self.counts())

    def cost_gemm(self, m: int, n: int, k: int) -> Any:
        """The same for the product of an m x k matrix of inputs by a k x n matrix of weights."""
        return self.cost(Layer.gemm(m, n, k))
