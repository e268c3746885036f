"""Platform choice: the machine of least time or energy for a network, by a roofline over published parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kernels.energy import OPERAND_BYTES
from kernels.implementation.dataflow.cost_model import CostModel, Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, positive_integer

__all__ = ["PLATFORMS", "Platform", "PlatformChoice", "choose"]


@dataclass(frozen=True)
class Platform:
    """A machine as a roofline sees it.

    Parameters
    ----------
    name, kind : str
    format : str
        Operands of its fastest multiplier, a format of `kernels.energy`.
    peak : float
        Operations a second in that format, a multiply-accumulate being two.
    bandwidth : float
        Bytes a second from its memory.
    power : float
        Watts of the chip when busy.
    clock : float
        Cycles a second.
    """

    name: str
    kind: str
    format: str
    peak: float
    bandwidth: float
    power: float
    clock: float

    @property
    def ridge(self) -> float:
        """Operations a byte above which arithmetic, and not memory, is the limit.

        Examples
        --------
        >>> {name: round(platform.ridge) for name, platform in PLATFORMS.items()}
        {'cpu': 25, 'cpu-int8': 51, 'gpu': 18, 'asic': 2706}
        """
        return self.peak / self.bandwidth


PLATFORMS = {
    "cpu": Platform("Haswell E5-2699 v3", "CPU", "fp32", 1.3e12, 51e9, 145.0, 2.3e9),
    "cpu-int8": Platform("Haswell E5-2699 v3", "CPU", "int8", 2.6e12, 51e9, 145.0, 2.3e9),
    "gpu": Platform("NVIDIA K80, one of its two dies", "GPU", "fp32", 2.8e12, 160e9, 98.0, 0.56e9),
    "asic": Platform("TPU", "ASIC", "int8", 92e12, 34e9, 40.0, 0.7e9),
}
"""Four uses of three chips that stood in one data centre at one time; a die each, measured watts when busy.

Source: Jouppi et al., "In-Datacenter Performance Analysis of a Tensor Processing Unit", ISCA 2017, table 2."""


@dataclass(frozen=True)
class PlatformCounts(Counts):
    """What layers cost on a platform; of what stays on the chip nothing is known."""

    def figures(self) -> dict[str, float | None]:
        """Every figure by its name."""
        return {**super().figures(), "sram_access": None}


@dataclass(frozen=True)
class PlatformChoice(CostModel):
    r"""What a batch of items costs on one platform, were nothing in its way but arithmetic and memory.

    .. math:: t = \sum_\text{layers} \max\left(\frac{2\,\text{MACs}}{\text{peak}},
              \frac{\text{bytes}}{\text{bandwidth}}\right), \qquad E = P\,t

    Bytes are compulsory: weights once for the batch, inputs and outputs once. The energy is that of the whole busy
    chip, idle multipliers included, so what does not keep a platform busy costs as much a second as what does.

    Parameters
    ----------
    platform : str or Platform
        A name of `PLATFORMS`, or a machine of one's own.
    batch : int
        Items that share the weights.

    Raises
    ------
    ValueError
        If there is no such platform, or the batch is no positive integer.

    Source: Williams et al., "Roofline", CACM 2009; Jouppi et al. 2017, section 4, which draws the three rooflines.

    Examples
    --------
    >>> layer = Layer.gemm(1, 4096, 4096)                       # a fully connected layer, one item
    >>> {name: f"{PlatformChoice(name).seconds(layer) * 1e6:.0f} us" for name in PLATFORMS}
    {'cpu': '1317 us', 'cpu-int8': '329 us', 'gpu': '420 us', 'asic': '494 us'}
    """

    platform: str | Platform = "cpu"
    batch: int = 1

    counts: ClassVar[type[Counts]] = PlatformCounts
    missing: ClassVar[Mapping[str, str]] = {
        "sram_access": "a roofline knows no buffers: only what crosses the chip's edge"
    }

    def __post_init__(self) -> None:
        if not isinstance(self.platform, Platform) and self.platform not in PLATFORMS:
            raise ValueError(f"platform: expected a Platform or one of {', '.join(PLATFORMS)}, got {self.platform!r}")
        positive_integer(self.batch, "batch")

    @property
    def machine(self) -> Platform:
        """The platform's parameters."""
        return self.platform if isinstance(self.platform, Platform) else PLATFORMS[self.platform]

    def seconds(self, layers: Layer | Iterable[Layer]) -> float:
        """Time of a batch."""
        return self.cost(layers).cycles / self.machine.clock

    def cost_of(self, layer: Layer) -> Counts:
        """The cost of one layer for the batch."""
        layer, chip = replace(layer, batch=layer.batch * self.batch), self.machine
        moved = compulsory(layer, OPERAND_BYTES[chip.format])
        seconds = max(2 * layer.macs / chip.peak, moved.total / chip.bandwidth)
        slots = seconds * chip.peak / 2
        return PlatformCounts(
            seconds * chip.clock, layer.macs, slots, layer.macs, Traffic(), moved, seconds * chip.power
        )

    def ideal(self) -> CostModel:
        """The same platform with a memory that is always fast enough."""
        return replace(self, platform=replace(self.machine, bandwidth=float("inf")))


def compulsory(layer: Layer, word: int) -> Traffic:
    """Bytes that cross the chip's edge at least: every input, weight and output once."""
    m, n, k = layer.gemm_shape()
    return Traffic(layer.ifmap_elements * word, k * n * word, m * n * word) * layer.groups


def choose(
    layers: Iterable[Layer], by: str = "energy", batch: int = 1, platforms: Mapping[str, Platform] = PLATFORMS
) -> str:
    """The platform of least time or energy for a batch.

    Parameters
    ----------
    layers : iterable of Layer
    by : {"energy", "time"}
    batch : int
    platforms : mapping of str to Platform

    Examples
    --------
    >>> choose([Layer.gemm(1, 4096, 4096)], by="time"), choose([Layer.gemm(1, 4096, 4096)], by="time", batch=1024)
    ('cpu-int8', 'asic')
    """
    if by not in ("energy", "time"):
        raise ValueError(f"by: expected energy or time, got {by!r}")
    layers = list(layers)
    costs = {name: PlatformChoice(platform, batch) for name, platform in platforms.items()}
    return min(
        costs, key=lambda name: costs[name].cost(layers).energy if by == "energy" else costs[name].seconds(layers)
    )
