"""Sharded optimizer: every worker keeps the optimizer's state of its part of the weights, and updates only that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from kernels.implementation.distributed.system import Pieces, SplitBatch
from kernels.implementation.distributed.workers import Group

__all__ = ["ShardedOptimizer", "held_bytes"]


def held_bytes(weights: int, workers: int, stage: int, states: int = 2, size: int = 4) -> int:
    """Bytes of weights, gradients and optimizer state of the worker that holds most.

    Parameters
    ----------
    weights : int
        Their number.
    workers : int
    stage : {0, 1, 2}
        What is divided: nothing, the state, or the gradients too.
    states : int
        Numbers that the optimizer keeps for each weight: two moments of Adam.
    size : int
        Bytes of a number.

    Examples
    --------
    >>> [held_bytes(1000, workers=4, stage=stage) for stage in (0, 1, 2)]
    [16000, 10000, 7000]
    """
    part = ceil(weights / workers)
    whole, divided = [(2 + states, 0), (2, states), (1, 1 + states)][stage]
    return size * (whole * weights + divided * part)


@dataclass(frozen=True)
class ShardedOptimizer(SplitBatch):
    r"""Train with each batch split among n workers, of which each keeps one part of the optimizer's state.

    All weights in a row are cut into n parts. A worker gets the sum of the gradients of its own part only (the first
    half of a ring's sum), updates that part with its part of the state, and all pass on their new weights (in place of
    the second half). With Adam, of weights w a worker then holds

    .. math:: |w| \left(2 + \frac{2}{n}\right) \text{ or } |w| \left(1 + \frac{3}{n}\right), \text{ not } 4 |w|;

    the second where the gradients are divided as well: each goes to its owners as soon as the backward pass has it, and
    is gone. Either way a worker sends what it would send without: 2 (n - 1) / n of the weights. The new weights are the
    same, as far as sums in another order are equal, if the optimizer treats every weight by itself.

    Parameters
    ----------
    workers : int
        n; a process each.
    stage : {1, 2}
        What is divided: the state, or the gradients too.

    Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv
    1910.02054, sections 5.1 and 5.2.

    Examples
    --------
    >>> import datasets
    >>> mlp, batch = datasets.workload("digits-mlp"), datasets.load("digits").train[:32]
    >>> x, y = torch.tensor(batch.x), torch.tensor(batch.y)
    >>> with ShardedOptimizer(workers=2).start(mlp.recipe, mlp.network(), x, y) as stepping:
    ...     stepping()
    ...     stepping.resident_bytes(), held_bytes(6570, workers=2, stage=1)
    ([78840, 78840], 78840)
    """

    workers: int = 2
    stage: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.workers, int) and self.workers >= 1):
            raise ValueError(f"workers: expected a positive number of processes, got {self.workers!r}")
        if self.stage not in (1, 2):
            raise ValueError(f"stage: expected 1, the state, or 2, the gradients too, got {self.stage!r}")

    def part(self, group: Group, network: nn.Module) -> nn.Module:
        learned = [p for p in network.parameters() if p.requires_grad]
        if len({p.dtype for p in learned}) != 1:
            raise ValueError(
                f"network: expected parameters of one dtype, got {sorted({str(p.dtype) for p in learned})}"
            )
        weights = torch.cat([p.detach().flatten() for p in learned])
        for p, piece in zip(learned, weights.split([p.numel() for p in learned]), strict=True):
            p.data = piece.view_as(p)
        group.kept["weights"] = weights
        return network

    def adapt(self, group: Group, recipe: Any) -> Any:
        recipe = super().adapt(group, recipe)
        return replace(recipe, optimizer=partial(_Sharded, group, recipe.optimizer, self.stage))

    def buffer(self, learned: list[nn.Parameter]) -> Tensor | None:
        return super().buffer(learned) if self.stage == 1 else None

    def exchange(self, group: Group, gradient: Tensor) -> Tensor:
        group.kept["gradient"] = group.reduce_scatter(gradient)
        return gradient

    def idle(self, network: nn.Module, nothing: Tensor) -> None:
        if self.stage == 2:  # the others send their gradients one by one
            network(nothing).sum().backward()

    def join_gradients(self, pieces: Pieces) -> list[Tensor]:
        return [tensor for piece in pieces for tensor in piece]


class _Sharded:
    """An optimizer of this worker's part of all weights."""

    def __init__(
        self,
        group: Group,
        optimizer: Callable[..., Any],
        stage: int,
        parameters: Iterable[nn.Parameter],
        **options: Any,
    ) -> None:
        self.group, self.stage, self.parameters = group, stage, list(parameters)
        self.weights: Tensor = group.kept["weights"]
        self.own = nn.Parameter(group.parts(self.weights)[group.rank])
        self.inner = optimizer([self.own], **options)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None
        self.own.grad = torch.zeros_like(self.own) if self.stage == 2 else None

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Update the own part; afterwards every worker has all new weights."""
        starts = accumulate((p.numel() for p in self.parameters), initial=0)
        hooks = [
            p.register_post_accumulate_grad_hook(partial(self.give, start))
            for p, start in zip(self.parameters, starts, strict=False)
            if self.stage == 2
        ]
        try:
            value = self.inner.step(partial(self.summed, closure))
        finally:
            for hook in hooks:
                hook.remove()
        self.group.all_gather(self.weights)
        return value

    def summed(self, closure: Callable[[], Tensor]) -> Tensor:
        value = closure()
        if self.stage == 1:
            self.own.grad = self.group.kept["gradient"]
        return value

    def give(self, start: int, p: Tensor) -> None:
        """Add one parameter's gradient up where its owners are: it may lie across the bounds of parts."""
        assert p.grad is not None and self.own.grad is not None
        group, gradient, p.grad = self.group, p.grad.flatten(), None
        ends = accumulate((part.numel() for part in group.parts(self.weights)), initial=0)
        for owner, (first, last) in enumerate(pairwise(ends)):
            low, high = max(first, start), min(last, start + gradient.numel())
            if low >= high:
                continue
            piece = gradient[low - start : high - start]
            if owner != group.rank:
                group.send(piece, owner)
                continue
            target = self.own.grad[low - first : high - first]
            target += piece
            for other in range(group.size):
                if other != group.rank:
                    target += group.receive(torch.empty_like(piece), other)
        group.settle()
