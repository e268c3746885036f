"""The scale follows PyTorch's GradScaler step by step, and what would vanish does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets import Data, Recipe, Split
from kernels.arithmetic.mixed_precision.loss_scaling import DynamicScale, LossScaling, StaticScale
from kernels.arithmetic.mixed_precision.low_precision import Precision, train_in

random = np.random.default_rng(0)
SPLIT = Split(random.normal(size=(64, 5)).astype(np.float32), random.integers(0, 3, 64))
DATA = Data("hand", SPLIT, SPLIT, SPLIT, 3)
SCRIPT = [False, False, False, True, True, False, False, False, False, False, False, True, False, False, False, False]


def line():
    torch.manual_seed(0)
    return nn.Linear(5, 3)


@pytest.mark.parametrize(("growth", "backoff", "interval"), [(2.0, 0.5, 3), (4.0, 0.25, 2), (2.0, 0.5, 1)])
def test_the_scale_is_gradscalers_on_a_scripted_overflow(growth, backoff, interval):
    theirs = torch.amp.GradScaler(
        "cpu", init_scale=2.0**10, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    own = DynamicScale(2.0**10, growth, backoff, interval)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for overflow in SCRIPT:
        assert own.factor == theirs.get_scale()
        theirs.scale(torch.ones(()))  # it makes its tensors when it is first used
        parameter.grad = torch.tensor([1.0, float("inf") if overflow else 1.0])
        theirs.step(optimizer)
        theirs.update()
        own.update(overflow)
    assert own.factor == theirs.get_scale()


@pytest.mark.parametrize(("start", "floor"), [(2.0**16, 1.0), (1.5, 1.0), (0.25, 0.25)])
def test_however_many_overflows_the_scale_grows_again(start, floor):
    """Halved for ever it would be zero, which no doubling leads out of, and no gradient is finite over it."""
    scale = DynamicScale(start, interval=1)
    for _ in range(1200):
        scale.update(True)
    assert scale.factor == floor
    scale.update(False)
    assert scale.factor == 2 * floor


def scripted(network, x, y):
    """A loss whose scaled gradient overflows in some updates, because something infinite multiplies it."""
    value = functional.cross_entropy(network(x), y)
    step = len(CALLS)
    CALLS.append(step)
    return value + network(x).sum() * torch.tensor(float("inf") if SCRIPT[step] else 0.0)


CALLS: list[int] = []


def test_a_training_with_skipped_updates_is_pytorchs_bit_for_bit():
    recipe = Recipe(epochs=2, batch=8, learning_rate=0.05, schedule="constant", loss=scripted)
    CALLS.clear()
    own, trace = train_in(Precision(), line(), DATA, recipe, scaler=DynamicScale(2.0**6, interval=3), seed=1)

    theirs = line()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=3)
    x, y = torch.tensor(SPLIT.x), torch.tensor(SPLIT.y)
    scales = []
    CALLS.clear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for _ in range(2):
            for items in torch.randperm(64).split(8):
                optimizer.zero_grad()
                scales.append(scaler.get_scale())
                scaler.scale(scripted(theirs, x[items], y[items])).backward()
                scaler.step(optimizer)
                scaler.update()
    assert [entry["scale"] for entry in trace] == scales
    assert [entry["skipped"] for entry in trace] == SCRIPT
    assert torch.equal(own.weight, theirs.weight) and torch.equal(own.bias, theirs.bias)


def test_a_power_of_two_changes_no_bit_where_nothing_vanishes():
    recipe = Recipe(epochs=2, batch=16)
    plain, _ = LossScaling("fp32").without().train(line(), DATA, recipe)
    scaled, _ = LossScaling("fp32", "static", 2.0**12).train(line(), DATA, recipe)
    assert torch.equal(plain.weight, scaled.weight)


def test_small_gradients_vanish_in_fp16_without_it_and_not_with():
    """A gradient of 2^-30 is zero in FP16, whose smallest number is 2^-24."""

    def small(network, x, y):
        return network(x).sum() * 2.0**-30

    def gradient(scaler):
        seen = {}

        def keep(parameters, **_):
            seen["weight"] = parameters[0]
            return torch.optim.SGD(parameters, lr=0.0)

        recipe = Recipe(epochs=1, batch=64, learning_rate=0.0, loss=small, optimizer=keep)
        train_in(precision_fp16(), line(), DATA, recipe, scaler=scaler)
        return seen["weight"].grad

    assert not gradient(None).any()
    assert torch.allclose(gradient(StaticScale(2.0**20)), torch.tensor(SPLIT.x).sum(0) * 2.0**-30, rtol=1e-2)


def precision_fp16():
    from kernels.arithmetic.mixed_precision.low_precision import precision_of

    return precision_of("fp16")


def test_a_static_scale_skips_and_stays():
    data = datasets.workload("digits-mlp")
    start = data.network()
    own, trace = LossScaling("fp16", "static", 2.0**40).train(start, data.data(), Recipe(epochs=1))
    assert all(entry["skipped"] and entry["scale"] == 2.0**40 for entry in trace)
    assert torch.equal(own[1].weight, start[1].weight.half().float()), "what is skipped changes nothing"


def test_the_technique_switched_off_is_the_engine_without_a_scale():
    _, trace = LossScaling("fp8", factor=3.0).without().train(line(), DATA, Recipe(epochs=1))
    assert set(trace[0]) == {"step", "epoch", "loss"}
    assert LossScaling("fp8").without() == LossScaling("fp8", "static", 7.0).without()
    assert LossScaling().cost_bits()["stored"] == 32


def test_wrong_parameters_are_named():
    for wrong, message in (
        ({"format": "int8"}, "format: expected one of"),
        ({"scale": "fast"}, "scale: expected dynamic or static, got 'fast'"),
        ({"factor": 0.0}, "factor: expected a positive number"),
        ({"factor": float("inf")}, "factor: expected a positive number"),
        ({"interval": 0}, "interval: expected a positive number of updates"),
    ):
        with pytest.raises(ValueError, match=message):
            LossScaling(**wrong)
