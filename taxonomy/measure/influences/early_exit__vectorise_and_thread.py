"""Does a batch whose items leave one by one gain less from being computed at once?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kernels import counting
from kernels.model.dynamic_inference.early_exit import EarlyExit
from taxonomy.measure.figures import one_item
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial
from taxonomy.measure.protocols.adaptive import ITEMS, inference

THRESHOLDS = (0.1, 0.5)


class Experiment(Protocol):
    kind = "early-exit--vectorise-and-thread"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"threshold": t}, seed, timing=True) for seed in range(REPETITIONS) for t in THRESHOLDS]

    def contest(self, case: Case) -> Contest:
        """Four cells: the network without exits (`neither`, `target`) and with, one item at a time and all at once."""
        plain = case.workload.trained().eval()
        network = EarlyExit(threshold=case.setting["threshold"]).apply(plain, case.workload.data()).eval()
        items = torch.tensor(case.workload.data().test.x[:ITEMS])
        with torch.no_grad():
            spent = float(network(items)[1].double().sum())
        whole = float(counting.macs(plain, one_item(case.workload)) * len(items))
        contestants: dict[str, Callable[[], Any]] = {}
        works: dict[str, float] = {}
        for alone, together, net, macs in (("neither", "target", plain, whole), ("source", "both", network, spent)):
            contestants[alone], contestants[together] = inference(net, items.split(1)), inference(net, (items,))
            works[alone] = works[together] = 2.0 * macs
        return Contest(contestants, work=works["target"], unit="flop", works=works)


protocol = Experiment()
