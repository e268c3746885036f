"""Does training in FP16 lose accuracy when gradients are small, and does loss scaling save it?"""

from __future__ import annotations

from typing import Any

from torch import nn

from datasets import Recipe
from kernels.arithmetic.mixed_precision.loss_scaling import LossScaling
from taxonomy.measure.influences.rescue import Rescue, small_loss


def alone(network: nn.Module, data: Any, recipe: Recipe, seed: int) -> nn.Module:
    return LossScaling("fp16").without().train(network, data, recipe, seed=seed)[0]


def rescued(network: nn.Module, data: Any, recipe: Recipe, seed: int) -> nn.Module:
    return LossScaling("fp16").train(network, data, recipe, seed=seed)[0]


protocol = Rescue("fp16--loss-scaling", small_loss, alone, rescued)
