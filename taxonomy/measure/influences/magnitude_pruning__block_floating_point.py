"""Does a shared exponent fit weights better when the small ones are gone?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from kernels.arithmetic.block_formats.block_floating_point import BlockFloatingPoint
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.number_format import errors, weights_of

DENSITIES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8)
BITS = (4, 6, 8)


class Experiment(Protocol):
    kind = "magnitude-pruning--block-floating-point"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"bits": bits, "density": density}, seed)
            for seed in range(REPETITIONS)
            for density in DENSITIES
            for bits in BITS
        ]

    def quality(self, case: Case) -> Values:
        density, bits = case.setting["density"], case.setting["bits"]
        form = BlockFloatingPoint(bits, 32)
        network = _trained(case.workload, case.seed)
        pruned = _pruned(case.workload, case.seed, density)
        values: Values = {}
        for who, weights in (("self", weights_of(pruned)), ("baseline", weights_of(network))):
            values[who] = {"sqnr": errors([(weight.numpy(), form) for weight in weights])["sqnr"]}
        return values


@lru_cache(maxsize=2)
def _trained(workload: Any, seed: int) -> nn.Module:
    """A network of its own for each repetition."""
    network = workload.network(seed)
    workload.recipe.train(network, workload.data(), seed=seed)
    return network


@lru_cache(maxsize=8)
def _pruned(workload: Any, seed: int, density: float) -> nn.Module:
    pruned = MagnitudePruning(density=density).apply(_trained(workload, seed))
    workload.recipe.finetune(pruned, workload.data(), seed=seed)
    return bake(pruned)


protocol = Experiment()
