"""From which length on does attention below the square of the length move less than full attention that is fused?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kernels.implementation.loops.fused_attention import FusedAttention, memory_access
from kernels.model.sequence_models.efficient_attention import (
    EfficientAttention,
    causal_sums,
    elu_features,
    local_attention,
    numbers_moved,
)
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial, Values

WIDTH, WINDOW, CACHE = 64, 64, 2**16
LENGTHS = (256, 1024, 4096, 16384, 65536)
TIMED = (256, 1024, 4096)
PATTERNS = ("local", "linear")


class Experiment(Protocol):
    kind = "efficient-attention--fused-attention"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        trials = []
        for seed in range(REPETITIONS):
            for pattern in PATTERNS:
                trials += [Trial({"pattern": pattern, "keys": keys}, seed) for keys in LENGTHS]
                for keys in TIMED:
                    trials.append(Trial({"pattern": pattern, "keys": keys, "metric": "latency"}, seed, timing=True))
        return trials

    def quality(self, case: Case) -> Values:
        """Both by the same counts of passes; a query of causal attention needs half of the keys in the mean."""
        pattern, keys = case.setting["pattern"], case.setting["keys"]
        blocks = (memory_access(keys, WIDTH, CACHE)["fused"] - 2 * keys * WIDTH) / (2 * keys * WIDTH)
        fused = 2 * keys * WIDTH + 2 * keys * WIDTH * (blocks + 1) / 2
        efficient = numbers_moved(EfficientAttention(pattern, window=WINDOW), keys, WIDTH)
        return {"self": {"memory_access": 4.0 * efficient}, "baseline": {"memory_access": 4.0 * fused}}

    def contest(self, case: Case) -> Contest:
        pattern, keys = case.setting["pattern"], case.setting["keys"]
        arrays = np.random.default_rng(case.seed).standard_normal((3, 2, keys, WIDTH), np.float32)
        q, k, v = torch.from_numpy(arrays)
        operator = FusedAttention(causal=True)

        def efficient() -> torch.Tensor:
            if pattern == "local":
                return local_attention(q, k, v, WINDOW)
            return causal_sums(elu_features(q), elu_features(k), v)

        fused = {"baseline": lambda: operator.attention(*arrays)}
        return Contest({"self": efficient, **fused}, work=float(2 * keys), unit="items")


protocol = Experiment()
