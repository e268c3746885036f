"""The fit against least squares of numpy and against exhaustion; a product against counts of bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.arithmetic.approximate_arithmetic.bit_serial import BitSerial
from kernels.model.quantization.learned_levels import (
    BasisInputs,
    BasisWeights,
    LearnedLevels,
    best_basis,
    bits_of,
    fit,
    levels,
    nearest,
)
from kernels.model.quantization.quantizers import pack, unpack
from kernels.model.quantization.xnor_net import ScaledSigns
from kernels.model.transform import bake
from tests.model.quantization.few_bits import batch, chain, trained_leaves_alone


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_codes_are_of_the_nearest_level_and_the_basis_of_least_squares(count, signed):
    random = np.random.default_rng(count)
    x, basis = random.normal(size=(4, 60)), random.normal(size=(4, count))
    codes = nearest(torch.tensor(x), torch.tensor(basis), signed).numpy()
    best = best_basis(torch.tensor(x), torch.tensor(codes), count, signed).numpy()
    for row, v, mine, found in zip(x, basis, codes, best, strict=True):
        bits = np.array(list(itertools.product((-1, 1) if signed else (0, 1), repeat=count)))[:, ::-1]
        distance = np.abs(row[:, None] - bits @ v)
        assert np.allclose(distance[np.arange(60), mine], distance.min(1))
        expected, *_ = np.linalg.lstsq(bits[mine].astype(float), row, rcond=None)
        assert np.allclose(found, expected, atol=1e-8)


def test_no_round_of_the_fit_makes_it_worse():
    x = torch.tensor(np.random.default_rng(0).standard_t(4, (3, 300)))
    basis, errors = torch.tensor([[0.3, 0.9]] * 3, dtype=torch.float64), []
    for _ in range(12):
        basis, codes = fit(x, basis, True)
        errors.append((x - levels(basis, True).gather(1, codes)).square().sum().item())
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(errors)) and errors[-1] < 0.9 * errors[0]


def test_what_lies_at_levels_is_found():
    rng = np.random.default_rng(1)
    true = torch.tensor([[0.5, 1.3]])
    x = levels(true, True)[:, rng.integers(0, 4, 200)] + torch.tensor(
        rng.normal(0, 0.01, (1, 200)), dtype=torch.float32
    )
    basis, _ = fit(x, torch.tensor([[0.4, 0.9]]), True, rounds=20)
    assert torch.allclose(basis.sort().values, true, atol=0.01)


def test_one_bit_is_the_scaled_sign():
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(BasisWeights(1, w).eval()(w), ScaledSigns()(w), atol=1e-6)


def test_a_basis_goes_a_tenth_of_the_way():
    w = torch.randn(2, 50, generator=torch.Generator().manual_seed(3))
    constraint = BasisWeights(2, w).train()
    before, moved = constraint.basis.clone(), (1.5 * w).requires_grad_()
    y = constraint(moved)
    best = best_basis(moved.detach(), nearest(moved.detach(), before, True), 2, True)
    assert torch.allclose(constraint.basis, 0.9 * before + 0.1 * best, atol=1e-6)
    y.sum().backward()
    assert torch.equal(moved.grad, torch.ones_like(w))
    after = constraint.basis.clone()
    constraint.eval()(w)
    assert torch.equal(constraint.basis, after), "in evaluation it stays"


def test_inputs_beyond_the_highest_level_get_no_gradient():
    quantizer = BasisInputs(2)
    quantizer(torch.rand(100, generator=torch.Generator().manual_seed(4)))
    top = levels(quantizer.basis, False).max().item()
    x = torch.tensor([0.0, 0.3, top * 0.99, top * 1.01, 9.0], requires_grad=True)
    y = quantizer.eval()(x)
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 0, 0] and y[0] == 0 and y[4].item() == pytest.approx(top)


def test_equal_numbers_have_a_basis_too():
    for signed in (True, False):
        basis, codes = fit(torch.full((1, 9), 0.7), torch.tensor([[0.2, 0.4]]), signed, rounds=5)
        assert basis.isfinite().all()
        assert torch.allclose(levels(basis, signed).gather(1, codes), torch.full((1, 9), 0.7), atol=1e-5)


def test_a_trained_layer_is_counts_of_bits_with_a_factor_each():
    """sum over planes v_i u_j (B_i . C_j), each product of planes counted by the kernel."""
    workload = datasets.workload("digits-mlp")
    network, _ = LearnedLevels().train(workload.network(), workload.data(), datasets.Recipe(epochs=2))
    layer, given = network[3], []
    layer.register_forward_pre_hook(lambda layer, args: given.append(args[0].detach()), prepend=True)
    network(torch.tensor(workload.data().validation.x[:20]))
    constraint, quantizer = layer.parametrizations.weight[0], layer.input_quantizer
    codes_w = constraint.codes(layer.parametrizations.weight.original)
    codes_x = nearest(given[0].reshape(1, -1), quantizer.basis, False).view_as(given[0])
    planes_w, planes_x = bits_of(2, True)[codes_w], bits_of(2, False)[codes_x]
    total = torch.zeros(20, 32, dtype=torch.float64)
    for i in range(2):
        for j in range(2):
            counted = BitSerial(1, 1).multiply(planes_x[..., j].int().numpy(), planes_w[..., i].int().numpy().T)
            total += torch.tensor(counted) * constraint.basis[:, i] * quantizer.basis[0, j]
    assert torch.allclose((total + layer.bias).float(), layer(given[0]), atol=1e-4)


def test_a_weight_is_its_codes_and_its_bases():
    network, _ = trained_leaves_alone(LearnedLevels(3, 2))
    constraint, w = network[2].parametrizations.weight[0], network[2].parametrizations.weight.original
    codes = unpack(pack(constraint.codes(w).numpy(), 3), 3, w.numel()).reshape(w.shape)
    read = np.take_along_axis(levels(constraint.basis, True).numpy(), codes, 1)
    assert np.array_equal(read, bake(network)[2].weight.detach().numpy())
    assert constraint.stored_bits(w) == 3 * 25 + 32 * 5 * 3


def test_it_learns():
    workload = datasets.workload("noisy-digits-cnn")
    network, _ = LearnedLevels(1, 1).train(workload.network(), workload.data(), datasets.Recipe(epochs=3, batch=32))
    assert datasets.accuracy(bake(network), workload.data().validation) > 0.5
    assert all(len(filter.unique()) <= 2 for filter in bake(network)[7].weight)


def test_wrong_input_is_named():
    for options, word in (
        ({"weight_bits": 5}, "weight_bits: expected an integer from 1 to 4, got 5"),
        ({"input_bits": 0}, "input_bits: expected"),
        ({"ends": 1}, "ends: expected"),
    ):
        with pytest.raises(ValueError, match=word):
            LearnedLevels(**options)
    data, recipe = batch()
    network = chain()
    with torch.no_grad():
        network[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="w: expected finite weights"):
        BasisWeights(2, nn.Linear(2, 2).weight)(network[2].weight)
    assert recipe.steps(data) == 1
