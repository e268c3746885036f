"""Separable filters: a k x k convolution as one along the rows and one along the columns, of few channels between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.low_rank.factorised import Factorisation, balanced, chain, check_share, rank_within, spatial

__all__ = ["SeparableFilters"]


@dataclass(frozen=True)
class SeparableFilters(Factorisation):
    r"""Approximate the filters of a convolution by sums of vertical times horizontal ones.

    .. math:: w_{ncij} \approx \sum_{r=1}^{R} h_{nrj} \, v_{rci}

    The v are R filters of k x 1 on the C input channels, the h N filters of 1 x k on the R channels between: R k (C +
    N) parameters in place of C N k². As a matrix with the rows (n, j) and the columns (c, i) the right side is any
    matrix of rank R, so the best one is the singular value decomposition's, and no iteration is needed.

    Parameters
    ----------
    share : float
        Parameters of the factors, at most, as a share of those of the layer's weight, 0 < share <= 1.

    Source
    ------
    Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014:
    the second of its two schemes, its reconstruction of filters.

    Examples
    --------
    >>> SeparableFilters(share=0.5).apply(nn.Conv2d(16, 32, 3, padding=1, bias=False))
    Sequential(
      (0): Conv2d(16, 16, kernel_size=(3, 1), stride=(1, 1), padding=(1, 0), bias=False)
      (1): Conv2d(16, 32, kernel_size=(1, 3), stride=(1, 1), padding=(0, 1), bias=False)
    )
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def factorised(self, layer: Any, weight: Tensor) -> nn.Module | None:
        if isinstance(layer, nn.Linear) or min(layer.kernel_size) == 1:
            return None
        n, c, high, wide = weight.shape
        rank = rank_within(self.share, weight.numel(), n * wide + c * high)
        if rank is None:
            return None
        matrix = weight.double().permute(0, 3, 1, 2).reshape(n * wide, c * high)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        left, right = balanced(u, s, v, rank)
        layers: list[nn.Module] = [
            spatial(layer, c, rank, axes=(0,)),
            spatial(layer, rank, n, axes=(1,), bias=layer.bias is not None),
        ]
        return chain(layers, [right, left.reshape(n, wide, rank).permute(0, 2, 1)], layer.bias)
