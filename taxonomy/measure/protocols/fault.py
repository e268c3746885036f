"""Fault tolerance: accuracy of a trained network whose stored parameters lose bits at a given rate.

Every parameter tensor, batch-norm scale and shift included, is stored, corrupted and read back; batch-norm statistics
are not. The baseline stores the same format unprotected and meets the same flips for the same seed. A technique of this
kind also says what its baseline is (`unprotected()`), what it stores (`stored_bits(shape)`), and which stores are its
peers (`others()`). It may say more: a store for each tensor, found on validation data
(`mapped(network, accuracy, rate)`); a network retrained under faults (`retrained(network, data, recipe, rate)`, if
`retrain`); which bits lie in memory that is worked outside its specification (`relaxed_bits(shape)`), and how often it
is refreshed (`refresh_rate(shapes)`); joules of reading so many bits once (`energy(bits, rate)`, or an error that says
why not).

A technique's settings may name the `rates`, and how many `draws` make a repetition.

At low rates most draws of faults spare the network and a few ruin it. A repetition is therefore the mean of several
draws: five single ones would mostly agree that nothing happens, and an interval over them be as sure as it is wrong.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

import datasets
from taxonomy.measure.protocol import REPETITIONS, Case, Missing, Protocol, Trial, Values

__all__ = ["DRAWS", "FaultProtocol", "Given", "corrupt", "prepared", "protocol", "stores_of", "under_faults"]

RATES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2)
DRAWS = 10
"""Of faults, in one repetition."""
CALIBRATION = 500
"""Items of the validation split on which a technique finds which tensors tolerate faults."""


class FaultProtocol(Protocol):
    kind = "fault"
    version = 2
    metrics = ("accuracy", "weight_error_rate", "stored_bits", "memory_footprint", "energy")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        rates = getattr(technique, "settings", {}).get("rates", RATES)
        spared = Trial({"rate": 0.0})  # what making room for protection costs by itself: nothing is drawn
        return [spared, *(Trial({"rate": rate}, seed) for rate in rates for seed in range(REPETITIONS))]

    def quality(self, case: Case) -> Values:
        values: Values = {}
        rate, draws = case.setting["rate"], getattr(case.technique, "settings", {}).get("draws", DRAWS)
        contestants = {"self": case.subject, "baseline": case.subject.unprotected(), **case.subject.others()}
        for who, store in contestants.items():
            given = prepared(case.workload, store, rate)
            stores = stores_of(given, store, rate)
            values[who] = {
                **under_faults(given, stores, rate, case.seed, draws),
                **_memory(stores, [p.shape for p in case.workload.trained().parameters()], rate),
            }
        return values


def _memory(stores: Sequence[Any], shapes: Sequence[Sequence[int]], rate: float) -> dict[str, float | Missing]:
    """What the stored parameters take: bits, those in relaxed memory, refreshes, joules."""
    store = stores[0]
    bits = sum(own.stored_bits(shape) for own, shape in zip(stores, shapes, strict=True))
    found: dict[str, float | Missing] = {"stored_bits": bits, "memory_footprint": bits / 8}
    if hasattr(store, "relaxed_bits"):
        found["relaxed_share"] = sum(o.relaxed_bits(shape) for o, shape in zip(stores, shapes, strict=True)) / bits
    if hasattr(store, "refresh_rate"):
        found["refresh_rate"] = store.refresh_rate(shapes)
    if not hasattr(store, "energy"):
        found["energy"] = Missing("the cited table has no coefficient for the exclusive-ors of a decoder")
    else:
        try:
            found["energy"] = store.energy(bits, rate)
        except LookupError as error:
            found["energy"] = Missing(str(error))
    return found


@dataclass(frozen=True, eq=False)
class Given:
    """A network of one's own, with the data of a workload."""

    network: nn.Module
    of: Any

    def trained(self) -> nn.Module:
        return copy.deepcopy(self.network)

    def data(self) -> Any:
        return self.of.data()


@lru_cache(maxsize=32)
def prepared(workload: Any, store: Any, rate: float) -> Any:
    """The workload, its network retrained under faults where the store asks for it."""
    if not getattr(store, "retrain", False):
        return workload
    return Given(store.retrained(workload.trained(), workload.data(), workload.recipe, rate), workload)


@lru_cache(maxsize=32)
def stores_of(workload: Any, store: Any, rate: float) -> tuple[Any, ...]:
    """A store for each parameter tensor: its own where the technique maps tensors to memories, else the same for all.

    Examples
    --------
    >>> from kernels.implementation.memory.zero_space_ecc import ZeroSpaceEcc
    >>> len(stores_of(datasets.workload("digits-mlp"), ZeroSpaceEcc(), 0.0))
    6
    """
    network = workload.trained()
    if not hasattr(store, "mapped"):
        return (store,) * len(list(network.parameters()))
    return store.mapped(network, _validated(workload), rate)


def _validated(workload: Any) -> Callable[[nn.Module], float]:
    few = workload.data().validation[:CALIBRATION]
    return lambda network: datasets.accuracy(network, few)


def under_faults(workload: Any, store: Any, rate: float, seed: int, draws: int = DRAWS) -> dict[str, float]:
    """Accuracy and share of parameters that read wrong, in the mean over as many draws of faults.

    Parameters
    ----------
    workload : Workload
    store : store or sequence of stores
        One for all parameter tensors, or one for each.
    rate : float
        The bit-error rate.
    seed : int
        Of the repetition; no two share a draw.
    draws : int

    Examples
    --------
    >>> from kernels.implementation.memory.zero_space_ecc import ZeroSpaceEcc
    >>> under_faults(datasets.workload("digits-mlp"), ZeroSpaceEcc("bfloat16"), rate=0.0, seed=0)["weight_error_rate"]
    0.0
    """
    test = workload.data().test
    spared = None
    right, wrong = [], []
    for draw in range(seed * draws, (seed + 1) * draws):
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
    """Store (in one store, or each in its own), corrupt and read back every parameter in place; how many read wrong."""
    wrong = 0
    stores = store if isinstance(store, Sequence) else itertools.repeat(store)
    with torch.no_grad():
        for i, (parameter, own) in enumerate(zip(network.parameters(), stores, strict=False)):
            stored = own.protect(parameter)
            clean, read = own.recover(stored), own.recover(own.corrupt(stored, rate, (seed, i)))
            wrong += int((clean.view(np.uint32) != read.view(np.uint32)).sum())
            parameter.copy_(torch.from_numpy(read))
    return wrong


protocol = FaultProtocol()
