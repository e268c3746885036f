"""SVD of linear and convolution layers: a matrix of low rank as the product of two thin ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.low_rank.factorised import Factorisation, balanced, chain, check_share, pointwise, spatial

__all__ = ["SvdFactorisation"]


@dataclass(frozen=True)
class SvdFactorisation(Factorisation):
    r"""Replace each weight by its best approximation of rank r, kept as two factors.

    .. math:: W \approx U_r \Sigma_r V_r^\top = (U_r \Sigma_r^{1/2}) (\Sigma_r^{1/2} V_r^\top), \qquad
        \lVert W - U_r \Sigma_r V_r^\top \rVert_F^2 = \sum_{i > r} \sigma_i^2

    A linear layer from m to n becomes two, by way of r numbers: r (m + n) parameters in place of m n. A convolution
    of C into N channels is the matrix of N rows and C k² columns; it becomes r filters of k x k and a 1 x 1
    convolution.

    Parameters
    ----------
    energy : float
        The share of each weight's squares that is kept, 0 < energy <= 1: the rank of a layer is the smallest that keeps
        it. A layer whose factors would not be smaller than its weight stays.

    Source
    ------
    Denton, Zaremba, Bruna, LeCun and Fergus, "Exploiting Linear Structure Within Convolutional Networks for Efficient
    Evaluation", NIPS 2014; that the cut is the best of its rank: Eckart and Young, 1936.

    Examples
    --------
    >>> layer = nn.Linear(64, 64)
    >>> _ = nn.init.eye_(layer.weight)  # all directions alike
    >>> SvdFactorisation(energy=0.25).apply(layer)
    Sequential(
      (0): Linear(in_features=64, out_features=16, bias=False)
      (1): Linear(in_features=16, out_features=64, bias=True)
    )
    """

    energy: float = 0.8

    def __post_init__(self) -> None:
        check_share("energy", self.energy)

    def factorised(self, layer: Any, weight: Tensor) -> nn.Module | None:
        matrix = weight.flatten(1)
        rows, columns = matrix.shape
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        kept = s.square().cumsum(0) / s.square().sum().clamp_min(1e-300)
        rank = 1 + int((kept < self.energy - 1e-12).sum())
        if rank * (rows + columns) >= matrix.numel():
            return None
        left, right = balanced(u, s, v, rank)
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            layers: list[nn.Module] = [nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias)]
        else:
            layers = [spatial(layer, layer.in_channels, rank), pointwise(rank, rows, bias)]
        return chain(layers, [right, left], layer.bias)
