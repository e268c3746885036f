"""What does a circuit gain whose multipliers are shifters, and what does a processor that has multipliers anyway?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.alternative_numbers.power_of_two import shift_dot
from kernels.arithmetic.bits import cast
from kernels.energy import ADD_ENERGY, DRAM_ENERGY, MULTIPLY_ENERGY
from kernels.implementation.compilation.platform_choice import compulsory
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial, Values
from taxonomy.measure.protocols.cost_model import layers_of_workload

SHIFTS = {"free": 0.0, "as an addition": ADD_ENERGY["int32"]}
"""Joules of a shift, which the table does not hold: between its ends."""
LENGTH = 4096
"""Elements of the dot product that is timed: three arrays of them fit a first-level cache of 48 KiB."""


class Experiment(Protocol):
    kind = "power-of-two--platform-choice"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            *(
                Trial({"shift": shift, "counted": counted}, seed)
                for seed in range(REPETITIONS)
                for shift in SHIFTS
                for counted in ("operations", "bytes too")
            ),
            *(Trial({"metric": "latency"}, seed, timing=True) for seed in range(REPETITIONS)),
        ]

    def quality(self, case: Case) -> Values:
        layers = layers_of_workload(case.workload)
        macs = sum(layer.macs for layer in layers)
        moved = {bits: 0.0 for bits in (4, 8)}
        if case.setting["counted"] == "bytes too":
            for layer in layers:
                traffic = compulsory(layer, 1)  # inputs and results of a byte, weights of four bits or eight
                for bits in moved:
                    moved[bits] += traffic.total - traffic.filter * (1 - bits / 8)
        shift = SHIFTS[case.setting["shift"]] + ADD_ENERGY["int32"]
        multiply = MULTIPLY_ENERGY["int8"] + ADD_ENERGY["int32"]
        return {
            "self": {"energy": macs * shift + moved[4] * DRAM_ENERGY},
            "baseline": {"energy": macs * multiply + moved[8] * DRAM_ENERGY},
        }

    def contest(self, case: Case) -> Contest:
        rng = np.random.default_rng(case.seed)
        q, places, signs = (rng.integers(*r, LENGTH, np.int32) for r in ((-127, 128), (0, 7), (-1, 1)))
        weights = (1 << places) * (1 + 2 * signs)
        assert shift_dot(q, places, signs) == _dot(q, weights)
        return Contest(
            {"self": lambda: shift_dot(q, places, signs), "baseline": lambda: _dot(q, weights)},
            work=2.0 * LENGTH,
            unit="op",
        )


@njit(cache=True, nogil=True)
def _dot(q, weights):
    total = np.int32(0)
    for i in range(q.size):
        total = cast(total + cast(q[i] * weights[i], total), total)
    return total


protocol = Experiment()
