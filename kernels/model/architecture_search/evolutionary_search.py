"""Evolutionary architecture search: mutate the best of a few, and let the oldest die."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.model.architecture_search.random_search import History, best, draw, evaluated

__all__ = ["EvolutionarySearch", "mutate"]

ATTEMPTS = 10_000
"""Candidates in a row that may break the limits before a search gives up."""


def mutate(
    candidate: Mapping[str, Any], space: Mapping[str, tuple[Any, ...]], generator: random.Random
) -> dict[str, Any]:
    """A copy with one choice, drawn evenly, set to another of its values."""
    choice = generator.choice([choice for choice, values in space.items() if len(values) > 1])
    value = generator.choice([value for value in space[choice] if value != candidate[choice]])
    return {**candidate, choice: value}


@dataclass(frozen=True)
class EvolutionarySearch:
    """Regularized evolution: a tournament chooses the parent, its child replaces the oldest of the population.

        population ← P random candidates
        repeat:  parent = the best of S drawn from the population (one may be drawn twice)
                 append mutate(parent), remove the oldest

    A candidate that scored well by luck dies of age all the same; only what scores well again, in its children, stays.

    Parameters
    ----------
    population : int
        P.
    sample : int
        S, at most P: the larger, the greedier. S = 1 is a random walk.

    Source: Real et al., "Regularized Evolution for Image Classifier Architecture Search", arXiv 1802.01548,
    algorithm 1; a mutation here changes one choice of any space.

    Examples
    --------
    >>> class OneMax:
    ...     cost = staticmethod(lambda candidate: 1)
    ...     evaluate = staticmethod(lambda candidate: sum(candidate.values()))
    >>> space = {f"bit {i}": (0, 1) for i in range(20)}
    >>> found, history = EvolutionarySearch().search(space, OneMax(), budget=300, seed=0)
    >>> sum(found.values()), history[-1][2]
    (20, 300)
    """

    population: int = 10
    sample: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.sample <= self.population:
            raise ValueError(
                f"sample: expected 1 <= sample <= population, got sample={self.sample}, population={self.population}"
            )

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Search until the next evaluation would exceed the budget.

        Parameters
        ----------
        space : mapping of str to tuple
            The values of each choice.
        task : object
            ``task.evaluate(candidate)`` gives a score, higher is better; ``task.cost(candidate)`` what it costs. Where
            there are limits, ``task.fits(candidate)`` says who keeps them: others are drawn, or mutated, again.
        budget : float
            In the unit of cost: epochs of training.
        seed : int

        Returns
        -------
        best : dict
            The evaluated candidate of the highest score.
        history : list of (dict, float, float)
            Each candidate in the order of evaluation, its score, and the cost spent up to it.

        Raises
        ------
        ValueError
            If the budget does not pay for one evaluation, the space leaves nothing to mutate, or nothing fits.
        """
        if all(len(values) < 2 for values in space.values()):
            raise ValueError(f"space: expected a choice of at least two values, got {dict(space)}")
        generator = random.Random(seed)
        history: History = []
        population: deque[tuple[dict[str, Any], float]] = deque(maxlen=self.population)  # appending drops the oldest
        fits = getattr(task, "fits", lambda candidate: True)
        while True:
            for _ in range(ATTEMPTS):
                if len(population) < self.population:
                    candidate = draw(space, generator)
                else:
                    parent = max(generator.choices(population, k=self.sample), key=lambda member: member[1])
                    candidate = mutate(parent[0], space, generator)
                if fits(candidate):
                    break
            else:
                raise ValueError(f"space: none of {ATTEMPTS} candidates in a row fits the task's limits")
            if not evaluated(task, candidate, budget, history):
                return best(history, budget), history
            population.append((candidate, history[-1][1]))
