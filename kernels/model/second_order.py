r"""Columns of a weight matrix settled one by one, each error made good by the columns that are still free.

The squared error of a layer's outputs is tr(D H D^T), D the change of the weights and H the second moments of the
inputs (`calibration`). If column j of W is fixed at another value, the best change of the free columns F is known
exactly (the optimal brain surgeon):

    W_F <- W_F - (w_j - fixed_j) / [H_F^-1]_jj  [H_F^-1]_j,F

All rows settle their columns in the same order, so that they share H_F^-1, and its rows for every step are those of one
Cholesky factor, H^-1 = U^T U with U upper triangular: [H_F^-1]_j,F / [H_F^-1]_jj = U_j,F / U_jj. Columns are settled
block by block; within a block each error is passed on at once, beyond it once for the block.

Source: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022,
section 3, algorithm 1; the update is that of B. Hassibi and D. G. Stork, "Second order derivatives for network pruning:
Optimal Brain Surgeon", 1992.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["inverse_factor", "settle_columns"]


def inverse_factor(moment: Tensor, damping: float = 0.01) -> Tensor:
    """U, upper triangular, with U^T U the inverse of the damped H.

    Parameters
    ----------
    moment : Tensor of shape (groups, k, k), float64
        H. An input that was always zero gets a one on the diagonal: it neither gives nor takes errors.
    damping : float
        Is added to the diagonal, times its mean: few items leave H without an inverse.

    Raises
    ------
    ValueError
        If the damped H is not positive definite.

    Examples
    --------
    >>> u = inverse_factor(torch.tensor([[[2.0, 1.0], [1.0, 1.0]]]).double(), damping=0.0)
    >>> (u.mT @ u).round()
    tensor([[[ 1., -1.],
             [-1.,  2.]]], dtype=torch.float64)
    """
    damped = moment.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal.copy_(torch.where(diagonal == 0, mean.where(mean > 0, torch.ones_like(mean)), diagonal) + damping * mean)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed.any():
        raise ValueError(
            "moment: expected positive definite second moments; raise the damping, or calibrate on more items"
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def settle_columns(
    weight: Tensor,
    factor: Tensor,
    settle: Callable[[int, Tensor], Tensor],
    block: int = 128,
    begin: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """The matrix whose every column is what `settle` makes of it, after the errors of those before.

    Parameters
    ----------
    weight : Tensor of shape (groups, outputs, k)
    factor : Tensor of shape (groups, k, k)
        U, of `inverse_factor`.
    settle : callable of (column, values)
        Gives what the column's values, of shape (groups, outputs), are fixed at.
    block : int
        Columns of a block.
    begin : callable of (start, stop, values), optional
        Is shown each block's values, of shape (groups, outputs, stop - start), before its first column is settled.

    Returns
    -------
    Tensor of the shape of `weight`, float64

    Examples
    --------
    Two inputs that are nearly equal, whole numbers allowed: what the first loses, the second gains.

    >>> factor = inverse_factor(torch.tensor([[[1.0, 0.99], [0.99, 1.0]]]).double(), damping=0.0)
    >>> settle_columns(torch.tensor([[[0.4, 0.4]]]), factor, lambda j, values: values.round())
    tensor([[[0., 1.]]], dtype=torch.float64)
    """
    left, settled = weight.double().clone(), torch.empty_like(weight, dtype=torch.float64)
    for start in range(0, weight.shape[2], block):
        stop = min(start + block, weight.shape[2])
        if begin is not None:
            begin(start, stop, left[..., start:stop])
        errors = torch.empty(*weight.shape[:2], stop - start, dtype=torch.float64)
        for j in range(start, stop):
            settled[..., j] = settle(j, left[..., j])
            errors[..., j - start] = (left[..., j] - settled[..., j]) / factor[:, None, j, j]
            left[..., j:stop] -= errors[..., j - start, None] * factor[:, None, j, j:stop]
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return settled
