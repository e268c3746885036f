r"""Binarized network: weights and inputs of layers are -1 or +1, a product an XNOR and a sum a count of ones.

.. math:: x_b = \mathrm{sign}(x), \qquad
   \frac{\partial L}{\partial x} := \frac{\partial L}{\partial x_b} \; [\,|x| \le 1\,]

Beyond 1 a sign is as good as settled, and its gradient is cancelled: without that the network learns worse. Weights are
those of BinaryConnect: signs forward, real numbers below, clipped after each update. The sign is the only nonlinearity;
a rectifier before it would leave no negative number, so rectifiers are taken out. The sum over k places is

    a . w = 2 popcount(xnor(a, w)) - k

and batch norm with a sign behind it is one threshold for each channel.

Source: M. Courbariaux et al., "Binarized Neural Networks: Training Deep Neural Networks with Weights and Activations
Constrained to +1 or -1", 2016, section 1 and algorithm 1.

Examples
--------
>>> x = torch.tensor([-2.0, -0.5, 0.0, 3.0], requires_grad=True)
>>> y = SignInputs()(x)
>>> y.detach(), torch.autograd.grad(y.sum(), x)[0]
(tensor([-1., -1.,  1.,  1.]), tensor([0., 1., 1., 0.]))
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.quantization.binary_weights import SignWeights, binary, clipping, glorot
from kernels.model.quantization.quantizers import (
    AffineInputs,
    InputQuantizer,
    RoundedAfterwards,
    checked_bits,
    passed_through,
    product_layers,
    quantize_network,
)

__all__ = ["BinarizedNetwork", "SignInputs", "without_rectifiers"]

Trace = list[dict[str, Any]]


class SignInputs(InputQuantizer):
    """Signs of inputs; the gradient passes where they lie between -1 and 1.

    Attributes
    ----------
    name : str
        Of the layer, in the error.

    Raises
    ------
    ValueError
        If training starts with inputs none of which is negative.
    """

    bits = 1
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.name = "layer"
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.seen:
            if not (x < 0).any():
                raise ValueError(f"{self.name}: expected inputs of both signs, got none below zero")
            self.seen.fill_(True)
        return passed_through(binary(x.detach()), x.clamp(-1, 1))


def name_signs(layers: Iterable[tuple[str, Any]]) -> None:
    """Tell the quantizers of layers whose they are, for their errors."""
    for name, layer in layers:
        layer.input_quantizer.name = name


def without_rectifiers(network: nn.Module) -> None:
    """Let what rectifiers took pass, in place: signs are to be taken of it."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Identity())


@dataclass(frozen=True)
class BinarizedNetwork:
    r"""Train a network whose weights and inputs of layers are -1 or +1.

    .. math:: w_b = \mathrm{sign}(w), \quad x_b = \mathrm{sign}(x), \qquad
       \frac{\partial L}{\partial x} := \frac{\partial L}{\partial x_b}\, [\,|x| \le 1\,], \qquad
       w \leftarrow \mathrm{clip}(w - \eta\, \partial L / \partial w_b)

    Parameters
    ----------
    first_bits : int, 2 to 8
        Bits of the network's own input, whose weights are binary like all others.

    Notes
    -----
    A sign stands for a power of two near the square root of 1.5 / (inputs + outputs) of its layer. Batch norm takes
    that out again; in a network without one, and in the last layer, it keeps sums near 1. A power of two changes no bit
    of a sum, so that the integer product times it is the layer's to the last bit. Adapted: loss, optimizer and rate are
    the recipe's, where the paper has a squared hinge loss, a norm behind the last layer too, and norms of shifts.

    Source: Courbariaux et al. 2016, section 1, algorithm 1.

    Examples
    --------
    >>> import datasets
    >>> workload = datasets.workload("noisy-digits-cnn")
    >>> network, trace = BinarizedNetwork().train(workload.network(), workload.data(), datasets.Recipe(epochs=1))
    >>> network[7].weight.unique().detach()
    tensor([-0.0625,  0.0625])
    """

    first_bits: int = 8

    def __post_init__(self) -> None:
        checked_bits(self.first_bits, "first_bits", 2)

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network`, its rectifiers taken out, by `recipe`.

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
            The network still holds the real weights below; `kernels.model.transform.bake` leaves the binary ones.
        """
        network = self.constrain(network)
        return network, recipe.train(network, data, seed=seed, on_step=clipping)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` that computes with signs from now on.

        Raises
        ------
        ValueError
            If it has a recurrent layer, or no layer to make binary.
        """
        network = quantize_network(network, lambda layer: SignWeights(_power(layer.weight)), lambda layer: SignInputs())
        (_, first), *others = product_layers(network)
        first.input_quantizer = AffineInputs(self.first_bits)
        name_signs(others)
        without_rectifiers(network)
        return network

    def afterwards(self) -> RoundedAfterwards:
        """The same rule, applied once to a network that was trained without it."""
        return RoundedAfterwards(self)


def _power(w: Tensor) -> float:
    return 2.0 ** round(math.log2(glorot(w)))
