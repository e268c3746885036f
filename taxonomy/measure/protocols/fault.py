"""Fault tolerance: accuracy of a trained network whose stored parameters lose bits at a given rate.

Every parameter tensor, batch-norm scale and shift included, is stored, corrupted and read back; batch-norm statistics
are not. The baseline stores the same format unprotected and meets the same flips for the same seed. A technique of this
kind also says what its baseline is (`unprotected()`) and what it stores (`stored_bits(shape)`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import datasets
from taxonomy.measure.protocol import REPETITIONS, Case, Missing, Protocol, Trial, Values

RATES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2)


class FaultProtocol(Protocol):
    kind = "fault"
    metrics = ("accuracy", "weight_error_rate", "stored_bits", "memory_footprint", "energy")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        spared = Trial({"rate": 0.0})  # what making room for protection costs by itself: nothing is drawn
        return [spared, *(Trial({"rate": rate}, seed) for rate in RATES for seed in range(REPETITIONS))]

    def quality(self, case: Case) -> Values:
        test = case.workload.data().test
        values: Values = {}
        for who, store in (("self", case.subject), ("baseline", case.subject.unprotected())):
            network = case.workload.trained()
            wrong = corrupt(network, store, case.setting["rate"], case.seed)
            bits = sum(store.stored_bits(p.shape) for p in network.parameters())
            values[who] = {
                "accuracy": datasets.accuracy(network, test),
                "weight_error_rate": wrong / sum(p.numel() for p in network.parameters()),
                "stored_bits": bits,
                "memory_footprint": bits / 8,
                "energy": Missing("the cited table has no coefficient for the exclusive-ors of a decoder"),
            }
        return values


def corrupt(network: nn.Module, store: Any, rate: float, seed: int) -> int:
    """Store, corrupt and read back every parameter in place; how many read otherwise than without faults."""
    wrong = 0
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            stored = store.protect(parameter)
            clean, read = store.recover(stored), store.recover(store.corrupt(stored, rate, (seed, i)))
            wrong += int((clean.view(np.uint32) != read.view(np.uint32)).sum())
            parameter.copy_(torch.from_numpy(read))
    return wrong


protocol = FaultProtocol()
