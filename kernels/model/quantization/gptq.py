r"""GPTQ: weights are rounded column by column, and those that are still free make good for the error.

A layer's outputs y = W x change by D x if its weights change by D. Over the inputs x of a few items the mean square is
tr(D H D^T) with H the mean of x x^T. Rounding to the nearest makes every entry of D small and ignores H. Here the
columns are rounded in order, and after each one the free columns F of every row move to where the square is least,

    W_F <- W_F - (w_j - round(w_j)) / [H_F^-1]_jj  [H_F^-1]_j,F

(`kernels.model.second_order`). If the inputs are uncorrelated H is diagonal, nothing moves, and all that remains is
rounding to the nearest. Layers are treated one after the other, each on the inputs that the network gives it whose
layers before it are quantized already.

Source: E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", 2022, section 3 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.batch_norm import fold
from kernels.model.calibration import as_matrix, calibration_rows, items_of, places
from kernels.model.quantization.uniform_grid import LIMITS, Grid, fit_grid, keep_codes
from kernels.model.second_order import inverse_factor, settle_columns

__all__ = ["GPTQ", "RoundToNearest", "compensated_codes"]

ORDERS = ("given", "activity")


@dataclass(frozen=True)
class GPTQ:
    r"""Weights of few bits after training, the error of each column made good by those after it.

    .. math:: \min_{\tilde W} \| W X - \tilde W X \|^2, \qquad
       w_F \leftarrow w_F - \frac{w_j - \mathrm{round}(w_j)}{[H_F^{-1}]_{jj}} [H_F^{-1}]_{j,F}

    Parameters
    ----------
    bits : int
        Of a weight, 2 to 8. Inputs of layers stay FP32.
    group : int
        Columns of a row that share a scale and a zero point; 0 for all of them.
    limits : {"min-max", "percentile", "mse"}
        Where the grids end, see `fit_grid`.
    order : {"given", "activity"}
        Columns as they are, or those with the largest inputs first, which then have most columns left to help.
    damping : float
        Added to the diagonal of H, over its mean.
    block : int
        Columns after whose rounding the rest of the matrix is updated; of no influence but on time.
    items : int
        Training items to calibrate on, their labels unseen.

    Notes
    -----
    Batch norm is folded. A convolution's columns are the entries of its patches, and each group of a convolution has an
    H of its own. Adapted: grids are fixed before the first column is rounded (in groups, too), and inputs that were
    always zero keep their weights, rounded to the nearest, where the published code zeroes them.

    Source: Frantar et al. 2022, section 3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network = GPTQ(bits=3).apply(digits.trained(), digits.data())
    >>> max(len(row.unique()) for row in network[1].weight)
    8
    """

    bits: int = 4
    group: int = 0
    limits: str = "min-max"
    order: str = "given"
    damping: float = 0.01
    block: int = 128
    items: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits: expected 2 to 8, got {self.bits!r}")
        if not self.damping >= 0:
            raise ValueError(f"damping: expected at least 0, got {self.damping!r}")
        for name, least in (("group", 0), ("block", 1), ("items", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)!r}")
        for name, known in (("limits", LIMITS), ("order", ORDERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A copy of `network` with weights as packed codes.

        Parameters
        ----------
        network : nn.Module
            Trained; left as it is.
        data : datasets.Data
            Its first training items are what is calibrated on.

        Raises
        ------
        TypeError, ValueError
            If there is no layer to quantize, one that is not handled, or too few items for the damping: the message has
            the layer's path.
        """
        places(network)  # refuses before anything is done
        return self._apply(network, data, compensate=True)

    def rivals(self, seed: int) -> dict[str, RoundToNearest]:
        """The same grids, every weight rounded to the nearest: what moving the others has to beat."""
        return {"nearest": RoundToNearest(self)}

    def _apply(self, network: nn.Module, data: Any, compensate: bool) -> nn.Module:
        items, network = items_of(data, self.items), fold(network)
        kept: list[tuple[nn.Module, str, Tensor, Grid]] = []
        for path in dict.fromkeys(path for path, _, _ in places(network)):
            names = [(layer, name) for other, layer, name in places(network) if other == path]
            rows = calibration_rows(network, items, only=path) if compensate else {}
            for layer, name in names:
                weight = getattr(layer, name)
                matrix = as_matrix(layer, weight.detach())
                flat = matrix.flatten(0, 1)
                grid = fit_grid(flat, self.bits, self.limits, symmetric=False, group=self.group)
                if compensate:
                    try:
                        codes = compensated_codes(
                            matrix, grid, rows[path, name].moment, damping=self.damping, block=self.block,
                            by_activity=self.order == "activity",
                        )  # fmt: skip
                    except ValueError as error:
                        raise ValueError(f"layer '{path}': {error}") from error
                else:
                    codes = grid.encode(flat)
                weight.data = grid.decode(codes).reshape(weight.shape)
                kept.append((layer, name, codes, grid))
            if isinstance(names[0][0], nn.RNNBase):
                names[0][0].flatten_parameters()
        for layer, name, codes, grid in kept:
            keep_codes(layer, name, codes, grid)
        return network


@dataclass(frozen=True)
class RoundToNearest:
    """The grids of a `GPTQ`, every weight rounded to the nearest."""

    method: GPTQ

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A copy of `network` with weights as packed codes."""
        return self.method._apply(network, data, compensate=False)


def compensated_codes(
    weight: Tensor, grid: Grid, moment: Tensor, *, damping: float = 0.01, block: int = 128, by_activity: bool = False
) -> Tensor:
    """Codes of the grid, each error made good by the columns that are still free.

    Parameters
    ----------
    weight : Tensor of shape (groups, outputs, k)
    grid : Grid
        Of the rows (groups times outputs, k).
    moment : Tensor of shape (groups, k, k)
        H.
    damping, block
        As for `GPTQ`.
    by_activity : bool
        Whether the columns with the largest diagonal of H come first.

    Returns
    -------
    Tensor of shape (groups times outputs, k), float32

    Examples
    --------
    >>> from kernels.model.quantization.uniform_grid import fit_grid
    >>> _ = torch.manual_seed(0)
    >>> w, x = torch.randn(1, 4, 6), torch.randn(50, 6)
    >>> grid = fit_grid(w[0], bits=3, symmetric=False)
    >>> codes = compensated_codes(w, grid, torch.eye(6)[None].double())
    >>> torch.equal(codes, grid.encode(w[0]))
    True
    """
    groups, outputs, k = weight.shape
    order = moment.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True) if by_activity else None
    scale, zero = (t.double().expand(groups * outputs, k).reshape(weight.shape) for t in grid.steps(k))
    if order is not None:
        columns = order[:, None].expand(-1, outputs, -1)
        weight, scale, zero = (t.gather(2, columns) for t in (weight, scale, zero))
        moment = moment.gather(1, order[..., None].expand(-1, -1, k)).gather(2, order[:, None].expand(-1, k, -1))
    codes = torch.empty(weight.shape, dtype=torch.float64)

    def settle(j: int, values: Tensor) -> Tensor:
        codes[..., j] = (torch.round(values / scale[..., j]) + zero[..., j]).clamp(grid.low, grid.high)
        return (codes[..., j] - zero[..., j]) * scale[..., j]

    settle_columns(weight, inverse_factor(moment, damping), settle, block)
    if order is not None:
        codes = torch.empty_like(codes).scatter_(2, columns, codes)
    return codes.flatten(0, 1).float()
