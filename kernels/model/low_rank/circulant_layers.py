"""Block-circulant convolution: blocks of the channel matrix wrap around, so a Fourier transform makes them diagonal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.block import ConvSpec

__all__ = ["CirculantConv2d", "CirculantLayers", "expanded", "fourier"]


@dataclass(frozen=True)
class CirculantLayers:
    r"""Let the matrix of channels, at each place of the filter, consist of circulant blocks of b x b.

    .. math:: W_{\beta\gamma} = F^{-1} \operatorname{diag}(F w_{\beta\gamma}) \, F, \qquad
        (W_{\beta\gamma})_{ij} = w_{\beta\gamma, (i - j) \bmod b}

    A block is known by its first column w: b numbers in place of b². The Fourier transform F makes all blocks
    diagonal, so the sums over channels run within each frequency alone: about 2/b of the products of the standard
    convolution, and the transforms, which are done once a channel, not once a pair of channels.

    Parameters
    ----------
    block : int
        b, an even number that divides both numbers of channels.

    Source
    ------
    Ding et al., "CirCNN: Accelerating and Compressing Deep Neural Networks Using Block-Circulant Weight Matrices",
    MICRO 2017.

    Examples
    --------
    >>> CirculantLayers(block=4).build(ConvSpec(16, 32, 3, padding=1, bias=False))
    CirculantConv2d(16, 32, kernel_size=(3, 3), block=4)
    """

    block: int = 4

    def __post_init__(self) -> None:
        if self.block < 2 or self.block % 2:
            raise ValueError(f"block: expected an even number of at least 2, got {self.block}")

    def build(self, spec: ConvSpec) -> CirculantConv2d:
        """An untrained convolution with block-circulant channels.

        Parameters
        ----------
        spec : ConvSpec

        Raises
        ------
        ValueError
            If `block` does not divide both numbers of channels.
        """
        if spec.in_channels % self.block or spec.out_channels % self.block:
            raise ValueError(
                f"block: {self.block} does not divide the {spec.in_channels} input and {spec.out_channels} output"
                " channels of the convolution"
            )
        return CirculantConv2d(spec, self.block)


class CirculantConv2d(nn.Module):
    """A convolution whose channels mix by circulant blocks; computed frequency by frequency.

    Parameters
    ----------
    spec : ConvSpec
    block : int
    """

    def __init__(self, spec: ConvSpec, block: int) -> None:
        super().__init__()
        self.spec, self.block = spec, block
        size = spec.kernel_size if isinstance(spec.kernel_size, tuple) else (spec.kernel_size,) * 2
        out, into = spec.out_channels // block, spec.in_channels // block
        bound = 1 / math.sqrt(spec.in_channels * math.prod(size))  # as torch draws a standard convolution
        columns = torch.empty(out, into, block, *size).uniform_(-bound, bound)
        # kept as the frequencies that the products need; since the transform is orthogonal, they are learned as well
        self.weight = nn.Parameter(torch.einsum("fb,oibhw->foihw", fourier(block).float(), columns))
        self.bias = nn.Parameter(torch.empty(spec.out_channels).uniform_(-bound, bound)) if spec.bias else None
        self.transform: Tensor
        self.register_buffer("transform", fourier(block).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """From (items, in_channels, rows, columns) to (items, out_channels, rows, columns)."""
        block, half = self.block, self.block // 2
        items, _, *image = x.shape
        out, into = self.weight.shape[1:3]
        parts = torch.matmul(self.transform, x.reshape(items, into, block, -1))  # a frequency's parts for each block
        parts = parts.reshape(items, into, block, *image).transpose(1, 2)
        weight = self.weight * math.sqrt(block)
        geometry: Any = {"stride": self.spec.stride, "padding": self.spec.padding, "dilation": self.spec.dilation}
        # frequencies 0 and b/2 are real numbers
        real = functional.conv2d(
            parts[:, [0, half]].flatten(1, 2), weight[[0, half]].flatten(0, 1), groups=2, **geometry
        )
        places = real.shape[2:]
        found = [real.reshape(items, 2, out, *places)[:, :1]]
        if half > 1:  # of the others, a pair of real numbers (re, im) stands for a complex one, times √2
            pairs = parts[:, 1:half], parts[:, half + 1 :]
            re, im = weight[1:half] / math.sqrt(2), weight[half + 1 :] / math.sqrt(2)
            both = torch.cat([torch.cat([re, -im], 2), torch.cat([im, re], 2)], 1)  # (a + ib)(c + id)
            mixed = functional.conv2d(
                torch.cat(pairs, 2).flatten(1, 2), both.flatten(0, 1), groups=half - 1, **geometry
            )
            mixed = mixed.reshape(items, half - 1, 2, out, *places)
            found += [mixed[:, :, 0], real.reshape(items, 2, out, *places)[:, 1:], mixed[:, :, 1]]
        else:
            found.append(real.reshape(items, 2, out, *places)[:, 1:])
        y = torch.cat(found, 1).transpose(1, 2).reshape(items, out, block, -1)
        y = torch.matmul(self.transform.T, y).reshape(items, -1, *places)
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        spec = self.spec
        return (
            f"{spec.in_channels}, {spec.out_channels}, kernel_size={tuple(self.weight.shape[3:])}, block={self.block}"
        )


def fourier(block: int) -> Tensor:
    """The Fourier transform of `block` real numbers in real numbers: an orthogonal matrix, float64.

    Its rows are the constant, the cosines of 1 .. b/2 - 1 waves, the alternating signs, and the sines, negative as in a
    complex transform.

    Parameters
    ----------
    block : int
        Even.

    Examples
    --------
    >>> f = fourier(4)
    >>> torch.allclose(f @ f.T, torch.eye(4, dtype=torch.float64))
    True
    """
    half = block // 2
    steps = torch.arange(block, dtype=torch.float64)
    turns = 2 * math.pi / block * steps[: half + 1, None] * steps
    rows = torch.cat([turns.cos(), -turns[1:half].sin()])
    scale = torch.full((block, 1), math.sqrt(2 / block), dtype=torch.float64)
    scale[[0, half]] = math.sqrt(1 / block)
    return rows * scale


def expanded(layer: CirculantConv2d) -> Tensor:
    """The weight (out_channels, in_channels, rows, columns) of the same convolution: the equation, written down."""
    block, out, into, *size = layer.weight.shape
    columns = torch.einsum("fb,foihw->oibhw", layer.transform, layer.weight)
    turn = (torch.arange(block)[:, None] - torch.arange(block)) % block  # (i - j) mod b
    return columns[:, :, turn].permute(0, 2, 1, 3, 4, 5).reshape(out * block, into * block, *size)
