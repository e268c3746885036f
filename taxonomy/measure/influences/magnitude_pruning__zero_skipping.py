"""How many products does an engine that skips zeros on both sides still do, once weights are pruned?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from kernels.implementation.dataflow.layer import valued_layers
from kernels.implementation.sparsity.zero_skipping import ZeroSkipping
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

DENSITIES = (0.05, 0.1, 0.2, 0.5)
ITEMS = 32


class Experiment(Protocol):
    kind = "magnitude-pruning--zero-skipping"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"density": density}, seed) for seed in range(REPETITIONS) for density in DENSITIES]

    def quality(self, case: Case) -> Values:
        x = torch.tensor(case.workload.data().test.x[:ITEMS])
        network = _trained(case.workload, case.seed)
        pruned = MagnitudePruning(density=case.setting["density"]).apply(network)
        case.workload.recipe.finetune(pruned, case.workload.data(), seed=case.seed)
        return {
            who: {"effective_macs": products(arm, x) / len(x)}
            for who, arm in (("self", bake(pruned)), ("baseline", network))
        }


def products(network: nn.Module, x: torch.Tensor) -> int:
    """Products of two numbers that both differ from zero, in all layers over all items.

    Examples
    --------
    >>> layer = nn.Linear(3, 2, bias=False)
    >>> with torch.no_grad():
    ...     weight = layer.weight.copy_(torch.tensor([[1.0, 0, 2], [0, 0, 3]]))
    >>> products(layer, torch.tensor([[1.0, 1, 0], [0, 0, 1]]))
    3
    """
    operator = ZeroSkipping("both")
    return sum(
        operator.effective_macs(w, inputs.reshape(-1, w.shape[1]).T)
        for layer in valued_layers(network, x)
        for w, inputs in zip(layer.weights, layer.inputs.swapaxes(0, 1), strict=True)
    )


@lru_cache(maxsize=2)
def _trained(workload: Any, seed: int) -> nn.Module:
    """A network of its own for each repetition."""
    network = workload.network(seed)
    workload.recipe.train(network, workload.data(), seed=seed)
    return network


protocol = Experiment()
