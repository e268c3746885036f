"""Does holding weights, in place of sums, move fewer bytes, and does that depend on the buffer?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.on_chip_buffering import OnChipBuffering
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

LAYERS = {
    "early": Layer(64, 64, 56, 56, kernel=3, padding=1),
    "late": Layer(512, 512, 7, 7, kernel=3, padding=1),
    "linear": Layer.gemm(1, 1000, 512),
}
SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Experiment(Protocol):
    kind = "weight-stationary--on-chip-buffering"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"layer": name, "kib": kib}, seed)
            for seed in range(REPETITIONS)  # the counts are the same each time: there is nothing random
            for name in LAYERS
            for kib in SIZES
        ]

    def quality(self, case: Case) -> Values:
        layer, kib = LAYERS[case.setting["layer"]], case.setting["kib"]
        return {
            who: {"memory_access": OnChipBuffering(hold, kib).cost(layer).dram.total}
            for who, hold in (("self", "weight"), ("baseline", "output"))
        }


protocol = Experiment()
