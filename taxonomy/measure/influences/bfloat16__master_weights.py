"""Does keeping weights in bfloat16 lose accuracy when steps are small, and does an FP32 copy save it?"""

from __future__ import annotations

from typing import Any

from torch import nn

from datasets import Recipe
from kernels.arithmetic.mixed_precision.master_weights import MasterWeights
from taxonomy.measure.influences.rescue import Rescue, small_steps


def alone(network: nn.Module, data: Any, recipe: Recipe, seed: int) -> nn.Module:
    return MasterWeights("bfloat16").without().train(network, data, recipe, seed=seed)[0]


def rescued(network: nn.Module, data: Any, recipe: Recipe, seed: int) -> nn.Module:
    return MasterWeights("bfloat16").train(network, data, recipe, seed=seed)[0]


protocol = Rescue("bfloat16--master-weights", small_steps, alone, rescued)
