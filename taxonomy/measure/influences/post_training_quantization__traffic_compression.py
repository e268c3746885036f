"""How many bytes does a compressed stream of weights save once they have few bits, and what do zeros add?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from datasets import accuracy
from kernels.implementation.memory.traffic_compression import zero_value_bits
from kernels.model.batch_norm import fold
from kernels.model.calibration import places
from kernels.model.quantization.post_training_quantization import PostTrainingQuantization
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

BITS = (8, 4, 3, 2)


class Experiment(Protocol):
    kind = "post-training-quantization--traffic-compression"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"bits": bits}, seed) for seed in range(REPETITIONS) for bits in BITS]

    def quality(self, case: Case) -> Values:
        data, network = case.workload.data(), _network(case.workload, case.seed)
        method = PostTrainingQuantization(bits=case.setting["bits"], inputs=0, limits="mse")
        quantized = method.apply(network, data)
        return {
            "self": {
                "memory_access": _bytes(quantized, method.bits, scales=True), "accuracy": accuracy(quantized, data.test)
            },
            "baseline": {
                "memory_access": _bytes(fold(network), 32, scales=False), "accuracy": accuracy(network, data.test)
            },
        }  # fmt: skip


def _bytes(network: nn.Module, width: int, scales: bool) -> float:
    """A bit for each weight, the non-zero ones in `width` bits, and a scale in FP32 for each output."""
    bits = 0
    for _, layer, name in places(network):
        weight = getattr(layer, name)
        bits += zero_value_bits(weight.numel(), int(weight.count_nonzero()), width)
        bits += 32 * len(weight) if scales else 0
    return bits / 8


@lru_cache(maxsize=2)
def _network(workload: Any, seed: int) -> nn.Module:
    """A network of its own for each repetition."""
    network = workload.network(seed)
    workload.recipe.train(network, workload.data(), seed=seed)
    return network


protocol = Experiment()
