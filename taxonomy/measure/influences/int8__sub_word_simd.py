"""Do integers of eight bits make a product faster, the rounding of its inputs included?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernels.implementation.low_precision_kernels.sub_word_simd import SubWordSIMD
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

SHAPES = ({"m": 64, "n": 64}, {"m": 256, "n": 256}, {"m": 512, "n": 512}, {"m": 1024, "n": 1024})


class Experiment(Protocol):
    kind = "int8--sub-word-simd"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({**shape, "k": shape["n"]}, seed, timing=True) for seed in range(REPETITIONS) for shape in SHAPES]

    def contest(self, case: Case) -> Contest:
        m, n, k = (case.setting[name] for name in "mnk")
        rng = np.random.default_rng(case.seed)
        x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        operator = SubWordSIMD()
        prepared = operator.prepare(w)
        return Contest(
            {"self": lambda: operator.matmul(x, prepared), "baseline": lambda: x @ w}, 2.0 * m * n * k, "flop"
        )


protocol = Experiment()
