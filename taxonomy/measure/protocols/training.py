"""How training methods are measured: what the same network learns, and what the learning costs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets import Workload, accuracy
from kernels import counting
from kernels.model.transform import bake
from taxonomy.measure.figures import costs, one_item
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

__all__ = ["TrainingProtocol", "protocol"]

SMOOTHING = 0.1
BACKWARD = 3
"""A training pass is a forward one and two products of the same size: gradients of inputs and of weights."""


class TrainingProtocol(Protocol):
    """Train by the technique, by the plain recipe and with smoothed labels: same start, same updates, same order.

    A technique's settings say which `network` of the workload learns: its own (network, the default) or its smaller
    one (student). The workload's trained network is offered as the teacher; where it is used, it is a contestant.
    """

    kind = "training"
    version = 1
    metrics = ("accuracy", "steps", "training_macs", "parameters", "macs")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial(seed=seed) for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        workload = case.workload
        which = case.technique.settings.get("network", "network")
        network, teacher = getattr(workload, which)(case.seed), workload.trained()
        meter = _Meter()
        meter.watch(network, workload)
        lessons = meter.watch(teacher, workload)
        trained, trace = case.subject.train(network, workload.data(), workload.recipe, teacher, seed=case.seed)
        cost = {"steps": len(trace), "training_macs": meter.macs}
        values: Values = {
            "self": {**_figures(bake(trained), workload), **cost},
            "baseline": {**_plain(workload, which, case.seed, 0.0)},
            "label-smoothing": {**_plain(workload, which, case.seed, SMOOTHING)},
        }
        if lessons:
            values["teacher"] = {**_figures(workload.trained(), workload)}
        return values


class _Meter:
    """Multiply-accumulates of everything that watched networks, and copies of them, compute."""

    def __init__(self) -> None:
        self.macs = 0

    def watch(self, network: nn.Module, workload: Workload) -> list[int]:
        """Meter a network from now on; the list holds the items of each call."""
        macs = counting.macs(network, one_item(workload))
        items: list[int] = []

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            items.append(len(inputs[0]))
            self.macs += items[-1] * macs * (BACKWARD if torch.is_grad_enabled() else 1)

        network.register_forward_hook(hook)
        return items


@cache
def _plain(workload: Workload, which: str, seed: int, smoothing: float) -> dict[str, float]:
    """The recipe with nothing added but smoothed labels; remembered, because all variants share it."""
    network, meter = getattr(workload, which)(seed), _Meter()
    meter.watch(network, workload)

    def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(network(x), y, label_smoothing=smoothing)

    trace = workload.recipe.train(network, workload.data(), loss=loss, seed=seed)
    cost = {"steps": len(trace), "training_macs": meter.macs}
    return {**_figures(network, workload), **cost}


def _figures(network: nn.Module, workload: Workload) -> dict[str, float]:
    return {"accuracy": accuracy(network, workload.data().test), **costs(network, workload)}


protocol = TrainingProtocol()
