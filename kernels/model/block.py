"""What all blocks share: the convolution that one stands in for, and how it comes to stand there."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Protocol, TypeGuard

from torch import nn

__all__ = ["Block", "ConvSpec", "StandardConvolution", "replace"]


@dataclass(frozen=True)
class ConvSpec:
    """A standard two-dimensional convolution: what a block has to stand in for.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : int or pair of int
        As for `torch.nn.Conv2d`; padding may also be "same" or "valid".
    bias : bool

    Examples
    --------
    >>> ConvSpec.of(nn.Conv2d(8, 16, 3, padding=1, bias=False))
    ConvSpec(in_channels=8, out_channels=16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1),
             bias=False)
    """

    in_channels: int
    out_channels: int
    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | str | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    bias: bool = True

    @classmethod
    def of(cls, layer: nn.Conv2d) -> ConvSpec:
        """The specification of a layer."""
        return cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.bias is not None,
        )


class Block(Protocol):
    """What gives a module in place of a standard convolution."""

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained module with the convolution's input and output shapes."""


@dataclass(frozen=True)
class StandardConvolution:
    """The block that all others are measured against: the convolution itself.

    Examples
    --------
    >>> StandardConvolution().build(ConvSpec(8, 16, 3))
    Conv2d(8, 16, kernel_size=(3, 3), stride=(1, 1))
    """

    def build(self, spec: ConvSpec) -> nn.Module:
        return nn.Conv2d(**asdict(spec))


def replace(network: nn.Module, block: Block) -> nn.Module:
    """A copy of `network` whose standard convolutions are built by `block`, untrained.

    Standard is a `torch.nn.Conv2d` that mixes space and channels in one group: kernel larger than 1, more than one
    input channel, zero padding.

    Parameters
    ----------
    network : nn.Module
        Left as it is.
    block : Block

    Raises
    ------
    TypeError, ValueError
        If `network` is no module, or has no standard convolution.

    Examples
    --------
    >>> from kernels.model.compact_convolution.depthwise_separable import DepthwiseSeparable
    >>> network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1))
    >>> [type(layer).__name__ for layer in replace(network, DepthwiseSeparable())]
    ['Conv2d', 'Sequential', 'Conv2d']
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    if is_standard(network):
        return block.build(ConvSpec.of(network))
    network = copy.deepcopy(network)
    places = [
        (parent, name, layer)
        for parent in network.modules()
        for name, layer in parent.named_children()
        if is_standard(layer)
    ]
    if not places:
        raise ValueError(
            "network: expected a standard convolution (one group, kernel > 1, more than one input channel);"
            f" {type(network).__name__} has none"
        )
    for parent, name, layer in places:
        setattr(parent, name, block.build(ConvSpec.of(layer)))
    return network


def is_standard(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that a block may stand in for."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and max(layer.kernel_size) > 1
        and layer.in_channels > 1
        and layer.padding_mode == "zeros"
    )
