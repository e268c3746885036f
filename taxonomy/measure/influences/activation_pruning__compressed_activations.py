"""Do activations kept without their zeros take fewer bytes when they have been pruned in blocks first?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from datasets.workloads.recipe import CrossEntropy
from kernels import counting
from kernels.implementation.training_memory.compressed_activations import CompressedActivations
from kernels.model.pruning.activation_pruning import ActivationPruning
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.training_system import DEEP, chain

DENSITIES = (0.1, 0.25, 0.5)


class Experiment(Protocol):
    kind = "activation-pruning--compressed-activations"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({**DEEP, "density": density}, seed) for seed in range(REPETITIONS) for density in DENSITIES]

    def quality(self, case: Case) -> Values:
        """One step of a chain on the workload's items: without loss, pruned and not; the error against a plain step."""
        depth, size, density = (case.setting[name] for name in ("depth", "batch", "density"))
        data = case.workload.data()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            network = chain(case.workload.input_shape, data.classes, depth).train()
        items = data.train[case.seed * size : (case.seed + 1) * size]
        x, y = torch.tensor(items.x), torch.tensor(items.y)
        compressed = CompressedActivations(bits=32).wrap(network)
        _, plain = _step(network, network, x, y)
        arms = {"self": ActivationPruning(density).wrap(network, beside=compressed), "baseline": compressed}
        values: Values = {}
        for who, run in arms.items():
            peak, gradient = _step(network, run, x, y)
            error = float((gradient - plain).norm() / plain.norm())
            values[who] = {"training_peak_bytes": peak, "gradient_error": error}
        return values


def _step(network: nn.Module, run: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[int, torch.Tensor]:
    network.zero_grad()
    peak = counting.training_peak_bytes(network, lambda: CrossEntropy()(run, x, y).backward())
    return peak, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


protocol = Experiment()
