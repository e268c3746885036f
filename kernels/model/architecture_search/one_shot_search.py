"""One-shot architecture search: weights that all networks share are trained once, and rank them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.architecture_search.random_search import History
from kernels.model.architecture_search.reinforcement_search import Recurrent, policy_gradient
from kernels.model.architecture_search.supernet import (
    Paths,
    Supernet,
    architectures,
    inherited_scores,
    recalibrated,
    share_right,
    trained_in_order,
    uniform,
)

__all__ = ["OneShotSearch"]

SAMPLERS = ("uniform", "controller")


@dataclass(frozen=True)
class OneShotSearch:
    r"""Train a supernet, one drawn network an update; rank all networks with the weights that they inherit.

    .. math:: W^\ast = \arg\min_W \mathbb{E}_{a \sim \pi} \left[ L_{\text{train}}(a, W) \right], \qquad
        a^\ast = \arg\max_a \mathrm{accuracy}_{\text{val}}(a, W^\ast)

    What the budget leaves after the supernet's epochs trains the first of the ranking in full, each from scratch.

    Parameters
    ----------
    epochs : int
        Of the supernet; an update trains one path, so that an epoch costs what one of a single network does.
    sampler : {"uniform", "controller"}
        π: every value evenly; or a controller that is rewarded, after each epoch, with the validation accuracy of what
        it draws under the shared weights of that moment, as in ENAS.
    steps : int
        Updates of the controller after an epoch, each from one network and 64 validation items, forward only.

    Source: Pham et al., "Efficient Neural Architecture Search via Parameter Sharing", arXiv 1802.03268, section 2.2,
    for the controller; without one, training paths drawn evenly is the plainest one-shot search. There networks are
    drawn from the trained controller and the best of a few is kept; here the space is small enough to rank whole.

    Examples
    --------
    >>> import datasets
    >>> table = datasets.workload("digits-search")
    >>> narrow = {**table.space, "first": ("identity",), "second": ("convolution",), "third": ("identity",)}
    >>> found, history = OneShotSearch(epochs=6).search(narrow, table.task(0), budget=30, seed=0)
    >>> [spent for _, _, spent in history]
    [6.0, 18.0, 30.0]
    """

    epochs: int = 60
    sampler: str = "uniform"
    steps: int = 10

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if not (isinstance(self.epochs, int) and self.epochs >= 1):
            raise ValueError(f"epochs: expected a positive integer, got {self.epochs!r}")

    def scores(self, space: Mapping[str, tuple[Any, ...]], task: Any, seed: int) -> list[float]:
        """Validation accuracy of every network with inherited weights, in the order of the space."""
        return list(_trained(self, tuple(space.items()), task, seed)[1])

    def inherited(self, candidate: Mapping[str, Any], task: Any, seed: int) -> nn.Module:
        """The network with the weights that it inherits; of the whole space."""
        space = tuple(task.workload.space.items())
        return recalibrated(_trained(self, space, task, seed)[0].child(candidate), task.data)

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Search for the budget, in epochs: those of the supernet, and of the networks trained from scratch.

        Parameters
        ----------
        space : mapping of str to tuple
            That of ``datasets.workloads.digits_search``, or a part of it.
        task : object
            Offers ``data`` and ``recipe`` beside ``evaluate`` and ``cost``.
        budget : float
        seed : int
            Of the supernet's weights, its batches and its paths.

        Raises
        ------
        ValueError
            If the budget does not pay for the supernet.
        """
        if self.epochs > budget:
            raise ValueError(f"budget: {budget} epochs do not pay for the {self.epochs} of the shared weights")
        scores = self.scores(space, task, seed)
        ranked = sorted(zip(scores, architectures(space), strict=True), key=lambda pair: -pair[0])
        return trained_in_order((one for _, one in ranked), task, budget, float(self.epochs), ranked[0][0])


@lru_cache(maxsize=16)
def _trained(
    search: OneShotSearch, space: tuple[tuple[str, tuple[Any, ...]], ...], task: Any, seed: int
) -> tuple[Supernet, tuple[float, ...]]:
    choices = dict(space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = Supernet(choices)
        if search.sampler == "uniform":
            Paths(lambda: uniform(choices)).train(supernet, task.data, task.recipe, search.epochs, seed)
        else:
            _with_controller(search, supernet, task, seed)
    return supernet, tuple(inherited_scores(supernet, task.data))


def _with_controller(search: OneShotSearch, supernet: Supernet, task: Any, seed: int) -> None:
    """Shared weights and controller take turns: an epoch of the one, some steps of the other."""
    choices, validation = supernet.space, task.data.validation
    controller = Recurrent(choices)
    optimizer = torch.optim.Adam(controller.parameters(), lr=0.01)
    baseline: list[float] = []
    updates = -(-len(task.data.train) // task.recipe.batch)

    def drawn() -> tuple[dict[str, Any], Tensor]:
        at, logp = controller()
        return {c: values[i] for (c, values), i in zip(choices.items(), at, strict=True)}, logp

    def teach(step: int, network: nn.Module) -> None:
        if (step + 1) % updates:
            return
        for _ in range(search.steps):
            one, logp = drawn()
            items = torch.randint(len(validation), (64,)).numpy()
            child = supernet.child(one).train()  # norms take the batch's own statistics, as while training
            for module in child.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean = module.running_var = None
            reward = share_right(child, validation[items])
            usual = baseline[0] if baseline else reward
            optimizer.zero_grad()
            policy_gradient([logp], [reward], usual).backward()
            optimizer.step()
            baseline[:] = [0.9 * usual + 0.1 * reward]

    def path() -> dict[str, Any]:
        with torch.no_grad():
            return drawn()[0]

    recipe = replace(task.recipe, epochs=search.epochs, loss=Paths(path))
    recipe.train(supernet, task.data, seed=seed, on_step=teach)
