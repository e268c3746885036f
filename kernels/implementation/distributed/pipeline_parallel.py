"""Pipeline parallelism: every worker holds some of the layers, and small batches follow each other through them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from kernels.chain import links
from kernels.counting import macs
from kernels.implementation.distributed.system import Distributed, Pieces, Stepping, numbers_of_its_own
from kernels.implementation.distributed.workers import Group

__all__ = ["PipelineParallel", "Timeline", "balance", "bubble", "orders", "simulate"]

Order = list[tuple[str, int]]
"""What one worker does, one after the other: ("forward" or "backward", which small batch)."""

SCHEDULES = ("fill-drain", "one-forward-one-backward")


def bubble(workers: int, micro: int) -> float:
    """The share of time in which workers wait, of K equal stages and M small batches: (K - 1) / (M + K - 1).

    Examples
    --------
    >>> [bubble(4, m) for m in (1, 3, 13)]
    [0.75, 0.5, 0.1875]
    """
    return (workers - 1) / (micro + workers - 1)


def orders(schedule: str, workers: int, micro: int) -> list[Order]:
    """What each worker does in one update.

    Fill-drain takes all small batches forward, then all backward; a worker keeps what M of them saved. With one
    forward, one backward, a worker goes back as soon as it can, and keeps at most as many as there are workers from it
    to the end.

    Examples
    --------
    >>> for order in orders("one-forward-one-backward", workers=2, micro=3):
    ...     print(" ".join(f"{kind[0]}{m}" for kind, m in order))
    f0 f1 b0 f2 b1 b2
    f0 b0 f1 b1 f2 b2
    """
    forward = [("forward", m) for m in range(micro)]
    backward = [("backward", m) for m in range(micro)]
    if schedule == "fill-drain":
        return [forward + backward[::-1]] * workers
    found = []
    for k in range(workers):
        ahead = min(micro, workers - 1 - k)
        paired = [step for pair in zip(forward[ahead:], backward, strict=False) for step in pair]
        found.append(forward[:ahead] + paired + backward[micro - ahead :])
    return found


@dataclass(frozen=True)
class Timeline:
    """Who did what when: (worker, "forward" or "backward", small batch, start, end)."""

    slots: list[tuple[int, str, int, float, float]]

    @property
    def length(self) -> float:
        """From the first start to the last end."""
        return max(end for *_, end in self.slots)

    @property
    def busy(self) -> float:
        """The share of the workers' time in which they work."""
        workers = 1 + max(worker for worker, *_ in self.slots)
        return sum(end - start for *_, start, end in self.slots) / (workers * self.length)


def simulate(ordered: Sequence[Order], forward: Sequence[float], backward: Sequence[float]) -> Timeline:
    """Run orders on workers that need so long for each small batch; messages take no time.

    Parameters
    ----------
    ordered : sequence of lists
        Of `orders`.
    forward, backward : sequences of floats
        By worker.

    Raises
    ------
    ValueError
        If the workers wait for each other forever.

    Examples
    --------
    >>> timeline = simulate(orders("fill-drain", 2, 3), forward=[1, 1], backward=[2, 2])
    >>> timeline.length, timeline.busy == 1 - bubble(2, 3)
    (12.0, True)
    """
    last = len(ordered) - 1
    done: dict[tuple[int, str, int], float] = {}
    free, left = [0.0] * len(ordered), [list(order) for order in ordered]
    slots: list[tuple[int, str, int, float, float]] = []
    while any(left):
        before = len(slots)
        for k, order in enumerate(left):
            while order:
                kind, m = order[0]
                needs = (k - 1, kind, m) if kind == "forward" else (k + 1, kind, m) if k < last else (k, "forward", m)
                if needs not in done and needs[0] >= 0:
                    break
                start = max(free[k], done.get(needs, 0))
                free[k] = done[k, kind, m] = start + (forward if kind == "forward" else backward)[k]
                slots.append((k, kind, m, start, free[k]))
                order.pop(0)
        if len(slots) == before:
            raise ValueError(f"ordered: expected orders that can be followed, but these wait for each other: {left}")
    return Timeline(slots)


