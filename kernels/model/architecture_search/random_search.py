"""Random search: what every other search has to beat at the same budget."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["History", "RandomSearch", "draw", "evaluated"]

History = list[tuple[dict[str, Any], float, float]]
"""Each candidate in the order of evaluation: its score, and the epochs spent up to it."""


def draw(space: Mapping[str, tuple[Any, ...]], generator: random.Random) -> dict[str, Any]:
    """A candidate with each choice drawn evenly from its values."""
    return {choice: generator.choice(values) for choice, values in space.items()}


def evaluated(task: Any, candidate: dict[str, Any], budget: float, history: History) -> bool:
    """Evaluate a candidate and enter it in the history, unless that would exceed the budget."""
    cost = task.cost(candidate)
    if not cost > 0:
        raise ValueError(f"task: expected a positive cost of {candidate}, got {cost}")
    spent = (history[-1][2] if history else 0) + cost
    if spent > budget:
        return False
    history.append((candidate, task.evaluate(candidate), spent))
    return True


def best(history: History, budget: float) -> dict[str, Any]:
    """The candidate of the highest score; the first of equals."""
    if not history:
        raise ValueError(f"budget: {budget} epochs do not pay for one evaluation")
    return max(history, key=lambda entry: entry[1])[0]


@dataclass(frozen=True)
class RandomSearch:
    """Draw candidates evenly from the space until the budget is spent; keep the best.

    Examples
    --------
    >>> class Count:
    ...     cost = staticmethod(lambda candidate: 1)
    ...     evaluate = staticmethod(lambda candidate: candidate["x"])
    >>> found, history = RandomSearch().search({"x": tuple(range(10))}, Count(), budget=40, seed=0)
    >>> found, len(history)
    ({'x': 9}, 40)
    """

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """As `EvolutionarySearch.search`."""
        generator = random.Random(seed)
        history: History = []
        while evaluated(task, draw(space, generator), budget, history):
            pass
        return best(history, budget), history
