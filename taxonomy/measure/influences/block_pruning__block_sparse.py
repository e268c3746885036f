"""Do blocks as wide as a register keep the units busy that single weights leave idle?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.implementation.sparsity.block_sparse import BlockSparse
from kernels.implementation.sparsity.csr import Csr
from kernels.model.pruning.block_pruning import BlockPruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

ROWS = (1, 4, 8, 16)
COLUMNS = (1, 64)
SIZE, DENSITY = 1024, 0.2


class Experiment(Protocol):
    kind = "block-pruning--block-sparse"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"rows": rows, "columns": columns}, seed, timing=True)
            for seed in range(REPETITIONS)
            for columns in COLUMNS
            for rows in ROWS
        ]

    def contest(self, case: Case) -> Contest:
        rows, columns = case.setting["rows"], case.setting["columns"]
        b = np.random.default_rng(case.seed).standard_normal((SIZE, columns), np.float32)
        blocks, single = (_pruned(case.seed, height) for height in (rows, 1))
        return Contest(
            {"self": _product(BlockSparse(rows=rows), blocks, b), "baseline": _product(Csr(), single, b)},
            2.0 * np.count_nonzero(single) * columns, "flop",
        )  # fmt: skip


def _pruned(seed: int, rows: int) -> np.ndarray:
    """A layer at its random start, pruned in blocks of so many outputs; the density is the same for all."""
    layer = nn.Linear(SIZE, SIZE, bias=False)
    layer.weight.data = torch.from_numpy(np.random.default_rng(seed).standard_normal((SIZE, SIZE), np.float32))
    return bake(BlockPruning(DENSITY, rows).apply(layer)).weight.detach().numpy()  # type: ignore[operator, union-attr]


def _product(operator: Any, a: np.ndarray, b: np.ndarray) -> Callable[[], np.ndarray]:
    prepared = operator.prepare(a)
    return lambda: operator.matmul(prepared, b)


protocol = Experiment()
