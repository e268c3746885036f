"""Fault tolerance: accuracy of a trained network whose stored parameters lose bits at a given rate.

Every parameter tensor, batch-norm scale and shift included, is stored, corrupted and read back; batch-norm statistics
are not. The baseline stores the same format unprotected and meets the same flips for the same seed. A technique of this
kind also says what its baseline is (`unprotected()`), what it stores (`stored_bits(shape)`), and which stores are its
peers (`others()`).

At low rates most draws of faults spare the network and a few ruin it. A repetition is therefore the mean of several
draws: five single ones would mostly agree that nothing happens, and an interval over them be as sure as it is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

import datasets
from taxonomy.measure.protocol import REPETITIONS, Case, Missing, Protocol, Trial, Values

__all__ = ["DRAWS", "FaultProtocol", "corrupt", "protocol", "under_faults"]

RATES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2)
DRAWS = 10
"""Of faults, in one repetition."""


class FaultProtocol(Protocol):
    kind = "fault"
    version = 2
    metrics = ("accuracy", "weight_error_rate", "stored_bits", "memory_footprint", "energy")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        spared = Trial({"rate": 0.0})  # what making room for protection costs by itself: nothing is drawn
        return [spared, *(Trial({"rate": rate}, seed) for rate in RATES for seed in range(REPETITIONS))]

    def quality(self, case: Case) -> Values:
        values: Values = {}
        stores = {"self": case.subject, "baseline": case.subject.unprotected(), **case.subject.others()}
        for who, store in stores.items():
            bits = sum(store.stored_bits(p.shape) for p in case.workload.trained().parameters())
            values[who] = {
                **under_faults(case.workload, store, case.setting["rate"], case.seed),
                "stored_bits": bits,
                "memory_footprint": bits / 8,
                "energy": Missing("the cited table has no coefficient for the exclusive-ors of a decoder"),
            }
        return values


def under_faults(workload: Any, store: Any, rate: float, seed: int) -> dict[str, float]:
    """Accuracy and share of parameters that read wrong, in the mean over `DRAWS` draws of faults.

    Examples
    --------
    >>> from kernels.implementation.memory.zero_space_ecc import ZeroSpaceEcc
    >>> under_faults(datasets.workload("digits-mlp"), ZeroSpaceEcc("bfloat16"), rate=0.0, seed=0)["weight_error_rate"]
    0.0
    """
    test = workload.data().test
    spared = None
    right, wrong = [], []
    for draw in range(seed * DRAWS, (seed + 1) * DRAWS):
        network = workload.trained()
        errors = corrupt(network, store, rate, draw)
        if errors:
            right.append(datasets.accuracy(network, test))
        else:  # nothing reads wrong: always the same network
            spared = datasets.accuracy(network, test) if spared is None else spared
            right.append(spared)
        wrong.append(errors / sum(p.numel() for p in network.parameters()))
    return {"accuracy": fmean(right), "weight_error_rate": fmean(wrong)}


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
