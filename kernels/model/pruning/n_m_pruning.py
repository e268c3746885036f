r"""N:M pruning: of every m weights beside each other in a row, the n largest remain.

A pattern that is known beforehand costs few bits to write down and no search to run: hardware picks n of m inputs by
a few bits. The choice is made in every group alone, so a group of m large weights loses some of them, where a
global ranking would not. Two ways to train with it:

*Fixed*: prune once, keep the masks, fine-tune.

*Refined*: the masks are chosen anew in every pass from weights that are all kept below. Their gradient is taken
straight through, as if nothing had been masked, so that a dropped weight can come back; and those that are dropped are
pulled to zero, which keeps the choice from swinging to and fro (SR-STE):

    w <- w - rate (g(m w) + decay (1 - m) w)

Source: A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", 2021; fixed masks:
A. Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.mask import Mask
from kernels.model.transform import constrain, layer_weights

__all__ = ["NMPruning", "RandomNM", "n_of_m"]

MASKS = ("refined", "fixed")


@dataclass(frozen=True)
class NMPruning:
    r"""Keep the n largest of every m weights beside each other in a row.

    .. math:: \tilde w = m \odot w, \qquad w \leftarrow w - \gamma \left( g(\tilde w) + \lambda (1 - m) \odot w \right)

    Parameters
    ----------
    n, m : int
        1 <= n <= m. A row that m does not divide ends with a shorter group, as if it went on with zeros.
    masks : {"refined", "fixed"}
        Chosen anew in every pass, or once.
    decay : float
        lambda, of refined masks.

    Notes
    -----
    A row holds the weights of one output; of a convolution those of one channel's kernel lie beside each other, as a
    product of patches has them. All layers are pruned. Adapted: the paper trains from scratch with momentum; here a
    trained network is fine-tuned by the recipe's own optimizer.

    Source: Zhou et al. 2021 (SR-STE); Mishra et al. 2021 (fixed masks).

    Examples
    --------
    >>> pruned = NMPruning(n=2, m=4).apply(nn.Linear(8, 3))
    >>> (pruned.weight != 0).unflatten(1, (2, 4)).sum(2).unique()
    tensor([2])
    """

    n: int = 2
    m: int = 4
    masks: str = "refined"
    decay: float = 2e-4

    def __post_init__(self) -> None:
        _check(self.n, self.m)
        if self.masks not in MASKS:
            raise ValueError(f"masks: expected one of {', '.join(MASKS)}, got {self.masks!r}")
        if not 0 <= self.decay < float("inf"):
            raise ValueError(f"decay: expected a number of at least 0, got {self.decay!r}")

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A pruned copy of `network`; fine-tune it to regain accuracy, then `kernels.model.transform.bake` it.

        Parameters
        ----------
        network : nn.Module
            Trained; its convolution, linear and recurrent layers are pruned, biases and norms are not.
        data : optional
            Not needed: the weights alone decide.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, or has no layer to prune.
        """
        network = _copy(network)
        for layer, name in list(layer_weights(network)):
            weight = getattr(layer, name).detach()
            if self.masks == "fixed":
                constrain(layer, name, NMMask(n_of_m(weight.abs(), self.n, self.m), self.n, self.m))
            else:
                constrain(layer, name, _Refined(self.n, self.m, self.decay))
        return network

    def at_random(self, seed: int) -> RandomNM:
        """The same pattern, the weights that remain drawn at random: what magnitude has to beat."""
        return RandomNM(self.n, self.m, seed)


@dataclass(frozen=True)
class RandomNM:
    """Keep n of every m weights in a row, drawn at random; parameters as for `NMPruning`."""

    n: int = 2
    m: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.n, self.m)

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A pruned copy of `network`."""
        network, chance = _copy(network), torch.Generator().manual_seed(self.seed)
        for layer, name in list(layer_weights(network)):
            scores = torch.rand(getattr(layer, name).shape, generator=chance)
            constrain(layer, name, NMMask(n_of_m(scores, self.n, self.m), self.n, self.m))
        return network


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """True at the n highest scores of every m beside each other in a row; the earlier of equals wins.

    Parameters
    ----------
    scores : Tensor of shape (rows, ...)
        What follows the first axis is one row.

    Examples
    --------
    >>> n_of_m(torch.tensor([[3.0, 1.0, 2.0, 2.0, 5.0]]), n=2, m=4)
    tensor([[ True, False,  True, False,  True]])
    """
    rows = scores.flatten(1)
    short = -rows.shape[1] % m
    groups = nn.functional.pad(rows, (0, short), value=-torch.inf).unflatten(1, (-1, m))
    order = groups.argsort(dim=2, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order[..., :n], True)
    return mask.flatten(1)[:, : rows.shape[1]].reshape(scores.shape)


class NMMask(Mask):
    """A mask of n of m, and what its values and their places take."""

    def __init__(self, mask: Tensor, n: int, m: int) -> None:
        super().__init__(mask)
        self.n, self.m = n, m

    def stored_bits(self, weight: Tensor) -> int:
        """n values of every m in FP32, and the place of each within its group."""
        return _bits(weight, self.n, self.m)


class _Straight(torch.autograd.Function):
    """The masked weight forward; backward the gradient of every weight, and what pulls the dropped ones to zero."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        weight, mask = ctx.saved_tensors
        return gradient + ctx.decay * torch.where(mask, 0.0, weight), None, None


class _Refined(nn.Module):
    """A parametrization: n of m, chosen anew whenever the weight is looked at."""

    def __init__(self, n: int, m: int, decay: float) -> None:
        super().__init__()
        self.n, self.m, self.decay = n, m, decay

    def forward(self, weight: Tensor) -> Tensor:
        mask = n_of_m(weight.detach().abs(), self.n, self.m)
        return _Straight.apply(weight, mask, self.decay)

    def stored_bits(self, weight: Tensor) -> int:
        """n values of every m in FP32, and the place of each within its group."""
        return _bits(weight, self.n, self.m)


def _bits(weight: Tensor, n: int, m: int) -> int:
    whole, rest = divmod(weight[0].numel(), m)
    return len(weight) * (whole * n + min(n, rest)) * (32 + ceil(log2(m)))


def _check(n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise ValueError(f"n, m: expected 1 <= n <= m, got {n!r} and {m!r}")


def _copy(network: nn.Module) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    if not any(True for _ in layer_weights(network)):
        raise ValueError(
            f"network: expected convolution, linear or recurrent layers to prune; {type(network).__name__} has none"
        )
    return copy.deepcopy(network)
