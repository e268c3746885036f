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

FORMATS: dict[str, Callable[[], Any]] = {"fp16": FP16, "bfloat16": BFloat16, "int8": Int8, "int8-by-place": Int8}
CHANNELS, FILTERS, SIZE = 64, 16, 24
LAYERS = 40


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
        """Four cells: direct (`neither`, `source`) and by Winograd (`target`, `both`), in FP32 and in the format.

        Codes of INT8 have one scale an array; `int8-by-place` gives each place of the transformed tiles its own.
        Of each cell the largest error of a layer, in the mean over layers, since a single largest one is mostly chance.
        """
        rng = np.random.default_rng(case.seed)
        errors = [self._errors(rng, case.setting["format"], case.setting["tile"]) for _ in range(LAYERS)]
        return {who: {"max_error": float(np.mean([one[who] for one in errors]))} for who in errors[0]}

    def _errors(self, rng: np.random.Generator, name: str, tile: int) -> dict[str, float]:
        x = rng.standard_normal((CHANNELS, SIZE + 2, SIZE + 2))
        w = rng.standard_normal((FILTERS, CHANNELS, 3, 3))
        exact, found = direct(x, w), {}
        for form, cells in ((_Single(), ("neither", "target")), (FORMATS[name](), ("source", "both"))):
            narrow_x, narrow_w = (form.round(a.astype(np.float32)).astype(np.float64) for a in (x, w))
            results = direct(narrow_x, narrow_w), tiled(narrow_x, narrow_w, tile, form, name.endswith("by-place"))
            for who, result in zip(cells, results, strict=True):
                found[who] = float(np.abs(result - exact).max() / np.abs(exact).max())
        return found


class _Single:
    def round(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32)


def direct(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A layer's results, summed without further rounding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    return np.einsum("cijuv,ocuv->oij", windows, w, optimize=True)


def tiled(x: np.ndarray, w: np.ndarray, tile: int, form: Any, by_place: bool) -> np.ndarray:
    """The same by tiles; what the transforms give is rounded to the format, as a machine would keep it."""
    bt, g, at = transforms(tile)

    def kept(transformed: np.ndarray) -> np.ndarray:  # places are the last two axes
        numbers = transformed.astype(np.float32)
        if not by_place or isinstance(form, _Single):
            return form.round(numbers).astype(np.float64)
        rounded = [form.round(np.ascontiguousarray(numbers[..., a, b])) for a, b in np.ndindex(numbers.shape[-2:])]
        return np.stack(rounded, -1).reshape(numbers.shape).astype(np.float64)

    d = np.lib.stride_tricks.sliding_window_view(x, (tile + 2, tile + 2), (1, 2))[:, ::tile, ::tile]
    products = np.einsum("ocab,cijab->oijab", kept(g @ w @ g.T), kept(bt @ d @ bt.T), optimize=True)
    y = at @ products @ at.T
    filters, down, across = y.shape[:3]
    return y.transpose(0, 1, 3, 2, 4).reshape(filters, down * tile, across * tile)


protocol = Experiment()
