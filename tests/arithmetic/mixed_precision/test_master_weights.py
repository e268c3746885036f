"""Updates below half a step are lost in the format and add up in the FP32 copy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from datasets import Data, Recipe, Split
from kernels.arithmetic.mixed_precision.master_weights import MasterWeights

SPLIT = Split(np.ones((64, 1), np.float32), np.zeros(64, np.int64))
DATA = Data("ones", SPLIT, SPLIT, SPLIT, 2)


def output(network, x, y):
    """A loss whose gradient is one: AdamW moves the weight by the rate at every update."""
    return network(x).mean()


def one():
    line = nn.Linear(1, 1, bias=False)
    nn.init.ones_(line.weight)
    return line


RECIPE = Recipe(16, 16, learning_rate=2.0**-10, weight_decay=0.0, schedule="constant", loss=output)


@pytest.mark.parametrize(
    ("format", "dtype", "moves"),
    [("bfloat16", ml_dtypes.bfloat16, False), ("fp16", np.float16, True), ("fp8", ml_dtypes.float8_e4m3fn, False)],
)
def test_sixty_four_steps_of_a_thousandth_from_one(format, dtype, moves):
    """Worked in ml_dtypes: below one, bfloat16 numbers lie 2^-8 apart, FP16's 2^-11, FP8's 2^-4."""
    own, trace = MasterWeights(format).without().train(one(), DATA, RECIPE)
    weight = np.ones((), dtype)
    taken = sum(not entry.get("skipped", False) for entry in trace)
    assert taken in (63, 64), "the first FP16 gradient, of one, times 2^16 overflows"
    for _ in range(taken):
        weight = (weight.astype(np.float32) - np.float32(2.0**-10)).astype(dtype)
    assert len(trace) == 64 and own.weight.item() == float(weight) and (float(weight) != 1) == moves

    master, _ = MasterWeights(format).train(one(), DATA, RECIPE)
    assert master.weight.item() == float(np.float32(1 - taken * 2.0**-10).astype(dtype))


def test_in_fp32_it_is_the_plain_recipe_bit_for_bit():
    recipe = Recipe(epochs=2, batch=8)
    for method in (MasterWeights("fp32"), MasterWeights("fp32").without()):
        plain = one()
        expected = recipe.train(plain, DATA, seed=3)
        own, trace = method.train(one(), DATA, recipe, seed=3)
        assert torch.equal(own.weight, plain.weight) and trace == expected


def test_bits_and_input():
    assert MasterWeights("fp16").cost_bits()["stored"] == 32
    assert MasterWeights("fp16").without().cost_bits()["stored"] == 16
    start = one()
    MasterWeights().train(start, DATA, RECIPE)
    assert start.weight.item() == 1, "the network given is left as it is"
    with pytest.raises(ValueError, match="format: expected one of fp32, bfloat16, fp16, fp8, got 'half'"):
        MasterWeights("half")
