"""Does a product cut by whole channels run faster in bytes than as many scattered weights in a sparse format?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.implementation.low_precision_kernels.sub_word_simd import SubWordSIMD
from kernels.implementation.sparsity.csr import Csr
from kernels.model.pruning.channel_pruning import lasso_keeps
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

SIZE = 256
ROWS = (64, 256)
KEPT = (0.5, 0.25, 0.125)


class Experiment(Protocol):
    kind = "channel-pruning--sub-word-simd"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"m": rows, "n": SIZE, "k": SIZE, "kept": kept}, seed, timing=True)
            for seed in range(REPETITIONS)
            for rows in ROWS
            for kept in KEPT
        ]

    def contest(self, case: Case) -> Contest:
        """Y = X Wᵀ of a linear layer: some of its inputs kept by the lasso, or some of its weights by magnitude."""
        rows, kept = case.setting["m"], case.setting["kept"]
        torch.manual_seed(case.seed)
        layer = nn.Linear(SIZE, SIZE, bias=False)
        weight = layer.weight.detach()
        x = torch.randn(rows, SIZE)
        output = torch.randint(SIZE, (4 * SIZE,))
        z = torch.randn(4 * SIZE, SIZE) * weight[output]
        channels = lasso_keeps(z, z.sum(1), round(kept * SIZE))
        scattered = bake(MagnitudePruning(density=kept).apply(layer)).get_parameter("weight").detach()
        dense, sparse = SubWordSIMD(), Csr()
        narrow = dense.prepare(np.ascontiguousarray(weight[:, channels].T.numpy()))
        read = np.ascontiguousarray(x[:, channels].numpy())
        stored, columns = sparse.prepare(scattered.numpy()), np.ascontiguousarray(x.T.numpy())
        return Contest(
            {"self": lambda: dense.matmul(read, narrow), "baseline": lambda: sparse.matmul(stored, columns)},
            work=2.0 * rows * SIZE * len(channels),
            unit="flop",
        )


protocol = Experiment()
