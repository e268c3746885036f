"""A layer as an accelerator sees it: the shape of a convolution, and of the matrix product it becomes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Layer", "ValuedLayer", "layers_of", "valued_layers"]


@dataclass(frozen=True)
class Layer:
    """A convolution of square or rectangular shape; a matrix product is one with a 1 x 1 kernel.

    Lowered to a product (im2col), each of its `groups` multiplies an m x k matrix of input windows by a k x n matrix of
    filters: m output pixels, k weights in a filter, n filters.

    Parameters
    ----------
    in_channels, out_channels : int
    height, width : int
        Of the input, in pixels, without padding.
    kernel, stride, padding, dilation : int or (int, int), in pixels
    groups, batch : int
    name : str

    Raises
    ------
    ValueError
        If a number is not a positive integer (padding may be 0), channels do not divide into the groups, or the kernel
        does not fit the padded input.

    Examples
    --------
    >>> Layer(64, 128, 56, 56, kernel=3, stride=2, padding=1).gemm_shape()
    (784, 128, 576)
    >>> Layer.gemm(128, 1000, 512).macs
    65536000
    """

    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int | tuple[int, int] = 1
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    batch: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        for what in ("in_channels", "out_channels", "height", "width", "groups", "batch"):
            positive_integer(getattr(self, what), what)
        for what in ("kernel", "stride", "padding", "dilation"):
            for number in _pair(getattr(self, what)):
                positive_integer(number, what, least=0 if what == "padding" else 1)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups: {self.in_channels} input and {self.out_channels} output channels do not divide "
                f"into {self.groups} groups"
            )
        if min(self.output_size()) < 1:
            raise ValueError(
                f"kernel: {self.kernel} with dilation {self.dilation} does not fit an input of "
                f"{self.height} x {self.width} padded by {self.padding}"
            )

    @classmethod
    def gemm(cls, m: int, n: int, k: int, name: str = "") -> Layer:
        """The product of an m x k matrix of inputs by a k x n matrix of weights."""
        return cls(k, n, m, 1, name=name)

    def output_size(self, ceil: bool = False) -> tuple[int, int]:
        """Height and width of the output; `ceil` also counts a last window that the stride leaves incomplete."""
        sizes = []
        for size, k, s, p, d in zip(
            (self.height, self.width),
            _pair(self.kernel),
            _pair(self.stride),
            _pair(self.padding),
            _pair(self.dilation),
            strict=True,
        ):
            room = size + 2 * p - d * (k - 1) - 1
            sizes.append((-(-room // s) if ceil else room // s) + 1)
        return sizes[0], sizes[1]

    def gemm_shape(self, ceil: bool = False) -> tuple[int, int, int]:
        """(m, n, k) of the product that one group becomes."""
        height, width = self.output_size(ceil)
        window = _pair(self.kernel)[0] * _pair(self.kernel)[1] * self.in_channels // self.groups
        return self.batch * height * width, self.out_channels // self.groups, window

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer."""
        m, n, k = self.gemm_shape()
        return self.groups * m * n * k

    @property
    def ifmap_elements(self) -> int:
        """Inputs of one group that some window covers, each counted once; zeros of the padding are never stored."""
        axes = zip(
            (self.height, self.width),
            self.output_size(),
            _pair(self.kernel),
            _pair(self.stride),
            _pair(self.padding),
            _pair(self.dilation),
            strict=True,
        )
        rows, columns = (_covered(*axis) for axis in axes)
        return self.batch * rows * columns * self.in_channels // self.groups

    @property
    def band_elements(self) -> int:
        """Inputs of one group under one row of windows: what overlapping windows share if it stays on chip."""
        rows = min(self.height, _pair(self.dilation)[0] * (_pair(self.kernel)[0] - 1) + 1)
        return rows * self.width * self.in_channels // self.groups


def _covered(size: int, windows: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Places of one axis under some window: those of a tap lie a stride apart, and taps may share them."""
    places, free = 0, {place: place for place in range(stride)}  # by remainder, the first that no tap has covered yet
    for first in range(-padding, kernel * dilation - padding, dilation):
        begin, stop = max(first, free[first % stride]), first + windows * stride
        places += len(range(begin, min(stop, size), stride))
        free[first % stride] = max(begin, stop)
    return places


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)


def positive_integer(value: object, name: str, least: int = 1) -> None:
    """Raise unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


@dataclass(frozen=True, eq=False)
class ValuedLayer(Layer):
    """A layer with the numbers that it computes on.

    Parameters
    ----------
    weights : ndarray, shape (groups, n, k)
    inputs : ndarray, shape (items, groups, m, k)
        Windows of one or more items. Entries of a window, and of a filter, are ordered by row, column, channel, so that
        neighbours are channels of one pixel.
    """

    weights: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    inputs: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)


