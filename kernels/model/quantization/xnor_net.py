r"""XNOR-Net: signs of weights and of inputs, each times the scale that brings them nearest to what they stand for.

Of a filter W with n weights, the nearest of all tensors of one magnitude is, in squares,

.. math:: \min_{\alpha, B} \| W - \alpha B \|^2, \quad B_i \in \{-1, 1\}: \qquad
   B = \mathrm{sign}(W), \qquad \alpha = \frac1n \sum_i |W_i|

An input has such a scale for every place that a filter sees: K, the mean over the filter's area of the mean magnitude
over channels. A convolution is then counts of ones, scaled by place and by filter:

.. math:: I * W \approx \left( \mathrm{sign}(I) \circledast \mathrm{sign}(W) \right) \odot K \alpha, \qquad
   K = \frac1c \sum_c |I_c| \; * \; \frac{1}{w h}

Gradients pass signs where what they were taken of lies between -1 and 1. That of a weight has a second part, since it
is in the mean, too:

.. math:: \frac{\partial L}{\partial W_i} = \frac{\partial L}{\partial \widetilde W_i}
   \left( \frac1n + \alpha\, [\,|W_i| \le 1\,] \right)

Source: M. Rastegari et al., "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", ECCV 2016,
sections 3.1 and 3.2.

Examples
--------
>>> w = torch.tensor([[0.5, -1.5], [0.1, 0.1]])
>>> ScaledSigns()(w)
tensor([[ 1.0000, -1.0000],
        [ 0.1000,  0.1000]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.quantization.binarized_network import SignInputs, name_signs, without_rectifiers
from kernels.model.quantization.binary_weights import binary
from kernels.model.quantization.quantizers import (
    CodedWeights,
    RoundedAfterwards,
    checked_bits,
    product_layers,
    quantize_network,
    refuse_infinite,
)

__all__ = ["ScaledSigns", "XnorNet", "input_scale"]

Trace = list[dict[str, Any]]


class ScaledSigns(CodedWeights):
    """Signs times the mean magnitude of their filter."""

    bits = 1

    def integers(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return binary(w), w.abs().mean(tuple(range(1, w.ndim)), keepdim=True)

    def forward(self, w: Tensor) -> Tensor:
        still = w.detach()
        refuse_infinite(still)
        signs, scale = self.integers(still)
        share = 1 / w[0].numel() + scale * (still.abs() <= 1)
        return signs * scale + share * (w - still)


def input_scale(x: Tensor, layer: nn.Module) -> Tensor:
    """K: mean magnitude of what each place of a layer's result is computed from, zeros around the image included.

    Parameters
    ----------
    x : Tensor of shape (items, channels, height, width), or (..., inputs) of a linear layer
    layer : nn.Conv2d or nn.Linear

    Returns
    -------
    Tensor of shape (items, 1, rows, columns), or (..., 1)

    Examples
    --------
    >>> input_scale(torch.tensor([[1.0, -3.0]]), nn.Linear(2, 5))
    tensor([[2.]])
    """
    size = x.detach().abs()
    if isinstance(layer, nn.Linear):
        return size.mean(-1, keepdim=True)
    assert isinstance(layer, nn.Conv2d)
    high, wide = layer.kernel_size
    box = torch.full((1, 1, high, wide), 1 / (high * wide), dtype=x.dtype)
    return functional.conv2d(size.mean(1, keepdim=True), box, None, layer.stride, layer.padding, layer.dilation)


def _keep_scale(layer: Any, args: tuple[Any, ...]) -> None:
    layer.scale_of_inputs = input_scale(args[0], layer)


def _scale(layer: Any, args: Any, output: Tensor) -> Tensor:
    scale = layer.scale_of_inputs
    layer.scale_of_inputs = None
    if layer.bias is None:
        return output * scale
    bias = layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None]
    return (output - bias) * scale + bias


@dataclass(frozen=True)
class XnorNet:
    r"""Train a network whose weights and inputs of layers are signs, scaled by filter and by place.

    .. math:: I * W \approx \left( \mathrm{sign}(I) \circledast \mathrm{sign}(W) \right) \odot K \alpha, \qquad
       \alpha = \frac1n \sum_i |W_i|

    Parameters
    ----------
    input_scales : bool
        Whether results are multiplied by K; the paper finds that it matters little beside the filters' scales.
    ends : int, 2 to 8
        Bits of the first and the last layer.

    Notes
    -----
    Batch norm comes before the sign and pooling behind the product in the paper; here pooling stays where the network
    has it, before the sign: the largest of some numbers has the largest of their signs. K is taken for a constant in
    the backward pass. Adapted: the paper leaves the first and the last layer in FP32. Here they have eight bits, on a
    grid of least and largest value.

    Source: Rastegari et al. 2016, sections 3.1 and 3.2.

    Examples
    --------
    >>> import datasets
    >>> workload = datasets.workload("noisy-digits-cnn")
    >>> network, trace = XnorNet().train(workload.network(), workload.data(), datasets.Recipe(epochs=1))
    >>> [len(filter.unique()) for filter in network[7].weight[:3]]
    [2, 2, 2]
    """

    input_scales: bool = True
    ends: int = 8

    def __post_init__(self) -> None:
        checked_bits(self.ends, "ends", 2)
        if not isinstance(self.input_scales, bool):
            raise ValueError(f"input_scales: expected True or False, got {self.input_scales!r}")

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
            The network still holds the real weights below; `kernels.model.transform.bake` leaves the scaled signs.
        """
        network = self.constrain(network)
        return network, recipe.train(network, data, seed=seed)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` that computes with scaled signs from now on.

        Raises
        ------
        ValueError
            If it has a recurrent layer, none between the first and the last, or one there whose scales are not defined.
        """
        for name, layer in product_layers(network)[1:-1]:
            groups, mode = getattr(layer, "groups", 1), getattr(layer, "padding_mode", "zeros")
            if not isinstance(layer, (nn.Conv2d, nn.Linear)) or groups != 1 or mode != "zeros":
                raise ValueError(
                    f"{name}: expected a linear layer or a two-dimensional convolution in one group, padded with zeros,"
                    f" got {layer}"
                )
        network = quantize_network(network, lambda layer: ScaledSigns(), lambda layer: SignInputs(), self.ends)
        name_signs(product_layers(network)[1:-1])
        without_rectifiers(network)
        if self.input_scales:
            for _, layer in product_layers(network)[1:-1]:
                layer.register_forward_pre_hook(_keep_scale, prepend=True)
                layer.register_forward_hook(_scale)
        return network

    def afterwards(self) -> RoundedAfterwards:
        """The same rule, applied once to a network that was trained without it."""
        return RoundedAfterwards(self)
