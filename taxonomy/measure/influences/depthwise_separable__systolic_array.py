"""Does a depthwise layer keep less of a systolic array busy than a standard layer of equal output?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.systolic_array import DATAFLOWS, StallingArray
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

LAYERS = ({"channels": 64, "size": 56}, {"channels": 128, "size": 28}, {"channels": 256, "size": 14})
SIZES = (8, 16, 32, 64)


class Experiment(Protocol):
    kind = "depthwise-separable--systolic-array"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"array": size, **layer}, seed)
            for seed in range(REPETITIONS)  # the counts are the same each time: there is nothing random
            for size in SIZES
            for layer in LAYERS
        ]

    def quality(self, case: Case) -> Values:
        channels, size, array = (case.setting[name] for name in ("channels", "size", "array"))
        layers = {
            who: Layer(channels, channels, size, size, kernel=3, padding=1, groups=groups)
            for who, groups in (("self", channels), ("baseline", 1))
        }
        return {who: {"core_utilization": _busiest(layer, array)} for who, layer in layers.items()}


def _busiest(layer: Layer, size: int) -> float:
    """With a memory that is always fast enough: what is left is the shape."""
    models = (StallingArray(flow, size, size, bandwidth=1e9) for flow in DATAFLOWS)
    return max(model.cost(layer).utilization for model in models)


protocol = Experiment()
