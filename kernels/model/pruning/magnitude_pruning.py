"""Magnitude pruning: zero the smallest weights, fine-tune the others."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.mask import prune

__all__ = ["MagnitudePruning", "RandomPruning", "cubic_density"]

SCOPES = ("global", "layer")


@dataclass(frozen=True)
class MagnitudePruning:
    r"""Keep the share `density` of the weights, the largest in magnitude.

    .. math:: \tilde w_i = m_i w_i, \qquad m_i = [\,|w_i| \text{ is among the } \mathrm{round}(dn) \text{ largest}\,]

    Parameters
    ----------
    density : float
        Share of the weights that remain, 0 < density <= 1; sparsity is 1 - density.
    scope : {"global", "layer"}
        Whether the weights of all layers compete, or those of each layer among themselves.

    Source
    ------
    Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015,
    section 3; the gradual schedule: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.

    Examples
    --------
    >>> pruned = MagnitudePruning(density=0.25).apply(nn.Linear(8, 4))
    >>> int((pruned.weight != 0).sum()), pruned.bias.numel()
    (8, 4)
    """

    density: float = 0.1
    scope: str = "global"

    def __post_init__(self) -> None:
        _check(self.density, self.scope)

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
        network = copy.deepcopy(network)
        prune(network, torch.abs, self.density, self.scope)
        return network

    def gradual(
        self, network: nn.Module, data: Any, recipe: Any, rounds: int = 10, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Prune a copy of `network` while it is fine-tuned: at each round a little more, by `cubic_density`.

        Parameters
        ----------
        network : nn.Module
        data : datasets.Data
        recipe : datasets.Recipe
            Its fine-tuning schedule is used; the first two thirds of it prune, the last third only heals.
        rounds : int
            How often the masks are drawn anew; a weight once masked stays so.
        seed : int, optional

        Returns
        -------
        network, trace
        """
        network = copy.deepcopy(network)
        # masks that keep everything: the optimiser must meet the network in its final form
        prune(network, torch.abs, 1.0, self.scope)
        every = max(1, 2 * recipe.fine_tuning.steps(data) // (3 * rounds))

        def on_step(step: int, network: nn.Module) -> None:
            done, rest = divmod(step, every)
            if rest == 0 and done < rounds:
                prune(network, torch.abs, cubic_density(done + 1, rounds, self.density), self.scope)

        trace = recipe.finetune(network, data, on_step=on_step, seed=seed)
        return network, trace

    def at_random(self, seed: int) -> RandomPruning:
        """Pruning of the same strength that chooses blindly: what magnitude has to beat."""
        return RandomPruning(self.density, self.scope, seed)


@dataclass(frozen=True)
class RandomPruning:
    """Keep the share `density` of the weights, drawn at random; parameters as for `MagnitudePruning`."""

    density: float = 0.1
    scope: str = "global"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.density, self.scope)

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A pruned copy of `network`."""
        random = torch.Generator().manual_seed(self.seed)

        def score(weight: Tensor) -> Tensor:
            return torch.rand(weight.shape, generator=random)

        network = copy.deepcopy(network)
        prune(network, score, self.density, self.scope)
        return network


def cubic_density(round: int, rounds: int, density: float) -> float:
    r"""The share kept after a round of gradual pruning: fast at first, while much is redundant, then ever slower.

    .. math:: s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{n \Delta t}\right)^3

    with initial sparsity s_i = 0, final sparsity s_f = 1 - `density` and (t - t_0) / (n Δt) = `round` / `rounds`
    (Zhu and Gupta 2017, equation 1).

    Examples
    --------
    >>> [cubic_density(t, 4, density=0.0) for t in range(5)]
    [1.0, 0.421875, 0.125, 0.015625, 0.0]
    """
    return density + (1 - density) * (1 - round / rounds) ** 3


def _check(density: float, scope: str) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density: expected 0 < density <= 1, got {density}")
    if scope not in SCOPES:
        raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
