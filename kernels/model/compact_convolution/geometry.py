"""Where a convolution looks: for blocks that put a smaller kernel, or a way past, in its place."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor, nn

from kernels.model.block import ConvSpec

__all__ = ["Geometry", "Shortcut", "along", "centred", "depthwise", "geometry", "keeps_size", "pointwise"]

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Kernel, stride, padding and dilation, each by axis."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


def geometry(spec: ConvSpec) -> Geometry:
    """A convolution's geometry in numbers by axis.

    Raises
    ------
    ValueError
        If the padding is "same" for a kernel of even size, which has no centre.

    Examples
    --------
    >>> geometry(ConvSpec(8, 8, 3, padding="same"))
    Geometry(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    """
    kernel, stride, dilation = (_pair(value) for value in (spec.kernel_size, spec.stride, spec.dilation))
    if spec.padding == "valid":
        padding = (0, 0)
    elif spec.padding == "same":
        if not all(k % 2 for k in kernel):
            raise ValueError(f'kernel_size: expected odd sizes with padding "same", got {spec.kernel_size}')
        padding = _of_axes(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    else:
        padding = _pair(spec.padding)  # type: ignore[arg-type]
    return Geometry(kernel, stride, padding, dilation)


def keeps_size(spec: ConvSpec) -> bool:
    """Whether maps leave a convolution as large as they came.

    Examples
    --------
    >>> keeps_size(ConvSpec(8, 8, 3, padding=1)), keeps_size(ConvSpec(8, 8, 3)), keeps_size(ConvSpec(8, 8, 3, 2, 1))
    (True, False, False)
    """
    if spec.padding == "same":
        return True
    g = geometry(spec)
    return g.stride == (1, 1) and all(
        2 * p == d * (k - 1) for k, p, d in zip(g.kernel, g.padding, g.dilation, strict=True)
    )


def along(spec: ConvSpec, axis: int) -> dict[str, Any]:
    """The options of a one-dimensional convolution: the spec's along one axis, nothing along the other.

    Examples
    --------
    >>> along(ConvSpec(8, 8, 3, stride=2, padding=1), axis=0)
    {'kernel_size': (3, 1), 'stride': (2, 1), 'padding': (1, 0), 'dilation': (1, 1)}
    """

    def only(values: int | str | tuple[int, ...], other: int) -> Any:
        if isinstance(values, str):
            return values
        return tuple(value if i == axis else other for i, value in enumerate(_pair(values)))

    return {
        "kernel_size": only(spec.kernel_size, 1), "stride": only(spec.stride, 1),
        "padding": only(spec.padding, 0), "dilation": only(spec.dilation, 1),
    }  # fmt: skip


def centred(
    spec: ConvSpec, kernel: Pair, in_channels: int | None = None, out_channels: int | None = None, bias: bool = False
) -> nn.Sequential:
    """A convolution of a smaller kernel that looks where the middle of the spec's kernel looks.

    Parameters
    ----------
    spec : ConvSpec
    kernel : pair of int
        On each axis less than the spec's by an even number, or equal to it.
    in_channels, out_channels : int, optional
        The spec's own by default.
    bias : bool

    Returns
    -------
    nn.Sequential
        The convolution comes last; before it maps are cropped where it needs less padding than none.

    Raises
    ------
    ValueError
        If the kernel has no place in the middle of the spec's.

    Examples
    --------
    >>> centred(ConvSpec(8, 16, 3, stride=2, padding=1), (1, 1))
    Sequential(
      (0): Conv2d(8, 16, kernel_size=(1, 1), stride=(2, 2), bias=False)
    )
    """
    g = geometry(spec)
    margin = [whole - part for whole, part in zip(g.kernel, kernel, strict=True)]
    if min(margin) < 0 or any(m % 2 for m in margin):
        raise ValueError(f"kernel_size: expected one in whose middle {kernel} lies, got {spec.kernel_size}")
    free = [p - d * m // 2 for p, d, m in zip(g.padding, g.dilation, margin, strict=True)]
    down, across = (min(0, f) for f in free)
    convolution = nn.Conv2d(
        spec.in_channels if in_channels is None else in_channels,
        spec.out_channels if out_channels is None else out_channels,
        kernel, g.stride, _of_axes(max(0, f) for f in free), g.dilation, bias=bias,
    )  # fmt: skip
    crop = [nn.ZeroPad2d((across, across, down, down))] if down or across else []
    return nn.Sequential(*crop, convolution)


def pointwise(in_channels: int, out_channels: int, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    """A 1 x 1 convolution: it mixes channels, pixel by pixel."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias, groups=groups)


def depthwise(spec: ConvSpec, channels: int, bias: bool = False) -> nn.Conv2d:
    """The spec's kernel, one filter a channel."""
    options = {"in_channels": channels, "out_channels": channels, "groups": channels, "bias": bias}
    return nn.Conv2d(**(asdict(spec) | options))


class Shortcut(nn.Module):
    """f(x) + s(x): what a branch computes is added to what goes past it.

    Parameters
    ----------
    branch : nn.Module
        f
    past : nn.Module, optional
        s, the identity by default.
    """

    def __init__(self, branch: nn.Module, past: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.past = branch, nn.Identity() if past is None else past

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.past(x)


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else _of_axes(value)


def _of_axes(values: Any) -> Pair:
    first, second = values
    return first, second
