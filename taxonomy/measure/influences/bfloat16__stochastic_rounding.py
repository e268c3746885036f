"""Does keeping weights in bfloat16 lose accuracy when steps are small, and does rounding at random save it?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from datasets import Recipe
from kernels.arithmetic.mixed_precision.low_precision import precision_of, train_in
from kernels.arithmetic.mixed_precision.stochastic_rounding import StochasticRounding
from taxonomy.measure.influences.rescue import Rescue, small_steps


def alone(network: nn.Module, data: Any, recipe: Recipe, seed: int) -> nn.Module:
    return train_in(precision_of("bfloat16", master=False), network, data, recipe, seed=seed)[0]


def rescued(network: nn.Module, data: Any, recipe: Recipe, seed: int) -> nn.Module:
    precision = replace(precision_of("bfloat16"), stored=StochasticRounding(format="bfloat16"))
    return train_in(precision, network, data, recipe, seed=seed)[0]


protocol = Rescue("bfloat16--stochastic-rounding", small_steps, alone, rescued)
