"""Hardware-aware architecture search: what is maximised holds the time that a network takes on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.model.architecture_search.evolutionary_search import EvolutionarySearch
from kernels.model.architecture_search.random_search import History
from kernels.model.architecture_search.restated import Restated

__all__ = ["HardwareAwareSearch", "weighed"]

COSTS = ("latency", "macs")


def weighed(accuracy: float, cost: float, target: float, under: float, over: float) -> float:
    r"""Accuracy times a power of the cost over its target.

    .. math:: \mathrm{ACC}(m) \cdot \left[\frac{\mathrm{LAT}(m)}{T}\right]^{w}, \qquad
        w = \begin{cases} \alpha & \mathrm{LAT}(m) \le T \\ \beta & \text{otherwise} \end{cases}

    Parameters
    ----------
    accuracy : float
    cost, target : float
        In the same unit; above 0.
    under, over : float
        α and β: equal for a soft trade, 0 and -1 for a target that hurts only when it is missed.

    Examples
    --------
    Twice as slow is worth it for a twentieth more accuracy:

    >>> slow, fast = weighed(0.84, 2e-3, 1e-3, -0.07, -0.07), weighed(0.80, 1e-3, 1e-3, -0.07, -0.07)
    >>> round(slow / fast, 3)
    1.0
    """
    return accuracy * (cost / target) ** (under if cost <= target else over)


@dataclass(frozen=True)
class HardwareAwareSearch:
    r"""Maximise accuracy weighed against the time of the network, by regularized evolution.

    .. math:: \max_m \mathrm{ACC}(m) \cdot \left[\frac{\mathrm{LAT}(m)}{T}\right]^{w}, \qquad
        \mathrm{LAT}(m) = \sum_i \mathrm{time}(\text{operation } i \text{ of } m)

    The time is a sum of what is looked up, each operation having been measured once at its place; so a candidate's time
    is known before it is trained, and without running it. What was found is judged by the time of the whole network.

    Parameters
    ----------
    target : float
        T, in seconds.
    under, over : float
        The exponent of a network that keeps the target, and of one that misses it.
    cost : {"latency", "macs"}
        What the search is shown: the times that are looked up, or multiply-accumulates, in which work is often counted
        for want of a clock. Seconds of the target then stand for as many as a median network has; the judge is the
        same.
    population, sample : int
        Of the evolution.

    Source: Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile", arXiv 1807.11626, equation 2;
    the look-up table is that of Wu et al., "FBNet", and of Cai et al., "ProxylessNAS". There a controller searches, or
    a gradient; the reward is the same for whoever does.

    Examples
    --------
    >>> import datasets
    >>> table, by_time = datasets.workload("digits-search"), HardwareAwareSearch()
    >>> problem = by_time.restated(table)
    >>> fast, _ = by_time.search(problem.space, problem.task(0), budget=1080, seed=0)
    >>> best, _ = EvolutionarySearch().search(table.space, table.task(0), budget=1080, seed=0)
    >>> table.latency(fast) < table.latency(best)
    True
    """

    target: float = 50e-6
    under: float = -0.07
    over: float = -0.07
    cost: str = "latency"
    population: int = 10
    sample: int = 5

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise ValueError(f"target: expected seconds above 0, got {self.target!r}")
        if self.cost not in COSTS:
            raise ValueError(f"cost: expected one of {', '.join(COSTS)}, got {self.cost!r}")
        if self.under > 0 or self.over > 0:
            raise ValueError(f"under, over: expected exponents of at most 0, got {self.under!r} and {self.over!r}")
        EvolutionarySearch(self.population, self.sample)

    def restated(self, problem: Any) -> Restated:
        """The problem with accuracy weighed against time; its task looks costs up, its judge has measured them."""
        macs = sorted(entry.macs for entry in problem.entries.values())
        typical = macs[len(macs) // 2]

        def objective(accuracy: float, costs: Any, candidate: Mapping[str, Any]) -> float:
            if self.cost == "macs" and costs is not problem:
                return weighed(accuracy, problem.entry(candidate).macs, typical, self.under, self.over)
            return weighed(accuracy, costs.latency(candidate), self.target, self.under, self.over)

        return Restated(problem, objective)

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """As `EvolutionarySearch.search`, on the task of a `restated` problem."""
        return EvolutionarySearch(self.population, self.sample).search(space, task, budget, seed)
