"""Fewer heads of keys and values: what one decoded step of fused attention reads, and what time it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from kernels.implementation.loops.fused_attention import Context, FusedAttention
from kernels.model.sequence_models.shared_key_value_heads import grouped_attention
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial, Values

HEADS, WIDTH, KEYS = 8, 64, 2048
SHARED = (4, 2, 1)


class Experiment(Protocol):
    kind = "shared-key-value-heads--fused-attention"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        trials = []
        for seed in range(REPETITIONS):
            for heads in SHARED:
                setting = {"key_value_heads": heads}
                trials += [Trial(setting, seed), Trial({**setting, "metric": "latency"}, seed, timing=True)]
        return trials

    def quality(self, case: Case) -> Values:
        """Bytes of what is really prepared: keys and values once, queries and results once."""
        arms = {"self": case.setting["key_value_heads"], "baseline": HEADS}
        values: Values = {}
        for who, heads in arms.items():
            context, q = _step(heads, case.seed)
            moved = context.keys.nbytes + context.values.nbytes + 2 * q.nbytes
            values[who] = {"memory_access": moved}
        return values

    def contest(self, case: Case) -> Contest:
        def call(heads: int) -> Callable[[], Any]:
            context, q = _step(heads, case.seed)
            return lambda: FusedAttention().attention(q, context)

        heads = case.setting["key_value_heads"]
        return Contest({"self": call(heads), "baseline": call(HEADS)}, work=4.0 * HEADS * KEYS * WIDTH, unit="flop")


def _step(heads: int, seed: int) -> tuple[Context, np.ndarray]:
    """Keys and values of `heads` heads, and the last step's queries, those of a group as rows of one head."""
    rng = np.random.default_rng(seed)
    k, v = rng.standard_normal((2, heads, KEYS, WIDTH), np.float32)
    q = rng.standard_normal((heads, HEADS // heads, WIDTH), np.float32)
    context = FusedAttention().prepare((k, v))
    last = torch.zeros(1, HEADS, KEYS, WIDTH)
    last[0, :, -1] = torch.tensor(q).flatten(0, 1)
    expected = grouped_attention(last, torch.tensor(k)[None], torch.tensor(v)[None])[0, :, -1]
    assert np.allclose(FusedAttention().attention(q, context).reshape(HEADS, WIDTH), expected.numpy(), atol=1e-4)
    return context, q


protocol = Experiment()
