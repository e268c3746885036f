"""Uniform buckets against torch's fake quantization, and a step whose gradient is that of the rounded weights."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from datasets import Data, Recipe, Split
from kernels.model.distillation.quantized_distillation import (
    BUCKET,
    QuantizedDistillation,
    UniformBuckets,
    quantized,
)
from kernels.model.distillation.soft_label_distillation import soft_label_loss
from kernels.model.transform import bake


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3 * BUCKET), st.integers(0, 99))
def test_values_are_the_nearest_of_so_many_even_ones_of_each_bucket(bits, size, seed):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = quantized(weight, bits)
    for own, values in zip(weight.split(BUCKET), found.split(BUCKET), strict=True):
        grid = np.linspace(float(own.min()), float(own.max()), 2**bits)
        nearest = np.abs(own.numpy()[:, None] - grid).min(1)
        np.testing.assert_allclose((own - values).abs().numpy(), nearest, atol=1e-12)
        assert np.abs(values.numpy()[:, None] - grid).min(1).max() < 1e-12


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_bucket_is_torchs_fake_quantization(bits):
    steps = 2**bits - 1
    weight = torch.cat([torch.tensor([0.0, steps * 0.25]), torch.rand(100) * steps * 0.25])
    theirs = torch.fake_quantize_per_tensor_affine(weight, 0.25, 0, 0, steps)
    apart = (weight / 0.25 % 1 - 0.5).abs() > 1e-4  # ties go to the even number there, upwards here
    torch.testing.assert_close(quantized(weight, bits)[apart], theirs[apart])


def test_constant_and_empty_weights_stay():
    assert torch.equal(quantized(torch.full((5,), 0.3), 2), torch.full((5,), 0.3))
    assert quantized(torch.ones(1), 1).tolist() == [1.0]


def test_what_is_stored_is_counted():
    assert UniformBuckets(3).stored_bits(torch.ones(2, BUCKET)) == 3 * 2 * BUCKET + 2 * 64
    assert UniformBuckets(1).stored_bits(torch.ones(10)) == 10 + 64


def test_one_update_applies_the_gradient_at_the_rounded_weights():
    random = np.random.default_rng(0)
    split = Split(random.normal(size=(8, 4)).astype(np.float32), random.integers(0, 3, 8))
    recipe = Recipe(
        epochs=1, batch=8, learning_rate=0.1, weight_decay=0.0, schedule="constant", optimizer=torch.optim.SGD
    )
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    trained, _ = QuantizedDistillation(bits=2).train(student, Data("hand", split, split, split, 3), recipe, teacher)
    by_hand, x = copy.deepcopy(student), torch.tensor(split.x)
    with torch.no_grad():
        by_hand.weight.copy_(quantized(student.weight, 2))
    soft_label_loss(by_hand(x), teacher(x).detach(), torch.tensor(split.y), 4.0, 0.9).backward()
    full = trained.parametrizations.weight.original
    torch.testing.assert_close(full, student.weight - 0.1 * by_hand.weight.grad)
    baked = bake(trained)
    torch.testing.assert_close(baked.weight, quantized(full, 2))


def test_without_the_teacher_is_the_same_network_on_labels():
    random = np.random.default_rng(0)
    split = Split(random.normal(size=(8, 4)).astype(np.float32), random.integers(0, 3, 8))
    student = nn.Linear(4, 3)
    plain, trace = (
        QuantizedDistillation(bits=2)
        .without()
        .train(student, Data("hand", split, split, split, 3), Recipe(epochs=1, batch=8))
    )
    rounded = quantized(student.weight, 2) @ torch.tensor(split.x).T + student.bias[:, None]
    expected = torch.nn.functional.cross_entropy(rounded.T, torch.tensor(split.y))
    assert trace[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert isinstance(plain.parametrizations.weight[0], UniformBuckets)


def test_wrong_bits_are_named():
    for bits in (0, 9):
        with pytest.raises(ValueError, match="bits: expected 1 to 8"):
            QuantizedDistillation(bits=bits)
