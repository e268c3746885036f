"""Does a depthwise layer suit im2col worse than a standard layer of equal output does?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.implementation.convolution.direct_convolution import DirectConvolution
from kernels.implementation.convolution.im2col import Im2col
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

LAYERS = ({"channels": 64, "size": 28}, {"channels": 128, "size": 14})


class Experiment(Protocol):
    kind = "depthwise-separable--im2col"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial(dict(layer), seed, timing=True) for seed in range(REPETITIONS) for layer in LAYERS]

    def contest(self, case: Case) -> Contest:
        """Four cells: a standard (`neither`, `target`) and a depthwise layer (`source`, `both`), each both ways."""
        channels, size = case.setting["channels"], case.setting["size"]
        rng = np.random.default_rng(case.seed)
        x = rng.standard_normal((1, channels, size, size), np.float32)
        contestants: dict[str, Callable[[], Any]] = {}
        works: dict[str, float] = {}
        for before, after, groups in (("neither", "target", 1), ("source", "both", channels)):
            w = rng.standard_normal((channels, channels // groups, 3, 3), np.float32)
            contestants[before], contestants[after] = (
                _by(DirectConvolution(), x, w, groups),
                _by(Im2col(), x, w, groups),
            )
            works[before] = works[after] = 2.0 * channels * size * size * w[0].size
        return Contest(contestants, work=works["target"], unit="flop", works=works)


def _by(operator: Any, x: np.ndarray, w: np.ndarray, groups: int) -> Callable[[], Any]:
    prepared = operator.prepare(w, groups)
    return lambda: operator.conv2d(x, prepared, padding=1, groups=groups)


protocol = Experiment()
