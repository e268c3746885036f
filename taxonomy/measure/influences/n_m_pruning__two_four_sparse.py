"""Does a layer run faster with two of four weights, in a kernel made for the pattern?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from kernels.implementation.sparsity.csr import Csr
from kernels.implementation.sparsity.two_four_sparse import TwoFourSparse
from kernels.model.pruning.n_m_pruning import NMPruning, n_of_m
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

COLUMNS = (1, 8, 64, 1024)
AGAINST = ("dense", "compressed rows")
SIZE = 1024


class Experiment(Protocol):
    kind = "n-m-pruning--two-four-sparse"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"columns": columns, "against": against}, seed, timing=True)
            for seed in range(REPETITIONS)
            for against in AGAINST
            for columns in COLUMNS
        ]

    def contest(self, case: Case) -> Contest:
        rng, columns, pruning = np.random.default_rng(case.seed), case.setting["columns"], NMPruning()
        dense = rng.standard_normal((SIZE, SIZE), np.float32)
        kept = n_of_m(torch.from_numpy(np.abs(dense)), pruning.n, pruning.m).numpy()
        b, pruned = rng.standard_normal((SIZE, columns), np.float32), np.where(kept, dense, np.float32(0))
        contestants: dict[str, Callable[[], Any]] = {"self": _product(TwoFourSparse(), pruned, b)}
        if case.setting["against"] == "dense":
            contestants["baseline"] = lambda: dense @ b
        else:
            contestants["baseline"] = _product(Csr(), pruned, b)
        return Contest(contestants, 2.0 * SIZE * SIZE * columns, "flop")


def _product(operator: Any, a: np.ndarray, b: np.ndarray) -> Callable[[], np.ndarray]:
    prepared = operator.prepare(a)
    return lambda: operator.matmul(prepared, b)


protocol = Experiment()
