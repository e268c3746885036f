"""Below which density does the sparse product of a pruned matrix beat the dense product that ignores its zeros?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.implementation.sparsity.csr import Csr
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial
from taxonomy.measure.tasks.sparse_product import openblas

SIZE = 1024
COLUMNS = (1, 64, 1024)
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.8)


class Experiment(Protocol):
    kind = "magnitude-pruning--csr"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"columns": columns, "density": density}, seed, timing=True)
            for seed in range(REPETITIONS)
            for columns in COLUMNS
            for density in DENSITIES
        ]

    def contest(self, case: Case) -> Contest:
        density, columns = case.setting["density"], case.setting["columns"]
        torch.manual_seed(case.seed)
        layer = nn.Linear(SIZE, SIZE, bias=False)
        pruned: torch.Tensor = bake(MagnitudePruning(density=density).apply(layer)).get_parameter("weight").detach()
        x = torch.randn(SIZE, columns)
        operator = Csr()
        weight, b = operator.prepare(pruned.numpy()), np.ascontiguousarray(x.numpy())
        dense = openblas(pruned.numpy(), b, {})
        assert np.allclose(operator.matmul(weight, b), dense(), atol=1e-3)
        return Contest(
            {"self": lambda: operator.matmul(weight, b), "baseline": dense},
            work=2.0 * SIZE * SIZE * columns * density,
            unit="flop",
        )


protocol = Experiment()
