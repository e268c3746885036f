"""A depthwise separable convolution costs what the papers say; a linear one equals one standard convolution."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

import datasets
from kernels.counting import macs, macs_by_layer
from kernels.model.block import ConvSpec, replace
from kernels.model.compact_convolution.depthwise_separable import DepthwiseSeparable, composed_kernel

LINEAR = {"norm": False, "activation": False}


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize(("m", "n", "k"), [(8, 16, 3), (32, 64, 3), (4, 6, 5)])
def test_products_are_the_share_of_the_closed_form(m, n, k, multiplier):
    standard = nn.Conv2d(m, n, k, padding=k // 2)
    block = DepthwiseSeparable(multiplier).build(ConvSpec.of(standard))
    x = torch.zeros(1, m, 9, 9)
    assert Fraction(macs(block, x), macs(standard, x)) == multiplier * (Fraction(1, n) + Fraction(1, k * k))


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"padding": "same"}, {"bias": False}])
def test_linear_block_equals_the_standard_convolution_of_the_composed_kernel(multiplier, options):
    torch.manual_seed(0)
    spec = ConvSpec(3, 5, 3, **({"padding": 1} | options))
    block = DepthwiseSeparable(multiplier, **LINEAR).build(spec).double()
    standard = nn.Conv2d(3, 5, 3, **({"padding": 1} | options)).double()
    standard.weight.data = composed_kernel(block.depthwise.weight, block.pointwise.weight, multiplier)
    if spec.bias:
        standard.bias = block.pointwise.bias
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(block(x), standard(x), atol=1e-12)


def test_the_equation_by_scipy():
    block = DepthwiseSeparable(**LINEAR).build(ConvSpec(3, 4, 3, bias=False)).double()
    x = np.random.default_rng(0).normal(size=(3, 7, 7))
    d, p = block.depthwise.weight.detach().numpy(), block.pointwise.weight.detach().numpy()
    filtered = np.stack([correlate2d(x[m], d[m, 0], mode="valid") for m in range(3)])
    expected = np.einsum("nm,mij->nij", p[:, :, 0, 0], filtered)
    assert np.allclose(block(torch.tensor(x)[None]).detach().numpy()[0], expected)


def test_layers_between_are_there_when_asked_for():
    names = lambda **options: [*dict(DepthwiseSeparable(**options).build(ConvSpec(4, 8, 3)).named_children())]  # noqa: E731
    assert names() == ["depthwise", "norm", "activation", "pointwise"]
    assert names(activation=False) == ["depthwise", "norm", "pointwise"]
    assert names(**LINEAR) == ["depthwise", "pointwise"]


def test_a_network_with_it_learns():
    workload = datasets.workload("noisy-digits-cnn")
    network = replace(workload.network(), DepthwiseSeparable())
    x = torch.zeros(1, *workload.input_shape)
    assert macs(network, x) < macs(workload.network(), x) / 3
    assert "3.depthwise" in macs_by_layer(network, x)
    workload.recipe.train(network, workload.data())
    assert datasets.accuracy(network, workload.data().validation) > 0.75


def test_wrong_multiplier_is_named():
    with pytest.raises(ValueError, match="multiplier: expected a positive integer, got 0"):
        DepthwiseSeparable(multiplier=0)
