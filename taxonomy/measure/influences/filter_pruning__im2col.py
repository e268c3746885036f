"""Do whole filters that are gone save time in a convolution by im2col, where scattered zeros save none?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.implementation.convolution.im2col import Im2col
from kernels.model.pruning.filter_pruning import FilterPruning
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

LAYERS = ({"channels": 64, "size": 28}, {"channels": 128, "size": 14})
KEPT = (0.5, 0.25, 0.125)


class Experiment(Protocol):
    kind = "filter-pruning--im2col"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({**layer, "kept": kept}, seed, timing=True)
            for seed in range(REPETITIONS)
            for layer in LAYERS
            for kept in KEPT
        ]

    def contest(self, case: Case) -> Contest:
        """One layer, its weights as drawn: a network of it and a classifier has MACs in proportion to its filters."""
        channels, size, kept = (case.setting[name] for name in ("channels", "size", "kept"))
        torch.manual_seed(case.seed)
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        network = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
        x = torch.randn(1, channels, size, size)
        data: Any = SimpleNamespace(train=SimpleNamespace(x=torch.randn(2, channels, size, size).numpy()))
        narrow = FilterPruning(macs=kept).apply(network, data).get_parameter("0.weight").detach()
        scattered = bake(MagnitudePruning(density=kept).apply(layer)).get_parameter("weight").detach()
        assert narrow.numel() == scattered.count_nonzero() == round(kept * layer.weight.numel())
        return Contest(
            {"self": _by_im2col(x, narrow), "baseline": _by_im2col(x, scattered)},
            work=2.0 * narrow.numel() * size * size,
            unit="flop",
        )


def _by_im2col(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], Any]:
    operator, image, w = Im2col(), x.numpy(), np.ascontiguousarray(weight.numpy())
    prepared = operator.prepare(w)
    return lambda: operator.conv2d(image, prepared, padding=1)


protocol = Experiment()
