"""Training systems of several processes: what each worker does of the recipe, and how the pieces become one again."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kernels.counting import training_peak_bytes
from kernels.implementation.distributed.workers import Group, Workers

__all__ = ["Distributed", "SplitBatch", "Step", "Stepping", "numbers_of_its_own"]

PATIENCE, DAY = 600.0, 86400.0
"""Seconds that a step may take, and a training; that a worker is gone is noticed at once."""

Pieces = Sequence[Sequence[Tensor]]
"""By worker, tensors in the order of the parameters that it holds."""


class Distributed(ABC):
    """A training system of `workers` processes.

    Every worker runs the recipe: the same items in the same order, at the same rate. What it does with them is up to
    `adapt`, which changes the recipe's loss (it computes the gradients, too) or its optimizer; what it holds is `part`.
    """

    workers: int

    def part(self, group: Group, network: nn.Module) -> nn.Module:
        """What this worker trains; the network is its own copy."""
        return network

    @abstractmethod
    def adapt(self, group: Group, recipe: Any) -> Any:
        """The recipe as this worker runs it."""

    def join(self, pieces: Pieces) -> list[Tensor]:
        """The network's tensors (parameters, or buffers), of what the workers hold: here all hold all."""
        return list(pieces[0])

    def join_gradients(self, pieces: Pieces) -> list[Tensor]:
        """The gradients of the network's parameters, of those that the workers' optimizers see."""
        return self.join(pieces)

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of the network by the recipe, in several processes.

        Parameters
        ----------
        recipe : datasets.Recipe
            Its loss is a mean over the items, and picklable as all of it.
        network : nn.Module
            Left as it is.
        data : datasets.Data

        Returns
        -------
        network : nn.Module
            The trained copy.
        trace : list of dict
            What the recipe reports, and `bytes_sent`: of each update, by the worker that sends the most.

        Raises
        ------
        WorkerFailed
            If a worker raises, or is killed.
        """
        with Workers(self.workers, PATIENCE) as team:
            answers = [answer.value for answer in team.call(_train, self, recipe, network, data, timeout=DAY)]
        trained = copy.deepcopy(network)
        with torch.no_grad():
            _fill(trained.parameters(), self.join([parameters for parameters, _, _ in answers]))
            _fill(trained.buffers(), self.join([buffers for _, buffers, _ in answers]))
        trained.train(False)
        traces = [trace for _, _, trace in answers]
        return trained, [
            {
                **rows[0],
                "loss": sum(row["loss"] for row in rows),
                "bytes_sent": max(row["bytes_sent"] for row in rows),
            }
            for rows in zip(*traces, strict=True)
        ]

    def start(self, recipe: Any, network: nn.Module, x: Tensor, y: Tensor) -> Stepping:
        """Workers that are ready to train the network on one batch, step by step."""
        return Stepping(self, recipe, network, x, y)


@dataclass(frozen=True)
class Step:
    """One forward and backward pass of all workers.

    Attributes
    ----------
    gradients : list of Tensor
        Of the network's parameters in their order, as the optimizers see them.
    peak_bytes, sent : list of int
        By worker: the most bytes that the pass makes at one moment, as `counting.training_peak_bytes` counts; bytes of
        payload that the worker sends, those of the new weights included where there are any.
    """

    gradients: list[Tensor]
    peak_bytes: list[int]
    sent: list[int]

    @property
    def gradient(self) -> Tensor:
        """All gradients, flat."""
        return torch.cat([gradient.flatten().double() for gradient in self.gradients])


class Stepping:
    """Workers that hold a network and a batch, and train on it whenever they are called.

    They end with the block, or with this process.
    """

    def __init__(self, system: Distributed, recipe: Any, network: nn.Module, x: Tensor, y: Tensor) -> None:
        self.system, self.team = system, Workers(system.workers, PATIENCE)
        self.team.call(_hold, system, recipe, network, x, y)

    def __enter__(self) -> Stepping:
        return self

    def __exit__(self, *_: object) -> None:
        self.team.close()

    def __call__(self) -> None:
        """Forward, backward, and an update by the recipe's optimizer at its full rate."""
        self.team.call(_step)

    def look(self) -> Step:
        """Forward, backward, and no update."""
        answers = self.team.call(_look)
        gradients = self.system.join_gradients([answer.value[0] for answer in answers])
        return Step(gradients, [answer.value[1] for answer in answers], [answer.sent for answer in answers])

    def resident_bytes(self) -> list[int]:
        """Bytes of weights, gradients and the optimizer's state that each worker holds between two updates.

        Single numbers, such as the count of updates that an optimizer keeps for every tensor, are left out.
        """
        return [answer.value for answer in self.team.call(_resident)]


