"""Once for all: one training of an elastic supernet, from which networks are taken and used as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from kernels.counting import macs
from kernels.model.architecture_search.random_search import History
from kernels.model.architecture_search.supernet import (
    PLACES,
    Paths,
    Supernet,
    architectures,
    inherited_scores,
    plain,
    recalibrated,
    uniform,
)

__all__ = ["OnceForAll", "phases"]

Space = Mapping[str, tuple[Any, ...]]


def phases(space: Space, progressive: bool) -> list[tuple[float, dict[str, tuple[Any, ...]]]]:
    """Which part of the space is trained for which share of the epochs.

    Progressive shrinking begins with networks of all places and the full width; then places may be left empty; then
    widths become smaller, one after the other. Each phase keeps those before.

    Examples
    --------
    >>> space = {"first": ("identity", "residual"), "second": ("residual",), "third": ("residual",),
    ...     "width": (4, 8, 16), "norm": (True,)}
    >>> for share, part in phases(space, progressive=True):
    ...     print(share, part["first"], part["width"])
    0.4 ('residual',) (16,)
    0.2 ('identity', 'residual') (16,)
    0.2 ('identity', 'residual') (8, 16)
    0.2 ('identity', 'residual') (4, 8, 16)
    """
    whole = {choice: tuple(values) for choice, values in space.items()}
    if not progressive:
        return [(1.0, whole)]
    widths = sorted(space["width"])
    full = {**whole, "width": (widths[-1],)}
    deep = {place: tuple(name for name in space[place] if name != "identity") or space[place] for place in PLACES}
    found = [(0.4, {**full, **deep}), (0.2, full)]
    for count in range(2, len(widths) + 1):
        found.append((0.4 / max(1, len(widths) - 1), {**whole, "width": tuple(widths[-count:])}))
    return found


@dataclass(frozen=True)
class OnceForAll:
    r"""Train a supernet whose networks all work without further training; for each device, take the best that suits it.

    .. math:: \min_W \sum_a L\big(C(W, a)\big), \qquad
        a^\ast = \arg\max_{\mathrm{LAT}(a) \le T} \mathrm{accuracy}_{\text{val}}\big(C(W, a)\big)

    C cuts a network out of the shared weights. Training shrinks progressively: the largest networks first, then less
    depth, then less width, whose channels are put in the order of their importance before. From the second phase on
    the largest network of the first teaches the smaller ones.

    Parameters
    ----------
    epochs : int
        Of the supernet; an update trains one network.
    progressive : bool
        Otherwise all networks are trained from the start, without a teacher, for as many epochs.
    slowest : float
        T, in seconds as they are looked up; the supernet does not depend on it, and serves every T.

    Source: Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", arXiv 1908.09791,
    sections 3.2 and 3.3. There kernel sizes and resolutions are elastic too, and a predictor stands for the accuracy;
    here operations are chosen, and the space is small enough to look at whole.

    Examples
    --------
    >>> import datasets
    >>> table = datasets.workload("digits-search")
    >>> narrow = {**table.space, "first": ("convolution",), "second": ("convolution",), "norm": (True,)}
    >>> found, history = OnceForAll(epochs=10, slowest=90e-6).search(narrow, table.task(0), budget=10, seed=0)
    >>> table.task(0).latency(found) <= 90e-6, history[-1][2]
    (True, 10.0)
    """

    epochs: int = 180
    progressive: bool = True
    slowest: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.epochs, int) and self.epochs >= 1):
            raise ValueError(f"epochs: expected a positive integer, got {self.epochs!r}")
        if not self.slowest > 0:
            raise ValueError(f"slowest: expected seconds above 0, got {self.slowest!r}")

    def scores(self, space: Space, task: Any, seed: int) -> list[float]:
        """Validation accuracy of every network as it is cut out, in the order of the space."""
        return list(_trained(self.epochs, self.progressive, tuple(space.items()), task, seed)[1])

    def inherited(self, candidate: Mapping[str, Any], task: Any, seed: int) -> nn.Module:
        """The network as it is used: cut out of the supernet of the whole space."""
        space = tuple(task.workload.space.items())
        supernet = _trained(self.epochs, self.progressive, space, task, seed)[0]
        return recalibrated(supernet.child(candidate), task.data)

    def search(self, space: Space, task: Any, budget: float, seed: int) -> tuple[dict[str, Any], History]:
        """Take the best network that is fast enough; nothing is trained but the supernet.

        Parameters
        ----------
        space : mapping of str to tuple
            That of ``datasets.workloads.digits_search``, or a part of it.
        task : object
            Offers ``data``, ``recipe`` and ``latency(candidate)``.
        budget : float
            At least `epochs`; what is beyond is not spent.
        seed : int
            Of the supernet's weights, its batches and its paths.

        Raises
        ------
        ValueError
            If the budget does not pay for the supernet, or no network is fast enough.
        """
        if self.epochs > budget:
            raise ValueError(f"budget: {budget} epochs do not pay for the {self.epochs} of the shared weights")
        fast = [at for at, one in enumerate(architectures(space)) if task.latency(one) <= self.slowest]
        if not fast:
            raise ValueError(f"slowest: no network of the space takes {self.slowest:g} seconds or less")
        scores, every = self.scores(space, task, seed), list(architectures(space))
        found = max(fast, key=lambda at: scores[at])
        return every[found], [(every[found], scores[found], float(self.epochs))]


@lru_cache(maxsize=16)
def _trained(
    epochs: int, progressive: bool, space: tuple[tuple[str, tuple[Any, ...]], ...], task: Any, seed: int
) -> tuple[Supernet, tuple[float, ...]]:
    data, teacher = task.data, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = Supernet(dict(space))
        plan = phases(dict(space), progressive)
        ends = [round(epochs * sum(share for share, _ in plan[: at + 1])) for at in range(len(plan))]
        for at, (_, part) in enumerate(plan):
            if at:
                supernet.reorder()
            count = ends[at] - (ends[at - 1] if at else 0)
            Paths(partial(uniform, part), teacher).train(supernet, data, task.recipe, count, seed + at)
            if teacher is None and len(plan) > 1:
                largest = max(architectures(part), key=lambda one: (macs_of(one), one["norm"]))
                teacher = recalibrated(supernet.child(largest), data)
    return supernet, tuple(inherited_scores(supernet, data))


def macs_of(architecture: Mapping[str, Any]) -> int:
    """Multiply-accumulates of a network of the space, for one image."""
    return macs(plain(architecture), torch.zeros(1, 1, 8, 8))
