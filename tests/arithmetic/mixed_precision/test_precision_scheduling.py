"""The schedules against their formulas in exact rationals, the quantizer against PyTorch's, and a constant schedule."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from datasets import Data, Recipe, Split
from kernels.arithmetic.mixed_precision.low_precision import Precision, train_in
from kernels.arithmetic.mixed_precision.precision_scheduling import PrecisionScheduling, Uniform

random = np.random.default_rng(0)
SPLIT = Split(random.normal(size=(40, 6)).astype(np.float32), random.integers(0, 3, 40))
DATA = Data("hand", SPLIT, SPLIT, SPLIT, 3)


def line():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 10), st.integers(0, 6), st.integers(2, 6), st.integers(6, 60))
def test_progressive_bits_follow_the_formula(low, more, stages, steps):
    method = PrecisionScheduling("progressive", low, low + more, gradient_low=min(low + 1, low + more), stages=stages)
    bits = [method.bits(step, steps) for step in range(steps)]
    for step, (forward, _) in enumerate(bits):
        assert forward == round(low + Fraction(more * (stages * step // steps), stages - 1))
    assert bits == sorted(bits), "they only grow"
    assert bits[0][0] == low and (steps < stages or bits[-1] == (low + more, low + more))


def test_cyclic_bits_follow_the_formula():
    method = PrecisionScheduling("cyclic", low=3, high=8, stages=5)
    for step in range(100):
        expected = round(3 + 0.5 * 5 * (1 - math.cos(math.pi * (step % 20) / 20)))
        assert method.bits(step, 100) == (expected, 8)
    assert [method.bits(s, 100)[0] for s in (0, 19, 20, 99)] == [3, 8, 3, 8]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.integers(2, 8))
def test_uniform_is_pytorchs_fake_quantization(numbers, bits):
    x = torch.tensor(numbers)
    largest, steps = float(x.abs().max()), 2 ** (bits - 1) - 1
    if largest / steps < 1e-30:
        return
    theirs = torch.fake_quantize_per_tensor_affine(x, largest / steps, 0, -steps, steps)
    own = Uniform(bits).round(x)
    # a tie may fall either way: PyTorch multiplies by the inverse of the scale
    assert torch.allclose(own, theirs, atol=1e-6 * largest) or bool(
        ((x / (largest / steps)).frac().abs() - 0.5).abs().min() < 1e-5
    )


def test_uniform_on_what_has_no_scale_and_at_random():
    assert torch.equal(Uniform(4).round(torch.zeros(3)), torch.zeros(3))
    assert Uniform(4).round(torch.zeros(0, 2)).shape == (0, 2)
    assert Uniform(4).round(torch.tensor(2.0)).item() == 2.0
    assert Uniform(4).round(torch.tensor([1.0, float("nan")])).isnan().all()
    x = torch.full((20000,), 0.3)
    x[0] = 1.0  # the scale is then 1
    drawn = Uniform(2, "stochastic", seed=1).round(x)[1:]
    assert set(drawn.tolist()) == {0.0, 1.0} and abs(drawn.mean().item() - 0.3) < 0.015
    assert torch.equal(drawn, Uniform(2, "stochastic", seed=1).round(x)[1:])
    assert not torch.equal(drawn, Uniform(2, "stochastic", seed=2).round(x)[1:])
    strided = torch.arange(24.0).reshape(4, 6).T
    assert torch.equal(Uniform(5).round(strided), Uniform(5).round(strided.contiguous()))


def test_with_all_bits_always_it_is_the_engine_at_those_bits():
    recipe = Recipe(epochs=2, batch=10)
    own, trace = PrecisionScheduling().without().train(line(), DATA, recipe, seed=1)
    fixed = Precision(Uniform(8), Uniform(8), Uniform(8, "stochastic"))
    same, expected = train_in(fixed, line(), DATA, recipe, seed=1)
    assert torch.equal(own.weight, same.weight)
    assert [entry["loss"] for entry in trace] == [entry["loss"] for entry in expected]
    assert {entry["bits"] for entry in trace} == {(8, 8)}


def test_contestants():
    method = PrecisionScheduling("progressive", low=3, high=8, gradient_low=6)
    assert method.without().bits(0, 10) == (8, 8) and method.lowest().bits(9, 10) == (3, 6)
    assert PrecisionScheduling("cyclic", low=3, high=8).lowest().bits(9, 10) == (3, 8)
    _, trace = method.train(line(), DATA, Recipe(epochs=2, batch=10), seed=1)
    assert [entry["bits"] for entry in trace] == [(3, 6)] * 2 + [(5, 7)] * 2 + [(6, 7)] * 2 + [(8, 8)] * 2


def test_wrong_parameters_are_named():
    for wrong, message in (
        ({"schedule": "random"}, "schedule: expected one of progressive, cyclic, static, got 'random'"),
        ({"low": 1}, "low, high: expected 2 <= low <= high <= 16, got 1 and 8"),
        ({"low": 9}, "low, high: expected"),
        ({"high": 17}, "low, high: expected"),
        ({"gradient_low": 9}, "gradient_low: expected from 2 to high, 8, got 9"),
        ({"stages": 1}, "stages: expected at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            PrecisionScheduling(**wrong)
