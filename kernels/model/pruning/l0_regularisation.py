r"""L0 regularisation: the number of weights is a term of the loss, through gates that open and close by chance.

Counting weights has no derivative; the chance of a weight to be there has. Each weight is multiplied by a gate z, drawn
anew in every forward pass from the *hard concrete* distribution of its parameter :math:`\log\alpha`,

.. math:: u \sim U(0, 1), \quad
          s = \sigma\!\left( \frac{\log u - \log(1 - u) + \log \alpha}{\beta} \right), \quad
          z = \min(1, \max(0, s (\zeta - \gamma) + \gamma)),

stretched from (γ, ζ) = (-0.1, 1.1) and cut off, so that z is exactly 0 or exactly 1 with some probability, and its
gradient reaches α in between. The expected number of open gates is a smooth function,

.. math:: L = \mathbb E_z\, L_\mathrm{task}(w \odot z) + \frac{\lambda}{n} \sum_i P(z_i \neq 0), \qquad
          P(z_i \ne 0) = \sigma\!\left( \log \alpha_i - \beta \log \frac{-\gamma}{\zeta} \right).

Once trained, nothing is drawn: :math:`\hat z = \min(1, \max(0, \sigma(\log\alpha) (\zeta - \gamma) + \gamma))`, and
weights whose gate is 0 are gone.

Source: C. Louizos, M. Welling and D. Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
equations 10 to 13.

Examples
--------
>>> gate = HardConcrete(torch.ones(3))
>>> gate.log_alpha.data = torch.tensor([-5.0, 0.0, 5.0])
>>> gate.eval()(torch.ones(3))
tensor([0.0000, 0.5000, 1.0000], grad_fn=<MulBackward0>)
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.masked_training import GradualMagnitude, RandomMask, Trace
from kernels.model.transform import bake, constrain, layer_weights

__all__ = ["AtItsDensity", "HardConcrete", "L0Regularisation"]

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and ends of the stretched interval, as in the paper's experiments."""


class HardConcrete(nn.Module):
    """A parametrization: each weight times a gate, drawn in training, fixed in evaluation.

    Parameters
    ----------
    weight : Tensor
        Of the shape that the gates have.
    open : float
        The probability of a gate to be open at first, before it is stretched: log α = log(open / (1 - open)).
    """

    def __init__(self, weight: Tensor, open: float = 0.5) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full_like(weight, math.log(open / (1 - open))))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            u = torch.rand_like(weight).clamp(1e-6, 1 - 1e-6)
            s = torch.sigmoid((u.log() - (1 - u).log() + self.log_alpha) / BETA)
        else:
            s = torch.sigmoid(self.log_alpha)
        return weight * (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def expected(self) -> Tensor:
        """The expected number of open gates."""
        return torch.sigmoid(self.log_alpha - BETA * math.log(-GAMMA / ZETA)).sum()


@dataclass(frozen=True)
class L0Regularisation:
    r"""Train weights and their gates against the task's loss and the expected share of open gates.

    .. math:: L = \mathbb E_z\, L_\mathrm{task}(w \odot z) + \frac{\lambda}{n} \sum_i
              \sigma\!\left( \log \alpha_i - \beta \log \frac{-\gamma}{\zeta} \right)

    Parameters
    ----------
    penalty : float
        λ, the price of all weights together in units of the loss.
    open : float
        The gates' first probability to be open.
    pace : float
        By how much gates learn faster than weights: their rate is the recipe's times this.

    Notes
    -----
    The density is what comes of λ. Adapted: one gate a weight, where the paper's larger networks have one for each
    neuron or channel; and gates have a rate of their own, since the recipes here are hundreds of updates long and not
    tens of thousands.

    Source
    ------
    Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = L0Regularisation(3.0).train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> 0 < trace[-1]["density"] < trace[0]["density"]
    True
    """

    penalty: float = 10.0
    open: float = 0.9
    pace: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"penalty: expected a number of at least 0, got {self.penalty}")
        if not 0 < self.open < 1:
            raise ValueError(f"open: expected 0 < open < 1, got {self.open}")
        if not 0 < self.pace < math.inf:
            raise ValueError(f"pace: expected a positive number, got {self.pace}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` with gates.

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
            Of each update the trace also says the expected share of open gates (``density``); its loss has the penalty
            in it. `kernels.model.transform.bake` leaves the weights times their last gates.

        Raises
        ------
        ValueError
            If there is nothing to gate.
        """
        network, gates = copy.deepcopy(network), []
        places = list(layer_weights(network))
        if not places:
            raise ValueError(
                f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
            )
        for layer, name in places:
            gates.append(HardConcrete(getattr(layer, name).detach(), self.open))
            constrain(layer, name, gates[-1])
        count = sum(gate.log_alpha.numel() for gate in gates)
        shares: list[float] = []

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            share = torch.stack([gate.expected() for gate in gates]).sum() / count
            shares.append(share.item())
            return recipe.loss(network, x, y) + self.penalty * share

        def optimizer(parameters: Any, lr: float, weight_decay: float) -> Any:
            paced = {id(gate.log_alpha) for gate in gates}
            groups = [
                {"params": [p for p in parameters if id(p) not in paced], "weight_decay": weight_decay},
                {"params": [gate.log_alpha for gate in gates], "weight_decay": 0.0},
            ]
            return _Paced(recipe.optimizer(groups, lr=lr, weight_decay=weight_decay), self.pace)

        trace = replace(recipe, loss=loss, optimizer=optimizer).train(network, data, seed=seed)
        return network, [{**update, "density": share} for update, share in zip(trace, shares, strict=True)]

    def magnitude(self) -> AtItsDensity:
        """The smallest weights cut while all learn, down to the density that the gates come to."""
        return AtItsDensity(self)

    def random(self) -> AtItsDensity:
        """A blind choice of as many before training."""
        return AtItsDensity(self, "random")


class _Paced:
    """An optimizer whose last group of parameters has a multiple of the rate that it is given."""

    def __init__(self, inner: Any, pace: float) -> None:
        self.inner, self.pace, self.param_groups = inner, pace, inner.param_groups

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self, closure: Any) -> Any:
        self.param_groups[-1]["lr"] *= self.pace
        return self.inner.step(closure)


@dataclass(frozen=True)
class AtItsDensity:
    """Another method, at the density that this one came to by itself.

    Parameters
    ----------
    method : L0Regularisation
    rival : {"magnitude", "random"}
        Gradual magnitude pruning, or a random mask before training.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.

    Examples
    --------
    >>> L0Regularisation(2.0).magnitude().method.penalty
    2.0
    """

    method: L0Regularisation
    rival: str = "magnitude"

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Ask the method for its density with a copy, then train by the rival; only the latter is counted."""
        aside = copy.deepcopy(network)
        for module in aside.modules():
            module._forward_hooks.clear()  # whoever watches the network is not to count this training
        seed = recipe.seed if seed is None else seed
        density = _density(self.method, aside, data, recipe, seed)
        rival = GradualMagnitude(density) if self.rival == "magnitude" else RandomMask(density)
        return rival.train(network, data, recipe, seed=seed)


def _density(method: L0Regularisation, network: nn.Module, data: Any, recipe: Any, seed: int) -> float:
    """The share of weights that a training leaves."""
    found = bake(method.train(network, data, recipe, seed=seed)[0])
    weights = [getattr(*place) for place in layer_weights(found)]
    return max(1, sum(int(w.count_nonzero()) for w in weights)) / sum(w.numel() for w in weights)
