"""Compound scaling: more layers, more channels and finer images at once, in proportions found where all are few."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.model.architecture_search.random_search import History, best, evaluated
from kernels.model.architecture_search.restated import Restated

__all__ = ["CompoundScaling", "grid", "scaled"]

DIMENSIONS = ("depth", "width", "resolution")
TOLERANCE = 0.1
"""By what share whole numbers of layers, channels and pixels may exceed the work that was aimed at."""

Coefficients = tuple[float, float, float]
"""Alpha, beta, gamma: factors of depth, width and resolution."""

FIXED: dict[str, Coefficients] = {
    "evenly": (2 ** (1 / 3), 2 ** (1 / 6), 2 ** (1 / 6)),
    "depth": (2.0, 1.0, 1.0),
    "width": (1.0, 2**0.5, 1.0),
    "resolution": (1.0, 1.0, 2**0.5),
}
"""Without a search: each dimension has a third of every doubling, or one has all."""


def grid(steps: int) -> list[Coefficients]:
    r"""All :math:`\alpha, \beta, \gamma \ge 1` with :math:`\alpha \beta^2 \gamma^2 = 2`: a doubling dealt out in steps.

    Examples
    --------
    >>> grid(1)
    [(1.0, 1.0, 1.4142135623730951), (1.0, 1.4142135623730951, 1.0), (2.0, 1.0, 1.0)]
    >>> len(grid(3))
    10
    """
    shares = [(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]
    return [(2 ** (i / steps), 2 ** (j / steps / 2), 2 ** (k / steps / 2)) for i, j, k in shares]


def scaled(space: Mapping[str, tuple[Any, ...]], coefficients: Coefficients, phi: float) -> dict[str, Any]:
    """The space's first network, scaled: of each dimension the value whose ratio to what is aimed at is nearest to 1.

    Parameters
    ----------
    space : mapping of str to tuple
        Values of depth, width and resolution, rising.
    coefficients : (float, float, float)
    phi : float

    Raises
    ------
    ValueError
        If the space has other choices, or ends before the network that is aimed at.

    Examples
    --------
    >>> space = {"depth": (3, 4, 6, 12), "width": (8, 11, 16), "resolution": (7, 10, 14)}
    >>> scaled(space, (2.0, 1.0, 1.0), phi=1), scaled(space, (1.0, 2**0.25, 2**0.25), phi=2)
    ({'depth': 6, 'width': 8, 'resolution': 7}, {'depth': 3, 'width': 11, 'resolution': 10})
    """
    if tuple(space) != DIMENSIONS:
        raise ValueError(f"space: expected the choices {', '.join(DIMENSIONS)}, got {', '.join(space) or 'none'}")
    found = {}
    for (choice, values), factor in zip(space.items(), coefficients, strict=True):
        target = values[0] * factor**phi
        if target > values[-1] * (1 + 1e-9):
            raise ValueError(f"space: expected a {choice} of {target:.4g}, for phi = {phi}; it ends at {values[-1]}")
        found[choice] = min(values, key=lambda value: abs(math.log(value / target)))
    return found


@dataclass(frozen=True)
class CompoundScaling:
    r"""Scale the three dimensions of a convolutional network by powers of one number each.

    .. math:: d = \alpha^\phi, \quad w = \beta^\phi, \quad r = \gamma^\phi, \qquad
        \alpha \beta^2 \gamma^2 \approx 2, \quad \alpha, \beta, \gamma \ge 1

    The work of a layer grows with the square of its channels and of the image's side, that of the network with the
    number of layers: so it grows as :math:`(\alpha \beta^2 \gamma^2)^\phi \approx 2^\phi`. The coefficients are
    searched at :math:`\phi = 1`, where a network trains in little time: a small grid, its best kept. Then they stay,
    and :math:`\phi` scales.

    Parameters
    ----------
    phi : float
        How often the work doubles.
    scale : {"searched", "evenly", "depth", "width", "resolution"}
        By searched coefficients; by those which give each dimension a third of every doubling; or one dimension
        alone. Only the first trains more than the network that it returns.
    steps : int
        Of the grid: into how many equal parts a doubling is divided.

    Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946,
    equation 3 and section 3.3. Their grid is not given; this one keeps the product at 2. Theirs found 1.2, 1.1, 1.15.

    Examples
    --------
    >>> import datasets
    >>> table, twice = datasets.workload("mnist-scaling"), CompoundScaling(phi=1, scale="depth")
    >>> problem = twice.restated(table)
    >>> twice.search(problem.space, problem.task(0), budget=75, seed=0)[0]
    {'depth': 6, 'width': 8, 'resolution': 7}
    """

    phi: float = 3
    scale: str = "searched"
    steps: int = 3

    def __post_init__(self) -> None:
        if not (isinstance(self.phi, int | float) and 0 < self.phi < math.inf):
            raise ValueError(f"phi: expected a positive number of doublings, got {self.phi!r}")
        if self.scale not in ("searched", *FIXED):
            raise ValueError(f"scale: expected one of searched, {', '.join(FIXED)}, got {self.scale!r}")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"steps: expected a positive integer, got {self.steps!r}")

    @property
    def coefficients(self) -> list[Coefficients]:
        """Those to choose from: the grid, or a single one."""
        return grid(self.steps) if self.scale == "searched" else [FIXED[self.scale]]

    def restated(self, problem: Any) -> Restated:
        """The problem among networks of no more work than is aimed at: 2^phi times the smallest one's, and a tenth."""
        smallest = {choice: values[0] for choice, values in problem.space.items()}
        limit = (1 + TOLERANCE) * 2**self.phi * problem.macs(smallest)
        return Restated(problem, _accuracy, lambda candidate: problem.macs(candidate) <= limit)

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Try coefficients at phi = 1, then train the network that the best of them give at phi.

        Parameters
        ----------
        space : mapping of str to tuple
            Values of depth, width and resolution, rising; the first of each is the network to be scaled.
        task : object
            ``task.evaluate(candidate)`` gives a score, higher is better; ``task.cost(candidate)`` what it costs.
        budget : float
            In the unit of cost. What the last training may cost is set aside; the rest pays for the grid, in an order
            drawn with the seed, as far as it goes.
        seed : int

        Returns
        -------
        best : dict
        history : list of (dict, float, float)
            As `EvolutionarySearch.search`; the best is the last, but for phi = 1, where it is the best of the grid.

        Raises
        ------
        ValueError
            If the budget does not pay for one evaluation and the last training, or the space does not suffice.
        """
        history: History = []
        aimed = [(scaled(space, one, 1), scaled(space, one, self.phi)) for one in self.coefficients]
        random.Random(seed).shuffle(aimed)
        if len(aimed) > 1:
            last = 0 if self.phi == 1 else max(task.cost(large) for _, large in aimed)
            for small, _ in aimed:
                if not evaluated(task, small, budget - last, history):
                    break
            chosen = best(history, budget - last)
            if self.phi == 1:
                return chosen, history
            aimed = [pair for pair in aimed if pair[0] == chosen]
        large = aimed[0][1]
        if not evaluated(task, large, budget, history):
            raise ValueError(f"budget: {budget} does not pay for training {large}, which costs {task.cost(large):.4g}")
        return large, history


def _accuracy(accuracy: float, costs: Any, candidate: Mapping[str, Any]) -> float:
    return accuracy
