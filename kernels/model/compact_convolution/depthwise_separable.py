"""Depthwise separable convolution: one spatial filter for each channel, then a 1 x 1 convolution that mixes them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec

__all__ = ["DepthwiseSeparable", "composed_kernel"]


@dataclass(frozen=True)
class DepthwiseSeparable:
    r"""Factor a convolution of M into N channels into a depthwise and a pointwise one.

    .. math:: y_n = \sum_m p_{nm} \, (d_m * x_m)

    A standard k x k convolution costs k² M N products a pixel, this one k² M + M N: the share 1/N + 1/k² of it.

    Parameters
    ----------
    multiplier : int
        Spatial filters for each input channel; cost grows in proportion.
    norm : bool
        Batch norm between the two.
    activation : bool
        ReLU between the two, as in MobileNet; Xception leaves it out.

    Source
    ------
    Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
    section 3.1; Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017.

    Examples
    --------
    >>> standard = nn.Conv2d(32, 64, 3, padding=1, bias=False)
    >>> block = DepthwiseSeparable(norm=False, activation=False).build(ConvSpec.of(standard))
    >>> sum(p.numel() for p in block.parameters()) / standard.weight.numel() == 1 / 64 + 1 / 9
    True
    """

    multiplier: int = 1
    norm: bool = True
    activation: bool = True

    def __post_init__(self) -> None:
        if self.multiplier < 1:
            raise ValueError(f"multiplier: expected a positive integer, got {self.multiplier}")

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained block with the input and output shapes of a standard convolution.

        Parameters
        ----------
        spec : ConvSpec

        Returns
        -------
        nn.Sequential
            Layers named depthwise, norm, activation and pointwise; stride and dilation belong to the first.
        """
        middle = spec.in_channels * self.multiplier
        spatial = asdict(spec) | {"out_channels": middle, "groups": spec.in_channels, "bias": False}
        layers: OrderedDict[str, nn.Module] = OrderedDict(depthwise=nn.Conv2d(**spatial))
        if self.norm:
            layers["norm"] = nn.BatchNorm2d(middle)
        if self.activation:
            layers["activation"] = nn.ReLU()
        layers["pointwise"] = nn.Conv2d(middle, spec.out_channels, 1, bias=spec.bias)
        return nn.Sequential(layers)


def composed_kernel(depthwise: Tensor, pointwise: Tensor, multiplier: int = 1) -> Tensor:
    r"""The kernel of the standard convolution that a block without norm and activation equals.

    .. math:: k_{nmij} = \sum_{c=0}^{C-1} p_{n,mC+c} \, d_{mC+c,ij}

    Every output channel combines the same C filters of an input channel: what the block saves is what it cannot say.

    Parameters
    ----------
    depthwise : Tensor of shape (M C, 1, k, k)
    pointwise : Tensor of shape (N, M C, 1, 1)
    multiplier : int
        C, the number of filters of a channel.

    Returns
    -------
    Tensor of shape (N, M, k, k)
    """
    d = depthwise.unflatten(0, (-1, multiplier)).squeeze(2)
    p = pointwise.unflatten(1, (-1, multiplier))[..., 0, 0]
    return torch.einsum("nmc,mcij->nmij", p, d)
