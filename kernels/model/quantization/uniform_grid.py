"""Uniform grids after training: where their steps lie, and weights that are kept as packed codes.

A number x of a row is kept as an integer code q of b bits, with a scale S and a zero point Z that the row, a group of
its columns, or a whole tensor shares:

    q = clip(round(x / S) + Z, low, high),     x ~ S (q - Z)

A symmetric grid has Z = 2^(b-1) and leaves the lowest code out, so that +x and -x are treated alike; another one covers
the range from the smallest to the largest number, zero always among the values.

Source: R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A whitepaper", 2018,
sections 2.1 and 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels.model.compressed_file import Form
from kernels.model.transform import constrain

__all__ = ["LIMITS", "Grid", "GridCodes", "PackedCodes", "fit_grid", "keep_codes", "pack", "unpack"]

LIMITS = ("min-max", "percentile", "mse")
SHARE = 0.999
"""Of all numbers, those between the limits of a percentile."""
SHRINKS = tuple(0.2 + 0.02 * i for i in range(41))
"""What limits are multiplied with in the search for the least squared error."""
LOOKED_AT = 65536
"""Numbers of a row that limits are chosen on at most, spread evenly."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A uniform grid for the rows of a matrix.

    Parameters
    ----------
    bits : int
    scale, zero : Tensor of shape (rows or 1, groups), float32
        S and Z of each row and group of columns; Z are whole numbers from 0 to 2^bits - 1.
    group : int
        Columns that share a scale; the last group may be smaller.
    symmetric : bool

    Examples
    --------
    >>> grid = Grid(2, torch.tensor([[0.5]]), torch.tensor([[2.0]]), group=4, symmetric=True)
    >>> grid.round(torch.tensor([[0.6, -0.2, -9.0, 0.8]]))
    tensor([[ 0.5000,  0.0000, -0.5000,  0.5000]])
    """

    bits: int
    scale: Tensor
    zero: Tensor
    group: int
    symmetric: bool

    @property
    def low(self) -> int:
        return 1 if self.symmetric else 0

    @property
    def high(self) -> int:
        return 2**self.bits - 1

    def steps(self, columns: int) -> tuple[Tensor, Tensor]:
        """S and Z of each of so many columns: (rows or 1, columns)."""
        at = torch.arange(columns) // self.group
        return self.scale[:, at], self.zero[:, at]

    def encode(self, x: Tensor) -> Tensor:
        """The nearest code of each number, ties to even: whole numbers in the type of `x`, shape (rows, columns)."""
        scale, zero = self.steps(x.shape[1])
        return (torch.round(x / scale.to(x.dtype)) + zero.to(x.dtype)).clamp(self.low, self.high)

    def decode(self, codes: Tensor) -> Tensor:
        """What codes stand for."""
        scale, zero = self.steps(codes.shape[1])
        return (codes - zero.to(codes.dtype)) * scale.to(codes.dtype)

    def round(self, x: Tensor) -> Tensor:
        """The nearest number of the grid."""
        return self.decode(self.encode(x))

    def stored_bits(self, count: int) -> int:
        """Bits of so many codes and of the scales, in FP32, and of zero points where they are not fixed."""
        return self.bits * count + (32 + (0 if self.symmetric else self.bits)) * self.scale.numel()


def fit_grid(x: Tensor, bits: int, limits: str = "min-max", *, symmetric: bool, group: int | None = None) -> Grid:
    """The grid whose limits suit the rows of `x`.

    Parameters
    ----------
    x : Tensor of shape (rows, columns)
        A row of zeros gets the scale 1.
    bits : int
    limits : {"min-max", "percentile", "mse"}
        The extremes; those between which 99.9 % of a row lie; or the extremes times the factor of 41 from 0.2 to 1
        that leaves the least squared error.
    symmetric : bool
    group : int, optional
        Columns that share a scale; all of a row by default.

    Raises
    ------
    ValueError
        If a number is NaN or infinite.

    Examples
    --------
    >>> grid = fit_grid(torch.tensor([[-1.0, 3.0]]), bits=2, symmetric=False)
    >>> grid.scale.item(), grid.zero.item()
    (1.3333333730697632, 1.0)
    """
    if not x.isfinite().all():
        raise ValueError("x: expected finite numbers to choose a grid for, got NaN or infinity")
    group = group or max(x.shape[1], 1)
    parts = [_fit(part, bits, limits, symmetric) for part in x.split(group, 1)]
    scale, zero = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    return Grid(bits, scale, zero, group, symmetric)


def _fit(x: Tensor, bits: int, limits: str, symmetric: bool) -> tuple[Tensor, Tensor]:
    x = x[:, :: -(-x.shape[1] // LOOKED_AT)] if limits == "mse" else x
    if limits == "percentile":
        aside = int((1 - SHARE) / (1 if symmetric else 2) * x.shape[1])
        ordered = x.abs().sort(1).values if symmetric else x.sort(1).values
        high = ordered[:, x.shape[1] - 1 - aside, None]
        low = -high if symmetric else ordered[:, aside, None]
    else:
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if limits != "mse":
        return _steps(low, high, bits, symmetric)
    best = torch.full_like(low, torch.inf)
    scale, zero = _steps(low, high, bits, symmetric)
    for shrink in SHRINKS:
        trial = Grid(bits, *_steps(shrink * low, shrink * high, bits, symmetric), x.shape[1], symmetric)
        error = ((trial.round(x) - x) ** 2).sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, trial.scale, scale), torch.where(better, trial.zero, zero)
    return scale, zero


def _steps(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """S and Z of rows with these limits."""
    if symmetric:
        scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        scale = (high - low) / (2**bits - 1)
        zero = torch.round(-low / scale.where(scale > 0, torch.ones_like(scale))).clamp(0, 2**bits - 1)
    return scale.where(scale > 0, torch.ones_like(scale)).float(), zero.float()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of `bits` bits each, one behind the other without gaps, in bytes.

    Examples
    --------
    >>> pack(torch.tensor([5, 2, 7]), bits=3)          # 101 010 11 | 1
    tensor([171, 128], dtype=torch.uint8)
    """
    each = np.unpackbits(codes.flatten().numpy().astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(each.reshape(-1)))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes that `pack` has packed, float32.

    Examples
    --------
    >>> unpack(pack(torch.tensor([5, 2, 7]), bits=3), bits=3, count=3)
    tensor([5., 2., 7.])
    """
    if bits == 8:
        return packed.float()
    each = np.unpackbits(packed.numpy(), count=bits * count).reshape(count, bits)
    wide = np.zeros((count, 8), np.uint8)
    wide[:, 8 - bits :] = each
    return torch.from_numpy(np.packbits(wide, axis=1).reshape(-1).astype(np.float32))


class GridCodes(Form):
    """How a file keeps a weight on a grid: codes, behind them the zero points that are not fixed; scales as floats.

    The floats are the scales, how many columns share one, and factors of the input channels, (groups of a convolution,
    channels of a group): where there are any, each weight is divided by its channel's.

    Examples
    --------
    >>> grid = Grid(2, torch.tensor([[0.5, 2.0]]), torch.tensor([[2.0, 2.0]]), group=2, symmetric=True)
    >>> GridCodes.of(torch.tensor([[3, 1, 1]]), grid).values((1, 3))
    array([[ 0.5, -0.5, -2. ]], dtype=float32)
    """

    number = 16

    @classmethod
    def of(cls, codes: Tensor, grid: Grid, factors: Tensor | None = None) -> GridCodes:
        """Of codes (rows, columns), their grid, and factors that they were multiplied with."""
        whole = codes.flatten() if grid.symmetric else torch.cat([codes.flatten(), grid.zero.flatten()])
        parts = (grid.scale, torch.tensor([grid.group]), torch.ones(0) if factors is None else factors)
        floats = tuple(part.numpy().astype(np.float32).reshape(-1) for part in parts)
        return cls(whole.numpy().astype(np.uint8), 2**grid.bits, floats)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        scale, (group,), factors = self.floats
        codes, zero = np.split(self.codes.astype(np.float32), [math.prod(shape)])
        if not zero.size:
            zero = np.full_like(scale, self.levels // 2)
        codes = codes.reshape(shape[0], -1)
        at = np.arange(codes.shape[1]) // int(group)
        scale, zero = (part.reshape(-1, at[-1] + 1)[:, at] for part in (scale, zero))
        weight = (codes - zero) * scale
        if factors.size:
            by_channel = weight.reshape(factors.size // shape[1], -1, shape[1], math.prod(shape[2:]))
            weight = by_channel / factors.reshape(-1, 1, shape[1], 1)
        return weight.reshape(shape)


class PackedCodes(nn.Module):
    """A parametrization: the weight is read from packed codes; no FP32 weight is left below.

    Parameters
    ----------
    codes : Tensor of shape (rows, columns)
    grid : Grid
    shape : torch.Size
        Of the weight.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, codes: Tensor, grid: Grid, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("packed", pack(codes, grid.bits))
        self.register_buffer("scale", grid.scale.clone())
        if grid.symmetric:
            self.zero = torch.tensor([[2.0 ** (grid.bits - 1)]])
        else:
            self.register_buffer("zero", grid.zero.to(torch.uint8))
        self.grid, self.shape = replace(grid, scale=torch.empty(0), zero=torch.empty(0)), shape

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.grid.bits

    def codes(self) -> Tensor:
        """The codes, as whole numbers: (rows, columns)."""
        return unpack(self.packed, self.grid.bits, self.shape.numel()).reshape(self.shape[0], -1)

    def own_grid(self) -> Grid:
        """The grid with the scales and zero points that are kept here."""
        return replace(self.grid, scale=self.scale, zero=self.zero.float().expand_as(self.scale))

    def forward(self, _: Tensor) -> Tensor:
        return self.own_grid().decode(self.codes()).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0)

    def stored_bits(self, weight: Tensor) -> int:
        """Codes and scales, and zero points that are not fixed."""
        return replace(self.grid, scale=self.scale).stored_bits(weight.numel())

    def encoded(self, weight: Tensor) -> GridCodes:
        """Codes, scales and zero points, as `kernels.model.compressed_file` stores them."""
        return GridCodes.of(self.codes(), self.own_grid())


def keep_codes(layer: Any, name: str, codes: Tensor, grid: Grid) -> None:
    """From now on `layer` reads the weight called `name` from these codes, of shape (rows, columns)."""
    layer.requires_grad_(False)
    constrain(layer, name, PackedCodes(codes, grid, getattr(layer, name).shape))
