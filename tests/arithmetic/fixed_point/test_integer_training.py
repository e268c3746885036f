"""WAGE's and Banner's equations by hand and in exact rationals, one update each, and what of it stays integer."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import datasets
from kernels.arithmetic.fixed_point.integer_training import (
    BannerLayer,
    IntegerTraining,
    Naive,
    RangeBatchNorm,
    WageLayer,
    WageSGD,
    _Noise,
    affine_round,
    shift,
    step_of,
    wage_round,
)

FLOATS = st.floats(-4, 4, width=32)


def exact_round(x, bits):
    """Q(x, k) in rationals; Python rounds ties to even."""
    step = Fraction(2, 2**bits)
    return min(max(round(Fraction(x) / step) * step, -1 + step), 1 - step)


@given(FLOATS, st.integers(2, 8))
def test_rounding_is_equation_5(x, bits):
    assert Fraction(float(wage_round(torch.tensor(x), bits))) == exact_round(x, bits)


def test_all_values_of_few_bits():
    x = torch.linspace(-2, 2, 100001)
    assert wage_round(x, 2).unique().tolist() == [-0.5, 0, 0.5]
    assert len(wage_round(x, 8).unique()) == 255
    assert wage_round(torch.tensor([0.25, 0.75, -0.25]), 2).tolist() == [0.0, 0.5, 0.0]  # ties to even, then clipped


@given(st.floats(2.0**-60, 2.0**60, width=32))
def test_a_shift_is_the_nearest_exponent(x):
    y = float(shift(torch.tensor(x)))
    assert math.frexp(y)[0] == 0.5
    assert abs(math.log2(y) - math.log2(x)) <= 0.5 + 1e-5


def test_shifting_nothing():
    assert float(shift(torch.tensor(0.0))) == 1


@given(st.lists(FLOATS, min_size=1, max_size=20), st.integers(1, 8))
def test_affine_rounding_is_an_integer_times_a_scale_with_zero_on_the_grid(numbers, bits):
    x = torch.tensor(numbers)
    y = affine_round(x, bits).double().numpy()
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    scale = (high - low) / (2**bits - 1)
    if scale < 1e-30:
        return
    codes = y / scale
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    assert codes.max() - codes.min() <= 2**bits - 1 + 1e-4
    assert np.all(np.abs(y - x.double().numpy()) <= scale * 1.001)  # half for rounding, half for the zero point
    assert affine_round(torch.zeros(3), bits).tolist() == [0, 0, 0] and affine_round(torch.zeros(0), bits).numel() == 0


def test_stochastic_rounding_is_right_on_average():
    x = torch.tensor([-1.0, 0.1, 0.33, 1.0]).repeat(20000, 1)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    rounded = affine_round(x, 3, noise)
    assert len(rounded[:, 1].unique()) == 2
    torch.testing.assert_close(rounded.mean(0)[1:3], x[0, 1:3], atol=0.01, rtol=0)


def test_one_wage_layer_and_update_by_hand():
    """Two inputs, one output, two bits: forward, error, gradient and update in rationals."""
    torch.manual_seed(0)
    layer = WageLayer(nn.Linear(2, 1), bits=2)
    limit = math.sqrt(6 / 2)
    assert layer.alpha == max(2.0 ** round(math.log2(0.75 / limit)), 1.0) == 1.0
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.40625, -0.1015625]]))  # stored in eight bits; as operands 1/2 and 0
    x = torch.tensor([[0.5, 0.25]], requires_grad=True)
    z = layer(x)
    assert z.item() == 0.25
    z.backward(torch.tensor([[0.3]]))
    error = exact_round(Fraction(0.3) / Fraction(1, 4), 8)  # shift(0.3) = 1/4, so the error is cut off at one
    assert error == 1 - Fraction(1, 128)
    assert [Fraction(v) for v in layer.weight.grad[0].tolist()] == [error / 2, error / 4]
    assert [Fraction(v) for v in x.grad[0].tolist()] == [error / 2, 0]
    optimizer = WageSGD([layer.weight], rate=4.0, steps=1, seed=0)
    before = layer.weight.detach().clone()
    optimizer.step()
    change = (before - layer.weight.detach()) * 128
    scaled = [4 * float(error / 2) / 0.5, 4 * float(error / 4) / 0.5]  # s = η g / shift(max |g|)
    for step, s in zip(change[0].tolist(), scaled, strict=True):
        assert step in (math.floor(s), math.ceil(s))


def test_updates_are_right_on_average_and_stay_on_the_grid():
    w = nn.Parameter(torch.zeros(40000))
    w.grad = torch.full((40000,), 0.3)
    w.grad[0] = 1.0
    WageSGD([w], rate=1.0, steps=10, seed=3).step()
    codes = w.detach() / step_of(8)
    assert set(codes.unique().tolist()) == {-1.0, 0.0} and codes[0] == -1
    assert float(codes.mean()) == pytest.approx(-0.3, abs=0.01)
    for _ in range(300):
        w.grad = torch.ones(40000)
        WageSGD([w], rate=4.0, steps=1, seed=3).step()
    assert float(w.detach().min()) == -1 + step_of(8)


def test_the_rate_falls_as_in_the_paper():
    w = nn.Parameter(torch.zeros(1))
    optimizer, seen = WageSGD([w], rate=64.0, steps=12, seed=0), []
    for _ in range(12):
        before = float(w.detach())
        w.data.zero_()
        w.grad = torch.ones(1)
        optimizer.step()
        seen.append(-float(w.detach()) * 128)
        w.data.fill_(before)
    assert seen == [64] * 8 + [8] * 2 + [1] * 2


def test_initial_weights_reach_the_threshold_and_alpha_makes_up_for_it():
    torch.manual_seed(0)
    wide = nn.Conv2d(64, 8, 3)
    layer = WageLayer(wide, bits=2)
    limit = math.sqrt(6 / 576)
    assert layer.alpha == 2.0 ** round(math.log2(0.75 / limit)) == 8
    assert 0.7 < float(layer.weight.detach().abs().max()) <= 0.75
    assert len(wage_round(layer.weight.detach(), 2).unique()) == 3


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, groups=2)]
)
def test_banners_products_and_both_errors(layer):
    """The gradients are those of torch for rounded operands: of the inputs from 8 bits, of the weights from 16."""
    torch.manual_seed(1)
    own = BannerLayer(layer, seed=5)
    shape = (5, 6) if isinstance(layer, nn.Linear) else (5, layer.in_channels, 7, 7)
    x = torch.randn(shape, requires_grad=True)
    z = own(x)
    rounded = copy.deepcopy(layer)
    with torch.no_grad():
        rounded.weight.copy_(affine_round(layer.weight, 8))
    inputs = affine_round(x.detach(), 8).requires_grad_()
    expected = rounded(inputs)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)
    e = torch.randn(z.shape)
    z.backward(e)
    drawn = _Noise(5)
    noise = [drawn.like(e), drawn.like(e)]
    narrow, wide = affine_round(e, 8, noise[0]), affine_round(e, 16, noise[1])
    for error, found, of in ((narrow, x.grad, inputs), (wide, own.weight.grad, rounded.weight)):
        (gradient,) = torch.autograd.grad(expected, of, error, retain_graph=True)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(own.bias.grad, e.sum([d for d in range(e.ndim) if d != 1]), rtol=1e-4, atol=1e-5)


def test_range_batch_norm_by_hand():
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.25, -1.0]))
    own, x = RangeBatchNorm(norm), torch.randn(8, 2, 5, 5)
    y = own(x)
    rounded = affine_round(x, 8).numpy()
    for c in range(2):
        channel = rounded[:, c]
        spread = (channel.max() - channel.min()) / math.sqrt(2 * math.log(channel.size))
        expected = (channel - channel.mean()) / (spread + 1e-5) * [2, 0.5][c] + [0.25, -1][c]
        np.testing.assert_allclose(y[:, c].detach().numpy(), expected, rtol=1e-4, atol=1e-5)
        assert float(own.size[c]) == pytest.approx(0.9 + 0.1 * spread, rel=1e-5)
    own.eval()
    statistics = copy.deepcopy(own.state_dict())
    assert own(x).shape == x.shape and all(torch.equal(statistics[k], v) for k, v in own.state_dict().items())


@pytest.mark.parametrize(
    "technique", [IntegerTraining(), IntegerTraining("wage"), IntegerTraining("wage", 2, 16.0)], ids=str
)
def test_training_learns_leaves_its_arguments_and_repeats_itself(technique):
    workload, recipe = datasets.workload("digits-mlp"), datasets.Recipe(epochs=4, batch=32)
    network = workload.network()
    before = copy.deepcopy(network.state_dict())
    trained, trace = technique.train(network, workload.data(), recipe, seed=1)
    again, same = technique.train(network, workload.data(), recipe, seed=1)
    assert trace == same and not trained.training
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert datasets.accuracy(trained, workload.data().test) > 0.85
    assert len(trace) == recipe.steps(workload.data()) and {"step", "epoch", "loss"} <= set(trace[0])


def test_what_wage_keeps_and_multiplies_is_integer():
    workload = datasets.workload("noisy-digits-cnn")
    trained, _ = IntegerTraining("wage", 2, 16.0).train(workload.network(), workload.data(), datasets.Recipe(epochs=1))
    seen = []

    def look(layer, inputs, output):
        x = inputs[0] if layer.largest is None else wage_round(inputs[0] / layer.largest, 8)
        seen.append((x / step_of(8), wage_round(layer.weight, 2) / step_of(2)))

    for layer in trained.modules():
        if isinstance(layer, WageLayer):
            layer.register_forward_hook(look)
            codes = layer.weight / step_of(8)
            assert torch.equal(codes, codes.round()) and codes.abs().max() <= 127
    trained(torch.tensor(workload.data().test.x[:64]))
    assert len(seen) == 4
    for x, w in seen:
        assert torch.equal(x, x.round()) and x.abs().max() <= 127
        assert set(w.unique().tolist()) <= {-1.0, 0.0, 1.0}
    kinds = [type(m).__name__ for m in trained.modules()]
    assert "BatchNorm2d" not in kinds and sum(p.ndim == 1 for p in trained.parameters()) == 0


def test_without_the_scheme_nothing_is_learned():
    workload = datasets.workload("digits-mlp")
    technique = IntegerTraining().without()
    assert technique == Naive()
    trained, _ = technique.train(workload.network(), workload.data(), datasets.Recipe(epochs=4))
    assert datasets.accuracy(trained, workload.data().test) < 0.3
    assert technique.cost_bits() == {"weights": 8, "activations": 8, "gradients": 8, "stored": 8, "state": 32}


def test_the_order_of_items_is_the_recipes():
    """The first loss of Banner's scheme is that of the recipe but for rounding: same weights, same batch."""
    workload, recipe = datasets.workload("digits-mlp"), datasets.Recipe(epochs=1)
    plain = recipe.train(workload.network(), workload.data())
    _, trace = IntegerTraining().train(workload.network(), workload.data(), recipe)
    assert trace[0]["loss"] == pytest.approx(plain[0]["loss"], abs=0.01) and trace != plain
    assert abs(trace[-1]["loss"] - plain[-1]["loss"]) < 0.2


