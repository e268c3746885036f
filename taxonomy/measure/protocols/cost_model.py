"""Accelerator cost models on the layers of a workload, over sizes of the hardware; the baseline is the ideal array.

A network workload gives its own layers for one item; an operand workload lists them, `count` times each. A model whose
cost depends on the numbers themselves (`needs_values`) is given the trained network's weights and its layers' inputs
for training items, batch norm folded; its figures are means over those items. One that asks how layers are connected
(`cost_network`) is given the trained network itself. What is stored are the figures of the model's counts; of one that
cannot be had the model says why (`missing`). Sizes are those of a square array, or what a technique's settings list as
`sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kernels.implementation.dataflow.layer import Layer, layers_of, valued_layers
from taxonomy.measure.protocol import Case, Missing, Protocol, Trial, Values

SIZES = tuple({"rows": size, "columns": size} for size in (8, 16, 32, 64))
ITEMS = 16
"""Training items whose inputs a model that needs values is given."""
NO_PEER = {
    "scale-sim": "needs numpy < 2 and minutes a layer; its totals are held by the tests and by convention='scale-sim'",
}


class CostModelProtocol(Protocol):
    kind = "cost-model"
    metrics = ("cycles", "macs", "core_utilization", "sram_access", "memory_access", "energy")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial(size) for size in technique.settings.get("sizes", SIZES)]

    def quality(self, case: Case) -> Values:
        subject = replace(case.subject, **case.setting)
        connected = hasattr(subject, "cost_network") and hasattr(case.workload, "trained")
        given = _network_of(case.workload) if connected else (_layers_for(subject, case.workload),)
        values: Values = {}
        for who, model in (("self", subject), ("baseline", subject.ideal())):
            figures = (model.cost_network if connected else model.cost)(*given).figures()
            values[who] = {k: Missing(model.missing[k]) if v is None else v for k, v in figures.items()}
        for peer in case.technique.peers:
            values[peer] = {"cycles": Missing(NO_PEER[peer])}
        return values


def _network_of(workload: Any) -> tuple[Any, tuple[int, ...]]:
    return workload.trained(), workload.input_shape


def _layers_for(model: Any, workload: Any) -> Sequence[Layer]:
    return (valued_layers_of if model.needs_values else layers_of_workload)(workload)


def layers_of_workload(workload: Any) -> list[Layer]:
    """The layers of a network workload for one item, or those that an operand workload lists."""
    if hasattr(workload, "network"):
        import torch

        return layers_of(workload.network(), torch.zeros(1, *workload.input_shape))
    return [layer for setting in workload.settings for layer in [_layer(setting)] * setting.get("count", 1)]


def valued_layers_of(workload: Any) -> Sequence[Layer]:
    """The layers of a trained network with weights and inputs; those of an operand workload, without."""
    if not hasattr(workload, "network"):
        return layers_of_workload(workload)
    import torch

    from taxonomy.measure.stack import fold

    return valued_layers(fold(workload.trained()), torch.tensor(workload.data().train.x[:ITEMS]))


def _layer(setting: Mapping[str, Any]) -> Layer:
    if setting.get("type") == "linear":
        return Layer.gemm(1, setting["out_features"], setting["in_features"])
    return Layer(
        setting["in_channels"],
        setting["out_channels"],
        setting["size"],
        setting["size"],
        setting["kernel"],
        setting["stride"],
        setting["padding"],
        groups=setting.get("groups", 1),
    )


protocol = CostModelProtocol()
