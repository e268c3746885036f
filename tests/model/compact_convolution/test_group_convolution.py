"""A convolution in groups is the standard one with a block-diagonal kernel, at the share 1 / g of its cost."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.group_convolution import GroupConvolution, composed_kernel


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"bias": False}])
def test_it_equals_the_standard_convolution_of_the_composed_kernel(groups, options):
    torch.manual_seed(0)
    standard = nn.Conv2d(8, 16, 3, padding=1, **options).double()
    block = GroupConvolution(groups).build(ConvSpec.of(standard)).double()
    standard.weight.data = composed_kernel(block.weight, groups)
    standard.bias = block.bias
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    assert torch.allclose(block(x), standard(x), atol=1e-12)
    assert (standard.weight != 0).any(-1).any(-1).sum() == 16 * 8 // groups


def test_the_equation_by_scipy():
    block = GroupConvolution(2).build(ConvSpec(4, 6, 3, bias=False)).double()
    x, w = np.random.default_rng(0).normal(size=(4, 6, 6)), block.weight.detach().numpy()
    members = [range(0, 2) if n < 3 else range(2, 4) for n in range(6)]
    expected = [sum(correlate2d(x[m], w[n, i], "valid") for i, m in enumerate(members[n])) for n in range(6)]
    assert np.allclose(block(torch.tensor(x)[None]).detach().numpy()[0], expected)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_cost_is_the_share_of_the_closed_form(groups):
    standard, x = nn.Conv2d(8, 16, 3, bias=False), torch.zeros(1, 8, 5, 5)
    block = GroupConvolution(groups).build(ConvSpec.of(standard))
    assert Fraction(macs(block, x), macs(standard, x)) == Fraction(1, groups)
    assert Fraction(parameters(block), parameters(standard)) == Fraction(1, groups)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="groups: expected a positive integer, got 0"):
        GroupConvolution(0)
    with pytest.raises(ValueError, match="in_channels: expected a multiple of 4 groups, got 6"):
        GroupConvolution(4).build(ConvSpec(6, 8, 3))
    with pytest.raises(ValueError, match="out_channels: expected a multiple of 4 groups, got 6"):
        GroupConvolution(4).build(ConvSpec(8, 6, 3))
