"""Tensor train: a weight matrix as a chain of small cores, one for each factor of its dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.low_rank.factorised import Factorisation, check_share

__all__ = ["TensorTrain", "TensorTrainLinear", "composed", "modes", "tt_svd"]


@dataclass(frozen=True)
class TensorTrain(Factorisation):
    r"""Keep the matrix of a linear layer as a tensor train, and multiply by it core by core.

    .. math:: W_{(i_1 \dots i_d), (j_1 \dots j_d)} \approx G_1[i_1, j_1] \, G_2[i_2, j_2] \cdots G_d[i_d, j_d]

    The rows are numbered by d digits i, the columns by d digits j; each core holds, for a pair of digits, a small
    matrix of ranks r. Its parameters grow with the digits' sizes and the ranks' square, no longer with the matrix.

    Parameters
    ----------
    share : float
        Parameters of the cores, at most, as a share of those of the layer's weight, 0 < share <= 1; the largest rank
        follows from it. Convolutions stay.
    order : int
        The number of cores, d >= 2.

    Source
    ------
    Novikov, Podoprikhin, Osokin and Vetrov, "Tensorizing Neural Networks", NIPS 2015; the cores are found one after
    another by cut singular value decompositions.

    Examples
    --------
    >>> TensorTrain(share=0.25).apply(nn.Linear(64, 64)).extra_repr()
    'in_features=(8, 8), out_features=(8, 8), ranks=(8,)'
    """

    share: float = 0.25
    order: int = 2

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.order < 2:
            raise ValueError(f"order: expected at least 2 cores, got {self.order}")

    def factorised(self, layer: Any, weight: Tensor) -> nn.Module | None:
        if not isinstance(layer, nn.Linear):
            return None
        rows, columns = modes(layer.out_features, self.order), modes(layer.in_features, self.order)
        limit = max(self.share * weight.numel(), 1)
        cores = tt_svd(weight, rows, columns, 1)
        for rank in range(2, weight.numel()):
            more = tt_svd(weight, rows, columns, rank)
            if sum(core.numel() for core in more) > limit or [c.shape for c in more] == [c.shape for c in cores]:
                break
            cores = more
        if sum(core.numel() for core in cores) >= weight.numel():
            return None
        return TensorTrainLinear(cores, layer.bias)


class TensorTrainLinear(nn.Module):
    """A linear layer whose matrix is a tensor train.

    Parameters
    ----------
    cores : list of Tensor
        Of shape (rank before, digits of the output, digits of the input, rank after); the first and last rank are 1.
    bias : Tensor or None
        Of as many entries as the digits of the output have products.
    """

    def __init__(self, cores: list[Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.cores = nn.ParameterList([core.float() for core in cores])
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """From (..., inputs) to (..., outputs): one digit after the other changes from input to output."""
        rows = x.reshape(-1, x.shape[-1])
        done, count = rows[:, None, :], len(rows)  # (outputs so far and items, rank, inputs to come)
        for core in self.cores:
            before, out, into, after = core.shape
            matrix = core.permute(1, 3, 0, 2).reshape(out * after, before * into)
            done = matrix @ done.reshape(-1, before * into, done.shape[-1] // into)
            done = done.reshape(-1, after, done.shape[-1])
        y = done.reshape(count, math.prod(core.shape[1] for core in self.cores))
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], y.shape[1])

    def extra_repr(self) -> str:
        into, out = (tuple(core.shape[axis] for core in self.cores) for axis in (2, 1))
        return f"in_features={into}, out_features={out}, ranks={tuple(core.shape[3] for core in self.cores[:-1])}"

    @property
    def weight(self) -> Tensor:
        """The matrix (outputs, inputs) that the cores stand for."""
        return composed(list(self.cores))


def modes(size: int, order: int) -> tuple[int, ...]:
    """A number as a product of so many factors, as equal as its primes allow, the largest first.

    Examples
    --------
    >>> modes(64, 2), modes(64, 3), modes(10, 2), modes(7, 2)
    ((8, 8), (4, 4, 4), (5, 2), (7, 1))
    """
    factors = [1] * order
    primes, rest, p = [], size, 2
    while rest > 1:
        while rest % p == 0:
            primes.append(p)
            rest //= p
        p += 1
    for prime in reversed(primes):
        factors[factors.index(min(factors))] *= prime
    return tuple(sorted(factors, reverse=True))


def tt_svd(matrix: Tensor, rows: tuple[int, ...], columns: tuple[int, ...], rank: int) -> list[Tensor]:
    """The cores of a matrix, float64, no rank between them above `rank`.

    Parameters
    ----------
    matrix : Tensor
        Of shape (product of `rows`, product of `columns`).
    rows, columns : tuple of int
        The sizes of the digits, as many each.
    rank : int

    Examples
    --------
    >>> cores = tt_svd(torch.eye(6), (3, 2), (3, 2), rank=1)
    >>> [tuple(core.shape) for core in cores], torch.allclose(composed(cores), torch.eye(6, dtype=torch.float64))
    ([(1, 3, 3, 1), (1, 2, 2, 1)], True)
    """
    order = len(rows)
    interleaved = [axis for k in range(order) for axis in (k, order + k)]
    rest = matrix.double().reshape(*rows, *columns).permute(interleaved).reshape(1, -1)
    cores, before = [], 1
    for i, j in zip(rows[:-1], columns[:-1], strict=True):
        u, s, v = torch.linalg.svd(rest.reshape(before * i * j, -1), full_matrices=False)
        after = min(rank, len(s))
        cores.append(u[:, :after].reshape(before, i, j, after))
        rest, before = s[:after, None] * v[:after], after
    cores.append(rest.reshape(before, rows[-1], columns[-1], 1))
    # of equal size each, which changes no product
    sizes = [core.norm().clamp_min(1e-30) for core in cores]
    equal = math.exp(sum(math.log(size) for size in sizes) / order)
    return [core / size * equal for core, size in zip(cores, sizes, strict=True)]


def composed(cores: list[Tensor]) -> Tensor:
    """The matrix that cores stand for: the plain statement of the equation.

    Examples
    --------
    >>> composed([torch.ones(1, 2, 2, 3), torch.ones(3, 2, 1, 1)]).shape
    torch.Size([4, 2])
    """
    matrix = cores[0]
    for core in cores[1:]:
        matrix = torch.einsum("aijr,rklb->aikjlb", matrix, core)
        a, i, k, j, other, b = matrix.shape
        matrix = matrix.reshape(a, i * k, j * other, b)
    return matrix[0, :, :, 0]
