"""How searches are measured: how far from the known optimum they end, for what they spent.

What is searched is a problem: it offers `space` (the values of each choice), `task(seed)` (what a search may ask for),
`regret(candidate, seed)`, and the `figures(candidate, seed)` of what was found; `missing`, if it is there, says why
others cannot be had. A workload of kind search is a problem, with every answer in a table; it may say
its own `budgets`, and how many `searches` make a record. An operand workload lists shapes, each with its `budget`; what
is searched for such a shape the technique says by `problem(shape)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

import datasets
from datasets.workloads import efficientnet_lite0
from kernels.model.architecture_search.random_search import RandomSearch
from taxonomy.measure.protocol import REPETITIONS, Case, Missing, Protocol, Trial, Values

__all__ = ["SearchProtocol", "protocol"]

BUDGETS = (240, 540, 1080)
"""Epochs of training: 20, 45 and 90 networks of the house's search table."""

SEARCHES = 40
"""Searches in one record, whose figures are their means: luck is large, and here a search costs nothing but lookups."""

OTHER = "what is searched is no network: candidates differ in cost, not in this"


class SearchProtocol(Protocol):
    """Search a space; beside it random search with the same seeds and budget.

    On a table of trained networks the search sees the validation accuracy of one training seed, as a real one would.
    What it chose is judged by the table's other seeds: regret against the optimum in the mean of their validation
    accuracies, accuracy on test in the same mean. With the seed that it saw among them, a candidate chosen for its luck
    would be credited with that luck. A table of times is treated alike, repetitions in the place of seeds.
    """

    kind = "search"
    version = 2
    metrics = ("regret", "accuracy", "search_cost", "parameters", "macs")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        if hasattr(workload, "space"):
            settings = [{"budget": budget} for budget in getattr(workload, "budgets", BUDGETS)]
        else:
            settings = [dict(shape) for shape in workload.settings]
        return [Trial(setting, seed) for setting in settings for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        shape = {name: value for name, value in case.setting.items() if name != "budget"}
        problem = case.workload if hasattr(case.workload, "space") else case.subject.problem(_with_network(shape))
        searches = getattr(problem, "searches", SEARCHES)
        searchers = {"self": case.subject, "baseline": RandomSearch()}
        seeds = range(case.seed * searches, (case.seed + 1) * searches)
        values: Values = {}
        for who, searcher in searchers.items():
            results = [_search(searcher, problem, case.setting["budget"], seed) for seed in seeds]
            found = {metric: mean(result[metric] for result in results) for metric in results[0]}
            reasons = {**dict.fromkeys(self.metrics, OTHER), **getattr(problem, "missing", {})}
            values[who] = {**{metric: Missing(reason) for metric, reason in reasons.items()}, **found}
        return values


def _search(searcher: Any, problem: Any, budget: float, seed: int) -> dict[str, float]:
    best, history = searcher.search(problem.space, problem.task(seed), budget, seed)
    figures = problem.figures(best, seed) if hasattr(problem, "figures") else _network(problem, best, seed)
    return {"regret": problem.regret(best, seed), "search_cost": history[-1][2], **figures}


def _with_network(shape: Mapping[str, Any]) -> dict[str, Any]:
    """A shape whose network is a name, with the network itself in its place, and the shape of its `items`.

    Weights do not matter where costs are counted, so those that a package brings are not asked for.
    """
    name = shape.get("network")
    if name is None:
        return dict(shape)
    if name == "efficientnet-lite0":
        return {**shape, "network": efficientnet_lite0.untrained(), "items": (3, 224, 224)}
    workload = datasets.workload(name)
    return {**shape, "network": workload.network(), "items": workload.input_shape}


def _network(problem: Any, best: Mapping[str, Any], seed: int) -> dict[str, float]:
    chosen = problem.entry(best)
    return {
        "accuracy": problem.unseen(chosen.test, seed),
        "parameters": chosen.parameters,
        "macs": chosen.macs,
    }


protocol = SearchProtocol()
