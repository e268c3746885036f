"""Inverted residual: wide inside, narrow outside, and no non-linearity on the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import Shortcut, depthwise, keeps_size, pointwise

__all__ = ["InvertedResidual"]


@dataclass(frozen=True)
class InvertedResidual:
    r"""MobileNetV2's block: expand by 1 x 1, filter each channel, project by 1 x 1, add the input.

    .. math:: y = x + p_2 \, \mathrm{ReLU6}(d * \mathrm{ReLU6}(p_1 x)), \qquad
              p_1: M \to tM, \quad p_2: tM \to N

    with a batch norm behind each convolution, and nothing behind the last: a ReLU on few channels would lose what it
    cuts off, on the many inside it loses little. The input is added where the channels are as many and maps keep their
    size. A block takes M t M + k² t M + t M N products a pixel.

    Parameters
    ----------
    expansion : int
        t; with 1 the expanding convolution is left out.
    linear : bool
        Whether the result stays as it is; else ReLU6 follows, the paper's own comparison.

    Source
    ------
    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, sections 3.2 to 3.4.

    Examples
    --------
    >>> from kernels.counting import macs
    >>> import torch
    >>> block = InvertedResidual(expansion=6).build(ConvSpec(16, 32, 3, padding=1))
    >>> macs(block, torch.zeros(1, 16, 1, 1)) == 16 * 96 + 9 * 96 + 96 * 32
    True
    """

    expansion: int = 2
    linear: bool = True

    takes_over: ClassVar[tuple[type[nn.Module], ...]] = (nn.BatchNorm2d, nn.ReLU)

    def __post_init__(self) -> None:
        if self.expansion < 1:
            raise ValueError(f"expansion: expected a positive integer, got {self.expansion}")

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained block; norm and activation behind the convolution are its own.

        Parameters
        ----------
        spec : ConvSpec

        Returns
        -------
        nn.Module
            `Shortcut`, where the input is added, else the branch alone; either in a chain if ReLU6 follows.
        """
        wide = spec.in_channels * self.expansion
        expand = [pointwise(spec.in_channels, wide), nn.BatchNorm2d(wide), nn.ReLU6()] if self.expansion > 1 else []
        branch = nn.Sequential(
            *expand, depthwise(spec, wide), nn.BatchNorm2d(wide), nn.ReLU6(),
            pointwise(wide, spec.out_channels), nn.BatchNorm2d(spec.out_channels),
        )  # fmt: skip
        adds = spec.in_channels == spec.out_channels and keeps_size(spec)
        block = Shortcut(branch) if adds else branch
        return block if self.linear else nn.Sequential(block, nn.ReLU6())
