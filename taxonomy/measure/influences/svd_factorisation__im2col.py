"""From which share of the products on is a factorised layer slower than the whole one?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.implementation.convolution.im2col import Im2col
from kernels.model.low_rank.svd_factorisation import SvdFactorisation
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

LAYERS = ({"channels": 64, "size": 28}, {"channels": 128, "size": 14})
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 0.95)


class Experiment(Protocol):
    kind = "svd-factorisation--im2col"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({**layer, "share": share}, seed, timing=True)
            for seed in range(REPETITIONS)
            for layer in LAYERS
            for share in SHARES
        ]

    def contest(self, case: Case) -> Contest:
        channels, size, share = (case.setting[name] for name in ("channels", "size", "share"))
        torch.manual_seed(case.seed)
        whole = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        rank = max(1, int(share * whole.weight.numel() / (10 * channels)))
        with torch.no_grad():  # of exactly this rank, so that nothing is lost and only time can differ
            thin = torch.randn(channels, rank) @ torch.randn(rank, 9 * channels) / (rank * 9 * channels) ** 0.5
            whole.weight.copy_(thin.reshape(whole.weight.shape))
        factors: Any = SvdFactorisation(energy=1.0 - 1e-9).apply(whole)
        filters, mix = factors
        operator, x = Im2col(), torch.randn(1, channels, size, size).numpy()
        kept, first, second = (operator.prepare(layer.weight.detach().numpy()) for layer in (whole, filters, mix))

        def factorised() -> Any:
            return operator.conv2d(operator.conv2d(x, first, padding=1), second)

        def dense() -> Any:
            return operator.conv2d(x, kept, padding=1)

        assert filters.out_channels == rank and np.allclose(factorised(), dense(), atol=1e-3)
        return Contest(
            {"self": factorised, "baseline": dense}, work=2.0 * share * dense().size * 9 * channels, unit="flop"
        )


protocol = Experiment()
