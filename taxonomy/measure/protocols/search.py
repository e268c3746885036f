"""How architecture searches are measured: how far from the known optimum they end, for what they spent."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from kernels.model.architecture_search.random_search import RandomSearch
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

__all__ = ["SearchProtocol", "protocol"]

BUDGETS = (240, 540, 1080)
"""Epochs of training: 20, 45 and 90 networks of the house's search table."""

SEARCHES = 40
"""Searches in one record, whose figures are their means: luck is large, and here a search costs nothing but lookups."""


class SearchProtocol(Protocol):
    """Search a table of trained networks; beside it random search with the same seeds and budget.

    The search sees the validation accuracy of one training seed, as a real one would. What it chose is judged by the
    table's other seeds: regret against the optimum in the mean of their validation accuracies, accuracy on test in the
    same mean. With the seed that it saw among them, a candidate chosen for its luck would be credited with that luck.
    """

    kind = "search"
    version = 2
    metrics = ("regret", "accuracy", "search_cost", "parameters", "macs")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"budget": budget}, seed) for budget in BUDGETS for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        searchers = {"self": case.subject, "baseline": RandomSearch()}
        seeds = range(case.seed * SEARCHES, (case.seed + 1) * SEARCHES)
        values: Values = {}
        for who, searcher in searchers.items():
            results = [_search(searcher, case.workload, case.setting["budget"], seed) for seed in seeds]
            values[who] = {metric: mean(result[metric] for result in results) for metric in results[0]}
        return values


def _search(searcher: Any, workload: Any, budget: float, seed: int) -> dict[str, float]:
    best, history = searcher.search(workload.space, workload.task(seed), budget, seed)
    chosen = workload.entry(best)
    return {
        "regret": workload.regret(best, seed),
        "accuracy": workload.unseen(chosen.test, seed),
        "search_cost": history[-1][2],
        "parameters": chosen.parameters,
        "macs": chosen.macs,
    }


protocol = SearchProtocol()
