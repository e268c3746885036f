"""How many bytes less cross the edge of the chip when one layer's weights serve many steps?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kernels.implementation.dataflow.layer import layers_of
from kernels.implementation.dataflow.weight_stationary import WeightStationary
from kernels.model.block import replace
from kernels.model.weight_sharing.cross_layer_sharing import CrossLayerSharing
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

STEPS = (2, 4, 8)
BUFFERS = (8, 32)
"""KiB for filters. Half of the first is less than a layer's filters, half of the second more."""


class Experiment(Protocol):
    kind = "cross-layer-sharing--weight-stationary"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"steps": steps, "filter_kib": kib}, seed)
            for seed in range(REPETITIONS)  # the counts are the same each time: there is nothing random
            for steps in STEPS
            for kib in BUFFERS
        ]

    def quality(self, case: Case) -> Values:
        array = WeightStationary(filter_kib=case.setting["filter_kib"])
        tied, x = CrossLayerSharing(case.setting["steps"]), torch.zeros(1, *case.workload.input_shape)
        blocks = {"self": tied, "baseline": tied.untied()}
        return {
            who: {"memory_access": off_chip(replace(case.workload.network(case.seed), block), x, array)}
            for who, block in blocks.items()
        }


def off_chip(network: nn.Module, x: torch.Tensor, array: WeightStationary) -> int:
    """Bytes of all layers in turn; filters that half of their buffer holds stay there for a call right after.

    Examples
    --------
    >>> layer = nn.Linear(100, 100, bias=False)
    >>> twice, two = nn.Sequential(layer, layer), nn.Sequential(layer, nn.Linear(100, 100, bias=False))
    >>> array = WeightStationary(filter_kib=32)
    >>> off_chip(two, torch.zeros(1, 100), array) - off_chip(twice, torch.zeros(1, 100), array)
    10000
    """
    total, before = 0, ""
    for layer in layers_of(network, x):
        dram = array.cost(layer).dram
        stays = layer.name == before and dram.filter <= array.filter_kib * 1024 // 2
        total += dram.total - dram.filter * stays
        before = layer.name
    return total


protocol = Experiment()
