r"""Soft weight sharing: while it learns, a network is pulled towards weights that few Gaussians describe well.

The mixture has a component at zero, of fixed mean and share, and J more whose means, deviations and shares are learned
together with the weights. The loss is that of the task and the length of the weights' description:

    L = L_task + t L_C / n,   L_C = - sum_i log sum_j p_j N(w_i; m_j, s_j^2) - log of a prior of the precisions

for n weights. A weight near a mean is pulled to it, by the share r_ij that the component takes in it,

    dL_C/dw_i = sum_j r_ij (w_i - m_j) / s_j^2,   r_ij = p_j N(w_i; m_j, s_j^2) / sum_k p_k N(w_i; m_k, s_k^2)

and a mean to its weights; deviations shrink until every weight could as well be its component's mean. At the end it is:
each weight becomes the mean of the component that takes most of it. One mixture serves all layers. The zero component
makes pruning of it.

A Gamma prior of shape a and rate b keeps each precision 1 / s_j^2 near a / b: without it a component collapses on a
single weight.

Source: K. Ullrich, E. Meeds and M. Welling, "Soft Weight-Sharing for Neural Network Compression", ICLR 2017, arXiv
1702.04008, after Nowlan and Hinton, 1992.

Examples
--------
>>> mixture = Mixture(torch.linspace(-1, 1, 9), components=2, zero=0.5, deviation=0.1)
>>> mixture.means().tolist(), mixture.shares().tolist()
([0.0, -1.0, 1.0], [0.5, 0.25, 0.25])
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.transform import constrain
from kernels.model.weight_sharing.sharing import Shared, weights

__all__ = ["Mixture", "SharedAfterwards", "SoftWeightSharing"]

Trace = list[dict[str, Any]]

PRIOR = 0.01
"""Shape of the precisions' prior over the number of weights: how many weights it counts for."""


class Mixture(nn.Module):
    """Gaussians that describe weights, the first one fixed at zero.

    Parameters
    ----------
    w : Tensor
        Weights; the other means begin evenly between the least and the largest of them.
    components : int
        Besides that at zero.
    zero : float
        The share of the component at zero; the others begin with equal ones.
    deviation : float
        To begin with, and the square root of b / a of the prior.
    """

    def __init__(self, w: Tensor, components: int, zero: float, deviation: float) -> None:
        super().__init__()
        w = w.detach()
        self.zero, self.deviation, self.counts = zero, deviation, PRIOR * w.numel()
        self.free = nn.Parameter(torch.linspace(float(w.min()), float(w.max()), components))
        self.logits = nn.Parameter(torch.zeros(components))
        self.precisions = nn.Parameter(torch.full((components + 1,), -2 * math.log(deviation)))  # their logarithms

    def means(self) -> Tensor:
        """m, zero first."""
        return torch.cat([self.free.new_zeros(1), self.free])

    def shares(self) -> Tensor:
        """p, that of zero first."""
        return torch.cat([self.free.new_tensor([self.zero]), (1 - self.zero) * self.logits.softmax(0)])

    def terms(self, w: Tensor) -> Tensor:
        """log p_j N(w_i; m_j, s_j^2), shape (weights, 1 + components)."""
        squares = (w[:, None] - self.means()).square() * self.precisions.exp()
        return self.shares().log() + (self.precisions - math.log(2 * math.pi) - squares) / 2

    def length(self, w: Tensor) -> Tensor:
        """L_C: what it takes to describe the weights, in nats, but for a constant."""
        prior = self.counts * (self.precisions - self.deviation**2 * self.precisions.exp())
        return -self.terms(w).logsumexp(1).sum() - prior.sum()

    def nearest(self, w: Tensor) -> Tensor:
        """The component that takes most of each weight."""
        return self.terms(w).argmax(1)


