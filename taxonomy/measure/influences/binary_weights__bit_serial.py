"""How much less does a product bit by bit cost with one plane of weights than with several?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from kernels.arithmetic.approximate_arithmetic.bit_serial import BitSerial
from kernels.counting import macs_by_layer
from kernels.model.quantization.binary_weights import BinaryWeights
from kernels.model.quantization.quantization_aware_training import QuantizationAwareTraining
from kernels.model.transform import bake
from taxonomy.measure.figures import one_item
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial, Values

WEIGHT_BITS = (2, 3, 4, 8)
INPUT_BITS = 8
ROWS = 1024
LAYER = "7"
"""The layer with the largest weight matrix: its product is timed, for as many patches."""


class Experiment(Protocol):
    kind = "binary-weights--bit-serial"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            *(Trial({"weight_bits": bits}, seed) for seed in range(REPETITIONS) for bits in WEIGHT_BITS),
            *(
                Trial({"metric": "latency", "weight_bits": bits}, seed, timing=True)
                for seed in range(REPETITIONS)
                for bits in WEIGHT_BITS
            ),
        ]

    def quality(self, case: Case) -> Values:
        """Of an untrained network of the seed: counts do not depend on what it has learnt, only on its planes."""
        bits = case.setting["weight_bits"]
        arms: dict[str, tuple[Any, int]] = {
            "self": (BinaryWeights(), 1),
            "baseline": (QuantizationAwareTraining(bits, INPUT_BITS), bits),
        }
        found: Values = {}
        for who, (method, wide) in arms.items():
            network = bake(method.constrain(case.workload.network(case.seed)))
            macs = macs_by_layer(network, one_item(case.workload))
            planes = sum(macs[name] * packed_planes(layer, wide) * INPUT_BITS for name, layer in _layers(network))
            found[who] = {"bit_operations": planes}
        return found

    def contest(self, case: Case) -> Contest:
        network = case.workload.network(case.seed)
        rng = np.random.default_rng(case.seed)
        weight = network.get_submodule(LAYER).weight.detach().flatten(1).T.contiguous().numpy()
        x = np.abs(rng.standard_normal((ROWS, len(weight)), np.float32))
        operators = {"self": BitSerial(1, INPUT_BITS), "baseline": BitSerial(case.setting["weight_bits"], INPUT_BITS)}
        calls = {who: partial(operator.matmul, x, operator.prepare(weight)) for who, operator in operators.items()}
        return Contest(
            calls,
            work=2.0 * ROWS * weight.size,
            unit="op",
        )


def packed_planes(layer: nn.Module, bits: int) -> int:
    """Planes of bits that the operator makes of a layer's weights."""
    weight: Any = layer.weight
    return BitSerial(bits, INPUT_BITS).prepare(weight.detach().flatten(1).T.contiguous().numpy()).coded.bits


def _layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


protocol = Experiment()
