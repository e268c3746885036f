"""Weights in half the bytes: what a matrix-vector product larger than the cache moves, and what time it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.implementation.loops.loop_tiling import LoopTiling
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial, Values

ARMS = {"self": "bfloat16", "baseline": "float32"}


class Experiment(Protocol):
    kind = "bfloat16--loop-tiling"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        trials = []
        for seed in range(REPETITIONS):
            for shape in workload.settings:
                trials += [Trial(shape, seed), Trial({**shape, "metric": "latency"}, seed, timing=True)]
        return trials

    def quality(self, case: Case) -> Values:
        """Bytes counted from what is really stored: the matrix once, the vectors once."""
        m, n, k = (case.setting[name] for name in "mnk")
        weights = np.zeros((k, n), np.float32)
        vectors = 4.0 * m * (k + n)
        return {
            who: {"memory_access": LoopTiling(storage=storage).prepare(weights).nbytes + vectors}
            for who, storage in ARMS.items()
        }

    def contest(self, case: Case) -> Contest:
        m, n, k = (case.setting[name] for name in "mnk")
        rng = np.random.default_rng(case.seed)
        x = rng.standard_normal((m, k), np.float32)
        weights = BFloat16().round(rng.standard_normal((k, n), np.float32))  # both arms multiply the same numbers

        def product(storage: str) -> Callable[[], Any]:
            operator = LoopTiling(storage=storage)
            prepared = operator.prepare(weights)
            return lambda: operator.matmul(x, prepared)

        return Contest({who: product(storage) for who, storage in ARMS.items()}, work=2.0 * m * n * k, unit="flop")


protocol = Experiment()
