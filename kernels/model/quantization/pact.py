r"""PACT: each layer learns where to clip its inputs before they are rounded.

The clipping level a takes the place of a fixed one in the rectifier, and is trained with the weights:

.. math:: y = \frac{|x| - |x - \alpha| + \alpha}{2} = \begin{cases} 0 & x < 0 \\ x & 0 \le x < \alpha \\
   \alpha & x \ge \alpha \end{cases} \qquad
   y_q = \mathrm{round}\!\left( y \, \frac{2^k - 1}{\alpha} \right) \frac{\alpha}{2^k - 1}

A large level clips little and rounds coarsely, a small one the other way round. Straight through the rounding, the
gradient of the level is that of what it clips, and a penalty on its square pulls it in:

    dL/da = sum of dL/dy_q where x >= a,  plus 2 penalty a

Weights are rounded as DoReFa does it.

Source: J. Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018, section 3.

Examples
--------
>>> clipped_rounded(torch.tensor([-1.0, 0.9, 2.2, 7.0]), torch.tensor(3.0), bits=2)
tensor([0., 1., 2., 3.])
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.quantization.dorefa import TanhWeights
from kernels.model.quantization.quantizers import (
    InputQuantizer,
    RoundedAfterwards,
    checked_bits,
    passed_through,
    quantize_network,
)

__all__ = ["ClippedInputs", "Pact", "clipped_rounded"]

Trace = list[dict[str, Any]]
LEAST = 1e-3
"""A level below it is held there: at zero nothing would pass."""


def clipped_rounded(x: Tensor, level: Tensor, bits: int) -> Tensor:
    """`x` clipped to 0 to `level`, and rounded to 2^bits values there; differentiable in both.

    Parameters
    ----------
    x : Tensor
    level : Tensor
        One number, positive.
    bits : int
    """
    y = torch.where(x >= level, level, x.clamp(min=0.0))
    top = 2**bits - 1
    still = level.detach()
    return passed_through((y.detach() * (top / still)).round() * (still / top), y)


class ClippedInputs(InputQuantizer):
    """Inputs clipped to a level that is learned, and rounded below it."""

    def __init__(self, bits: int, start: float) -> None:
        super().__init__()
        self.bits, self.level = bits, nn.Parameter(torch.tensor(float(start)))

    def forward(self, x: Tensor) -> Tensor:
        return clipped_rounded(x, passed_through(self.level.clamp(min=LEAST), self.level), self.bits)


@dataclass(frozen=True)
class _Penalized:
    """A loss, and the square of every clipping level."""

    loss: Any
    penalty: float

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        levels = [module.level for module in network.modules() if isinstance(module, ClippedInputs)]
        return self.loss(network, x, y) + self.penalty * sum(level.square() for level in levels)


@dataclass(frozen=True)
class Pact:
    r"""Train a network whose inputs of layers are clipped to a learned level and rounded, its weights rounded too.

    .. math:: y = \frac{|x| - |x - \alpha| + \alpha}{2}, \qquad
       y_q = \mathrm{round}\!\left( y \, \frac{2^k - 1}{\alpha} \right) \frac{\alpha}{2^k - 1}, \qquad
       \frac{\partial y_q}{\partial \alpha} = [x \ge \alpha]

    Parameters
    ----------
    weight_bits, input_bits : int, 1 to 8
    start : float
        Where each level begins.
    penalty : float
        Times the square of each level, added to the loss.
    ends : int, 2 to 8
        Bits of the first and the last layer.

    Notes
    -----
    Adapted: the paper starts levels high, at about ten, and has some hundred thousand updates to bring them down.
    Within the few hundred of the recipes here they begin where inputs behind a batch norm end.

    Source: Choi et al. 2018, section 3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = Pact().train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> bool(network[3].input_quantizer.level < 4)
    True
    """

    weight_bits: int = 2
    input_bits: int = 2
    start: float = 4.0
    penalty: float = 2e-4
    ends: int = 8

    def __post_init__(self) -> None:
        checked_bits(self.weight_bits, "weight_bits")
        checked_bits(self.input_bits, "input_bits")
        checked_bits(self.ends, "ends", 2)
        if not LEAST < self.start < float("inf"):
            raise ValueError(f"start: expected a finite number above {LEAST}, got {self.start!r}")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty: expected a finite number of at least 0, got {self.penalty!r}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` and the clipping levels by `recipe`.

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
        recipe = replace(recipe, loss=_Penalized(recipe.loss, self.penalty))
        return network, recipe.train(network, data, seed=seed)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` that clips and rounds from now on.

        Raises
        ------
        ValueError
            If it has a recurrent layer, or none between the first and the last.
        """
        return quantize_network(
            network,
            lambda layer: TanhWeights(self.weight_bits),
            lambda layer: ClippedInputs(self.input_bits, self.start),
            self.ends,
        )

    def afterwards(self) -> RoundedAfterwards:
        """Levels where they begin, in a network that was trained without them."""
        return RoundedAfterwards(self)
