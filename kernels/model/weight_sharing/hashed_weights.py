r"""Hashed weights: a layer's weights are drawn from few by a hash of their place, before anything is learned.

A layer of m x n virtual weights V holds K real ones. A hash h of the place chooses which, another one a sign:

    V_ij = s(i, j) w_{h(i, j)},   h(i, j) in {1 .. K},   s(i, j) in {-1, 1}

Nothing but w is stored: the hashes are computed again whenever the layer is built. Training sees shared weights from
the first update on; the gradient of a real weight is the sum over all places that use it, with their signs:

    dL/dw_k = sum over (i, j) with h(i, j) = k of s(i, j) dL/dV_ij

The sign makes that two inputs that meet in a bucket are as likely to add up as to cancel, so that sums are right on
average.

Source: W. Chen et al., "Compressing Neural Networks with the Hashing Trick", ICML 2015, arXiv 1504.04788; the hash is
xxHash32 (Y. Collet) of the place as a number of four bytes.

Examples
--------
>>> layer = HashedWeights(share=0.1).build(ConvSpec(8, 16, 3))
>>> layer, layer.weight.shape, layer.virtual().shape
(HashedConv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), real=115), torch.Size([115]), torch.Size([16, 8, 3, 3]))
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.block import ConvSpec

__all__ = ["HashedConv2d", "HashedLinear", "HashedWeights", "RandomEdges", "hash32"]

PRIMES = (2246822519, 3266489917, 668265263, 374761393)


def hash32(numbers: np.ndarray, seed: int = 0) -> np.ndarray:
    """xxHash32 of each number, taken as four bytes, lowest first.

    Parameters
    ----------
    numbers : ndarray of uint32
    seed : int

    Returns
    -------
    ndarray of uint32

    Examples
    --------
    >>> [hex(h) for h in hash32(np.frombuffer(b"abcd", "<u4"))]
    ['0xa3643705']
    """
    two, three, four = (np.uint32(p) for p in PRIMES[:3])
    with np.errstate(over="ignore"):
        h = np.uint32((seed + PRIMES[3] + 4) % 2**32) + numbers.astype(np.uint32) * three
        h = (h << np.uint32(17) | h >> np.uint32(15)) * four
        h = (h ^ h >> np.uint32(15)) * two
        h = (h ^ h >> np.uint32(13)) * three
        return h ^ h >> np.uint32(16)


class _Virtual(nn.Module):
    """What hashed layers share: real weights, and the places and factors that make the virtual ones."""

    places: Tensor
    factors: Tensor

    def _set_up(self, shape: tuple[int, ...], places: np.ndarray, factors: np.ndarray, bias: bool) -> None:
        # not in the state: whoever builds the layer computes them again
        self.register_buffer("places", torch.from_numpy(places.astype(np.int64)).reshape(shape), persistent=False)
        self.register_buffer("factors", torch.from_numpy(factors.astype(np.float32)).reshape(shape), persistent=False)
        bound = 1 / math.sqrt(math.prod(shape[1:]))  # as of the standard layer of this shape
        self.weight = nn.Parameter(torch.empty(int(places.max()) + 1).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape[0]).uniform_(-bound, bound)) if bias else None

    def virtual(self) -> Tensor:
        """The weights that the layer computes with."""
        return self.factors * self.weight[self.places]


class HashedConv2d(_Virtual):
    """A two-dimensional convolution of virtual weights."""

    def __init__(self, spec: ConvSpec, places: np.ndarray, factors: np.ndarray) -> None:
        super().__init__()
        like = nn.Conv2d(**{**asdict(spec), "device": "meta"})
        self.spec, self.kernel_size, self.stride = spec, like.kernel_size, like.stride
        self.padding, self.dilation = like.padding, like.dilation
        self._set_up(tuple(like.weight.shape), places, factors, spec.bias)

    def extra_repr(self) -> str:
        shape = f"{self.spec.in_channels}, {self.spec.out_channels}, kernel_size={self.kernel_size}"
        return f"{shape}, stride={self.stride}, real={len(self.weight)}"

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.virtual(), self.bias, self.stride, self.padding, self.dilation)  # type: ignore


class HashedLinear(_Virtual):
    """A linear layer of virtual weights."""

    def __init__(self, shape: tuple[int, int], places: np.ndarray, factors: np.ndarray, bias: bool) -> None:
        super().__init__()
        self._set_up(shape, places, factors, bias)

    def extra_repr(self) -> str:
        outputs, inputs = self.places.shape
        return f"{inputs}, {outputs}, real={len(self.weight)}"

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.virtual(), self.bias)


@dataclass(frozen=True)
class HashedWeights:
    r"""Build a layer whose weights are `share` as many, drawn by a hash of the place.

    .. math:: V_{ij} = \xi(i, j) \, w_{h(i, j)}, \qquad
       \frac{\partial L}{\partial w_k} = \sum_{(i,j) :\, h(i,j) = k} \xi(i, j) \frac{\partial L}{\partial V_{ij}}

    Parameters
    ----------
    share : float
        Real weights over virtual ones, 0 < share <= 1; at least one remains.
    seed : int
        Of both hashes. Layers of one shape have the same places; their real weights are their own.

    Notes
    -----
    The paper's layers are linear; a convolution's places are those of its kernel, one after another.

    Source: Chen et al., arXiv 1504.04788, sections 4.1 to 4.4.

    Examples
    --------
    >>> layer = HashedWeights(share=0.25).linear(20, 10)
    >>> layer, layer(torch.zeros(3, 20)).shape, len(layer.virtual().abs().unique()) <= 50
    (HashedLinear(20, 10, real=50), torch.Size([3, 10]), True)
    """

    share: float = 0.125
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected 0 < share <= 1, got {self.share}")

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained hashed convolution with the input and output shapes of a standard one."""
        return HashedConv2d(spec, *self._drawn(_size(spec)))

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> HashedLinear:
        """An untrained hashed linear layer."""
        return HashedLinear((out_features, in_features), *self._drawn(in_features * out_features), bias)

    def at_random(self, seed: int) -> RandomEdges:
        """As many real weights, each used once, at places drawn at random; no weight stands at the others."""
        return RandomEdges(self.share, seed)

    def _drawn(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        real, places = _real(size, self.share), np.arange(size, dtype=np.uint32)
        buckets = hash32(places, self.seed).astype(np.uint64) * np.uint64(real) >> np.uint64(32)
        signs = np.where(hash32(places, self.seed + 1) & np.uint32(1), 1.0, -1.0)
        # a bucket that no place falls into is no weight
        return np.unique(buckets, return_inverse=True)[1], signs


@dataclass(frozen=True)
class RandomEdges:
    """Random edge removal: a share of the weights, at random places, and zeros elsewhere from the start.

    Source: the comparison of this name in Chen et al., arXiv 1504.04788, section 6.

    Examples
    --------
    >>> layer = RandomEdges(share=0.25).build(ConvSpec(4, 8, 3))
    >>> int((layer.virtual() != 0).sum()), layer.weight.numel()
    (72, 72)
    """

    share: float = 0.125
    seed: int = 0

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained convolution with weights at some places only."""
        size = _size(spec)
        kept = np.random.default_rng(self.seed).choice(size, _real(size, self.share), replace=False)
        places, there = np.zeros(size, np.int64), np.zeros(size)
        places[kept], there[kept] = np.arange(len(kept)), 1
        return HashedConv2d(spec, places, there)


def _size(spec: ConvSpec) -> int:
    kernel = spec.kernel_size if isinstance(spec.kernel_size, tuple) else (spec.kernel_size,) * 2
    return spec.in_channels * spec.out_channels * math.prod(kernel)


def _real(size: int, share: float) -> int:
    return max(1, round(share * size))