@dataclass(frozen=True)
class SoftWeightSharing:
    r"""Train a network, from half of the training on under a mixture prior, and let each weight be its mean at the end.

    .. math:: L = L_\text{task} - \frac{\tau}{n} \left[ \sum_i \log \sum_{j=0}^{J} \pi_j
       \mathcal{N}(w_i; \mu_j, \sigma_j^2) + \sum_j \log \Gamma(\sigma_j^{-2}; \alpha, \beta) \right], \qquad \mu_0 = 0

    Parameters
    ----------
    strength : float
        t, of the description's mean length of a weight beside the loss; at 0 this is the plain recipe.
    components : int
        J.
    zero : float
        Share of the component at zero, 0 < zero < 1, fixed: the larger, the more weights become zero.
    deviation : float
        Where the deviations begin, and where the prior holds them.
    rate : float
        Of Adam on the mixture; the recipe's falls to zero, this one does not.

    Notes
    -----
    The paper begins with a trained network and trains it on; here the budget is the plain recipe's, so the mixture
    comes in at half of it. Its prior of the precisions is scaled to the number of weights. Its strength is over
    training items, this one over weights. Weights are those of convolutions, linear and recurrent layers.

    Source: Ullrich et al., arXiv 1702.04008, sections 3 and 4.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = SoftWeightSharing().train(digits.network(), digits.data(), datasets.Recipe(epochs=2))
    >>> len(torch.cat([layer.weight.flatten() for layer in network[1::2]]).unique()) <= 5
    True
    """

    strength: float = 10.0
    components: int = 4
    zero: float = 0.9
    deviation: float = 0.05
    rate: float = 0.005

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength: expected a number of at least 0, got {self.strength}")
        if not isinstance(self.components, int) or self.components < 1:
            raise ValueError(f"components: expected a positive integer, got {self.components!r}")
        if not 0 < self.zero < 1:
            raise ValueError(f"zero: expected a share between 0 and 1, got {self.zero}")
        for name in ("deviation", "rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe` under the prior; its weights are shared at the end.

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

        Raises
        ------
        ValueError
            If it has no layer whose weights could be shared.
        """
        network = copy.deepcopy(network)
        layers = [(layer, name) for _, layer, name, _ in weights(network)]
        if not self.strength:
            return network, recipe.train(network, data, seed=seed)
        half, state = recipe.steps(data) // 2, _State()

        def together() -> Tensor:
            return torch.cat([getattr(layer, name).flatten() for layer, name in layers])

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            value = recipe.loss(network, x, y)
            if state.mixture is None:
                return value
            w = together()
            return value + self.strength / w.numel() * state.mixture.length(w)

        def on_step(step: int, network: nn.Module) -> None:
            if state.mixture is not None:
                state.optimizer.step()
                state.optimizer.zero_grad()
            elif step + 1 >= half:
                state.mixture = Mixture(together(), self.components, self.zero, self.deviation)
                state.optimizer = torch.optim.Adam(state.mixture.parameters(), self.rate)

        trace = replace(recipe, loss=loss).train(network, data, seed=seed, on_step=on_step)
        mixture = state.mixture or Mixture(together(), self.components, self.zero, self.deviation)
        return share(network, mixture), trace

    def afterwards(self) -> SharedAfterwards:
        """The same sharing of a network that was trained without the prior."""
        return SharedAfterwards(self)


class _State:
    """What comes into being in the middle of a training."""

    mixture: Mixture | None = None
    optimizer: Any = None


def share(network: nn.Module, mixture: Mixture) -> nn.Module:
    """Let the weights of `network`, in place, be the means of the components that take most of them."""
    with torch.no_grad():
        for _, layer, name, weight in list(weights(network)):
            codes, shape = mixture.nearest(weight.flatten()), tuple(weight.shape)
            used, codes = torch.unique(torch.cat([codes.new_zeros(1), codes]), return_inverse=True)
            constrain(layer, name, Shared(codes[1:], mixture.means()[used[1:]].clone(), shape, zero=True))
    return network


@dataclass(frozen=True)
class SharedAfterwards:
    """The plain recipe, and as many evenly spaced means when it is over: what the prior is worth.

    Parameters
    ----------
    rule : SoftWeightSharing

    Source: the mixture of Ullrich et al., arXiv 1702.04008, as it begins, for weights that know nothing of it.

    Examples
    --------
    >>> SoftWeightSharing().afterwards().rule.components
    4
    """

    rule: SoftWeightSharing

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, then let its weights share the means."""
        network = copy.deepcopy(network)
        trace = recipe.train(network, data, seed=seed)
        w = torch.cat([weight.flatten() for _, _, _, weight in weights(network)])
        return share(network, Mixture(w, self.rule.components, self.rule.zero, self.rule.deviation)), trace
