"""Does a product keep its units busy when the weights alone are narrow, and must be widened first?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.implementation.low_precision_kernels.sub_word_simd import SubWordSIMD
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

BATCHES = (1, 4, 16, 64)
AGAINST = ("FP32", "eight bits both")
SIZE = 4096


class Experiment(Protocol):
    kind = "gptq--sub-word-simd"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"batch": batch, "against": against}, seed, timing=True)
            for seed in range(REPETITIONS)
            for against in AGAINST
            for batch in BATCHES
        ]

    def contest(self, case: Case) -> Contest:
        rng, batch = np.random.default_rng(case.seed), case.setting["batch"]
        x = rng.standard_normal((batch, SIZE), np.float32)
        w = rng.standard_normal((SIZE, SIZE), np.float32)
        contestants: dict[str, Callable[[], Any]] = {"self": _product(SubWordSIMD(4, 32), x, w)}
        if case.setting["against"] == "FP32":
            contestants["baseline"] = lambda: x @ w
        else:
            contestants["baseline"] = _product(SubWordSIMD(8, 8), x, w)
        return Contest(contestants, 2.0 * batch * SIZE * SIZE, "flop")


def _product(operator: SubWordSIMD, x: np.ndarray, w: np.ndarray) -> Callable[[], np.ndarray]:
    prepared = operator.prepare(w)
    return lambda: operator.matmul(x, prepared)


protocol = Experiment()
