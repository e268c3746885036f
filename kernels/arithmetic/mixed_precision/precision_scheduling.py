r"""Precision scheduling: how many bits the passes compute with changes while training runs.

Operands are uniform integers with a scale, at b bits

.. math:: Q_b(x) = s \cdot \mathrm{round}(x / s), \qquad s = \frac{\max |x|}{2^{b-1} - 1}

and b follows the update t of T. *Progressive*: in stages of equal length from few bits to all,

.. math:: b_t = \mathrm{round}\!\left(b_0 + (b_1 - b_0) \frac{\lfloor n t / T \rfloor}{n - 1}\right)

*Cyclic*: again and again from few to all, as a cosine, in n cycles of length P = T / n,

.. math:: b_t = \mathrm{round}\!\left(b_0 + \tfrac12 (b_1 - b_0)\big(1 - \cos(\pi\, (t \bmod P) / P)\big)\right) .

Weights are kept and updated in FP32. Gradients, which are rounded at random, have their own bits: growing likewise
where the schedule is progressive, all of them where it is cyclic.

Source: Y. Fu et al., "FracTrain: Fractionally Squeezing Bit Savings Both Temporally and Spatially for Efficient DNN
Training", NeurIPS 2020 (its progressive part; the paper's indicator ends a stage when the loss stalls, here stages are
equally long); Y. Fu et al., "CPT: Efficient Deep Neural Network Training via Cyclic Precision", ICLR 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.arithmetic.mixed_precision.low_precision import LowPrecisionTraining, Precision, Trace

__all__ = ["PrecisionScheduling", "Uniform"]

SCHEDULES = ("progressive", "cyclic", "static")


@dataclass(frozen=True)
class Uniform:
    """Integers of so many bits, with one scale an array, symmetric around zero.

    Parameters
    ----------
    bits : int
        From 2 to 16: 2^bits - 1 values.
    rounding : {"nearest-even", "stochastic"}
    seed : int
        Of stochastic rounding.

    Examples
    --------
    >>> Uniform(3).round(torch.tensor([3.0, 1.4, -0.6, 0.0]))
    tensor([ 3.,  1., -1.,  0.])
    """

    bits: int = 8
    rounding: str = "nearest-even"
    seed: int = 0

    def round(self, x: Tensor) -> Tensor:
        """The nearest multiples of the scale, which the largest magnitude in `x` fixes; NaN where `x` has no scale."""
        x = x.detach()
        largest = float(x.abs().max()) if x.numel() else 0.0
        scale = largest / (2 ** (self.bits - 1) - 1)
        if scale == 0:
            return torch.zeros_like(x)
        if self.rounding == "nearest-even":
            return (x / scale).round_().mul_(scale)
        noise = torch.empty_like(x).uniform_(generator=torch.Generator().manual_seed(self.seed))
        return (x / scale).add_(noise).floor_().mul_(scale)


@dataclass(frozen=True)
class PrecisionScheduling(LowPrecisionTraining):
    """Train with few bits at first, or again and again, and with all of them at the end.

    Parameters
    ----------
    schedule : {"progressive", "cyclic", "static"}
        Static has all bits from the start.
    low, high : int
        Bits of weights and activations, 2 <= low <= high <= 16.
    gradient_low : int
        Bits of gradients in the first stage; the last one has `high`.
    stages : int
        Stages, or cycles.

    Source
    ------
    Fu et al. 2020, section 3.2 (progressive); Fu et al. 2021, section 3.3 (cyclic).

    Examples
    --------
    >>> schedule = PrecisionScheduling(low=4, high=8, gradient_low=6, stages=3)
    >>> [schedule.bits(step, 6) for step in range(6)]
    [(4, 6), (4, 6), (6, 7), (6, 7), (8, 8), (8, 8)]
    >>> [PrecisionScheduling("cyclic", low=4, stages=2).bits(step, 8)[0] for step in range(8)]
    [4, 5, 6, 7, 4, 5, 6, 7]
    """

    schedule: str = "progressive"
    low: int = 3
    high: int = 8
    gradient_low: int = 6
    stages: int = 4

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not 2 <= self.low <= self.high <= 16:
            raise ValueError(f"low, high: expected 2 <= low <= high <= 16, got {self.low} and {self.high}")
        if not 2 <= self.gradient_low <= self.high:
            raise ValueError(f"gradient_low: expected from 2 to high, {self.high}, got {self.gradient_low}")
        if self.stages < 2:
            raise ValueError(f"stages: expected at least 2, got {self.stages}")

    def without(self) -> PrecisionScheduling:
        """All bits from the start."""
        return PrecisionScheduling("static", high=self.high, low=self.high, gradient_low=self.high)

    def lowest(self) -> PrecisionScheduling:
        """The lowest bits to the end."""
        gradient = self.gradient_low if self.schedule == "progressive" else self.high
        return PrecisionScheduling("static", low=self.low, high=max(self.low, gradient), gradient_low=gradient)

    def bits(self, step: int, steps: int) -> tuple[int, int]:
        """Bits of weights and activations, and of gradients, at an update."""
        if self.schedule == "static":
            return self.low, self.gradient_low
        if self.schedule == "progressive":
            share = min(self.stages - 1, self.stages * step // steps) / (self.stages - 1)
            return _between(self.low, self.high, share), _between(self.gradient_low, self.high, share)
        period = steps / self.stages
        share = (1 - math.cos(math.pi * (step % period) / period)) / 2
        return _between(self.low, self.high, share), self.high

    def precision(self, step: int, steps: int) -> Precision:
        """The formats at an update."""
        forward, backward = self.bits(step, steps)
        return Precision(Uniform(forward), Uniform(forward), Uniform(backward, "stochastic"))

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """As every training in low precision; the trace holds each update's ``bits``, forward and backward."""
        trained, trace = super().train(network, data, recipe, seed=seed)
        return trained, [entry | {"bits": self.bits(entry["step"], len(trace))} for entry in trace]


def _between(low: int, high: int, share: float) -> int:
    return round(low + (high - low) * share)
