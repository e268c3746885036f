"""Accelerator cost models on the layers of a workload, over sizes of the hardware; the baseline is the ideal array.

A network workload gives its own layers for one item; an operand workload lists them, `count` times each. A model whose
cost depends on the numbers themselves (`needs_values`) is given the trained network's weights and its layers' inputs
for training items, batch norm folded; its figures are means over those items. One that asks how layers are connected
(`cost_network`) is given the trained network itself. What is stored are the figures of the model's counts; of one that
cannot be had the model says why (`missing`). Sizes are those of a square array, or what a technique's settings list as
`sizes`.

A model that multiplies as its hardware would (`matmul`) answers too, where the settings name `items`: with every
convolution and linear layer of a network computed by it, accuracy on the first so many of the test split and the error
of their logits, against the network in FP32. One in whose answers chance has a part (`random`) is repeated for as many
`seeds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log10
from typing import Any

import numpy as np

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
        settings = technique.settings
        sizes, seeds = settings.get("sizes", SIZES), 1
        if "items" in settings and hasattr(workload, "data"):
            items = min(settings["items"], len(workload.data().test))
            sizes = [{**size, "items": items} for size in sizes]
            seeds = settings.get("seeds", 1) if technique.reference(**variant).random else 1
        return [Trial(size, seed) for size in sizes for seed in range(seeds)]

    def quality(self, case: Case) -> Values:
        subject = replace(case.subject, **{name: size for name, size in case.setting.items() if name != "items"})
        if getattr(subject, "random", False):
            subject = replace(subject, seed=case.seed)
        connected = hasattr(subject, "cost_network") and hasattr(case.workload, "trained")
        given = _network_of(case.workload) if connected else (_layers_for(subject, case.workload),)
        values: Values = {}
        for who, model in (("self", subject), ("baseline", subject.ideal())):
            figures = (model.cost_network if connected else model.cost)(*given).figures()
            values[who] = {k: Missing(model.missing[k]) if v is None else v for k, v in figures.items()}
        if "items" in case.setting:
            for who, answers in _answered(subject, case.workload, case.setting["items"]).items():
                values[who].update(answers)
        for peer in case.technique.peers:
            values[peer] = {"cycles": Missing(NO_PEER[peer])}
        return values


def _answered(model: Any, workload: Any, items: int) -> Values:
    import torch

    from taxonomy.measure.stack import CALIBRATION, fold, operate

    data, network = workload.data(), fold(workload.trained())
    test = data.test[:items]
    computed = operate(network, model, torch.tensor(data.train.x[:CALIBRATION]))
    with torch.no_grad():
        exact, found = (net(torch.tensor(test.x)).numpy().astype(np.float64) for net in (network, computed))
    noise = float(np.sum((exact - found) ** 2))
    sqnr = 10 * log10(np.sum(exact**2) / noise) if noise else Missing("infinite: the logits are those of FP32")
    right = {"self": found, "baseline": exact}
    values: Values = {who: {"accuracy": float(np.mean(y.argmax(1) == test.y))} for who, y in right.items()}
    values["self"]["sqnr"] = sqnr
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
