"""Do long sums of FP8 products in a 16-bit accumulator need chunks? Their error beside that of FP32 accumulation.

The operands are the same FP8 numbers in all arms, so that what differs is the accumulation. Chunked are as many terms
at a time as the root of the sum's length says. The plain sum is the source alone, the chunked one the source with the
target; both are compared with the sum in FP32.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np

from kernels.arithmetic.mixed_precision.chunked_accumulation import ChunkedAccumulation
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.tasks import task_of


class Experiment(Protocol):
    kind = "fp8--chunked-accumulation"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        longest_first = sorted(workload.settings, key=lambda shape: -shape["k"])
        return [
            Trial({**shape, "chunked": chunked}, seed)
            for shape in longest_first
            for chunked in (0, 1)
            for seed in range(2 * REPETITIONS)
        ]

    def quality(self, case: Case) -> Values:
        shape = {name: value for name, value in case.setting.items() if name != "chunked"}
        task = task_of(shape, case.seed)
        exact = task.exact()
        chunk = isqrt(shape["k"]) if case.setting["chunked"] else 1
        arms = {"self": ChunkedAccumulation(chunk=chunk), "baseline": ChunkedAccumulation(accumulator="fp32", chunk=1)}
        values: Values = {}
        for who, operator in arms.items():
            result = np.asarray(task.call(operator, task.prepared(operator))(), np.float64)
            values[who] = {"max_error": float(np.abs(result - exact).max() / np.abs(exact).max())}
        return values


protocol = Experiment()
