r"""Learned levels: few levels, not evenly spaced, that still multiply bit by bit.

With a basis v of K numbers, a code of K bits stands for the sum of the numbers whose bits are set. Weights have bits of
-1 and 1 and a basis for each filter, inputs bits of 0 and 1 and one basis for a layer:

.. math:: q = v^\top e, \qquad e \in \{-1, 1\}^K \text{ or } \{0, 1\}^K

Basis and codes are fitted to the numbers in squares, one after the other (quantization error minimization):

.. math:: \min_{v, B} \| B^\top v - x \|^2: \qquad B \leftarrow \text{code of the nearest level}, \qquad
   v \leftarrow (B B^\top)^{-1} B x

once in each training pass, where the basis goes a tenth of the way, and no gradient reaches it. Gradients of the
numbers themselves go straight through, of inputs up to the highest level. A product of two such operands is one of
bits,

    w . x = sum_{i, j} v_i u_j (B_i . C_j),

K_w times K_x counts of ones, each with a factor.

Source: D. Zhang et al., "LQ-Nets: Learned Quantization for Highly Accurate and Compact Deep Neural Networks", ECCV
2018, section 3, algorithm 1.

Examples
--------
>>> x = torch.tensor([[0.9, 1.1, -3.2, 2.8, -1.0, 1.0]])
>>> basis, codes = fit(x, torch.tensor([[1.0, 2.0]]), signed=True, rounds=3)
>>> levels(basis, signed=True).round(decimals=2)
tensor([[-3., -1.,  1.,  3.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.quantization.quantizers import (
    InputQuantizer,
    RoundedAfterwards,
    checked_bits,
    passed_through,
    quantize_network,
    refuse_infinite,
)

__all__ = ["BasisInputs", "BasisWeights", "LearnedLevels", "fit", "levels", "nearest"]

Trace = list[dict[str, Any]]
STAYS = 0.9
"""What stays of a basis in one training pass."""
FIRST_ROUNDS = 10


def bits_of(count: int, signed: bool) -> Tensor:
    """Every code of `count` bits as a row: of -1 and 1 if signed, else of 0 and 1; code c has bit i at c >> i.

    Examples
    --------
    >>> bits_of(2, signed=False)
    tensor([[0., 0.],
            [1., 0.],
            [0., 1.],
            [1., 1.]])
    """
    bits = (torch.arange(2**count)[:, None] >> torch.arange(count)) & 1
    return (2 * bits - 1 if signed else bits).float()


def levels(basis: Tensor, signed: bool) -> Tensor:
    """The level of every code.

    Parameters
    ----------
    basis : Tensor of shape (groups, K)
    signed : bool

    Returns
    -------
    Tensor of shape (groups, 2^K)
    """
    return basis @ bits_of(basis.shape[1], signed).to(basis.dtype).T


def nearest(x: Tensor, basis: Tensor, signed: bool) -> Tensor:
    """The code of each number's nearest level.

    Parameters
    ----------
    x : Tensor of shape (groups, n)
    basis : Tensor of shape (groups, K)
    signed : bool

    Returns
    -------
    Tensor of int64, shape (groups, n)
    """
    sorted_levels, order = levels(basis, signed).sort(1)
    borders = (sorted_levels[:, 1:] + sorted_levels[:, :-1]) / 2
    return order.gather(1, torch.searchsorted(borders.contiguous(), x.contiguous()))


def best_basis(x: Tensor, codes: Tensor, count: int, signed: bool) -> Tensor:
    """The basis of least squares for given codes: (B B^T)^-1 B x, group by group.

    Directions that no code distinguishes are left at zero.
    """
    bits = bits_of(count, signed).to(x.dtype)[codes]  # (groups, n, K)
    square = bits.transpose(1, 2) @ bits
    return (torch.linalg.pinv(square, hermitian=True) @ (bits.transpose(1, 2) @ x[..., None]))[..., 0]


def fit(x: Tensor, basis: Tensor, signed: bool, rounds: int = 1, stays: float = 0.0) -> tuple[Tensor, Tensor]:
    """Codes, then a basis for them, so many times.

    Parameters
    ----------
    x : Tensor of shape (groups, n)
    basis : Tensor of shape (groups, K)
        To begin with.
    signed : bool
    rounds : int
    stays : float
        The share of the old basis in each new one.

    Returns
    -------
    basis : Tensor of shape (groups, K)
    codes : Tensor of int64, shape (groups, n)
        Of the nearest levels of that basis.
    """
    for _ in range(rounds):
        best = best_basis(x, nearest(x, basis, signed), basis.shape[1], signed)
        basis = stays * basis + (1 - stays) * best
    return basis, nearest(x, basis, signed)


def _even(x: Tensor, count: int, signed: bool) -> Tensor:
    """A basis of evenly spaced levels that reach as far as twice the root mean square."""
    reach = 2 * x.square().mean(1, keepdim=True).sqrt()
    return reach * 2.0 ** torch.arange(count) / (2**count - 1) * torch.ones(len(x), 1)


class BasisWeights(nn.Module):
    """A constraint: weights at the levels of a basis for each filter, fitted while the network learns."""

    basis: Tensor

    def __init__(self, bits: int, w: Tensor) -> None:
        super().__init__()
        self.bits = bits
        rows = w.detach().flatten(1)
        self.register_buffer("basis", fit(rows, _even(rows, bits, True), True, FIRST_ROUNDS)[0])

    def forward(self, w: Tensor) -> Tensor:
        still = w.detach()
        refuse_infinite(still)
        rows = still.flatten(1)
        if self.training and torch.is_grad_enabled():
            self.basis.copy_(fit(rows, self.basis, True, 1, STAYS)[0])
        value = levels(self.basis, True).gather(1, nearest(rows, self.basis, True))
        return passed_through(value.view_as(w), w)

    def codes(self, w: Tensor) -> Tensor:
        """The code of each weight, int64 in the shape of `w`."""
        return nearest(w.detach().flatten(1), self.basis, True).view_as(w)

    def stored_bits(self, w: Tensor) -> int:
        """A code each, and the bases in FP32."""
        return self.bits * w.numel() + 32 * self.basis.numel()


class BasisInputs(InputQuantizer):
    """Inputs at the levels of one basis, fitted while the network learns; the first batch sets it."""

    basis: Tensor
    seen: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("basis", torch.ones(1, bits))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        row = x.detach().reshape(1, -1)
        if self.training:
            if self.seen:
                self.basis.copy_(fit(row, self.basis, False, 1, STAYS)[0])
            else:
                self.basis.copy_(fit(row, _even(row, self.bits, False), False, FIRST_ROUNDS)[0])
                self.seen.fill_(True)
        if not self.seen:
            return x
        table = levels(self.basis, False)
        value = table.gather(1, nearest(row, self.basis, False)).view_as(x)
        return passed_through(value, torch.minimum(x, table.max()))


@dataclass(frozen=True)
class LearnedLevels:
    r"""Train a network whose weights and inputs of layers lie at levels that are fitted to them, and made of bits.

    .. math:: q = v^\top e, \qquad v \leftarrow 0.9\, v + 0.1\, (B B^\top)^{-1} B x, \qquad
       \frac{\partial L}{\partial x} := \frac{\partial L}{\partial q}

    Parameters
    ----------
    weight_bits, input_bits : int, 1 to 4
    ends : int, 2 to 8
        Bits of the first and the last layer.

    Notes
    -----
    Adapted: the paper leaves the first and the last layer in FP32. Here they have eight bits, on a grid of least and
    largest value. Bases begin even, with ten rounds of the fit on the first weights and on the first batch.

    Source: Zhang et al. 2018, section 3, algorithm 1.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = LearnedLevels().train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> {len(filter.unique()) for filter in network[3].weight} <= {3, 4}
    True
    """

    weight_bits: int = 2
    input_bits: int = 2
    ends: int = 8

    def __post_init__(self) -> None:
        checked_bits(self.weight_bits, "weight_bits", 1, 4)
        checked_bits(self.input_bits, "input_bits", 1, 4)
        checked_bits(self.ends, "ends", 2)

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` and its levels by `recipe`.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            The network still holds the FP32 weights below; `kernels.model.transform.bake` leaves the rounded ones.
        """
        network = self.constrain(network)
        return network, recipe.train(network, data, seed=seed)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` that rounds from now on.

        Raises
        ------
        ValueError
            If it has a recurrent layer, or none between the first and the last.
        """
        return quantize_network(
            network,
            lambda layer: BasisWeights(self.weight_bits, layer.weight),
            lambda layer: BasisInputs(self.input_bits),
            self.ends,
        )

    def afterwards(self) -> RoundedAfterwards:
        """Levels fitted to a network that was trained without them."""
        return RoundedAfterwards(self)
