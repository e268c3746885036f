"""Shift against one-hot depthwise filters, adder against scipy and its gradients by hand, powers of two by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional

from kernels.counting import macs
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.multiplier_free_layers import (
    Adder,
    MultiplierFreeLayers,
    PowersOfTwo,
    spatial_shift,
)
from kernels.model.transform import bake
from taxonomy.measure.figures import stored_bits


@pytest.mark.parametrize(
    ("channels", "kernel", "dilation"),
    [(18, (3, 3), (1, 1)), (20, (3, 3), (2, 1)), (5, (1, 5), (1, 1)), (4, (3, 3), (1, 1))],
)
def test_a_shift_is_a_depthwise_convolution_with_one_hot_filters(channels, kernel, dilation):
    x, steps = torch.randn(2, channels, 6, 7), kernel[0] * kernel[1]
    each = channels // steps
    filters = torch.zeros(channels, steps)
    for c in range(channels):
        filters[c, c // each if each and c < each * steps else steps // 2] = 1
    expected = functional.conv2d(
        x, filters.view(channels, 1, *kernel), padding="same", groups=channels, dilation=dilation
    )
    assert torch.equal(spatial_shift(x, kernel, dilation), expected)


def test_shift_takes_the_products_of_a_pointwise_convolution_alone():
    for stride in (1, 2):
        block = MultiplierFreeLayers().build(ConvSpec(18, 12, 3, stride=stride, padding=1, bias=False))
        assert macs(block, torch.zeros(1, 18, 8, 8)) == 18 * 12 * 64 // stride**2


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"padding": 0}])
def test_an_adder_is_the_negative_distance_of_scipy(options):
    torch.manual_seed(0)
    spec = ConvSpec(3, 5, 3, **({"padding": 1} | options))
    layer, x = MultiplierFreeLayers("adder").build(spec), torch.randn(2, 3, 7, 8)
    shape = nn.Conv2d(3, 5, 3, **({"padding": 1} | options))(x).shape
    columns = functional.unfold(x, 3, spec.dilation, spec.padding, spec.stride).transpose(1, 2).reshape(-1, 27)
    distance = cdist(columns.numpy(), layer.weight.detach().flatten(1).numpy(), "cityblock")
    expected = -torch.tensor(distance).view(2, -1, 5).transpose(1, 2).reshape(shape)
    assert layer(x).shape == shape and torch.allclose(layer(x).double(), expected, atol=1e-4)
    assert macs(layer, x) == 0


def test_gradients_of_an_adder_are_the_papers():
    """One pixel: x = (1, -2, 3), w = (0.5, 0, 0), upstream 2. For x HT(w - x), for w x - w at length eta sqrt(3)."""
    layer = Adder(ConvSpec(3, 1, 1, bias=False), eta=0.5)
    layer.weight.data = torch.tensor([0.5, 0.0, 0.0]).view(1, 3, 1, 1)
    x = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1).requires_grad_()
    (2 * layer(x)).sum().backward()
    assert x.grad.flatten().tolist() == [2 * -0.5, 2 * 1.0, 2 * -1.0]
    full = 2 * np.array([0.5, -2.0, 3.0])
    assert np.allclose(layer.weight.grad.flatten(), full * 0.5 * np.sqrt(3) / np.linalg.norm(full))
    assert layer(x).item() == -5.5


def test_gradients_of_an_adder_add_up_over_pixels_and_filters():
    torch.manual_seed(0)
    layer, x = Adder(ConvSpec(2, 3, 1, bias=False)).double(), torch.randn(4, 2, 3, 3, dtype=torch.float64)
    x.requires_grad_()
    g = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    layer(x).backward(g)
    rows, w = x.detach().permute(0, 2, 3, 1).reshape(-1, 1, 2), layer.weight.detach().view(1, 3, 2)
    flat = g.permute(0, 2, 3, 1).reshape(-1, 3, 1)
    of_x = (flat * functional.hardtanh(w - rows)).sum(1).view(4, 3, 3, 2).permute(0, 3, 1, 2)
    of_w = (flat * (rows - w)).sum(0)
    assert torch.allclose(x.grad, of_x)
    assert torch.allclose(layer.weight.grad.view(3, 2), of_w * 0.1 * 6**0.5 / of_w.norm())


@pytest.mark.parametrize("bits", [3, 5])
def test_weights_are_the_nearest_power_in_the_logarithm(bits):
    w = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.random.default_rng(1).uniform(-6, 1, size=1000)
    w[0] = 0
    lowest = 2 - 2 ** (bits - 1)
    with np.errstate(divide="ignore"):
        expected = np.sign(w) * 2.0 ** np.clip(np.round(np.log2(np.abs(w))), lowest, 0)
    rounded = PowersOfTwo(bits)(torch.tensor(w)).numpy()
    assert np.allclose(rounded, expected, rtol=1e-12, atol=0) and rounded[0] == 0
    assert len(np.unique(np.round(np.log2(np.abs(rounded[1:]))))) == 2 ** (bits - 1) - 1, (
        "with zero they fill the codes"
    )


def test_powers_of_two_are_trained_straight_through_stored_in_few_bits_and_baked():
    layer = MultiplierFreeLayers("deepshift", bits=4).build(ConvSpec(4, 8, 3, padding=1, bias=False))
    free = layer.parametrizations.weight.original
    layer.weight.sum().backward()
    assert torch.equal(free.grad, torch.ones_like(free))
    assert stored_bits(layer) == 4 * 8 * 4 * 9
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(bake(layer)(x), layer(x))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="form: expected one of shift, adder, deepshift, got 'free'"):
        MultiplierFreeLayers("free")
    with pytest.raises(ValueError, match="bits: expected a sign and at least one bit, got 1"):
        MultiplierFreeLayers(bits=1)
    with pytest.raises(ValueError, match="padding: expected half of an odd kernel for a shift"):
        MultiplierFreeLayers().build(ConvSpec(9, 9, 3))