def layers_of(network: nn.Module, x: torch.Tensor) -> list[Layer]:
    """The convolutions and linear layers of a network, in the order one forward pass of `x` calls them.

    Parameters
    ----------
    network : nn.Module
    x : torch.Tensor
        An input, batch first.

    Raises
    ------
    TypeError
        If the network multiplies anywhere else than in its `Conv2d` and `Linear` layers.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> [layer.gemm_shape() for layer in layers_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 10)),
    ...                                            torch.zeros(1, 1, 4, 4))]
    [(4, 4, 9), (1, 10, 16)]
    """
    return [layer for layer, _, _ in _calls(network, x)]


def valued_layers(network: nn.Module, x: torch.Tensor) -> list[ValuedLayer]:
    """The same with their weights, and their inputs for each item of `x`.

    Parameters
    ----------
    network : nn.Module
    x : torch.Tensor
        Items, batch first.

    Returns
    -------
    list of ValuedLayer
        In the order of their calls, as of one item.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> layer, = valued_layers(nn.Sequential(nn.Conv2d(2, 3, 2)), torch.ones(5, 2, 3, 3))
    >>> layer.gemm_shape(), layer.weights.shape, layer.inputs.shape
    ((4, 3, 8), (1, 3, 8), (5, 1, 4, 8))
    """
    return [
        ValuedLayer(**{f.name: getattr(layer, f.name) for f in fields(Layer)}, weights=w, inputs=inputs)
        for layer, (_, module, seen) in zip(layers_of(network, x[:1]), _calls(network, x), strict=True)
        for w, inputs in [_values(module, seen)]
    ]


def _calls(network: nn.Module, x: torch.Tensor) -> list[tuple[Layer, nn.Conv2d | nn.Linear, torch.Tensor]]:
    """Every call of a convolution or linear layer: its shape, the module, its input."""
    from torch import nn

    from kernels.counting import macs

    calls: list[tuple[Layer, nn.Conv2d | nn.Linear, torch.Tensor]] = []
    network = copy.deepcopy(network).eval()  # the hooks and the mode stay out of the caller's network
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(_append_to(calls, name))
        elif any(p.ndim > 1 for p in module.parameters(recurse=False)):
            raise TypeError(
                f"network: no cost model for {name}, a {type(module).__name__}; expected Conv2d and Linear layers"
            )
    total = macs(network, x)  # runs the hooks
    if elsewhere := total - sum(layer.macs for layer, _, _ in calls):
        raise TypeError(
            f"network: no cost model for {elsewhere} of its {total} multiply-accumulates; "
            "expected all of them in Conv2d and Linear layers"
        )
    return calls


def _append_to(calls: list, name: str) -> Callable[[nn.Module, tuple], None]:
    from torch import nn

    def hook(module: nn.Module, inputs: tuple) -> None:
        x = inputs[0]
        if isinstance(module, nn.Linear):
            layer = Layer.gemm(x.numel() // x.shape[-1], module.out_features, module.in_features, name)
        else:
            assert isinstance(module, nn.Conv2d)
            layer = Layer(
                module.in_channels,
                module.out_channels,
                x.shape[-2],
                x.shape[-1],
                _pair(module.kernel_size),
                _pair(module.stride),
                _padding(module, name),
                _pair(module.dilation),
                module.groups,
                x.shape[0] if x.ndim == 4 else 1,
                name,
            )
        calls.append((layer, module, x.detach()))

    return hook


def _padding(module: nn.Conv2d, name: str) -> tuple[int, int]:
    if not isinstance(module.padding, str):
        return _pair(module.padding)
    if module.padding == "valid":
        return 0, 0
    whole = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    if any(pixels % 2 for pixels in whole):
        raise TypeError(f"network: {name} pads its two sides differently; expected an odd kernel")
    return whole[0] // 2, whole[1] // 2


def _values(module: nn.Conv2d | nn.Linear, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    from torch import nn

    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return weight.numpy()[None], x.reshape(len(x), 1, -1, x.shape[-1]).numpy()
    groups, pixels = module.groups, module.kernel_size[0] * module.kernel_size[1]
    windows = nn.functional.unfold(x, module.kernel_size, module.dilation, _padding(module, ""), module.stride)
    items, _, places = windows.shape
    ordered = windows.reshape(items, groups, -1, pixels, places).permute(0, 1, 4, 3, 2)  # pixel, then channel
    filters = weight.reshape(groups, len(weight) // groups, -1, pixels).transpose(2, 3)
    return filters.flatten(2).numpy(), ordered.flatten(3).numpy()
