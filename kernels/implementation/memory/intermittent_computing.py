"""Intermittent computing: progress that survives power failures, by checkpoints in non-volatile memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, inf, isfinite, sqrt
from typing import Any, ClassVar

import numpy as np

from kernels.energy import OPERAND_BYTES
from kernels.implementation.dataflow.cost_model import CostModel, Counts, Traffic
from kernels.implementation.dataflow.layer import Layer, positive_integer
from kernels.implementation.dataflow.output_stationary import OutputStationary

__all__ = [
    "IntermittentComputing",
    "Run",
    "Segment",
    "best_interval",
    "expected_cycles",
    "exponential",
    "survive",
]

ENDLESS = ("cycles", "core_utilization", "sram_access", "memory_access", "nonvolatile_writes")
PLACES = ("best", "interval", "layer", "fold", "never")


@dataclass(frozen=True)
class Segment:
    """Work between two checkpoints.

    Attributes
    ----------
    work, save, restore : float
        Cycles of the work, of the checkpoint after it, and of reading the one before it when power returns.
    """

    work: float
    save: float = 0.0
    restore: float = 0.0


def expected_cycles(segment: Segment, mean: float, off: float = 0.0) -> float:
    r"""Cycles until a segment's checkpoint is written, on average, when power fails at random.

    .. math:: E = (M + D)\, e^{R / M} \left(e^{(w + C) / M} - 1\right)

    for a time between failures that is exponential with mean M, an outage D, a restore R and a checkpoint C. An attempt
    of length L = w + C succeeds with chance :math:`e^{-L / M}`; where power fails after t, D and the time until a
    restore succeeds are lost, and the next attempt is like the first:

    .. math:: E = e^{-L / M} L + \int_0^L \tfrac1M e^{-t / M} (t + D + E_R + E)\, dt = (M + D + E_R)(e^{L / M} - 1),
              \qquad E_R = (M + D)(e^{R / M} - 1).

    Parameters
    ----------
    segment : Segment
    mean : float
        Powered cycles between failures.
    off : float
        Cycles of an outage.

    Source: Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", 2006, whose outage is
    a part of the restore; the derivation is above.

    Examples
    --------
    >>> [round(expected_cycles(Segment(work), mean=100), 1) for work in (1, 10, 100, 1000)]
    [1.0, 10.5, 171.8, 2202546.6]
    """
    try:
        return (mean + off) * (expm1(segment.restore / mean) + 1) * expm1((segment.work + segment.save) / mean)
    except OverflowError:
        return inf


def best_interval(save: float, mean: float) -> float:
    r"""Work between checkpoints that makes the expected time for each cycle of work the least.

    .. math:: \tau = M \left(1 + W_0\left(-e^{-(1 + C / M)}\right)\right) \approx \sqrt{2 C M}

    which is where the derivative of :math:`(e^{(\tau + C) / M} - 1) / \tau` is zero; neither outage nor restore matter.
    W is Lambert's function; :math:`u = 1 - \tau / M` is found from :math:`u - \ln u = 1 + C / M` by Newton's method.

    Parameters
    ----------
    save, mean : float
        Cycles of a checkpoint, and powered cycles between failures.

    Source: Young, "A first order approximation to the optimum checkpoint interval", 1974, for the square root.

    Examples
    --------
    >>> round(best_interval(1, 10_000), 1), round(sqrt(2 * 1 * 10_000), 1)
    (140.8, 141.4)
    """
    if not (0 <= save < inf and 0 < mean < inf):
        raise ValueError(f"save, mean: expected finite cycles, save >= 0 and mean > 0, got {save!r} and {mean!r}")
    target = save / mean
    gap = min(sqrt(2 * target), -expm1(-1 - target))  # 1 - u; -gap - ln(1 - gap) = C / M, and both are above the root
    if gap in (0, 1):
        return mean * gap
    for _ in range(50):  # convex, and from above: every step goes down, and none too far
        step = (-gap - np.log1p(-gap) - target) * (1 - gap) / gap
        gap -= step
        if step <= 1e-15 * gap:
            break
    return float(mean * gap)


def exponential(mean: float, seed: int = 0) -> Iterator[float]:
    """Powered cycles until each failure, drawn at random."""
    rng = np.random.default_rng(seed)
    while True:
        yield float(rng.exponential(mean))


@dataclass(frozen=True)
class Run:
    """What it took to finish.

    Attributes
    ----------
    powered : float
        Cycles with power, from the first to the last checkpoint written.
    failures : int
    lost : float
        Powered cycles whose work was gone, or spent on restoring.
    """

    powered: float
    failures: int
    lost: float


def survive(
    segments: Sequence[Segment],
    lifetimes: Iterable[float],
    steps: Sequence[Callable[[dict[str, Any]], None]] = (),
    memory: dict[str, Any] | None = None,
    most: int = 1_000_000,
) -> Run:
    """Run segments while power comes and goes.

    Parameters
    ----------
    segments : sequence of Segment
    lifetimes : iterable of float
        Powered cycles until each failure: `exponential`, or what a full energy buffer lasts, again and again.
    steps : sequence of callable, optional
        What each segment does to volatile memory, when it gets that far. An attempt that fails does it too, wholly, and
        loses it.
    memory : dict, optional
        Non-volatile memory. Volatile memory is a copy of it; a checkpoint copies it back.
    most : int
        Failures, after which the run is given up.

    Raises
    ------
    ValueError
        If steps are not as many as segments.
    RuntimeError
        If it is given up: a segment does not fit into what power there is.

    Examples
    --------
    >>> survive([Segment(6, save=1, restore=2)] * 3, [10.0] * 9)
    Run(powered=29.0, failures=2, lost=8.0)
    """
    if steps and len(steps) != len(segments):
        raise ValueError(f"steps: expected one for each of {len(segments)} segments, got {len(steps)}")
    memory = {} if memory is None else memory
    volatile = copy.deepcopy(memory)
    supply = iter(lifetimes)
    left, powered, failures, lost, done, restoring = next(supply, inf), 0.0, 0, 0.0, 0, False
    while done < len(segments):
        segment = segments[done]
        needed = (segment.restore if restoring else 0.0) + segment.work + segment.save
        if steps:
            steps[done](volatile)
        if needed <= left:
            left, powered = left - needed, powered + needed
            lost += segment.restore if restoring else 0.0
            done, restoring = done + 1, False
            if steps:
                memory.update(copy.deepcopy(volatile))
            continue
        powered, lost, failures, restoring = powered + left, lost + left, failures + 1, True
        volatile = copy.deepcopy(memory)
        if failures >= most:
            raise RuntimeError(f"given up after {failures} failures in segment {done} of {needed:g} cycles")
        left = next(supply, inf)
    return Run(powered, failures, lost)


@dataclass(frozen=True)
class IntermittentCounts(Counts):
    """What checkpoints cost besides."""

    checkpoints: int = 0
    nonvolatile_writes: float = 0.0

    def figures(self) -> dict[str, float | None]:
        """Every figure by its name; of what is not expected to end, only what does not depend on it."""
        figures = {**super().figures(), "checkpoints": self.checkpoints, "nonvolatile_writes": self.nonvolatile_writes}
        return figures if isfinite(self.cycles) else {**figures, **dict.fromkeys(ENDLESS)}


@dataclass(frozen=True)
class IntermittentComputing(CostModel):
    r"""An output-stationary array without a battery, whose power fails at random.

    After a fold its outputs are finished and nothing is left in the array: that is where a checkpoint may lie. It saves
    the state of the control and what results are not in non-volatile memory yet: those of the layer that runs, and its
    inputs while it runs. All segments together are expected to take

    .. math:: \sum_i (M + D)\, e^{R_i / M} \left(e^{(w_i + C_i) / M} - 1\right)

    cycles. As the sum is over segments, the best places of all are found by dynamic programming:
    :math:`T_j = \min_i T_i + E(i, j)`.

    Parameters
    ----------
    checkpoint : {"best", "interval", "layer", "fold", "never"}
        Where: at the best places; at the first fold after `best_interval`; after each layer; after each fold; or only
        when all is done.
    failures : float
        Expected in the cycles that the work alone takes.
    state : int
        Bytes of control state, saved by each checkpoint and read by each restore.
    bandwidth : int
        Bytes a cycle to and from non-volatile memory.
    off : float
        Cycles of an outage, counted as time.
    rows, columns : int
        Processing elements.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Source: Taheri, Tabrizchi and Roohi, "Intermittent-Aware Design Exploration of Systolic Array Using Various
    Non-Volatile Memory", Micromachines 15, 2024, for systolic arrays that lose power; Young 1974 and Daly 2006 for when
    to save.

    Examples
    --------
    >>> layers = [Layer(16, 32, 28, 28, kernel=3, padding=1), Layer.gemm(1, 10, 1568)]
    >>> for checkpoint in PLACES:
    ...     counts = IntermittentComputing(checkpoint, failures=5).cost(layers)
    ...     print(f"{checkpoint:8} {counts.checkpoints:2} checkpoints, {counts.cycles:,.0f} cycles")
    best     26 checkpoints, 14,699 cycles
    interval 26 checkpoints, 14,699 cycles
    layer     2 checkpoints, 609,256 cycles
    fold     26 checkpoints, 14,699 cycles
    never     1 checkpoints, 229,411 cycles
    """

    checkpoint: str = "best"
    failures: float = 10.0
    state: int = 256
    bandwidth: int = 8
    off: float = 0.0
    rows: int = 32
    columns: int = 32

    counts: ClassVar[type[Counts]] = IntermittentCounts
    missing: ClassVar[Mapping[str, str]] = {
        "energy": "the cited table has no coefficient for writing a non-volatile memory",
        **dict.fromkeys(ENDLESS, "so expected to fail that no double holds the time until it ends"),
    }

    def __post_init__(self) -> None:
        if self.checkpoint not in PLACES:
            raise ValueError(f"checkpoint: expected one of {', '.join(PLACES)}, got {self.checkpoint!r}")
        for name in ("bandwidth", "rows", "columns"):
            positive_integer(getattr(self, name), name)
        positive_integer(self.state, "state", least=0)
        for name, least in (("failures", "above 0"), ("off", "of at least 0")):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0) or (name == "failures" and value == 0):
                raise ValueError(f"{name}: expected a finite number {least}, got {value!r}")

    def array(self) -> OutputStationary:
        """What computes."""
        return OutputStationary(self.rows, self.columns)

    def segments(self, layers: Iterable[Layer]) -> list[Segment]:
        """The work between checkpoints."""
        layers = list(layers)
        folds = _Folds(layers, self)
        found = [folds.segment(i, j) for i, j in folds.cuts()] if layers else []
        return [Segment(float(s.work), float(s.save), float(s.restore)) for s in found]

    def cost(self, layers: Layer | Iterable[Layer]) -> IntermittentCounts:
        """Expected cycles and bytes of layers that run one after another.

        Parameters
        ----------
        layers : Layer or iterable of Layer

        Returns
        -------
        IntermittentCounts
            Bytes are those of the cycles that are expected to run, done again ones included, and of the checkpoints.
        """
        layers = [layers] if isinstance(layers, Layer) else list(layers)
        once = self.array().cost(layers)
        if not layers:
            return IntermittentCounts()
        mean, segments = once.cycles / self.failures, self.segments(layers)
        cycles = sum(expected_cycles(s, mean, self.off) for s in segments)
        if not isfinite(cycles):
            return IntermittentCounts(inf, once.macs, inf, once.used, energy=None, checkpoints=len(segments))
        # e^(C / M) attempts get as far as the checkpoint, each spends M (1 - e^(-C / M)) cycles in it; the rest is work
        saving = sum(mean * expm1(s.save / mean) for s in segments)
        again = sum(mean * expm1((s.work + s.save) / mean) for s in segments) - saving
        sram, dram = (
            Traffic(*(round(part * again / once.cycles) for part in (moved.ifmap, moved.filter, moved.ofmap)))
            for moved in (once.sram, once.dram)
        )
        slots = cycles * self.rows * self.columns
        return IntermittentCounts(
            cycles, once.macs, slots, once.used, sram, dram, None, len(segments), saving * self.bandwidth
        )

    def cost_of(self, layer: Layer) -> IntermittentCounts:
        """The cost of one layer alone."""
        return self.cost(layer)

    def ideal(self) -> CostModel:
        """The same array with power that never fails."""
        return self.array()


class _Folds:
    """Where checkpoints may lie: cycles and bytes of results up to each fold, and what a checkpoint there must hold."""

    def __init__(self, layers: Sequence[Layer], model: IntermittentComputing) -> None:
        cycles, results, first = [0.0], [0.0], [0]
        self.ends: list[int] = []
        self.low: list[int] = [0]  # results from this fold on must be held
        for layer in layers:
            m, n, _ = layer.gemm_shape()
            count = layer.groups * -(-m // model.rows) * -(-n // model.columns)
            written = layer.groups * m * n * OPERAND_BYTES["int8"]
            each = model.array().cost(layer).cycles / count
            start, done, held = len(cycles) - 1, cycles[-1], results[-1]
            cycles += [done + each * (i + 1) for i in range(count)]
            results += [held + written * (i + 1) / count for i in range(count)]
            self.low += [first[-1]] * (count - 1) + [start]  # inputs too, until the layer is done
            first.append(start)
            self.ends.append(start + count)
        self.model, self.cycles, self.results = model, np.array(cycles), np.array(results)
        self.mean = self.cycles[-1] / model.failures

    def segment(self, i: Any, j: int) -> Any:
        """A segment between two folds; of several `i` at once, with arrays for cycles."""
        model = self.model
        save = (model.state + self.results[j] - self.results[np.maximum(i, self.low[j])]) / model.bandwidth
        restore: Any = np.where(i, model.state / model.bandwidth, 0.0)
        return Segment(self.cycles[j] - self.cycles[i], save, restore)

    def cuts(self) -> list[tuple[int, int]]:
        """Pairs of neighbouring checkpoints."""
        places = [0, *getattr(self, f"_{self.model.checkpoint}")()]
        return list(pairwise(places))

    def _never(self) -> list[int]:
        return [len(self.cycles) - 1]

    def _fold(self) -> list[int]:
        return list(range(1, len(self.cycles)))

    def _layer(self) -> list[int]:
        return self.ends

    def _interval(self) -> list[int]:
        """After the first fold at which work, and writing what it makes, took as long as the interval."""
        model, last = self.model, 0
        interval = best_interval(model.state / model.bandwidth, self.mean)
        passed = self.cycles + self.results / model.bandwidth
        places = []
        for j in range(1, len(passed)):
            if passed[j] - passed[last] >= interval or j == len(passed) - 1:
                places.append(j)
                last = j
        return places

    def _best(self) -> list[int]:
        mean, off = self.mean, self.model.off
        least, before = np.zeros(len(self.cycles)), np.zeros(len(self.cycles), int)
        for j in range(1, len(self.cycles)):
            s = self.segment(np.arange(j), j)
            with np.errstate(over="ignore"):
                total = least[:j] + (mean + off) * np.exp(s.restore / mean) * np.expm1((s.work + s.save) / mean)
            before[j] = int(np.argmin(total))
            least[j] = total[before[j]]
        places = [len(self.cycles) - 1]
        while before[places[-1]]:
            places.append(int(before[places[-1]]))
        return places[::-1]
