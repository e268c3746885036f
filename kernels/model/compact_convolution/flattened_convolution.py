"""Flattened convolution: a three-dimensional filter as three of one dimension, across channels, down and along."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import along, geometry, pointwise

__all__ = ["FlattenedConvolution", "composed_kernel"]


@dataclass(frozen=True)
class FlattenedConvolution:
    r"""Filters of rank one: across the channels, then down each channel, then along it.

    .. math:: w_{nmij} = \alpha_{nm} \, \beta_{ni} \, \gamma_{nj}

    One set takes N (M + 2k) products a pixel instead of k² M N. There is no non-linearity between the three. One set
    says little, so that the paper repeats it, the second from N into N channels.

    Parameters
    ----------
    sets : int
        Triples of filters, one after the other.

    Source
    ------
    Jin, Dundar and Culurciello, "Flattened Convolutional Neural Networks for Feedforward Acceleration", 2014,
    section 3.

    Examples
    --------
    >>> from kernels.counting import parameters
    >>> parameters(FlattenedConvolution(sets=1).build(ConvSpec(16, 32, 3, bias=False))) == 32 * (16 + 2 * 3)
    True
    """

    sets: int = 2

    def __post_init__(self) -> None:
        if self.sets < 1:
            raise ValueError(f"sets: expected a positive integer, got {self.sets}")

    def build(self, spec: ConvSpec) -> nn.Sequential:
        """An untrained block with the input and output shapes of a standard convolution.

        Parameters
        ----------
        spec : ConvSpec
            With an odd kernel, if there is more than one set; stride and padding are those of the last.

        Returns
        -------
        nn.Sequential
            Three convolutions a set: lateral, vertical, horizontal.
        """
        n, layers = spec.out_channels, []
        for number in range(self.sets):
            last = number == self.sets - 1
            if not last and not all(k % 2 for k in geometry(spec).kernel):
                raise ValueError(f"kernel_size: expected odd sizes for more than one set, got {spec.kernel_size}")
            own = spec if last else replace(spec, stride=1, padding="same")
            options: list[dict[str, Any]] = [along(own, axis) for axis in (0, 1)]
            layers.append(pointwise(spec.in_channels if number == 0 else n, n, bias=spec.bias))
            layers += [nn.Conv2d(n, n, **o, groups=n, bias=spec.bias) for o in options]
        return nn.Sequential(*layers)


def composed_kernel(lateral: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    r"""The kernel of the standard convolution that one set equals: w of the class's equation.

    Parameters
    ----------
    lateral : Tensor of shape (N, M, 1, 1)
    vertical : Tensor of shape (N, 1, k, 1)
    horizontal : Tensor of shape (N, 1, 1, k)

    Returns
    -------
    Tensor of shape (N, M, k, k)
    """
    return torch.einsum("nm,ni,nj->nmij", lateral[..., 0, 0], vertical[:, 0, :, 0], horizontal[:, 0, 0])
