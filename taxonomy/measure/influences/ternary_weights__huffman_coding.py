"""From which threshold on does an entropy code store a ternary network in less than five weights to the byte?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.model.quantization.ternary_weights import TernaryWeights
from kernels.model.transform import bake
from kernels.model.weight_sharing.huffman_coding import HuffmanCoding
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.number_format import weights_of

THRESHOLDS = (0.2, 0.4, 0.7, 1.0, 1.4)
SYMBOLS = ("one weight", "five weights")
PLACES = 3 ** np.arange(5)


class Experiment(Protocol):
    kind = "ternary-weights--huffman-coding"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"symbol": symbol, "threshold": threshold}, seed)
            for seed in range(REPETITIONS)
            for threshold in THRESHOLDS
            for symbol in SYMBOLS
        ]

    def quality(self, case: Case) -> Values:
        """Scales are left out on both sides, the code's own table and header are not."""
        codes = _codes(case.workload, case.setting["threshold"], case.seed)
        bytes_of_five = packed(codes)
        symbols = codes if case.setting["symbol"] == "one weight" else bytes_of_five
        coded = HuffmanCoding(symbol="byte").encode(symbols)
        sizes = {"self": len(coded), "baseline": bytes_of_five.size}
        return {who: {"bits_per_weight": 8 * size / codes.size} for who, size in sizes.items()}


def packed(codes: np.ndarray) -> np.ndarray:
    """Five codes of -1, 0 or 1 in a byte, the first one lowest; zeros fill the last.

    Examples
    --------
    >>> packed(np.array([1, 0, 0, 0, 0, -1], np.int8))
    array([122, 120], dtype=uint8)
    """
    digits = np.pad(codes, (0, -codes.size % 5)).astype(np.int64) + 1
    return (digits.reshape(-1, 5) @ PLACES).astype(np.uint8)


@lru_cache(maxsize=2)
def _codes(workload: Any, threshold: float, seed: int) -> np.ndarray:
    """Of all layers of a network that was trained with this threshold, end to end."""
    technique = TernaryWeights(threshold)
    network, _ = technique.train(workload.network(seed), workload.data(), workload.recipe, seed=seed)
    return np.concatenate([np.sign(weight.numpy()).astype(np.int8).ravel() for weight in weights_of(bake(network))])


protocol = Experiment()
