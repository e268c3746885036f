"""Does a trained network of signs run faster by counting bits, the packing of its inputs included?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.implementation.low_precision_kernels.xnor_popcount import XnorPopcount
from kernels.model.quantization.binarized_network import BinarizedNetwork
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

IMAGES = (4, 32, 256)
LAYER = "7"
EPOCHS = 2
"""Signs as a training leaves them; the time does not depend on how good they are."""


class Experiment(Protocol):
    kind = "binarized-network--xnor-popcount"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"images": images}, seed, timing=True) for seed in range(REPETITIONS) for images in IMAGES]

    def contest(self, case: Case) -> Contest:
        rows, weight = _product(case.workload, case.seed)
        rows = rows[: case.setting["images"] * len(rows) // max(IMAGES)]
        scale = np.abs(weight).max()
        operator, signs = XnorPopcount(), np.ascontiguousarray(weight / scale)
        prepared = operator.prepare(signs)
        assert np.array_equal(operator.matmul(rows, prepared) * scale, rows @ weight)
        return Contest(
            {"self": lambda: operator.matmul(rows, prepared), "baseline": lambda: rows @ weight},
            work=2.0 * rows.shape[0] * weight.size,
            unit="op",
        )


@lru_cache(maxsize=1)
def _product(workload: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of signs of the layer's inputs as rows, and its weights as columns; places outside are left out."""
    recipe = workload.recipe.__class__(epochs=EPOCHS, batch=workload.recipe.batch)
    network, _ = BinarizedNetwork().train(workload.network(seed), workload.data(), recipe, seed=seed)
    network, given = bake(network), []
    layer: Any = network.get_submodule(LAYER)
    layer.register_forward_pre_hook(lambda layer, args: given.append(args[0]))
    with torch.no_grad():
        network(torch.tensor(workload.data().validation.x[: max(IMAGES)]))
        patches = nn.functional.unfold(given[0], layer.kernel_size)  # a sign has no zero to pad with
    rows = patches.transpose(1, 2).flatten(0, 1).contiguous().numpy()
    return rows, layer.weight.detach().flatten(1).T.contiguous().numpy()


protocol = Experiment()
