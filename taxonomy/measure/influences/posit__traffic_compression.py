"""Do posits send fewer bits than floats that are as exact?

No float is exactly as exact as a posit. So a share of the weights is in the widest float that is worse, and the others
have a bit more: the share at which the noise of both together is the posit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.arithmetic.alternative_numbers.posit import Posit
from kernels.arithmetic.floating_point.minifloat import Minifloat
from kernels.implementation.memory.traffic_compression import zero_value_bits
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.number_format import errors, weights_of

BITS = (6, 8, 10, 12, 16)
EXPONENTS = (4, 5, 8)
"""Of E4M3, of E5M2 and FP16, and of bfloat16."""


class Experiment(Protocol):
    kind = "posit--traffic-compression"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"exponent_bits": exponent, "bits": bits}, seed)
            for seed in range(REPETITIONS)
            for exponent in EXPONENTS
            for bits in BITS
        ]

    def quality(self, case: Case) -> Values:
        weights, exponent = _weights(case.workload, case.seed), case.setting["exponent_bits"]
        posit = Posit(case.setting["bits"], 1)
        asked = _sqnr(weights, posit)
        wide = next(m for m in range(2, 23) if _sqnr(weights, Minifloat(exponent, m)) >= asked)
        narrow, wider = Minifloat(exponent, wide - 1), Minifloat(exponent, wide)
        noise, coarse, fine = (10 ** (-x / 10) for x in (asked, _sqnr(weights, narrow), _sqnr(weights, wider)))
        share = min(1.0, (coarse - noise) / (coarse - fine))
        floats = (1 - share) * _bytes(weights, narrow, exponent + wide) + share * _bytes(
            weights, wider, 1 + exponent + wide
        )
        return {
            "self": {"memory_access": _bytes(weights, posit, posit.bits), "sqnr": asked},
            "baseline": {"memory_access": floats, "sqnr": asked},
        }


def _sqnr(weights: list[np.ndarray], form: Any) -> float:
    found = errors([(w, form) for w in weights])["sqnr"]
    assert isinstance(found, float)  # missing only where a format holds nothing
    return found


def _bytes(weights: list[np.ndarray], form: Any, width: int) -> float:
    nonzero = sum(int(np.count_nonzero(form.round(w))) for w in weights)
    return zero_value_bits(sum(w.size for w in weights), nonzero, width) / 8


@lru_cache(maxsize=2)
def _weights(workload: Any, seed: int) -> list[np.ndarray]:
    """The weights of a network of its own for each repetition."""
    network = workload.network(seed)
    workload.recipe.train(network, workload.data(), seed=seed)
    return [w.numpy() for w in weights_of(network)]


protocol = Experiment()
