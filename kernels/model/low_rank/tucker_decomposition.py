"""Tucker-2 decomposition: fewer channels into and out of a small core convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.low_rank.factorised import Factorisation, chain, check_share, pointwise, spatial

__all__ = ["TuckerDecomposition", "hooi"]

SWEEPS = 50
ENOUGH = 1e-7
"""Sweeps end when the share of the tensor's squares that the core holds grows by less than this."""


@dataclass(frozen=True)
class TuckerDecomposition(Factorisation):
    r"""Approximate a convolution by a projection of its channels, a convolution of the core, and a way back.

    .. math:: w_{ncij} \approx \sum_{p=1}^{P} \sum_{q=1}^{Q} a_{np} \, g_{pqij} \, b_{cq}

    Three convolutions in a row: 1 x 1 from C to Q channels, k x k from Q to P, 1 x 1 from P to N. Space stays whole,
    since k is small already. The bases a and b are orthonormal, and found by higher-order orthogonal iteration: each
    in turn holds the largest singular vectors of what the other leaves.

    Parameters
    ----------
    share : float
        Parameters of the three, at most, as a share of those of the layer's weight, 0 < share <= 1. P and Q are the
        same share of N and C. Linear layers and 1 x 1 convolutions stay.

    Source
    ------
    Kim, Park, Yoo, Choi, Yang and Shin, "Compression of Deep Convolutional Neural Networks for Fast and Low Power
    Mobile Applications", 2015, where the ranks of each layer are chosen by variational Bayesian matrix factorisation;
    here they follow from the share, as those of the other factorisations do.

    Examples
    --------
    >>> TuckerDecomposition(share=0.5).apply(nn.Conv2d(16, 32, 3, padding=1, bias=False))
    Sequential(
      (0): Conv2d(16, 9, kernel_size=(1, 1), stride=(1, 1), bias=False)
      (1): Conv2d(9, 18, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (2): Conv2d(18, 32, kernel_size=(1, 1), stride=(1, 1), bias=False)
    )
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def factorised(self, layer: Any, weight: Tensor) -> nn.Module | None:
        if isinstance(layer, nn.Linear) or max(layer.kernel_size) == 1:
            return None
        n, c, high, wide = weight.shape
        p, q = ranks_within(self.share, n, c, high * wide)
        if n * p + p * q * high * wide + q * c >= weight.numel():
            return None
        a, core, b = hooi(weight, p, q)
        layers: list[nn.Module] = [
            pointwise(c, q),
            spatial(layer, q, p),
            pointwise(p, n, layer.bias is not None),
        ]
        return chain(layers, [b.T, core, a], layer.bias)


def ranks_within(share: float, n: int, c: int, places: int) -> tuple[int, int]:
    """Channels out of and into the core: the same part β of n and c, with β² n c k² + β (n² + c²) parameters in all.

    Examples
    --------
    >>> ranks_within(0.5, 32, 16, 9)
    (18, 9)
    """
    square, linear = n * c * places, n * n + c * c
    part = (-linear + math.sqrt(linear**2 + 4 * square * share * square)) / (2 * square)
    return max(1, int(part * n)), max(1, int(part * c))


def hooi(tensor: Tensor, p: int, q: int) -> tuple[Tensor, Tensor, Tensor]:
    """The bases of the first two dimensions and the core between them, float64.

    Parameters
    ----------
    tensor : Tensor
        Of shape (n, c, ...).
    p, q : int
        At most n and c.

    Returns
    -------
    a : Tensor
        (n, p), orthonormal columns.
    core : Tensor
        (p, q, ...), what is left of the tensor in the two bases.
    b : Tensor
        (c, q), orthonormal columns.

    Examples
    --------
    >>> a, core, b = hooi(torch.eye(4)[:, :, None], 4, 4)
    >>> torch.allclose(torch.einsum("np,pqi,cq->nci", a, core, b), torch.eye(4, dtype=torch.float64)[:, :, None])
    True
    """
    tensor = tensor.double()
    a, b = _basis(tensor, p), _basis(tensor.transpose(0, 1), q)
    held = 0.0
    for _ in range(SWEEPS):
        a = _basis(torch.einsum("nc...,cq->nq...", tensor, b), p)
        b = _basis(torch.einsum("nc...,np->cp...", tensor, a), q)
        core = torch.einsum("nc...,np,cq->pq...", tensor, a, b)
        now = float(core.square().sum() / tensor.square().sum().clamp_min(1e-300))
        if now - held < ENOUGH:
            break
        held = now
    return a, core, b


def _basis(tensor: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of the tensor as a matrix whose rows are its first dimension."""
    return torch.linalg.svd(tensor.flatten(1), full_matrices=False)[0][:, :rank]
