"""What the experiments of a rescue share: training in a format alone, and with what is said to save it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

import datasets
from datasets import Recipe, Workload
from datasets.workloads.recipe import CrossEntropy
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

__all__ = ["Rescue", "small_loss", "small_steps"]

EPOCHS = {"mnist-cnn": 1}

Train = Callable[[nn.Module, Any, Recipe, int], nn.Module]


@dataclass(frozen=True)
class Rescue(Protocol):
    """Against plain training in FP32 by the same recipe: the source alone (0), and with the target (1).

    Parameters
    ----------
    kind : str
        The edge's id.
    recipe : callable of Recipe
        The conditions, under which the source is said to fail.
    alone, rescued : callable of (network, data, recipe, seed)
        Give the trained network.
    """

    kind: str
    recipe: Callable[[Recipe], Recipe]
    alone: Train
    rescued: Train

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"rescued": rescued}, seed) for rescued in (0, 1) for seed in range(2 * REPETITIONS)]

    def quality(self, case: Case) -> Values:
        workload = case.workload
        recipe = workload.recipe
        recipe = self.recipe(replace(recipe, epochs=EPOCHS.get(workload.id, recipe.epochs)))
        train = self.rescued if case.setting["rescued"] else self.alone
        network = train(workload.network(case.seed), workload.data(), recipe, case.seed)
        accuracy = datasets.accuracy(network, workload.data().test)
        return {"self": {"accuracy": accuracy}, "baseline": {"accuracy": _plain(workload, recipe, case.seed)}}


@cache
def _plain(workload: Workload, recipe: Recipe, seed: int) -> float:
    network = workload.network(seed)
    recipe.train(network, workload.data(), seed=seed)
    return datasets.accuracy(network, workload.data().test)


def small_steps(recipe: Recipe) -> Recipe:
    """A hundredth of the rate, constant: AdamW's steps are then below half a bfloat16 step of most weights."""
    return replace(recipe, learning_rate=recipe.learning_rate / 100, schedule="constant")


def small_loss(recipe: Recipe) -> Recipe:
    """The loss over 2^16: as if it were the mean over the pixels of an image of which one is labelled."""
    return replace(recipe, loss=CrossEntropy(factor=2.0**-16))
