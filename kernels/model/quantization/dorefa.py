r"""DoReFa: weights, inputs and gradients of few bits, the gradients rounded at random.

One rounding serves all three, of numbers from 0 to 1 to the multiples of 1 / (2^k - 1), straight through backward:

.. math:: Q_k(x) = \frac{\mathrm{round}\left( (2^k - 1)\, x \right)}{2^k - 1}

    weights     w_q = 2 Q_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1;  of one bit, sign(w) mean|w|
    inputs      x_q = Q_k(clip(x, 0, 1))
    gradients   g_q = 2 m (Q_k(g / (2 m) + 1/2 + noise) - 1/2),  m the largest |g| of the item,
                noise even between -1/2 and 1/2 of a step, anew for every number

Gradients need the noise: what is rounded off in the same direction every time never reaches the weights, and rounded at
random it does so on average. What is rounded is the gradient of a layer's sums, from which both products of the
backward pass are taken, that for the inputs and that for the weights.

Source: S. Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients",
2016, sections 2.2 to 2.5.

Examples
--------
>>> unit_rounded(torch.tensor([0.1, 0.3, 0.8]), 2)
tensor([0.0000, 0.3333, 0.6667])
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
    symmetric_codes,
)

__all__ = ["Dorefa", "TanhWeights", "UnitInputs", "narrow_gradient", "unit_rounded"]

Trace = list[dict[str, Any]]


def unit_rounded(x: Tensor, bits: int) -> Tensor:
    """The definition of Q_k, for numbers from 0 to 1; the gradient goes straight through.

    Examples
    --------
    >>> unit_rounded(torch.tensor([0.49, 0.51]), 1)
    tensor([0., 1.])
    """
    top = 2**bits - 1
    return passed_through((top * x.detach()).round() / top, x)


class TanhWeights(CodedWeights):
    """Weights squeezed into -1 to 1 by a hyperbolic tangent, and rounded there; of one bit, signs and a mean.

    Parameters
    ----------
    bits : int
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    @staticmethod
    def squeezed(w: Tensor) -> Tensor:
        """tanh(w) over its largest magnitude; all zeros stay so."""
        bounded = w.tanh()
        return bounded / bounded.abs().max().clamp(min=1e-30)

    def integers(self, w: Tensor) -> tuple[Tensor, Tensor]:
        if self.bits == 1:
            return torch.where(w >= 0, 1.0, -1.0).to(w.dtype), w.abs().mean()
        return symmetric_codes(self.squeezed(w), self.bits), torch.tensor(1 / (2**self.bits - 1), dtype=w.dtype)

    def forward(self, w: Tensor) -> Tensor:
        refuse_infinite(w.detach())
        integers, scale = self.integers(w.detach())
        return passed_through(integers * scale, w if self.bits == 1 else self.squeezed(w))


class UnitInputs(InputQuantizer):
    """Inputs clipped to 0 to 1, and rounded there.

    Parameters
    ----------
    bits : int
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return unit_rounded(x.clamp(0, 1), self.bits)


class _NarrowGradient(torch.autograd.Function):
    """Nothing forward; the gradient rounded backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return narrow_gradient(gradient, ctx.bits, torch.rand_like(gradient) - 0.5), None


def narrow_gradient(gradient: Tensor, bits: int, noise: Tensor) -> Tensor:
    """A gradient of so many bits, item by item.

    Parameters
    ----------
    gradient : Tensor of shape (items, ...)
    bits : int
    noise : Tensor of the shape of `gradient`
        From -1/2 to 1/2, in steps.

    Examples
    --------
    >>> narrow_gradient(torch.tensor([[0.6, -1.5]]), 2, torch.zeros(1, 2))
    tensor([[ 0.5000, -1.5000]])
    """
    largest = gradient.abs().amax(tuple(range(1, gradient.ndim)), keepdim=True)
    top = 2**bits - 1
    unit = gradient / (2 * largest).clamp(min=1e-30) + 0.5
    codes = (top * unit + noise).round().clamp(0, top)
    return 2 * largest * (codes / top - 0.5)


def _narrow(layer: Any, args: Any, output: Tensor) -> Tensor:
    return _NarrowGradient.apply(output, layer.gradient_bits) if torch.is_grad_enabled() else output


@dataclass(frozen=True)
class Dorefa:
    r"""Train a network whose weights, inputs of layers and gradients have few bits.

    .. math:: w_q = 2\, Q_k\!\left( \frac{\tanh w}{2 \max |\tanh w|} + \frac12 \right) - 1, \qquad
       x_q = Q_k(\mathrm{clip}(x, 0, 1)), \qquad
       g_q = 2 \max|g| \left( Q_k\!\left( \frac{g}{2 \max|g|} + \frac12 + N(k) \right) - \frac12 \right)

    Parameters
    ----------
    weight_bits, input_bits : int, 1 to 8
    gradient_bits : int, 1 to 8, or 32
        Of the gradient of each layer's sums; 32 leaves it as it is.
    ends : int, 2 to 8
        Bits of the first and the last layer, whose gradients stay FP32.

    Notes
    -----
    Adapted: the paper leaves the first and the last layer in FP32. Here they have eight bits, on a grid of least and
    largest value, as their weights are a good part of a small network's.

    Source: Zhou et al. 2016, sections 2.2 to 2.6, algorithm 1.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = Dorefa(weight_bits=2).train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> network[3].weight.unique().detach()
    tensor([-1.0000, -0.3333,  0.3333,  1.0000])
    """

    weight_bits: int = 1
    input_bits: int = 2
    gradient_bits: int = 6
    ends: int = 8

    def __post_init__(self) -> None:
        checked_bits(self.weight_bits, "weight_bits")
        checked_bits(self.input_bits, "input_bits")
        checked_bits(self.ends, "ends", 2)
        if self.gradient_bits != 32:
            checked_bits(self.gradient_bits, "gradient_bits")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, forward and backward in few bits.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own; of the gradients' noise, too.

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
        network = quantize_network(
            network, lambda layer: TanhWeights(self.weight_bits), lambda layer: UnitInputs(self.input_bits), self.ends
        )
        if self.gradient_bits != 32:
            layers: list[Any] = list(network.modules())
            for layer in layers:
                if isinstance(getattr(layer, "input_quantizer", None), UnitInputs):
                    layer.gradient_bits = self.gradient_bits
                    layer.register_forward_hook(_narrow)
        return network

    def afterwards(self) -> RoundedAfterwards:
        """The same rule, applied once to a network that was trained without it; gradients have no part in that."""
        return RoundedAfterwards(Dorefa(self.weight_bits, self.input_bits, ends=self.ends))
