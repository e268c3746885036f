"""Does a student that learned from a teacher, on 256 values a bucket, lose less when it becomes INT8?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import datasets
from kernels.arithmetic.fixed_point.int8 import Int8
from kernels.model.distillation.quantized_distillation import QuantizedDistillation
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.number_format import round_network
from taxonomy.measure.stack import fold

CALIBRATION = 256


class Experiment(Protocol):
    kind = "quantized-distillation--int8"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial(seed=seed) for seed in range(3 * REPETITIONS)]

    def quality(self, case: Case) -> Values:
        """Four cells: a student of labels alone (`neither`, `target`) and of quantized distillation (`source`, `both`),
        in FP32 and with weights and inputs in INT8; batch norm folded."""
        workload, data, seed = case.workload, case.workload.data(), case.seed
        plain = workload.student(seed)
        workload.recipe.train(plain, data, seed=seed)
        taught, _ = QuantizedDistillation(bits=8).train(
            workload.student(seed), data, workload.recipe, workload.trained(), seed=seed
        )
        items = torch.tensor(data.train.x[:CALIBRATION])
        values: Values = {}
        for before, after, student in (("neither", "target", fold(plain)), ("source", "both", fold(bake(taught)))):
            rounded, _ = round_network(student, Int8(), items)
            values[before] = {"accuracy": datasets.accuracy(student, data.test)}
            values[after] = {"accuracy": datasets.accuracy(rounded, data.test)}
        return values


protocol = Experiment()
