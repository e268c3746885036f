"""How many of a pruned network's zeros are left after a transform of its filters: shared by two experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from torch import nn

from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

__all__ = ["TransformedZeros"]

DENSITIES = (0.1, 0.2, 0.5)


class TransformedZeros(Protocol):
    """Multiplications of non-zero weights, of the transformed filters (`self`) and of the filters in space, both as
    shares
    of all those that a dense network would do in the same domain, times the direct ones."""

    def __init__(self, kind: str, settings: tuple[dict[str, Any], ...], transformed: Callable[..., np.ndarray]) -> None:
        self.kind, self.settings, self.transformed = kind, settings, transformed  # type: ignore[misc]

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({**setting, "density": density}, seed)
            for seed in range(REPETITIONS)
            for setting in self.settings
            for density in DENSITIES
        ]

    def quality(self, case: Case) -> Values:
        setting = {name: value for name, value in case.setting.items() if name != "density"}
        own = spatial = 0.0
        for w in filters(pruned(case.workload, case.seed, case.setting["density"])):
            changed = self.transformed(w, **setting)
            own += w.size * np.count_nonzero(np.abs(changed) > 1e-7) / changed.size
            spatial += np.count_nonzero(w)
        return {"self": {"effective_macs": own}, "baseline": {"effective_macs": spatial}}


@lru_cache(maxsize=8)
def pruned(workload: Any, seed: int, density: float) -> nn.Module:
    """A network trained from its own start, pruned and fine-tuned."""
    network = workload.network(seed)
    workload.recipe.train(network, workload.data(), seed=seed)
    network = MagnitudePruning(density=density).apply(network)
    workload.recipe.finetune(network, workload.data(), seed=seed)
    return bake(network)


def filters(network: nn.Module) -> Iterator[np.ndarray]:
    """The weights of its 3 x 3 convolutions."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            yield layer.weight.detach().numpy()
