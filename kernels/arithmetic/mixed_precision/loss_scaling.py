r"""Loss scaling: multiply the loss before the backward pass, so that small gradients stay inside a narrow format.

With S the scale, every gradient of the backward pass is S times as large when it is rounded, and the weights' are
divided by S, in FP32, before the update:

.. math:: g = \tfrac{1}{S}\, Q_g\!\big(\nabla_w (S L)\big), \qquad
   S \leftarrow \begin{cases} S \cdot b & \text{a gradient overflowed: this update is skipped} \\
   S \cdot a & \text{none did for } n \text{ updates} \end{cases}

A power of two changes no bit of a gradient that neither vanishes nor overflows.

Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from kernels.arithmetic.mixed_precision.low_precision import FormatTraining

__all__ = ["DynamicScale", "LossScaling", "StaticScale"]


@dataclass
class StaticScale:
    """A scale that never changes; an update whose gradients overflow is skipped all the same."""

    factor: float

    def update(self, overflow: bool) -> None:
        """Nothing is learned from overflow."""


@dataclass
class DynamicScale:
    """A scale that shrinks when a gradient overflows and grows after enough updates without.

    It does not shrink below one, and stays where it is less already: an unscaled gradient that overflows is no fault
    of the scale's, and over a scale of zero none is finite.

    Source: growth and back-off of PyTorch's GradScaler, which has no least scale; one is that of Apex's
    DynamicLossScaler (apex.fp16_utils).

    Examples
    --------
    >>> scale = DynamicScale(4.0, interval=2)
    >>> for overflow in (True, False, False, False):
    ...     scale.update(overflow)
    >>> scale.factor
    4.0
    """

    factor: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    clean: int = 0

    def update(self, overflow: bool) -> None:
        """Learn whether this update's gradients overflowed."""
        if overflow:
            self.factor = max(self.factor * self.backoff, min(self.factor, 1.0))
            self.clean = 0
            return
        self.clean += 1
        if self.clean == self.interval:
            self.factor *= self.growth
            self.clean = 0


@dataclass(frozen=True)
class LossScaling(FormatTraining):
    """Train in a narrow format with a scaled loss; the weights that are kept are FP32.

    The trace holds each update's ``scale`` and whether it was ``skipped``.

    Parameters
    ----------
    format : {"fp16", "bfloat16", "fp8", "fp32"}
        Of weights, activations and gradients in the passes.
    scale : {"dynamic", "static"}
    factor : float
        S, at the start or for good; positive.
    interval : int
        Updates without overflow after which a dynamic scale doubles. An overflow halves it, down to one.

    Source
    ------
    Micikevicius et al. 2018, section 3.2; the scale is that of `DynamicScale`.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> recipe = datasets.Recipe(epochs=1)
    >>> network, trace = LossScaling(factor=2.0**30).train(digits.network(), digits.data(), recipe)
    >>> trace[0]["skipped"], trace[-1]["scale"] < 2**30
    (True, True)
    """

    format: str = "fp16"
    scale: str = "dynamic"
    factor: float = 65536.0
    interval: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in ("dynamic", "static", "none"):
            raise ValueError(f"scale: expected dynamic or static, got {self.scale!r}")
        if not (self.factor > 0 and isfinite(self.factor)):
            raise ValueError(f"factor: expected a positive number, got {self.factor}")
        if self.interval < 1:
            raise ValueError(f"interval: expected a positive number of updates, got {self.interval}")

    def without(self) -> LossScaling:
        """The same training, the loss as it is."""
        return LossScaling(self.format, "none")

    @property
    def scaler(self) -> DynamicScale | StaticScale | None:
        """S, as it is before the first update."""
        if self.scale == "none":
            return None
        return StaticScale(self.factor) if self.scale == "static" else DynamicScale(self.factor, interval=self.interval)
