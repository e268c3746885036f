r"""Learned step size: the distance between two levels is a parameter, trained with the weights.

Levels are whole multiples of a step s, from -Q_N to Q_P; one step for a layer's weights, one for its inputs:

.. math:: \hat v = s \left\lfloor \mathrm{clip}(v / s, -Q_N, Q_P) \right\rceil

Straight through the rounding, but not through the division, the step has a gradient of its own:

.. math:: \frac{\partial \hat v}{\partial s} = \begin{cases} -v / s + \lfloor v / s \rceil & -Q_N < v / s < Q_P \\
   -Q_N & v / s \le -Q_N \\ Q_P & v / s \ge Q_P \end{cases}

A value just below the border between two levels pushes one way, one just above it the other way; earlier estimates knew
only whether a value was clipped. A step gathers the gradients of all N numbers that it serves; its own is scaled down,

.. math:: g = \frac{1}{\sqrt{N Q_P}}

so that a step moves, relative to its size, about as fast as the weights do. It begins at 2 mean|v| / sqrt(Q_P).

Source: S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020, section 2.

Examples
--------
>>> v, s = torch.tensor([0.2, 0.9, 3.0]), torch.tensor(0.5, requires_grad=True)
>>> y = stepped(v, s, -2, 1, 1.0)
>>> y.detach(), [f"{float(torch.autograd.grad(y[i], s, retain_graph=True)[0]):.1f}" for i in range(3)]
(tensor([0.0000, 0.5000, 0.5000]), ['-0.4', '1.0', '1.0'])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.quantization.quantizers import (
    CodedWeights,
    InputQuantizer,
    RoundedAfterwards,
    checked_bits,
    passed_through,
    quantize_network,
    refuse_infinite,
)

__all__ = ["LearnedStepSize", "first_step", "stepped"]

Trace = list[dict[str, Any]]
LEAST = 1e-6
"""Below it a step is held: at zero there is no grid, and beyond it none that makes sense."""


def stepped(v: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    """`v` on the multiples of a step from `low` to `high`, differentiable in both.

    Parameters
    ----------
    v : Tensor
    step : Tensor
        One number, positive.
    low, high : int
        -Q_N and Q_P.
    scale : float
        g, by which the gradient of the step is multiplied.
    """
    step = _scaled(step, scale)
    ratio = v / step
    ratio = torch.where((ratio > low) & (ratio < high), ratio, ratio.detach().clamp(low, high))
    return passed_through(ratio.round(), ratio) * step


def _scaled(x: Tensor, scale: float) -> Tensor:
    """`x` forward, its gradient times `scale` backward."""
    return passed_through(x, x * scale)


def first_step(v: Tensor, high: int) -> Tensor:
    """Where a step begins: 2 mean|v| / sqrt(Q_P).

    Examples
    --------
    >>> first_step(torch.tensor([1.0, -3.0]), 4)
    tensor(2.)
    """
    return (2 * v.detach().abs().mean() / high**0.5).clamp(min=LEAST)


class _Step(nn.Module):
    """A step and its levels."""

    def __init__(self, bits: int, signed: bool, scaled: bool) -> None:
        super().__init__()
        self.bits, self.scaled = bits, scaled
        self.set_sign(signed)
        self.step = nn.Parameter(torch.ones(()))

    def set_sign(self, signed: bool) -> None:
        half = 2 ** (self.bits - 1)
        self.low, self.high = (-half if signed else 0), (half - 1 if signed else 2 * half - 1)

    def size(self) -> Tensor:
        """The step, never below the least."""
        return passed_through(self.step.clamp(min=LEAST), self.step)

    def rounded(self, v: Tensor, count: int) -> Tensor:
        return stepped(v, self.size(), self.low, self.high, (count * self.high) ** -0.5 if self.scaled else 1.0)


class SteppedWeights(CodedWeights):
    """Weights on the multiples of a learned step."""

    def __init__(self, bits: int, w: Tensor, scaled: bool = True) -> None:
        super().__init__()
        self.bits, self.grid = bits, _Step(bits, True, scaled)
        with torch.no_grad():
            self.grid.step.copy_(first_step(w, self.grid.high))

    def integers(self, w: Tensor) -> tuple[Tensor, Tensor]:
        step = self.grid.size().detach()
        return (w / step).clamp(self.grid.low, self.grid.high).round(), step

    def forward(self, w: Tensor) -> Tensor:
        refuse_infinite(w.detach())
        return self.grid.rounded(w, w.numel())


class SteppedInputs(InputQuantizer):
    """Inputs on the multiples of a learned step; the first batch sets it, and whether there is a sign."""

    seen: Tensor

    def __init__(self, bits: int, scaled: bool = True) -> None:
        super().__init__()
        self.bits, self.grid = bits, _Step(bits, False, scaled)
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.seen:
            self.grid.set_sign(bool((x < 0).any()))
            with torch.no_grad():
                self.grid.step.copy_(first_step(x, self.grid.high))
            self.seen.fill_(True)
        return self.grid.rounded(x, x[0].numel()) if self.seen else x


@dataclass(frozen=True)
class LearnedStepSize:
    r"""Train a network whose weights and inputs of layers lie on few multiples of a step that is trained with them.

    .. math:: \hat v = s \left\lfloor \mathrm{clip}(v / s, -Q_N, Q_P) \right\rceil, \qquad
       \frac{\partial \hat v}{\partial s} = \begin{cases} -v / s + \lfloor v / s \rceil & -Q_N < v / s < Q_P \\
       -Q_N & v / s \le -Q_N \\ Q_P & v / s \ge Q_P \end{cases}

    Parameters
    ----------
    weight_bits, input_bits : int, 2 to 8
        Weights have Q_N = 2^(bits - 1) and Q_P = 2^(bits - 1) - 1, inputs that are never negative 0 and 2^bits - 1.
    scaled : bool
        Whether the gradient of a step is scaled by 1 / sqrt(N Q_P); N counts a layer's weights, or an item's inputs.
    ends : int, 2 to 8
        Bits of the first and the last layer.

    Notes
    -----
    The paper begins with a trained network and moves it by stochastic gradient descent with momentum. Adapted: here the
    network learns from its first update on, at the plain recipe's budget, by the recipe's optimizer. Under Adam, whose
    steps have the size of the rate whatever the size of the gradient, the scale of a gradient that is one number's
    hardly matters: what slows steps down there is the rate itself.

    Source: Esser et al. 2020, sections 2.1 to 2.3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = LearnedStepSize().train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> levels = network[3].weight.unique() / network[3].parametrizations.weight[0].grid.step
    >>> [round(level) for level in levels.tolist()]
    [-1, 0, 1]
    """

    weight_bits: int = 2
    input_bits: int = 2
    scaled: bool = True
    ends: int = 8

    def __post_init__(self) -> None:
        for name in ("weight_bits", "input_bits", "ends"):
            checked_bits(getattr(self, name), name, 2)
        if not isinstance(self.scaled, bool):
            raise ValueError(f"scaled: expected True or False, got {self.scaled!r}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, rounded in every pass.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            The network still holds the FP32 weights below; `kernels.model.transform.bake` leaves the rounded ones.
        """
        network = self.constrain(network)
        return network, recipe.train(network, data, seed=seed)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` that rounds from now on.

        Raises
        ------
        ValueError
            If it has a recurrent layer, or none between the first and the last.
        """
        return quantize_network(
            network,
            lambda layer: SteppedWeights(self.weight_bits, layer.weight, self.scaled),
            lambda layer: SteppedInputs(self.input_bits, self.scaled),
            self.ends,
        )

    def afterwards(self) -> RoundedAfterwards:
        """Steps where they would begin, in a network that was trained without them."""
        return RoundedAfterwards(self)
