r"""Automated pruning: how many channels each layer keeps, when the whole network may take so much time or energy.

What is searched are shares, one a layer; the resource is looked up or modelled, so that it is known before anything is
pruned, and its budget is never exceeded:

    max over shares of  accuracy(shares)   subject to   sum over layers l of  r_l(shares)  <=  limit

NetAdapt tightens the constraint step by step. In round i every layer alone is narrowed just so far that the network
takes no more than R_i - dR_i, the proposals are evaluated, and the most accurate is the next round's network.

Source: T.-J. Yang et al., "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications", 2018, algorithm
1. An agent that draws the shares layer after layer, its actions bounded so that the rest can still keep the limit:
Y. He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", 2018. The layers of highest energy
first: T.-J. Yang, Y.-H. Chen and V. Sze, "Designing Energy-Efficient Convolutional Neural Networks using Energy-Aware
Pruning", 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from kernels.energy import DRAM_ENERGY, mac_energy
from kernels.model.architecture_search.random_search import History, evaluated
from kernels.model.architecture_search.reinforcement_search import ReinforcementSearch

__all__ = ["AutomatedPruning", "bounded", "energy", "proposal"]

RESOURCES = ("latency", "energy")
LEARNING_RATE = 0.01
"""Of the agent."""

Candidate = Mapping[str, float]
Space = Mapping[str, tuple[float, ...]]
Found = tuple[dict[str, Any], History]


def energy(problem: Any, candidate: Candidate) -> dict[str, float]:
    """Joules of one item by part of the network: products, and parameters and inputs of products read off chip.

    Parameters
    ----------
    problem : object
        Its ``sizes(candidate)`` gives the `macs`, `parameters` and `inputs` of each part.
    candidate : mapping of str to float

    Examples
    --------
    >>> size = SimpleNamespace(macs=1000, parameters=10, inputs=20)
    >>> f"{energy(SimpleNamespace(sizes=lambda one: {'a': size}), {})['a']:.2e}"      # 1000 products, 30 words
    '2.41e-08'
    """
    return {
        part: size.macs * mac_energy("fp32") + 4 * (size.parameters + size.inputs) * DRAM_ENERGY
        for part, size in problem.sizes(candidate).items()
    }


def proposal(problem: Any, now: Candidate, layer: str, values: tuple[float, ...], target: float) -> dict | None:
    """The network with one layer narrowed just so far that it takes no more than a target; None if that is too little.

    Parameters
    ----------
    problem : object
        Says what a candidate `taken` takes.
    now : mapping of str to float
    layer : str
    values : tuple of float
        What the layer may keep.
    target : float
    """
    for value in sorted((v for v in values if v < now[layer]), reverse=True):
        if problem.taken(one := {**now, layer: value}) <= target:
            return one
    return None


def bounded(problem: Any, space: Space, drawn: Candidate) -> dict[str, float]:
    """The shares that were drawn, layer after layer narrowed just so far that the rest, at its narrowest, fits.

    Parameters
    ----------
    problem : object
        Says what `fits`.
    space : mapping of str to tuple
    drawn : mapping of str to float
    """
    found = {layer: min(values) for layer, values in space.items()}
    for layer, values in space.items():
        for value in sorted((v for v in values if v <= drawn[layer]), reverse=True):
            if problem.fits(one := {**found, layer: value}):
                found = one
                break
    return found


@dataclass(frozen=True)
class AutomatedPruning:
    r"""Shares of channels for each layer of a trained network, under a hard limit of time or energy.

    .. math:: \max_{s} \mathrm{Acc}(s) \quad \text{subject to} \quad \sum_l r_l(s) \le B, \qquad
        R_{i+1} \le R_i - \Delta R_i

    Parameters
    ----------
    strategy : {"netadapt", "agent", "costliest", "uniform"}
        Rounds as above; an agent trained on the accuracies of what it drew; layer after layer, that of the largest
        resource first, each narrowed as long as accuracy stays within a tolerance that doubles when all are done; or
        one share for all layers, the widest that fits: what the others have to beat.
    resource : {"latency", "energy"}
        Measured seconds of parts of the network, looked up and summed; or joules, modelled from counts.
    share : float
        The limit, as a share of what the whole network takes, 0 < share <= 1.
    tolerance : float
        Of "costliest", what accuracy may fall by in its first pass through the layers.

    Notes
    -----
    Adapted. NetAdapt trains each proposal a little, and AMC refits its layers; here batch norms are estimated anew and
    no weight is trained before the end. NetAdapt's step is what is left to save over the rounds that its evaluations
    pay for; where no layer alone can save a step, all are narrowed a little. AMC's agent is a DDPG of continuous
    actions that is told the features of each layer; this one is much smaller: an LSTM over the given shares, trained by
    REINFORCE on tens of candidates. Energy-aware pruning removes single weights and refits each
    layer at once; only its order of layers and its rule of when to stop are here.

    Source: Yang et al. 2018, algorithm 1; He et al. 2018; Yang, Chen and Sze 2017.

    Examples
    --------
    >>> import datasets
    >>> search = AutomatedPruning()
    >>> problem = search.restated(datasets.workload("noisy-digits-ratios"))
    >>> found, history = search.search(problem.space, problem.task(0), budget=9, seed=0)
    >>> problem.fits(found), history[-1][2] <= 9
    (True, True)
    """

    strategy: str = "netadapt"
    resource: str = "latency"
    share: float = 0.6
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("resource", RESOURCES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected 0 < share <= 1, got {self.share!r}")
        if not 0 < self.tolerance < float("inf"):
            raise ValueError(f"tolerance: expected a positive number, got {self.tolerance!r}")

    def restated(self, problem: Any) -> Any:
        """The problem under this limit, which then knows of energy too."""
        return problem.under(self.resource, self.share, energy=partial(energy, problem))

    def search(self, space: Space, task: Any, budget: float, seed: int) -> Found:
        """Search until the limit is met, or for the agent until the next evaluation would exceed the budget.

        Parameters
        ----------
        space : mapping of str to tuple of float
            The shares that each layer may keep, in the network's order; the largest is the whole layer.
        task : object
            ``task.accuracy(candidate)`` of any candidate, at ``task.cost(candidate)``; its `problem` says what a
            candidate has `taken`, in total and by `parts`, what `fits` the `limit`, and gives one `lowered` to it.
        budget : float
            In evaluations.
        seed : int

        Returns
        -------
        best : dict
            It fits.
        history : list of (dict, float, float)
            Every candidate that was evaluated; of "netadapt" and "costliest" also those on the way, which do not fit.

        Raises
        ------
        ValueError
            If the budget pays for no round, the space is empty, or no uniform share fits.
        """
        if not space:
            raise ValueError(f"space: expected at least one layer, got {dict(space)}")
        as_it_is = SimpleNamespace(problem=task.problem, cost=task.cost, evaluate=task.accuracy)
        return STRATEGIES[self.strategy](self, space, as_it_is, budget, seed)

    def _netadapt(self, space: Space, task: Any, budget: float, seed: int) -> Found:
        problem, now, history = task.problem, _whole(space), History()
        rounds = int(budget // (len(space) * task.cost(now)))
        if rounds < 1:
            raise ValueError(f"budget: {budget} evaluations do not pay for one round of {len(space)} layers")
        for left in range(rounds, 0, -1):
            if problem.fits(now):
                break
            taken = problem.taken(now)
            target = problem.limit if left == 1 else taken - (taken - problem.limit) / left
            each = [proposal(problem, now, layer, values, target) for layer, values in space.items()]
            proposals = [one for one in each if one is not None] or [problem.lowered(now, target)]
            for one in proposals:
                evaluated(task, one, budget, history)
            now = max(history[-len(proposals) :], key=lambda entry: entry[1])[0]
        return _with_one(now, task, budget, history)

    def _agent(self, space: Space, task: Any, budget: float, seed: int) -> Found:
        problem = task.problem
        drawn = SimpleNamespace(
            cost=lambda one: task.cost(bounded(problem, space, one)),
            evaluate=lambda one: task.evaluate(bounded(problem, space, one)),
        )
        found, history = ReinforcementSearch("recurrent", LEARNING_RATE).search(space, drawn, budget, seed)
        return bounded(problem, space, found), [
            (bounded(problem, space, one), score, spent) for one, score, spent in history
        ]

    def _costliest(self, space: Space, task: Any, budget: float, seed: int) -> Found:
        problem, now, history = task.problem, _whole(space), History()
        shares = problem.parts(now)
        order = sorted(space, key=lambda layer: -shares[layer])
        kept = budget - task.cost(now)  # for the last one, should it have to be lowered
        if not evaluated(task, now, kept, history):
            raise ValueError(f"budget: {budget} evaluations do not pay for the whole network and one that fits")
        whole, tolerance = history[0][1], self.tolerance
        while not problem.fits(now):
            for layer in order:
                for value in sorted((v for v in space[layer] if v < now[layer]), reverse=True):
                    if problem.fits(now):
                        break
                    if not evaluated(task, {**now, layer: value}, kept, history):
                        return _with_one(problem.lowered(now), task, budget, history)
                    if history[-1][1] < whole - tolerance:
                        break
                    now = history[-1][0]
            tolerance *= 2
        return now, history

    def _uniform(self, space: Space, task: Any, budget: float, seed: int) -> Found:
        shares = set.intersection(*map(set, space.values()))
        fitting = [share for share in shares if task.problem.fits(dict.fromkeys(space, share))]
        if not fitting:
            raise ValueError(f"space: expected a share that fits in all layers, got {sorted(shares)}")
        return _with_one(dict.fromkeys(space, max(fitting)), task, budget, History())


STRATEGIES = {
    "netadapt": AutomatedPruning._netadapt,
    "agent": AutomatedPruning._agent,
    "costliest": AutomatedPruning._costliest,
    "uniform": AutomatedPruning._uniform,
}


def _whole(space: Space) -> dict[str, float]:
    return {layer: max(values) for layer, values in space.items()}


def _with_one(found: dict[str, Any], task: Any, budget: float, history: History) -> Found:
    """What was found, evaluated if it was not."""
    if all(one != found for one, *_ in history) and not evaluated(task, found, budget, history):
        raise ValueError(f"budget: {budget} evaluations do not pay for one")
    return found, history
