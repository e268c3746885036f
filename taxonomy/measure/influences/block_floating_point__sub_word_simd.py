"""Does a shared exponent let a product run on integers, and how much do its scales cost?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.implementation.low_precision_kernels.byte_dots import best_instruction, byte_product, pack_bytes
from kernels.implementation.low_precision_kernels.sub_word_simd import code_bytes
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

BLOCKS = (64, 256, 1024)
SIZE = 1024


class Experiment(Protocol):
    kind = "block-floating-point--sub-word-simd"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"block": block}, seed, timing=True) for seed in range(REPETITIONS) for block in BLOCKS]

    def contest(self, case: Case) -> Contest:
        rng = np.random.default_rng(case.seed)
        x, w = rng.standard_normal((2, SIZE, SIZE), np.float32)
        return Contest({"self": blocked(x, w, case.setting["block"]), "baseline": lambda: x @ w}, 2.0 * SIZE**3, "flop")


def powers_of_two(scales: np.ndarray) -> np.ndarray:
    """Shared exponents: the next power of two, so that a mantissa is an integer of the block's step."""
    return np.exp2(np.ceil(np.log2(scales))).astype(np.float32)


def blocked(x: np.ndarray, w: np.ndarray, block: int) -> Callable[[], np.ndarray]:
    """Mantissas of the inputs are taken in the call, those of the weights before; a product for each block."""
    instruction = best_instruction(8, 8)
    panels = []
    for first in range(0, len(w), block):
        part = np.ascontiguousarray(w[first : first + block].T)
        scales = powers_of_two(np.abs(part).max(1) / 127)
        codes = np.rint(part / scales[:, None]).astype(np.int8)
        panels.append((pack_bytes(np.ascontiguousarray(codes.T), instruction), scales, codes.sum(1, dtype=np.int32)))

    def call() -> np.ndarray:
        total = np.zeros((len(x), w.shape[1]), np.float32)
        out = np.empty_like(total)
        for number, (packed, scales, sums) in enumerate(panels):
            coded = code_bytes(x[:, number * block : (number + 1) * block], 8, "x")
            byte_product(coded.codes, packed, out, None, -coded.zero * sums, coded.scales, scales)
            total += out
        return total

    return call


protocol = Experiment()
