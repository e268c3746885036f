"""Do the layers of a thinner network keep less of a systolic array busy?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from kernels.implementation.dataflow.layer import Layer, layers_of
from kernels.implementation.dataflow.systolic_array import DATAFLOWS, StallingArray
from kernels.model.block import NetworkSpec
from kernels.model.compact_convolution.width_multiplier import WidthMultiplier
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

WIDTHS = (0.25, 0.5)
SIZES = (8, 16, 32, 64)


class Experiment(Protocol):
    kind = "width-multiplier--systolic-array"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"array": size, "width": width}, seed)
            for seed in range(REPETITIONS)  # the counts are the same each time: there is nothing random
            for size in SIZES
            for width in WIDTHS
        ]

    def quality(self, case: Case) -> Values:
        width, size = case.setting["width"], case.setting["array"]
        whole, thin = _listed(case.workload, width) if hasattr(case.workload, "settings") else _of(case.workload, width)
        return {
            who: {"core_utilization": _busiest(layers, size)} for who, layers in (("self", thin), ("baseline", whole))
        }


def _of(workload: Any, width: float) -> tuple[list[Layer], list[Layer]]:
    spec, x = NetworkSpec(workload.network(), workload.input_shape), torch.zeros(1, *workload.input_shape)
    return layers_of(spec.network, x), layers_of(WidthMultiplier(width).build(spec), x)


def _listed(workload: Any, width: float) -> tuple[list[Layer], list[Layer]]:
    """The workload's list of layers, each as often as it occurs; the image and the answers keep their channels."""
    whole, thin = [], []
    for number, shape in enumerate(workload.settings):
        last = number == len(workload.settings) - 1
        if shape["type"] == "linear":
            layer = Layer.gemm(1, shape["out_features"], shape["in_features"])
        else:
            layer = Layer(
                shape["in_channels"], shape["out_channels"], shape["size"], shape["size"], shape["kernel"],
                shape["stride"], shape["padding"],
            )  # fmt: skip
        inputs = layer.in_channels if number == 0 else round(width * layer.in_channels)
        outputs = layer.out_channels if last else round(width * layer.out_channels)
        whole += [layer] * shape["count"]
        thin += [replace(layer, in_channels=inputs, out_channels=outputs)] * shape["count"]
    return whole, thin


def _busiest(layers: list[Layer], size: int) -> float:
    """With a memory that is always fast enough: what is left is the shape."""
    models = (StallingArray(flow, size, size, bandwidth=1e9) for flow in DATAFLOWS)
    return max(model.cost(layers).utilization for model in models)


protocol = Experiment()
