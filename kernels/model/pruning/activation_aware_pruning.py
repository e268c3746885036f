r"""Pruning after training by what layers are given: Wanda drops weights, SparseGPT repairs those that stay.

A weight counts as much as it moves the output: its magnitude times the size of its input. *Wanda* ranks the weights of
each output by

    |w_ij| ||x_j||,     ||x_j|| the norm of input j over the rows of a few items

and drops the lowest. *SparseGPT* goes through the columns of the matrix in order, as GPTQ does
(`kernels.model.second_order`). For a block of columns it drops the weights of the lowest

    w_ij^2 / U_jj^2,     U^T U = H^-1, U upper triangular: what dropping it costs once the later columns have made good

and after each column all later ones move to where the squared error of the outputs is least. Nothing is trained.

Source: M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023, section 3; E. Frantar
and D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.batch_norm import fold
from kernels.model.calibration import Rows, as_matrix, calibration_rows, items_of, places
from kernels.model.pruning.mask import Mask
from kernels.model.second_order import inverse_factor, settle_columns
from kernels.model.transform import constrain

__all__ = ["ActivationAwarePruning", "PrunedWithoutLooking", "lowest", "sparse_columns"]

METHODS = ("wanda", "sparsegpt")


@dataclass(frozen=True)
class ActivationAwarePruning:
    r"""Drop the weights that matter least for what the layers are given, and with SparseGPT repair the others.

    .. math:: S_{ij} = |w_{ij}| \, \|x_j\|_2 \quad\text{(Wanda)}, \qquad
       S_{ij} = \frac{w_{ij}^2}{[H_F^{-1}]_{jj}} \quad\text{(SparseGPT)}

    Parameters
    ----------
    density : float
        Share of each layer's weights that remain, 0 < density <= 1.
    method : {"wanda", "sparsegpt"}
        Wanda keeps the same number for each output, SparseGPT in each block of columns.
    damping : float
        Of SparseGPT: added to the diagonal of H, over its mean.
    block : int
        Of SparseGPT: columns whose weights are chosen together.
    items : int
        Training items to calibrate on, their labels unseen.

    Notes
    -----
    Batch norm is folded. Each layer is pruned on the inputs that the network gives it whose layers before it are pruned
    already. A convolution's columns are the entries of its patches. Not fine-tuned, though it could be: the masks are
    parametrizations that would hold.

    Source: Sun et al. 2023, section 3; Frantar and Alistarh 2023, section 3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network = ActivationAwarePruning(density=0.25, method="wanda").apply(digits.trained(), digits.data())
    >>> network[1].parametrizations.weight[0].mask.sum(1).unique()
    tensor([16])
    """

    density: float = 0.5
    method: str = "sparsegpt"
    damping: float = 0.01
    block: int = 128
    items: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density: expected 0 < density <= 1, got {self.density!r}")
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if not self.damping >= 0:
            raise ValueError(f"damping: expected at least 0, got {self.damping!r}")
        for name in ("block", "items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}")

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A pruned copy of `network`.

        Parameters
        ----------
        network : nn.Module
            Trained; left as it is.
        data : datasets.Data
            Its first training items are what is calibrated on.

        Raises
        ------
        TypeError, ValueError
            If there is no layer to prune, one that is not handled, or too few items for the damping: the message has
            the layer's path.
        """
        places(network)  # refuses before anything is done
        items, network = items_of(data, self.items), fold(network)
        for path in dict.fromkeys(path for path, _, _ in places(network)):
            rows = calibration_rows(network, items, only=path)
            for layer, name in [(layer, name) for other, layer, name in places(network) if other == path]:
                weight = getattr(layer, name)
                try:
                    matrix, mask = self._pruned(as_matrix(layer, weight.detach()), rows[path, name])
                except ValueError as error:
                    raise ValueError(f"layer '{path}': {error}") from error
                weight.data = matrix.to(weight.dtype).reshape(weight.shape)
                constrain(layer, name, Mask(mask.reshape(weight.shape)))
        return network

    def _pruned(self, matrix: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        if self.method == "sparsegpt":
            return sparse_columns(matrix, rows.moment, self.density, damping=self.damping, block=self.block)
        norms = rows.moment.diagonal(dim1=1, dim2=2).sqrt()  # over the root of the rows' number, which orders nothing
        mask = lowest(matrix.abs() * norms[:, None], self.density, 2)
        return matrix * mask, mask

    def rivals(self, seed: int) -> dict[str, PrunedWithoutLooking]:
        """The same density by magnitude alone, for each output, and by chance."""
        return {
            "magnitude": PrunedWithoutLooking(self.density),
            "blind": PrunedWithoutLooking(self.density, seed),
        }


@dataclass(frozen=True)
class PrunedWithoutLooking:
    """Keep the share `density` of the weights of each output, the largest, or where there is a seed, any."""

    density: float
    seed: int | None = None

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A pruned copy of `network`, batch norm folded."""
        network = fold(network)
        chance = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        for _, layer, name in places(network):
            matrix = as_matrix(layer, getattr(layer, name).detach())
            scores = matrix.abs() if chance is None else torch.rand(matrix.shape, generator=chance)
            mask = lowest(scores, self.density, 2)
            constrain(layer, name, Mask(mask.reshape(getattr(layer, name).shape)))
        return network


def lowest(scores: Tensor, density: float, axis: int) -> Tensor:
    """False at the lowest scores along an axis, ``round(density * length)`` are true; the earlier of equals stay.

    Examples
    --------
    >>> lowest(torch.tensor([[3.0, 1.0, 2.0, 2.0]]), density=0.5, axis=1)
    tensor([[ True, False,  True, False]])
    """
    kept = round(density * scores.shape[axis])
    order = scores.argsort(dim=axis, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(axis, order.narrow(axis, 0, kept), True)


def sparse_columns(
    weight: Tensor, moment: Tensor, density: float, *, damping: float = 0.01, block: int = 128
) -> tuple[Tensor, Tensor]:
    """SparseGPT: what is left of a matrix, and where.

    Parameters
    ----------
    weight : Tensor of shape (groups, outputs, k)
    moment : Tensor of shape (groups, k, k)
        H.
    density : float
        Of each block's weights, those of all outputs of a group together.
    damping, block
        As for `ActivationAwarePruning`.

    Returns
    -------
    weight, mask : Tensor of float64 and of bool, both of the shape of `weight`

    Examples
    --------
    Two inputs that are always equal: the weight that stays takes over what the other did.

    >>> weight, mask = sparse_columns(torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 2, 2).double(), 0.5, damping=1e-9)
    >>> weight.round(), mask
    (tensor([[[0., 3.]]], dtype=torch.float64), tensor([[[False,  True]]]))
    """
    factor = inverse_factor(moment, damping)
    diagonal = factor.diagonal(dim1=1, dim2=2)
    mask = torch.ones(weight.shape, dtype=torch.bool)

    def begin(start: int, stop: int, values: Tensor) -> None:
        scores = (values / diagonal[:, None, start:stop]) ** 2
        mask[..., start:stop] = lowest(scores.flatten(1), density, 1).reshape(values.shape)

    settled = settle_columns(weight, factor, lambda j, values: values * mask[..., j], block, begin)
    return settled, mask
