"""Does a student that learnt from a teacher lose less than one that did not, as its weights take fewer bits?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

import datasets
from kernels.arithmetic.fixed_point.fixed_point import FixedPoint
from kernels.model.distillation.soft_label_distillation import SoftLabelDistillation
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.number_format import round_network, weights_of
from taxonomy.measure.stack import fold

BITS = (2, 3, 4, 8)


class Experiment(Protocol):
    kind = "soft-label-distillation--fixed-point"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"bits": bits}, seed) for seed in range(6 * REPETITIONS) for bits in BITS]

    def quality(self, case: Case) -> Values:
        """Four cells: a student of labels alone (`neither`, `target`) and of a teacher (`source`, `both`), in FP32 and
        with its weights in one fixed-point format, whose range just holds the largest of them."""
        data, bits = case.workload.data(), case.setting["bits"]
        items = torch.tensor(data.train.x[:1])
        values: Values = {}
        plain, taught = _students(case.workload, case.seed)
        for before, after, student in (("neither", "target", plain), ("source", "both", taught)):
            values[before] = {"accuracy": datasets.accuracy(student, data.test)}
            rounded, _ = round_network(student, _format(student, bits), items, "weights")
            values[after] = {"accuracy": datasets.accuracy(rounded, data.test)}
        return values


@lru_cache(maxsize=4)
def _students(workload: Any, seed: int) -> tuple[nn.Module, nn.Module]:
    """The same start, order and number of updates; batch norm folded."""
    plain = workload.student(seed)
    workload.recipe.train(plain, workload.data(), seed=seed)
    taught, _ = SoftLabelDistillation().train(
        workload.student(seed), workload.data(), workload.recipe, workload.trained(), seed=seed
    )
    return fold(plain), fold(taught)


def _format(network: nn.Module, bits: int) -> FixedPoint:
    """One for all weights: the fewest integer bits that hold the largest."""
    largest = max(float(weight.abs().max()) for weight in weights_of(network))
    integer_bits = 1
    while 2.0 ** (integer_bits - 1) < largest:
        integer_bits += 1
    while 2.0 ** (integer_bits - 2) >= largest:
        integer_bits -= 1
    return FixedPoint(integer_bits, bits - integer_bits)


protocol = Experiment()
