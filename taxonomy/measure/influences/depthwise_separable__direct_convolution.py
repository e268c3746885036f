"""Does a depthwise layer let the direct kernel gain less than a standard layer of equal output does?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba import njit

from kernels.implementation.convolution.direct_convolution import DirectConvolution
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial
from taxonomy.measure.tasks.convolution import packed

LAYERS = ({"channels": 64, "size": 28}, {"channels": 128, "size": 14}, {"channels": 32, "size": 56})
AGAINST = ("naive loops", "torch")


class Experiment(Protocol):
    kind = "depthwise-separable--direct-convolution"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"against": against, **layer}, seed, timing=True)
            for seed in range(REPETITIONS)
            for against in AGAINST
            for layer in LAYERS
        ]

    def contest(self, case: Case) -> Contest:
        """Four cells: a standard (`neither`, `target`) and a depthwise layer (`source`, `both`), each without and with
        the direct kernel."""
        channels, size = case.setting["channels"], case.setting["size"]
        rng = np.random.default_rng(case.seed)
        x = rng.standard_normal((1, channels, size, size), np.float32)
        contestants: dict[str, Callable[[], Any]] = {}
        works: dict[str, float] = {}
        for before, after, groups in (("neither", "target", 1), ("source", "both", channels)):
            w = rng.standard_normal((channels, channels // groups, 3, 3), np.float32)
            contestants[before] = _plain(case.setting["against"], x, w, groups)
            contestants[after] = _direct(x, w, groups)
            works[before] = works[after] = 2.0 * channels * size * size * w[0].size
        return Contest(contestants, work=works["target"], unit="flop", works=works)


def _direct(x: np.ndarray, w: np.ndarray, groups: int) -> Callable[[], Any]:
    operator = DirectConvolution()
    filters = operator.prepare(w, groups)
    return lambda: operator.conv2d(x, filters, padding=1, groups=groups)


def _plain(against: str, x: np.ndarray, w: np.ndarray, groups: int) -> Callable[[], Any]:
    if against == "torch":
        return packed(w, x, {"stride": 1, "padding": 1, "groups": groups})
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    return lambda: _loops(padded, w, groups)


@njit
def _loops(x: np.ndarray, w: np.ndarray, groups: int) -> np.ndarray:
    outputs, channels, kernel, _ = w.shape
    size = x.shape[1] - kernel + 1
    y = np.zeros((outputs, size, size), np.float32)
    for o in range(outputs):
        first = o // (outputs // groups) * channels
        for i in range(size):
            for j in range(size):
                total = np.float32(0)
                for c in range(channels):
                    for u in range(kernel):
                        for v in range(kernel):
                            total += w[o, c, u, v] * x[first + c, i + u, j + v]
                y[o, i, j] = total
    return y


protocol = Experiment()
