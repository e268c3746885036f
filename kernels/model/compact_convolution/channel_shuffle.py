"""Channel shuffle: mix the channels of the groups before the next layer in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import Shortcut, depthwise, geometry, keeps_size, pointwise

__all__ = ["ChannelShuffle", "Concatenated", "Shuffle", "shuffle"]


def shuffle(x: Tensor, groups: int) -> Tensor:
    r"""Channels taken from all groups in turn: written as a matrix of groups by channels, and read by columns.

    .. math:: y_{j g + i} = x_{i n + j}, \qquad 0 \le i < g, \; 0 \le j < n = M / g

    Nothing is computed; every number moves.

    Examples
    --------
    >>> shuffle(torch.arange(6.0).view(1, 6, 1, 1), groups=2).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Shuffle(nn.Module):
    """`shuffle` as a layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(x, self.groups)


class Concatenated(nn.Module):
    """What a branch computes, behind what goes past it."""

    def __init__(self, branch: nn.Module, past: nn.Module) -> None:
        super().__init__()
        self.branch, self.past = branch, past

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.past(x), self.branch(x)], dim=1)


@dataclass(frozen=True)
class ChannelShuffle:
    r"""ShuffleNet's unit: 1 x 1 convolutions in groups, between them a shuffle and a depthwise convolution.

    .. math:: f(x) = p_2 \circledast_g \big(d * \mathrm{shuffle}_g(\mathrm{ReLU}(p_1 \circledast_g x))\big)

    with a batch norm behind each of the three. Where 1 x 1 convolutions do most of the work, as behind depthwise ones,
    groups divide that work by g; but a stack of layers in the same groups never mixes them. The shuffle hands each
    group of the second layer a share of every group of the first.

    As in the paper the input goes past f: it is added where the channels are as many and maps keep their size; where
    there are more channels behind than before, f computes only those that are more, and the input, average-pooled if
    maps shrink, is put before them. Where there are fewer, f stands alone. With B = N / bottleneck channels inside, and
    N' of f's own behind, the unit takes M B / g + k² B + B N' / g products a pixel.

    Parameters
    ----------
    groups : int
        g; it must divide the channels of both sides and those inside.
    bottleneck : int
        How many times fewer channels there are inside than behind.
    shuffled : bool
        Whether channels are shuffled: without it, the paper's own comparison.

    Source
    ------
    Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018,
    sections 3.1 and 3.2.

    Examples
    --------
    >>> unit = ChannelShuffle().build(ConvSpec(32, 32, 3, padding=1))
    >>> [type(layer).__name__ for layer in unit.branch]
    ['Conv2d', 'BatchNorm2d', 'ReLU', 'Shuffle', 'Conv2d', 'BatchNorm2d', 'Conv2d', 'BatchNorm2d']
    """

    groups: int = 4
    bottleneck: int = 1
    shuffled: bool = True

    takes_over: ClassVar[tuple[type[nn.Module], ...]] = (nn.BatchNorm2d,)

    def __post_init__(self) -> None:
        for name in ("groups", "bottleneck"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive integer, got {getattr(self, name)}")

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained unit; its last ReLU is the one behind the convolution.

        Parameters
        ----------
        spec : ConvSpec

        Returns
        -------
        nn.Module
            `Shortcut`, `Concatenated`, or the branch alone.

        Raises
        ------
        ValueError
            If the groups do not divide the channels.
        """
        m, n, g = spec.in_channels, spec.out_channels, self.groups
        inside, added = n // self.bottleneck, n - m if n > m else n
        for name, channels in (("in_channels", m), ("out_channels", n), ("channels inside", inside)):
            if channels % g or not channels:
                raise ValueError(f"{name}: expected a multiple of {g} groups, got {channels}")
        branch = nn.Sequential(
            pointwise(m, inside, groups=g), nn.BatchNorm2d(inside), nn.ReLU(),
            *([Shuffle(g)] if self.shuffled else []),
            depthwise(spec, inside), nn.BatchNorm2d(inside),
            pointwise(inside, added, groups=g), nn.BatchNorm2d(added),
        )  # fmt: skip
        if n > m:
            return Concatenated(branch, _past(spec))
        return Shortcut(branch) if n == m and keeps_size(spec) else branch


def _past(spec: ConvSpec) -> nn.Module:
    if keeps_size(spec):
        return nn.Identity()
    g = geometry(spec)
    if g.dilation != (1, 1):
        raise ValueError(f"dilation: expected 1 where maps shrink, got {spec.dilation}")
    return nn.AvgPool2d(g.kernel, g.stride, g.padding)