def balance(costs: Sequence[float], parts: int, fits: Callable[[int, int], bool] = lambda a, b: True) -> list[int]:
    """Where to cut a chain into so many parts that the dearest costs least.

    Parameters
    ----------
    costs : sequence of floats
        Of each link.
    parts : int
    fits : callable
        Whether the links from the first up to the second may be a part.

    Returns
    -------
    list of int
        Ends of the parts; the first is 0.

    Examples
    --------
    >>> balance([5, 1, 1, 1, 4], parts=2)
    [0, 2, 5]
    """
    total = [0, *accumulate(costs)]

    @cache
    def best(end: int, parts: int) -> tuple[float, tuple[int, ...]]:
        if parts == 0:
            return (0, (0,)) if end == 0 else (inf, ())
        options = ((best(cut, parts - 1), cut) for cut in range(end) if fits(cut, end))
        return min(
            ((max(dearest, total[end] - total[cut]), (*cuts, end)) for (dearest, cuts), cut in options if cuts),
            default=(inf, ()),
        )

    return list(best(len(costs), parts)[1])


@dataclass(frozen=True)
class PipelineParallel(Distributed):
    r"""Train with the layers of a chain divided among K workers, and each batch cut into M small ones.

    Worker k sends the activations at its end to worker k + 1, and the gradients at its start to worker k - 1. Alone, a
    batch would keep one worker busy at a time; M small ones follow each other, and of equal stages a worker waits for

    .. math:: \frac{K - 1}{M + K - 1}

    of the time. Gradients of the small batches are summed, and all are back before the update: it is that of one
    process, as far as sums in another order are equal, for a loss that is a mean over items that know nothing of each
    other. Batch norm takes its statistics, running ones included, from a small batch.

    Parameters
    ----------
    workers : int
        K; a process each. The chain is cut where the dearest stage has the fewest operations.
    micro : int
        M; at most as many as a batch has items.
    schedule : {"fill-drain", "one-forward-one-backward"}
        As short one as the other, if stages are equal; the second keeps the activations of K small batches at most, not
        of M.

    Source: Huang et al., "GPipe", arXiv 1811.06965, section 2; the second order: Narayanan et al., "PipeDream:
    Generalized Pipeline Parallelism for DNN Training", SOSP 2019, here with an update once all small batches are back.

    Examples
    --------
    >>> import datasets
    >>> mlp, batch = datasets.workload("digits-mlp"), datasets.load("digits").train[:32]
    >>> x, y = torch.tensor(batch.x), torch.tensor(batch.y)
    >>> with PipelineParallel(workers=2).start(mlp.recipe, mlp.network(), x, y) as stepping:
    ...     step = stepping.look()
    >>> step.sent == [32 * 64 * 4, 32 * 64 * 4]  # 64 activations an item to the right, their gradients to the left
    True
    """

    workers: int = 2
    micro: int = 4
    schedule: str = "fill-drain"

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("micro", self.micro)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    def cut(self, network: nn.Module, x: Tensor) -> _Stages:
        """The stages of a chain, for items like those of `x`.

        Raises
        ------
        TypeError
            If the network is no chain.
        ValueError
            If it has too few layers with parameters.
        """
        chain, costs, shapes = links(copy.deepcopy(network).eval()), [], [x.shape[1:]]
        learns = [any(p.requires_grad for p in link.parameters()) for link in chain]
        item = x[:1]
        with torch.no_grad():
            for link in chain:
                products = macs(link, item)
                item = link(item)
                costs.append(products + item.numel())  # what is not a product is at least made and written
                shapes.append(item.shape[1:])
        ends = balance(costs, self.workers, lambda a, b: any(learns[a:b]))
        if not ends:
            most = f"the {sum(learns)} layers of the chain that have parameters"
            raise ValueError(f"workers: expected at most {most}, got {self.workers}")
        return _Stages(self, ends, [shapes[end] for end in ends], [sum(costs[a:b]) for a, b in pairwise(ends)])

    def timeline(self, network: nn.Module, x: Tensor) -> Timeline:
        """Who would work when, if stages took as long as they have operations: twice as many backward as forward."""
        costs = self.cut(network, x).costs
        micro = min(self.micro, len(x))
        return simulate(orders(self.schedule, self.workers, micro), costs, [2 * cost for cost in costs])

    def core_utilization(self, network: nn.Module, x: Tensor) -> float:
        """The share of the workers' time in which they work, in that `timeline`."""
        return self.timeline(network, x).busy

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        return self.cut(network, torch.tensor(data.train.x[:1])).run(recipe, network, data)

    def start(self, recipe: Any, network: nn.Module, x: Tensor, y: Tensor) -> Stepping:
        return self.cut(network, x).start(recipe, network, x, y)

    def adapt(self, group: Group, recipe: Any) -> Any:
        raise TypeError("a pipeline is cut before its workers start: see `cut`")


