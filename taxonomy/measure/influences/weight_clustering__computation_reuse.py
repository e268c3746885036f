"""How many multiplications does an operator that factors repeated weights still do, once weights are clustered?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from kernels.implementation.convolution.computation_reuse import ComputationReuse
from kernels.implementation.dataflow.layer import valued_layers
from kernels.model.weight_sharing.weight_clustering import WeightClustering
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

CLUSTERS = (2, 4, 16, 64)


class Experiment(Protocol):
    kind = "weight-clustering--computation-reuse"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"clusters": clusters}, seed) for seed in range(REPETITIONS) for clusters in CLUSTERS]

    def quality(self, case: Case) -> Values:
        network = _trained(case.workload, case.seed)
        clustered = WeightClustering(clusters=case.setting["clusters"]).apply(network)
        x = torch.tensor(case.workload.data().test.x[:1])
        arms = {"self": clustered, "baseline": network}
        return {who: {"effective_macs": multiplications(arm, x)} for who, arm in arms.items()}


def multiplications(network: nn.Module, x: torch.Tensor) -> int:
    """Of all layers for these items: one for each different non-zero weight of an output, at each of its places.

    Examples
    --------
    >>> layer = nn.Linear(3, 2, bias=False)
    >>> with torch.no_grad():
    ...     weight = layer.weight.copy_(torch.tensor([[1.0, 1, 2], [0, 3, 3]]))
    >>> multiplications(layer, torch.ones(4, 3))
    12
    """
    operator = ComputationReuse(bits=None)
    return sum(
        inputs.shape[0] * inputs.shape[1] * operator.multiplications(operator.prepare(w.T))
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
