"""A table's problem under another objective: accuracy weighed against a cost, or within limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Restated", "RestatedTask"]

COUNTING = 1e-18
"""Epochs that looking at a candidate takes which is then not trained: too few for any sum of epochs to notice."""

Objective = Callable[[float, Any, Mapping[str, Any]], float]
"""Of an accuracy, whoever knows the costs, and a candidate."""


@dataclass(frozen=True)
class RestatedTask:
    """What a search may ask for: as its task, with the objective in place of accuracy."""

    task: Any
    objective: Objective
    fits: Callable[[Mapping[str, Any]], bool]

    def evaluate(self, candidate: Mapping[str, Any]) -> float:
        """The objective by what the task shows; minus infinity for what does not fit, which nobody trains."""
        if not self.fits(candidate):
            return float("-inf")
        return self.objective(self.task.evaluate(candidate), self.task, candidate)

    def cost(self, candidate: Mapping[str, Any]) -> float:
        """Epochs of training; next to nothing for what does not fit."""
        return float(self.task.cost(candidate)) if self.fits(candidate) else COUNTING

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.task, name)


@dataclass(frozen=True)
class Restated:
    """A problem whose candidates are worth another thing than their accuracy.

    Parameters
    ----------
    problem : datasets.workloads.digits_search.SearchWorkload
    objective : callable of (accuracy, costs, candidate)
        While searching, `costs` is the task, which predicts; when judged, the problem, which has measured.
    fits : callable of candidate, optional
        Which candidates are allowed; all.

    Examples
    --------
    >>> import datasets
    >>> table = datasets.workload("digits-search")
    >>> small = Restated(table, lambda accuracy, _, __: accuracy, lambda candidate: candidate["width"] == 4)
    >>> small.task(0).evaluate(table.best), small.task(0).cost(table.best) < 1e-3, small.regret(table.best)
    (-inf, True, inf)
    """

    problem: Any
    objective: Objective
    fits: Callable[[Mapping[str, Any]], bool] = lambda candidate: True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.problem, name)

    def task(self, seed: int) -> RestatedTask:
        """The task of a seed, under the objective."""
        return RestatedTask(self.problem.task(seed), self.objective, self.fits)

    def worth(self, candidate: Mapping[str, Any], seed: int | None = None) -> float:
        """The objective by what the seed's task does not show, and by costs as they were measured."""
        if not self.fits(candidate):
            return float("-inf")
        accuracy = self.problem.unseen(self.problem.entry(candidate).validation, seed)
        return self.objective(accuracy, self.problem, candidate)

    def regret(self, candidate: Mapping[str, Any], seed: int | None = None) -> float:
        """By how much the best candidate's worth exceeds this one's."""
        every = (dict(zip(self.problem.space, values, strict=True)) for values in self.problem.entries)
        return max(self.worth(other, seed) for other in every) - self.worth(candidate, seed)