@dataclass(frozen=True)
class _Stages(Distributed):
    """A pipeline whose stages are known: where they end, the shapes of an item there, and what they cost."""

    pipeline: PipelineParallel
    ends: list[int]
    shapes: list[torch.Size]
    costs: list[float]

    @property
    def workers(self) -> int:  # type: ignore[override]
        return self.pipeline.workers

    def part(self, group: Group, network: nn.Module) -> nn.Module:
        return nn.Sequential(*links(network)[self.ends[group.rank] : self.ends[group.rank + 1]])

    def adapt(self, group: Group, recipe: Any) -> Any:
        return replace(recipe, loss=_Flow(self, group, recipe.loss, recipe.seed))

    def join(self, pieces: Pieces) -> list[Tensor]:
        return [tensor for piece in pieces for tensor in piece]


class _Flow:
    """The loss as a worker of a pipeline computes it: its stage forward and backward, in the schedule's order."""

    def __init__(self, stages: _Stages, group: Group, loss: Callable[..., Tensor], seed: int) -> None:
        self.stages, self.group, self.loss, self.seed = stages, group, loss, seed

    def __call__(self, stage: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        group, pipeline = self.group, self.stages.pipeline
        micro = min(pipeline.micro, len(x))
        xs, ys = x.tensor_split(micro), y.tensor_split(micro)
        self.orders = orders(pipeline.schedule, group.size, micro)
        self.sent: dict[tuple[str, int], int] = {}
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        value = torch.zeros(())
        with numbers_of_its_own(group, self.seed):
            for kind, m in self.orders[group.rank]:
                if kind == "forward":
                    kept[m] = self.forward(stage, xs[m], ys[m], len(xs[m]) / len(x), m)
                    if group.rank == group.size - 1:
                        value += kept[m][1].detach()
                else:
                    self.backward(*kept.pop(m), m)
        group.settle()
        self.seed += 1
        return value.requires_grad_()

    def forward(self, stage: nn.Module, x: Tensor, y: Tensor, share: float, m: int) -> tuple[Tensor, Tensor]:
        group = self.group
        if group.rank:
            x = x.new_empty(len(x), *self.stages.shapes[group.rank])
            self.receive(x, group.left, ("forward", m))
            x.requires_grad_()
        if group.rank == group.size - 1:
            return x, self.loss(stage, x, y) * share
        result = stage(x)
        self.sent["forward", m] = group.send(result.detach().contiguous(), group.right)
        return x, result

    def backward(self, x: Tensor, result: Tensor, m: int) -> None:
        group, gradient = self.group, None
        if group.rank < group.size - 1:
            gradient = torch.empty(result.shape, dtype=result.dtype)
            self.receive(gradient, group.right, ("backward", m))
        result.backward(gradient)
        if group.rank and x.grad is not None:
            self.sent["backward", m] = group.send(x.grad.contiguous(), group.left)

    def receive(self, x: Tensor, source: int, what: tuple[str, int]) -> None:
        """Receive a message, and let go of those that `source` must have had before it could send that one."""
        self.group.receive(x, source)
        order, mine = self.orders[source], "backward" if source < self.group.rank else "forward"
        for step in order[: order.index(what)]:
            if step[0] == mine and step in self.sent:
                self.group.settle(self.sent.pop(step))
