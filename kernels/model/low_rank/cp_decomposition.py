"""CP decomposition: a convolution's kernel as a sum of products of four vectors, found by alternating least squares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.low_rank.factorised import Factorisation, chain, check_share, pointwise, rank_within, spatial

__all__ = ["CpDecomposition", "als", "composed"]

SWEEPS = 100
ENOUGH = 1e-5
"""Sweeps over the factors end when the relative error falls by less than this."""


@dataclass(frozen=True)
class CpDecomposition(Factorisation):
    r"""Approximate a convolution by R chains of rank one: mix channels, filter down, filter across, mix channels.

    .. math:: w_{ncij} \approx \sum_{r=1}^{R} a_{nr} \, b_{cr} \, u_{ir} \, v_{jr}

    The sum is four convolutions in a row, of 1 x 1, k x 1 and 1 x k on each of R channels by itself, and 1 x 1:
    R (N + C + 2 k) parameters in place of N C k². The factors are fitted by alternating least squares: with three held,
    the fourth solves a linear problem,

    .. math:: A = W_{(n)} \, (B \odot U \odot V) \, (B^\top B * U^\top U * V^\top V)^{+}

    with :math:`\odot` the product column by column of Khatri and Rao, and * the product of entries.

    Parameters
    ----------
    share : float
        Parameters of the factors, at most, as a share of those of the layer's weight, 0 < share <= 1. Linear layers and
        1 x 1 convolutions stay: the CP decomposition of a matrix is its singular value decomposition.

    Source
    ------
    Lebedev, Ganin, Rakhuba, Oseledets and Lempitsky, "Speeding-up Convolutional Neural Networks Using Fine-tuned
    CP-Decomposition", ICLR 2015, which fits by nonlinear least squares; alternating ones are the plain way to the same
    problem.

    Examples
    --------
    >>> CpDecomposition(share=0.25).apply(nn.Conv2d(16, 32, 3, padding=1, bias=False))
    Sequential(
      (0): Conv2d(16, 21, kernel_size=(1, 1), stride=(1, 1), bias=False)
      (1): Conv2d(21, 21, kernel_size=(3, 1), stride=(1, 1), padding=(1, 0), groups=21, bias=False)
      (2): Conv2d(21, 21, kernel_size=(1, 3), stride=(1, 1), padding=(0, 1), groups=21, bias=False)
      (3): Conv2d(21, 32, kernel_size=(1, 1), stride=(1, 1), bias=False)
    )
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def factorised(self, layer: Any, weight: Tensor) -> nn.Module | None:
        if isinstance(layer, nn.Linear) or max(layer.kernel_size) == 1:
            return None
        rank = rank_within(self.share, weight.numel(), sum(weight.shape))
        if rank is None:
            return None
        a, b, u, v = als(weight, rank)
        layers: list[nn.Module] = [
            pointwise(layer.in_channels, rank),
            spatial(layer, rank, rank, axes=(0,), groups=rank),
            spatial(layer, rank, rank, axes=(1,), groups=rank),
            pointwise(rank, layer.out_channels, layer.bias is not None),
        ]
        return chain(layers, [b.T, u.T, v.T, a], layer.bias)


def als(tensor: Tensor, rank: int) -> list[Tensor]:
    """The factors of a CP decomposition by alternating least squares, each of (dimension, rank), float64.

    Parameters
    ----------
    tensor : Tensor
        Of any number of dimensions.
    rank : int
        It may exceed the dimensions.

    Returns
    -------
    list of Tensor
        One a dimension, with columns of equal length over the dimensions.

    Examples
    --------
    >>> x = torch.einsum("i,j,k->ijk", torch.arange(3.0), torch.ones(2), torch.arange(4.0))
    >>> bool((composed(als(x, 1)) - x).abs().max() < 1e-9)
    True
    """
    tensor = tensor.double()
    random = torch.Generator().manual_seed(rank)
    factors = [_leading(_unfolded(tensor, mode), rank, random) for mode in range(tensor.ndim)]
    norm, last = tensor.norm(), torch.inf
    for _ in range(SWEEPS):
        for mode in range(tensor.ndim):
            others = factors[:mode] + factors[mode + 1 :]
            gram = reduce(torch.mul, [factor.T @ factor for factor in others])
            factors[mode] = _unfolded(tensor, mode) @ reduce(_khatri_rao, others) @ torch.linalg.pinv(gram)
            if mode < tensor.ndim - 1:  # the last one holds the sizes
                factors[mode] /= factors[mode].norm(dim=0).clamp_min(1e-30)
        error = float((tensor - composed(factors)).norm() / norm.clamp_min(1e-30))
        if last - error < ENOUGH:
            break
        last = error
    sizes = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(1e-30)
    equal = sizes.log().mean(0).exp()
    return [factor / size * equal for factor, size in zip(factors, sizes, strict=True)]


def composed(factors: list[Tensor]) -> Tensor:
    """The sum of rank-one tensors that factors stand for."""
    letters = "abcdefgh"[: len(factors)]
    return torch.einsum(",".join(f"{letter}z" for letter in letters) + f"->{letters}", *factors)


def _unfolded(tensor: Tensor, mode: int) -> Tensor:
    return tensor.movedim(mode, 0).flatten(1)


def _khatri_rao(one: Tensor, other: Tensor) -> Tensor:
    return (one[:, None] * other[None]).flatten(0, 1)


def _leading(matrix: Tensor, rank: int, random: torch.Generator) -> Tensor:
    """Left singular vectors, the largest first, and random columns beyond them."""
    vectors = torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
    more = torch.randn(len(matrix), max(rank - vectors.shape[1], 0), dtype=torch.float64, generator=random)
    return torch.cat([vectors, more / more.norm(dim=0).clamp_min(1e-30)], 1)