def test_costs():
    assert IntegerTraining("wage", 2, 16.0).cost_bits()["state"] == 0
    assert IntegerTraining().cost_bits() == {"weights": 8, "activations": 8, "gradients": 8, "stored": 32, "state": 32}
    assert IntegerTraining("wage").mac_format == IntegerTraining("wage").format == "int8"


def test_functional_gradient_of_an_activation_is_zero_where_it_was_clipped():
    network = IntegerTraining("wage").convert(nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)))
    x = torch.tensor([[0.5, 2.0, -1.0]], requires_grad=True)
    y = network[1](x)
    assert y.tolist() == [[0.5, 1 - step_of(8), 0.0]]
    y.sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0, 0.0]]
    assert functional.relu(x).shape == y.shape


def test_bad_input():
    with pytest.raises(ValueError, match="scheme: expected banner or wage, got 'cage'"):
        IntegerTraining("cage")
    for bits in (1, 9, 2.0):
        with pytest.raises(ValueError, match="weights: expected 2 to 8 bits"):
            IntegerTraining("wage", bits)
    with pytest.raises(ValueError, match="weights: expected 8 bits in Banner's scheme, got 4"):
        IntegerTraining("banner", 4)
    for rate in (0.0, -1.0, 3.0):
        with pytest.raises(ValueError, match="rate: expected a power of two"):
            IntegerTraining("wage", 8, rate)
    with pytest.raises(TypeError, match=r"network: expected layers of Conv2d, Linear, .* got GRU"):
        IntegerTraining().convert(nn.Sequential(nn.GRU(2, 2)))
    with pytest.raises(TypeError, match="network: expected layers with products"):
        IntegerTraining().convert(nn.Sequential(nn.ReLU()))
