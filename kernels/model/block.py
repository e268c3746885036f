"""What all blocks share: the convolution that one stands in for, and how it comes to stand there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeGuard

from torch import nn

__all__ = [
    "Block", "ConvSpec", "NetworkBlock", "NetworkSpec", "StandardConvolution", "fused", "replace", "substitute",
]  # fmt: skip


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


@dataclass(frozen=True, eq=False)
class NetworkSpec:
    """A whole network, for what changes more than one convolution: width, resolution, where maps shrink.

    Parameters
    ----------
    network : nn.Module
        To be left as it is.
    shape : tuple of int
        Of one item.
    """

    network: nn.Module
    shape: tuple[int, ...]


class NetworkBlock(Protocol):
    """What gives a network in place of another: a block whose `whole` is true."""

    whole: ClassVar[bool]

    def build(self, spec: NetworkSpec) -> nn.Module:
        """An untrained network with the same items and the same answers."""


def substitute(network: nn.Module, block: Any, shape: Sequence[int]) -> nn.Module:
    """What becomes of `network` when a block of either form is used, untrained.

    A block stands in for each standard convolution (`replace`), or, if its `whole` is true, for the network. Layers
    that follow such a convolution in the same `nn.Sequential`, and whose work the block does itself, are those of the
    classes under its `takes_over`, in this order: they become `nn.Identity`.

    Parameters
    ----------
    network : nn.Module
        Left as it is.
    block : Block or NetworkBlock
    shape : sequence of int
        Of one item.

    Raises
    ------
    TypeError, ValueError
        As `replace`, and whatever the block refuses.

    Examples
    --------
    >>> from kernels.model.compact_convolution.inverted_residual import InvertedResidual
    >>> network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    >>> [type(layer).__name__ for layer in substitute(network, InvertedResidual(), (8, 6, 6))]
    ['Shortcut', 'Identity', 'Identity', 'Conv2d']
    """
    if getattr(block, "whole", False):
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        return block.build(NetworkSpec(network, tuple(shape)))
    changed = replace(network, block)
    for path in _followers(network, getattr(block, "takes_over", ())):
        changed.set_submodule(path, nn.Identity())
    return changed


def _followers(network: nn.Module, kinds: Sequence[type[nn.Module]]) -> Iterator[str]:
    """Paths of the layers of these kinds, in this order, right behind a standard convolution."""
    for path, chain in network.named_modules():
        children = list(chain.named_children()) if type(chain) is nn.Sequential else []
        for place, (_, layer) in enumerate(children):
            behind = zip(children[place + 1 :], kinds, strict=False)
            for (name, follower), kind in behind if is_standard(layer) else ():
                if not isinstance(follower, kind):
                    break
                yield f"{path}.{name}" if path else name


def fused(network: nn.Module) -> nn.Module:
    """A copy of `network` in the form in which it infers: every module that offers `fuse()` becomes what that gives.

    Parameters
    ----------
    network : nn.Module
        Left as it is.

    Examples
    --------
    >>> from kernels.model.compact_convolution.re_parameterisation import ReParameterisation
    >>> block = ReParameterisation().build(ConvSpec(8, 8, 3, padding=1))
    >>> [type(layer).__name__ for layer in fused(nn.Sequential(block, nn.ReLU()))]
    ['Conv2d', 'ReLU']
    """
    if hasattr(network, "fuse"):
        return network.fuse()  # type: ignore[operator]
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if hasattr(module, "fuse"):
                setattr(parent, name, module.fuse())  # type: ignore[operator]
    return network
