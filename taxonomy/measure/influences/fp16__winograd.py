"""Does a narrow format make Winograd's transforms lose more than it makes the direct sum lose?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.arithmetic.fixed_point.int8 import Int8
from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.floating_point.fp16 import FP16
from kernels.implementation.convolution.winograd import transforms
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

FORMATS: dict[str, Callable[[], Any]] = {"fp16": FP16, "bfloat16": BFloat16, "int8": Int8}
CHANNELS, SIZE = 64, 24


class Experiment(Protocol):
    kind = "fp16--winograd"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"format": name, "tile": tile}, seed)
            for seed in range(REPETITIONS)
            for name in FORMATS
            for tile in (2, 4, 6)
        ]

    def quality(self, case: Case) -> Values:
        """Four cells: direct (`neither`, `source`) and by Winograd (`target`, `both`), in FP32 and in the format."""
        rng = np.random.default_rng(case.seed)
        x, w = rng.standard_normal((CHANNELS, SIZE + 2, SIZE + 2)), rng.standard_normal((CHANNELS, 3, 3))
        exact = direct(x, w)
        narrow, wide = FORMATS[case.setting["format"]](), _Single()
        values: Values = {}
        for who, form, tile in (("neither", wide, 0), ("source", narrow, 0), ("target", wide, case.setting["tile"]),
                                ("both", narrow, case.setting["tile"])):  # fmt: skip
            operands = [form.round(a.astype(np.float32)).astype(np.float64) for a in (x, w)]
            result = tiled(operands[0], operands[1], tile, form) if tile else direct(operands[0], operands[1])
            values[who] = {"max_error": float(np.abs(result - exact).max() / np.abs(exact).max())}
        return values


class _Single:
    def round(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32)


def direct(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One filter's results, summed without further rounding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    return np.einsum("cijuv,cuv->ij", windows, w, optimize=True)


def tiled(x: np.ndarray, w: np.ndarray, tile: int, form: Any) -> np.ndarray:
    """The same by tiles; what the transforms give is rounded to the format, as a machine would keep it."""
    bt, g, at = transforms(tile)
    u = form.round((g @ w @ g.T).astype(np.float32)).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, (tile + 2, tile + 2), (1, 2))[:, ::tile, ::tile]
    v = form.round((bt @ windows @ bt.T).astype(np.float32)).astype(np.float64)
    y = at @ (u[:, None, None] * v).sum(0) @ at.T
    down, across = y.shape[:2]
    return y.transpose(0, 2, 1, 3).reshape(down * tile, across * tile)


protocol = Experiment()
