"""A layer as an accelerator sees it: the shape of a convolution, and of the matrix product it becomes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Layer", "layers_of"]


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
        for field in ("in_channels", "out_channels", "height", "width", "groups", "batch"):
            positive_integer(getattr(self, field), field)
        for field in ("kernel", "stride", "padding", "dilation"):
            for number in _pair(getattr(self, field)):
                positive_integer(number, field, least=0 if field == "padding" else 1)
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
        """Inputs of one group, each counted once; zeros of the padding are never stored."""
        return self.batch * self.height * self.width * self.in_channels // self.groups

    @property
    def band_elements(self) -> int:
        """Inputs of one group under one row of windows: what overlapping windows share if it stays on chip."""
        rows = min(self.height, _pair(self.dilation)[0] * (_pair(self.kernel)[0] - 1) + 1)
        return rows * self.width * self.in_channels // self.groups


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)


def positive_integer(value: object, name: str, least: int = 1) -> None:
    """Raise unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


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
        If the network holds a layer with a weight matrix that is neither `Conv2d` nor `Linear`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> [layer.gemm_shape() for layer in layers_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 10)),
    ...                                            torch.zeros(1, 1, 4, 4))]
    [(4, 4, 9), (1, 10, 16)]
    """
    import torch
    from torch import nn

    layers: list[Layer] = []
    network = copy.deepcopy(network).eval()  # the hooks and the mode stay out of the caller's network
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(_append_to(layers, name))
        elif any(p.ndim > 1 for p in module.parameters(recurse=False)):
            raise TypeError(
                f"network: no cost model for {name}, a {type(module).__name__}; expected Conv2d and Linear layers"
            )
    with torch.no_grad():
        network(x)
    return layers


def _append_to(layers: list[Layer], name: str) -> Callable[[nn.Module, tuple], None]:
    from torch import nn

    def hook(module: nn.Module, inputs: tuple) -> None:
        x = inputs[0]
        if isinstance(module, nn.Linear):
            layers.append(Layer.gemm(x.numel() // x.shape[-1], module.out_features, module.in_features, name))
            return
        assert isinstance(module, nn.Conv2d)
        kernel, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
        if isinstance(module.padding, str):
            if module.padding == "same" and any(d * (k - 1) % 2 for k, d in zip(kernel, dilation, strict=True)):
                raise TypeError(f"network: {name} pads its two sides differently; expected an odd kernel")
            half = dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2
            padding = half if module.padding == "same" else (0, 0)
        else:
            padding = _pair(module.padding)
        layers.append(
            Layer(
                module.in_channels,
                module.out_channels,
                x.shape[-2],
                x.shape[-1],
                kernel,
                stride,
                padding,
                dilation,
                module.groups,
                x.shape[0],
                name,
            )
        )

    return hook
