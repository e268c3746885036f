"""The paper's three means together, against PyTorch's own automatic mixed precision and a training worked by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets import Data, Recipe, Split
from kernels.arithmetic.mixed_precision.mixed_precision_training import MixedPrecisionTraining

random = np.random.default_rng(0)
Y = random.integers(0, 3, 96)
SPLIT = Split((random.normal(size=(96, 12)) + 2 * np.eye(12)[Y]).astype(np.float32), Y)
DATA = Data("hand", SPLIT, SPLIT, SPLIT, 3)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize(("format", "dtype"), [("bfloat16", torch.bfloat16), ("fp16", torch.float16)])
def test_it_trains_as_pytorch_does_by_hand(format, dtype):
    """Passes in torch's own narrow type, FP32 masters and AdamW: the losses agree to the format's digits."""
    recipe = Recipe(epochs=3, batch=16, learning_rate=0.01, schedule="constant")
    _, trace = MixedPrecisionTraining(format).train(network(), DATA, recipe, seed=2)

    master = network()
    optimizer = torch.optim.AdamW(master.parameters(), lr=0.01, weight_decay=recipe.weight_decay)
    x, y = torch.tensor(SPLIT.x).to(dtype), torch.tensor(SPLIT.y)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for _ in range(3):
            for items in torch.randperm(96).split(16):
                narrow = copy.deepcopy(master).to(dtype)
                loss = functional.cross_entropy(narrow(x[items]).float(), y[items])
                (loss * 1024).backward()
                for own, p in zip(narrow.parameters(), master.parameters(), strict=True):
                    p.grad = own.grad.float() / 1024
                optimizer.step()
                losses.append(loss.item())
    assert np.allclose([entry["loss"] for entry in trace], losses, atol=0.02)
    assert abs(losses[0] - losses[-1]) > 0.2, "it learned something"


def test_weights_come_back_in_the_format():
    for format, dtype in (("fp16", torch.float16), ("bfloat16", torch.bfloat16), ("fp8", torch.float8_e4m3fn)):
        own, _ = MixedPrecisionTraining(format).train(network(), DATA, Recipe(epochs=1))
        for p in own.parameters():
            assert torch.equal(p.to(dtype).float(), p)


def test_only_formats_of_few_exponents_have_a_scale_and_only_the_mixed_one():
    recipe = Recipe(epochs=1)
    for format, scaled in (("fp16", True), ("fp8", True), ("bfloat16", False), ("fp32", False)):
        _, trace = MixedPrecisionTraining(format).train(network(), DATA, recipe)
        assert ("scale" in trace[0]) == scaled
        _, trace = MixedPrecisionTraining(format).without().train(network(), DATA, recipe)
        assert "scale" not in trace[0]


def test_in_fp32_it_is_the_plain_recipe_bit_for_bit():
    workload = datasets.workload("noisy-digits-cnn")
    recipe, plain = Recipe(epochs=1), workload.network()
    expected = recipe.train(plain, workload.data(), seed=4)
    own, trace = MixedPrecisionTraining("fp32").train(workload.network(), workload.data(), recipe, seed=4)
    assert trace == expected
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), plain.state_dict().values(), strict=True))


def test_bits_and_input():
    assert MixedPrecisionTraining().cost_bits() == {
        "weights": 16, "activations": 16, "gradients": 16, "stored": 32, "state": 32,
    }  # fmt: skip
    assert MixedPrecisionTraining().without().cost_bits()["stored"] == 16
    with pytest.raises(ValueError, match="format: expected one of"):
        MixedPrecisionTraining("fp4")
