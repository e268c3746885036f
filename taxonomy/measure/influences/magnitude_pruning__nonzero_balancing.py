"""Is dealing non-zeros out evenly worth more once a matrix is pruned, the more so the more its rows differ?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.implementation.sparsity.nonzero_balancing import NonzeroBalancing
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

SIZE, COLUMNS, DENSITY = 1024, 256, 0.1
SKEWS = (0.0, 0.02, 0.05, 0.25)


class Experiment(Protocol):
    kind = "magnitude-pruning--nonzero-balancing"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"skew": skew}, seed, timing=True) for seed in range(REPETITIONS) for skew in SKEWS]

    def contest(self, case: Case) -> Contest:
        """Four cells: unpruned (`neither`, `target`) and pruned weights (`source`, `both`), each split both ways."""
        dense, pruned = matrices(case.setting["skew"], case.seed)
        x = np.random.default_rng(case.seed).standard_normal((SIZE, COLUMNS), np.float32)
        contestants: dict[str, Callable[[], Any]] = {}
        works: dict[str, float] = {}
        for before, after, w in (("neither", "target", dense), ("source", "both", pruned)):
            contestants[before], contestants[after] = (_by(split, w, x) for split in ("rows", "nonzeros"))
            works[before] = works[after] = 2.0 * COLUMNS * int(np.count_nonzero(w))
        return Contest(contestants, work=works["target"], unit="flop", works=works)


def matrices(skew: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights that fall from row to row like a power of its rank, and the same pruned.

    Examples
    --------
    >>> [NonzeroBalancing(2, "rows").prepare(matrices(skew, 0)[1]).balance.__round__(1) for skew in (0.0, 0.25)]
    [1.0, 2.0]
    """
    torch.manual_seed(seed)
    layer = nn.Linear(SIZE, SIZE, bias=False)
    with torch.no_grad():
        layer.weight *= torch.arange(1, SIZE + 1)[:, None] ** -skew
    pruned = bake(MagnitudePruning(density=DENSITY).apply(layer)).get_parameter("weight")
    return layer.weight.detach().numpy(), pruned.detach().numpy()


def _by(split: str, w: np.ndarray, x: np.ndarray) -> Callable[[], Any]:
    operator = NonzeroBalancing(split=split)
    prepared = operator.prepare(w)
    return lambda: operator.matmul(prepared, x)


protocol = Experiment()
