"""What methods that prune before or while a network learns share: masks by given scores, and what they have to beat."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.magnitude_pruning import SCOPES, cubic_density
from kernels.model.pruning.mask import prune

__all__ = [
    "Contested", "GradualMagnitude", "RandomMask", "Trace", "check_density", "falling", "joined", "mask_by",
    "tightening",
]  # fmt: skip

Trace = list[dict[str, Any]]


def mask_by(network: nn.Module, scores: Iterable[Tensor], density: float, scope: str = "global") -> None:
    """Mask the weights of `network`, in place, but for the share of the highest scores.

    Parameters
    ----------
    network : nn.Module
    scores : iterable of Tensor
        Of each weight tensor, in the order of `kernels.model.transform.layer_weights`.
    density, scope
        As of `kernels.model.pruning.mask.prune`.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> mask_by(layer, [torch.tensor([[0.0, 3.0], [1.0, 2.0]])], density=0.5)
    >>> layer.weight != 0
    tensor([[False,  True],
            [False,  True]])
    """
    in_turn = iter(scores)
    prune(network, lambda weight: next(in_turn), density, scope)


def tightening(steps: int, density: float, rounds: int = 10) -> Callable[[int], float | None]:
    """When to draw masks anew while a network learns, and how dense: by `cubic_density` over two thirds of the updates.

    Parameters
    ----------
    steps : int
        Updates of the training.
    density : float
        After the last of the rounds; the last third of the updates only heals.
    rounds : int

    Returns
    -------
    callable of step
        The density to have after this update (counted from 0); None where masks stay as they are.

    Examples
    --------
    >>> due = tightening(steps=9, density=0.0, rounds=2)
    >>> [due(step) for step in range(9)]
    [None, None, 0.125, None, None, 0.0, None, None, None]
    """
    rounds = max(1, min(rounds, 2 * steps // 3))
    every = max(1, 2 * steps // (3 * rounds))

    def due(step: int) -> float | None:
        done, rest = divmod(step + 1, every)
        return cubic_density(done, rounds, density) if rest == 0 and done <= rounds else None

    return due


def falling(steps: int, density: float, begin: float = 0.0, end: float = 2 / 3) -> Callable[[int], float]:
    """The density after each update, for masks drawn anew all the time: one, by `cubic_density`, at last `density`.

    Parameters
    ----------
    steps : int
        Updates of the training.
    density : float
        From the share `end` of the updates on.
    begin, end : float
        Shares of the updates.

    Examples
    --------
    >>> [round(falling(8, 0.2, begin=0.25, end=0.75)(step), 3) for step in range(8)]
    [1.0, 1.0, 0.538, 0.3, 0.213, 0.2, 0.2, 0.2]
    """
    first, last = int(begin * steps), max(int(begin * steps) + 1, int(end * steps))

    def after(step: int) -> float:
        return cubic_density(min(max(step + 1 - first, 0), last - first), last - first, density)

    return after


def joined(*traces: Trace) -> Trace:
    """One trace of trainings that followed each other, its steps counted through.

    Examples
    --------
    >>> joined([{"step": 0, "loss": 2.0}], [{"step": 0, "loss": 1.0}])
    [{'step': 0, 'loss': 2.0}, {'step': 1, 'loss': 1.0}]
    """
    return [{**update, "step": step} for step, update in enumerate(update for trace in traces for update in trace)]


def check_density(density: float, scope: str = "global") -> None:
    """Refuse shares and scopes that there are not.

    Raises
    ------
    ValueError
    """
    if not 0 < density <= 1:
        raise ValueError(f"density: expected 0 < density <= 1, got {density}")
    if scope not in SCOPES:
        raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}")


@dataclass(frozen=True)
class RandomMask:
    """A blind choice before the first update, then the whole recipe with that mask.

    Parameters
    ----------
    density : float
    scope : {"global", "layer"}

    Source: the control of every paper on pruning before training.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, _ = RandomMask(0.25).train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> sum(int((network[i].weight != 0).sum()) for i in (1, 3, 5)) == round(0.25 * (64 * 64 + 64 * 32 + 32 * 10))
    True
    """

    density: float = 0.1
    scope: str = "global"

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Mask a copy of `network` at random, and train it."""
        seed = recipe.seed if seed is None else seed
        network, random = copy.deepcopy(network), torch.Generator().manual_seed(seed)
        prune(network, lambda weight: torch.rand(weight.shape, generator=random), self.density, self.scope)
        return network, recipe.train(network, data, seed=seed)


@dataclass(frozen=True)
class GradualMagnitude:
    """Magnitude pruning in the same number of updates: the smallest weights go while the network learns.

    Masks are tightened over the first two thirds of the updates (`tightening`); a weight once masked stays so.

    Parameters
    ----------
    density : float
    scope : {"global", "layer"}

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, _ = GradualMagnitude(0.25).train(digits.network(), digits.data(), datasets.Recipe(epochs=2))
    >>> sum(int((network[i].weight != 0).sum()) for i in (1, 3, 5)) == round(0.25 * (64 * 64 + 64 * 32 + 32 * 10))
    True
    """

    density: float = 0.1
    scope: str = "global"

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network`, and prune it meanwhile."""
        network = copy.deepcopy(network)
        prune(network, torch.abs, 1.0, self.scope)  # masks that keep everything
        due = tightening(recipe.steps(data), self.density)

        def on_step(step: int, network: nn.Module) -> None:
            if (density := due(step)) is not None:
                prune(network, torch.abs, density, self.scope)

        return network, recipe.train(network, data, seed=seed, on_step=on_step)


class Contested:
    """A way to train to a density, and who it has to beat at the same density and in the same number of updates."""

    density: float
    scope: str

    def random(self) -> RandomMask:
        """A blind choice before training."""
        return RandomMask(self.density, self.scope)

    def magnitude(self) -> GradualMagnitude:
        """The smallest weights cut, a few at a time, while all learn."""
        return GradualMagnitude(self.density, self.scope)