class SplitBatch(Distributed):
    """Every worker holds the whole network and takes a share of each batch; `exchange` makes one gradient of theirs."""

    def exchange(self, group: Group, gradient: Tensor) -> Tensor:
        """What the optimizer gets, the same in every worker.

        Parameters
        ----------
        group : Group
        gradient : Tensor, flat, float32
            This worker's own, of all parameters, weighted by its share: their sum is the batch's. It may be spoilt.
        """
        return group.all_reduce(gradient)

    def buffer(self, learned: list[nn.Parameter]) -> Tensor | None:
        """What the gradients are added up in, and `exchange` gets; None where they are exchanged before that."""
        flat = torch.zeros(sum(p.numel() for p in learned), dtype=learned[0].dtype)
        for p, piece in zip(learned, flat.split([p.numel() for p in learned]), strict=True):
            p.grad = piece.view_as(p)  # the backward pass adds to it in place: nothing is copied
        return flat

    def adapt(self, group: Group, recipe: Any) -> Any:
        return replace(recipe, loss=_Share(self, group, recipe.loss, recipe.seed))

    def idle(self, network: nn.Module, nothing: Tensor) -> None:
        """What a worker without items does: all others may have to wait for it."""


class _Share:
    """The loss of this worker's share of a batch; the gradients are there, and exchanged, when it returns."""

    def __init__(self, system: SplitBatch, group: Group, loss: Callable[..., Tensor], seed: int) -> None:
        self.system, self.group, self.loss, self.seed = system, group, loss, seed

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        group, learned = self.group, [p for p in network.parameters() if p.requires_grad]
        own_x, own_y = (t.tensor_split(group.size)[group.rank] for t in (x, y))
        flat = self.system.buffer(learned)
        value = torch.zeros(())
        with numbers_of_its_own(group, self.seed):
            if len(own_x):
                value = self.loss(network, own_x, own_y) * (len(own_x) / len(x))
                value.backward()
            else:
                self.system.idle(network, own_x)
        self.seed += 1
        if flat is not None:
            whole = self.system.exchange(group, flat)
            if whole is not flat:
                flat.copy_(whole)
        return value.detach().requires_grad_()


@contextmanager
def numbers_of_its_own(group: Group, seed: int) -> Iterator[None]:
    """Each worker draws its own random numbers inside; the order of items, which all draw, is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * group.size + group.rank)
        yield


class _Looking(torch.optim.Optimizer):
    """An optimizer that looks at the gradients, and updates nothing."""

    def __init__(self, parameters: Sequence[nn.Parameter], **_: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        return closure()


# --- in a worker ----------------------------------------------------------------------------------------------------


def _train(group: Group, system: Distributed, recipe: Any, network: nn.Module, data: Any) -> Any:
    part = system.part(group, network)
    sent = [0]
    trace = system.adapt(group, recipe).train(part, data, on_step=lambda step, part: sent.append(group.sent))
    for row, (before, after) in zip(trace, pairwise(sent), strict=True):
        row["bytes_sent"] = after - before
    return [p.detach().clone() for p in part.parameters()], list(part.buffers()), trace


class _Held:
    """What a worker of a `Stepping` keeps between its calls."""

    def __init__(self, group: Group, system: Distributed, recipe: Any, network: nn.Module, x: Tensor, y: Tensor):
        torch.manual_seed(recipe.seed)
        self.group, self.system, self.recipe, self.x, self.y = group, system, recipe, x, y
        self.part = system.part(group, network).train()
        self.optimizer, self.step = self.ready(recipe)

    def ready(self, recipe: Any) -> tuple[torch.optim.Optimizer, Callable[[], Any]]:
        recipe = self.system.adapt(self.group, recipe)
        learned = [p for p in self.part.parameters() if p.requires_grad]
        optimizer = recipe.optimizer(learned, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = recipe.loss(self.part, self.x, self.y)
            value.backward()
            return value

        return optimizer, partial(optimizer.step, closure)

    def look(self) -> tuple[list[Tensor], int]:
        optimizer, step = self.ready(replace(self.recipe, optimizer=_Looking))
        seen = _parameters(optimizer)
        peak = training_peak_bytes(nn.ParameterList([*self.part.parameters(), *seen]), step)
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in seen], peak

    def resident_bytes(self) -> int:
        parameters = [*self.part.parameters(), *_parameters(self.optimizer)]
        gradients = [p.grad for p in parameters if p.grad is not None]
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        tensors = [*parameters, *gradients, *(t for t in state if isinstance(t, Tensor) and t.dim())]
        return sum({s._cdata: s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _hold(group: Group, *what: Any) -> None:
    group.kept["held"] = _Held(group, *what)


def _step(group: Group) -> None:
    group.kept["held"].step()


def _look(group: Group) -> tuple[list[Tensor], int]:
    return group.kept["held"].look()


def _resident(group: Group) -> int:
    return group.kept["held"].resident_bytes()


def _fill(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
