"""Accelerator cost models on the layers of a workload, over sizes of the array; the baseline is the ideal array.

A network workload gives its own layers for one item; an operand workload lists them, `count` times each. A model whose
cost depends on the numbers themselves (`needs_values`) is given the trained network's weights and its layers' inputs
for training items, batch norm folded; its figures are means over those items, and the digits that it worked on are
stored too (`essential_bits`). A model without a cited energy says why (`no_energy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kernels.implementation.dataflow.layer import Layer, layers_of
from taxonomy.measure.protocol import Case, Missing, Protocol, Trial, Values

SIZES = (8, 16, 32, 64)
ITEMS = 16
"""Training items whose inputs a model that needs values is given."""
NO_PEER = {
    "scale-sim": "needs numpy < 2 and minutes a layer; its totals are held by the tests and by convention='scale-sim'",
}


class CostModelProtocol(Protocol):
    kind = "cost-model"
    metrics = ("cycles", "macs", "core_utilization", "sram_access", "memory_access", "energy")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"rows": size, "columns": size}) for size in SIZES]

    def quality(self, case: Case) -> Values:
        array = replace(case.subject, **case.setting)
        valued = getattr(array, "needs_values", False)
        layers = valued_layers_of(case.workload) if valued else layers_of_workload(case.workload)
        values: Values = {}
        for who, model in (("self", array), ("baseline", array.ideal())):
            counts = model.cost(layers)
            values[who] = {
                "cycles": counts.cycles,
                "macs": counts.macs,
                "core_utilization": counts.utilization,
                "sram_access": counts.sram.total,
                "memory_access": counts.dram.total,
                "energy": Missing(model.no_energy) if counts.energy is None else counts.energy,
            }
            if hasattr(counts, "essential_bits"):
                values[who]["essential_bits"] = counts.essential_bits
        for peer in case.technique.peers:
            values[peer] = {"cycles": Missing(NO_PEER[peer])}
        return values


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

    from kernels.arithmetic.approximate_arithmetic.essential_bits import valued_layers
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
