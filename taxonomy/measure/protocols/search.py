"""How searches are measured: how far from the known optimum they end, for what they spent.

What is searched is a problem: it offers `space` (the values of each choice), `task(seed)` (what a search may ask for),
`regret(candidate, seed)`, and the `figures(candidate, seed)` of what was found; `missing`, if it is there, says why
others cannot be had. A workload of kind search is a problem, with every answer in a table; it may say
its own `budgets`, and how many `searches` make a record. An operand workload lists shapes, each with its `budget`; what
is searched for such a shape the technique says by `problem(shape)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from statistics import mean
from typing import Any

import torch

import datasets
from datasets.workloads import efficientnet_lite0
from datasets.workloads.digits_search import network as digits_network
from kernels import counting
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

    On a table of networks a technique may say more. ``restated(problem)`` gives the problem under its own objective,
    which random search is then given too. ``scores(space, task, seed)`` orders all candidates without training each:
    their rank correlation is with the mean accuracy in the trainings that the task does not show.
    ``inherited(candidate, task, seed)`` gives the network with the weights that the search itself has trained, whose
    accuracy on test is that before fine-tuning.

    Settings: ``budgets`` in place of the table's own, and how many ``searches`` of this technique make a record, where
    one is not all lookups; random search keeps to the usual number.
    """

    kind = "search"
    version = 2
    metrics = ("regret", "accuracy", "search_cost", "parameters", "macs")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        if hasattr(workload, "space"):
            own = getattr(technique, "settings", {}).get("budgets", getattr(workload, "budgets", BUDGETS))
            settings = [{"budget": budget} for budget in own]
        else:
            settings = [dict(shape) for shape in workload.settings]
        return [Trial(setting, seed) for setting in settings for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        shape = {name: value for name, value in case.setting.items() if name != "budget"}
        problem = case.workload if hasattr(case.workload, "space") else case.subject.problem(_with_network(shape))
        if hasattr(case.workload, "space") and hasattr(case.subject, "restated"):
            problem = case.subject.restated(problem)
        searches = getattr(problem, "searches", SEARCHES)
        searchers = {"self": case.subject, "baseline": RandomSearch()}
        seeds = range(case.seed * searches, (case.seed + 1) * searches)
        values: Values = {}
        for who, searcher in searchers.items():
            own = case.technique.settings.get("searches", searches) if who == "self" else searches
            results = [_search(searcher, problem, case.setting["budget"], seed) for seed in seeds[:own]]
            found = {metric: mean(result[metric] for result in results) for metric in results[0]}
            reasons = {**dict.fromkeys(self.metrics, OTHER), **getattr(problem, "missing", {})}
            values[who] = {**{metric: Missing(reason) for metric, reason in reasons.items()}, **found}
        return values


def _search(searcher: Any, problem: Any, budget: float, seed: int) -> dict[str, float]:
    best, history = searcher.search(problem.space, problem.task(seed), budget, seed)
    figures = problem.figures(best, seed) if hasattr(problem, "figures") else _network(problem, best, seed)
    task = problem.task(seed)
    if hasattr(searcher, "scores"):
        figures["rank_correlation"] = _rank_correlation(searcher.scores(problem.space, task, seed), problem, seed)
    if hasattr(searcher, "inherited"):
        child = searcher.inherited(best, task, seed)
        figures["accuracy_before_finetuning"] = datasets.workloads.accuracy(child, task.data.test)
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
    figures = {
        "accuracy": problem.unseen(chosen.test, seed),
        "parameters": chosen.parameters,
        "macs": chosen.macs,
    }
    if problem.id == "digits-search":
        activations = _activations(tuple(best[choice] for choice in problem.space), tuple(problem.space))
        figures |= {
            "latency": problem.latency(best),
            "peak_activation_bytes": activations,
            "memory_footprint": activations + 4 * chosen.parameters,
        }
    return figures


@lru_cache(maxsize=512)
def _activations(values: tuple[Any, ...], choices: tuple[str, ...]) -> int:
    candidate = dict(zip(choices, values, strict=True))
    return counting.peak_activation_bytes(digits_network(candidate), torch.zeros(1, 1, 8, 8))


def _rank_correlation(scores: list[float], problem: Any, seed: int) -> float:
    """Kendall's tau-b of the scores of all candidates, in the table's order, with what they are worth."""
    from scipy.stats import kendalltau

    worth = [problem.unseen(entry.validation, seed) for entry in problem.entries.values()]
    return float(kendalltau(scores, worth).statistic)


protocol = SearchProtocol()
