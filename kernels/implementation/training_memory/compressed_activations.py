"""Compressed activations: what the backward pass reads is kept in few bits, or without its zeros."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from kernels.arithmetic.rounding import random_bits
from kernels.implementation.training_memory.saved_tensors import Keeping

__all__ = ["CompressedActivations", "Quantized", "Sparse", "quantize"]

GROUP = 256
"""Elements that share a minimum and a step."""


def quantize(x: np.ndarray, bits: int, draws: np.ndarray) -> np.ndarray:
    """A group of numbers, rounded stochastically to 2^bits steps between its ends: the plain statement.

    Parameters
    ----------
    x : ndarray of floats
        One group.
    bits : int
    draws : ndarray of floats from 0 up to 1, of the shape of `x`

    Returns
    -------
    ndarray of float64
        On average over draws, `x`.

    Examples
    --------
    >>> quantize(np.array([0.0, 1.2, 3.0]), 2, np.array([0.9, 0.7, 0.1]))
    array([0., 1., 3.])
    """
    low, high = np.float64(x.min()), np.float64(x.max())
    step = (high - low) / (2**bits - 1)
    return low + step * np.floor((x - low) / step + draws) if step else np.full(x.shape, low)


@njit(cache=True, nogil=True)
def _quantize(x, bits, seed, codes, low, step):
    per, largest = 8 // bits, np.float32(2**bits - 1)
    for group in range(low.size):
        first, last = group * GROUP, min((group + 1) * GROUP, x.size)
        smallest = highest = x[first]
        finite = True
        for i in range(first, last):
            smallest, highest = min(smallest, x[i]), max(highest, x[i])
            finite &= np.isfinite(x[i])
        low[group] = smallest
        step[group] = (highest - smallest) / largest if finite else np.float32(np.nan)
        scale = np.float32(1) / step[group] if finite and highest > smallest else np.float32(0)
        for byte in range(first // per, (last + per - 1) // per):
            packed = 0
            for place in range(per):
                i = byte * per + place
                if i < last:
                    draw = np.float32(random_bits(i, seed) >> np.uint32(8)) * np.float32(2**-24)
                    code = min((x[i] - smallest) * scale + draw, largest)
                    packed |= np.int64(code) << (place * bits) if finite else 0
            codes[byte] = packed


@njit(cache=True, nogil=True)
def _dequantize(codes, bits, low, step, x):
    per, mask = 8 // bits, 2**bits - 1
    for i in range(x.size):
        code = (codes[i // per] >> ((i % per) * bits)) & mask
        x[i] = low[i // GROUP] + step[i // GROUP] * np.float32(code)


@dataclass(frozen=True)
class Quantized:
    """A float32 tensor in 8, 4 or 2 bits an element, and 64 bits for each group of 256.

    Every element goes to one of its two neighbours on its group's grid by chance, so that it comes back right on
    average; the group's ends, among them the zeros after a ReLU, come back as they were. A group with an infinity or
    NaN comes back as NaN, never as finite numbers.

    Examples
    --------
    >>> kept = Quantized.of(torch.tensor([0.0, 1.0, 2.0, 3.0]), bits=2, seed=0)
    >>> kept.codes.nbytes, kept.tensor()
    (1, tensor([0., 1., 2., 3.]))
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    bits: int
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor, bits: int, seed: int) -> Quantized:
        """Quantize a float32 tensor of any shape; what is drawn depends on the seed and an element's place."""
        flat = x.contiguous().view(-1)
        groups = -(-flat.numel() // GROUP)
        codes = torch.empty(-(-flat.numel() * bits // 8), dtype=torch.uint8)
        low, step = torch.empty(groups), torch.empty(groups)
        _quantize(flat.numpy(), bits, seed, codes.numpy(), low.numpy(), step.numpy())
        return cls(codes, low, step, bits, x.shape)

    def tensor(self) -> Tensor:
        """The tensor that is read in place of the one that was saved."""
        x = torch.empty(self.shape)
        _dequantize(self.codes.numpy(), self.bits, self.low.numpy(), self.step.numpy(), x.view(-1).numpy())
        return x


@njit(cache=True, nogil=True)
def _compact(x, bitmap, values):
    found = 0
    for i in range(x.size):
        if x[i] != 0:
            bitmap[i >> 3] |= 1 << (i & 7)
            values[found] = x[i]
            found += 1


@njit(cache=True, nogil=True)
def _expand(bitmap, values, x):
    found = 0
    for i in range(x.size):
        if bitmap[i >> 3] >> (i & 7) & 1:
            x[i] = values[found]
            found += 1
        else:
            x[i] = 0


@dataclass(frozen=True)
class Sparse:
    """A float32 tensor as a bitmap and its non-zeros: nothing is lost but the sign of zeros.

    Examples
    --------
    >>> kept = Sparse.of(torch.tensor([[0.0, 1.5], [0.0, 0.0]]))
    >>> kept.bitmap.nbytes + kept.values.nbytes, kept.tensor()
    (5, tensor([[0.0000, 1.5000],
            [0.0000, 0.0000]]))
    """

    bitmap: Tensor
    values: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor) -> Sparse:
        """Leave the zeros of a float32 tensor out."""
        flat = x.contiguous().view(-1)
        bitmap = torch.zeros(-(-flat.numel() // 8), dtype=torch.uint8)
        values = torch.empty(int(flat.count_nonzero()))
        _compact(flat.numpy(), bitmap.numpy(), values.numpy())
        return cls(bitmap, values, x.shape)

    def tensor(self) -> Tensor:
        """The tensor that was saved."""
        x = torch.empty(self.shape)
        _expand(self.bitmap.numpy(), self.values.numpy(), x.view(-1).numpy())
        return x


@dataclass(frozen=True)
class CompressedActivations:
    r"""Train with activations that are kept in b bits between the forward and the backward pass.

    The forward pass is exact. What it saves is rounded stochastically, group by group,

    .. math:: \hat x = x_{\min} + s \left\lfloor \frac{x - x_{\min}}{s} + u \right\rfloor, \qquad
              s = \frac{x_{\max} - x_{\min}}{2^b - 1}, \quad u \sim U(0, 1),

    so E[x̂] = x, and the gradient of a linear layer's weights, gᵀx̂, is right on average: training sees more noise, not
    another direction. With 32 bits nothing is rounded: zeros, which a ReLU leaves many of, are left out, and the
    gradient is that of plain training to the last bit. Indices (of max pooling) are kept in the narrowest integers that
    hold them, in every case.

    Parameters
    ----------
    bits : {8, 4, 2, 32}
    seed : int
        Of the draws.

    Source: Chen et al., "ActNN: Reducing Training Memory Footprint via 2-Bit Activation Compressed Training", ICML
    2021, section 3; Chakrabarti and Moseley 2019; without loss, Jain et al., "Gist", ISCA 2018.

    Examples
    --------
    >>> chain = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 10))
    >>> CompressedActivations(bits=4).wrap(chain)(torch.ones(32, 64)).shape
    torch.Size([32, 10])
    """

    bits: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (8, 4, 2, 32):
            raise ValueError(f"bits: expected 8, 4, 2, or 32 for no loss, got {self.bits!r}")

    def wrap(self, network: nn.Module) -> Keeping:
        """The network with its own parameters, its saved activations compressed."""
        count = 0

        def keep(x: Tensor) -> Any:
            nonlocal count
            count += 1
            if x.dtype is torch.int64:
                return x.to(_narrowest(x))
            if x.dtype is not torch.float32:
                return x
            if self.bits < 32:
                return Quantized.of(x, self.bits, self.seed + count)
            return Sparse.of(x) if _pays(x) else x

        def give(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept if kept.is_floating_point() else kept.long()
            return kept.tensor()

        return Keeping(network, keep, give)

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of the network by the recipe.

        Parameters
        ----------
        recipe : datasets.Recipe
            Anything whose ``train(network, data)`` trains in place and gives a trace.
        network : nn.Module
            Left as it is.
        data : datasets.Data

        Returns
        -------
        network : nn.Module
            The trained copy, plain again.
        trace : list of dict
            What the recipe reports.
        """
        network = copy.deepcopy(network)
        trace = recipe.train(self.wrap(network), data)
        network.train(False)
        return network, trace


def _narrowest(x: Tensor) -> torch.dtype:
    """The smallest integers that hold all of a tensor."""
    low, high = (int(end) for end in x.aminmax()) if x.numel() else (0, 0)
    return next(t for t in (torch.int8, torch.int16, torch.int32, torch.int64)
                if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)  # fmt: skip


def _pays(x: Tensor) -> bool:
    """Whether a bitmap and the non-zeros are fewer bits than the tensor."""
    return 31 * x.numel() > 32 * int(x.count_nonzero())
