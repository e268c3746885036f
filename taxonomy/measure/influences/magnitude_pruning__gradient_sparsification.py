"""Does sending the largest numbers of a gradient save more, or less, when the network itself is sparse?"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import datasets
from kernels.implementation.distributed.exchange import Exchange, Sharing
from kernels.implementation.distributed.gradient_sparsification import GradientSparsification
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

DENSITIES = (0.1, 0.2, 0.5)
SENT = 0.1
"""The share of a gradient that is sent."""

EVERY = 4
"""Updates between two looks at the accuracy."""

ENOUGH = {"digits-mlp": 0.9, "noisy-digits-cnn": 0.72}
"""Accuracy on validation that ends a training."""

EXCHANGES = {False: Exchange(), True: GradientSparsification(SENT)}


class Masked(Sharing):
    """Workers that know which weights are zero for good, and speak of the others only.

    Parameters
    ----------
    network : nn.Module
    exchange : Exchange
    masks : mapping of str to Tensor of bool
        Of the parameters that have one, the numbers that are left.
    """

    def __init__(self, network: nn.Module, exchange: Exchange, masks: Mapping[str, Tensor]) -> None:
        super().__init__(network, exchange)
        self.masks = masks

    def agree(self, name: str, gradients: Tensor) -> Tensor:
        if name not in self.masks:
            return super().agree(name, gradients)
        whole = torch.zeros(gradients.shape[1:])
        whole[self.masks[name]] = super().agree(name, gradients[:, self.masks[name]])
        return whole


class Experiment(Protocol):
    kind = "magnitude-pruning--gradient-sparsification"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"density": density}, seed) for seed in range(3 * REPETITIONS) for density in DENSITIES]

    def quality(self, case: Case) -> Values:
        """Bytes to a given accuracy in four cells: dense (`neither`, `target`) or pruned (`source`, `both`), gradients
        whole or their largest numbers. All start from one network after a quarter of its training; the pruned ones
        lose their smallest weights there, and never get them back."""
        density = case.setting["density"]
        cells = {"neither": (1.0, False), "target": (1.0, True), "source": (density, False), "both": (density, True)}
        return {cell: {"bytes_sent": _bytes(case.workload, case.seed, *how)} for cell, how in cells.items()}


@cache
def _start(workload: Any, seed: int) -> nn.Module:
    """The network at half of the accuracy that is wanted, or soon after."""
    network, data = workload.network(seed), workload.data()

    def look(step: int, network: nn.Module) -> None:
        if datasets.accuracy(network, data.validation) >= ENOUGH[workload.id] / 2:
            raise Done

    _until(replace(workload.recipe, schedule="constant", seed=seed), network, data, look)
    return network


class Done(Exception):
    """Good enough."""


def _until(recipe: Any, network: nn.Module, data: Any, look: Any) -> bool:
    """Train until `look` says done; whether it did."""
    try:
        recipe.train(network, data, on_step=look)
    except Done:
        return True
    return False


@cache
def _bytes(workload: Any, seed: int, density: float, sparse: bool) -> float:
    """What a worker sends until the network is good enough."""
    data, start = workload.data(), _start(workload, seed)
    network = copy.deepcopy(start) if density == 1 else bake(MagnitudePruning(density).apply(start))
    weights = [(name, p) for name, p in network.named_parameters() if p.ndim > 1]
    masks = {name: p.detach() != 0 for name, p in weights} if density < 1 else {}
    shared, sent = Masked(network, EXCHANGES[sparse], masks), 0.0

    def look(step: int, shared: Any) -> None:
        nonlocal sent
        sent += shared.bytes_sent
        if step % EVERY == 0 and datasets.accuracy(shared, data.validation) >= ENOUGH[workload.id]:
            raise Done

    if not _until(replace(workload.recipe, schedule="constant", seed=seed + 1000), shared, data, look):
        raise RuntimeError(f"{workload.id} at density {density}, seed {seed}: never good enough")
    return sent


protocol = Experiment()
