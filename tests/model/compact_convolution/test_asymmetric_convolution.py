"""In sequence it is the convolution of the outer products; as branches it becomes one kernel."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from kernels.counting import macs
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.asymmetric_convolution import AsymmetricConvolution, composed_kernel


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"padding": "same"}, {"bias": False}])
def test_sequence_equals_the_standard_convolution_of_the_composed_kernel(options):
    torch.manual_seed(0)
    spec = ConvSpec(3, 5, 3, **({"padding": 1} | options))
    block = AsymmetricConvolution().build(spec).double()
    standard = nn.Conv2d(3, 5, 3, **({"padding": 1} | options)).double()
    standard.weight.data = composed_kernel(block[0].weight, block[1].weight)
    if spec.bias:
        standard.bias = block[1].bias
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(block(x), standard(x), atol=1e-12)


def test_one_channel_by_scipy():
    block = AsymmetricConvolution().build(ConvSpec(1, 1, 3, bias=False)).double()
    x, (v, h) = np.random.default_rng(0).normal(size=(6, 7)), (layer.weight.detach().numpy()[0, 0] for layer in block)
    expected = correlate2d(x, np.outer(v, h), mode="valid")
    assert np.allclose(block(torch.tensor(x)[None, None]).detach().numpy()[0, 0], expected)


@pytest.mark.parametrize(("m", "n", "k"), [(8, 8, 3), (8, 16, 3), (4, 4, 7)])
def test_products_are_the_share_of_the_closed_form(m, n, k):
    standard, x = nn.Conv2d(m, n, k, padding=k // 2), torch.zeros(1, m, 9, 9)
    share = Fraction(macs(AsymmetricConvolution().build(ConvSpec.of(standard)), x), macs(standard, x))
    assert share == Fraction(m + n, k * m)


def test_branches_add_a_cross_to_the_kernel():
    torch.manual_seed(0)
    block = AsymmetricConvolution("branches").build(ConvSpec(4, 6, 3, padding=1)).double()
    x = torch.randn(8, 4, 9, 9, dtype=torch.float64)
    block(x)
    block.eval()
    assert torch.allclose(block.fuse()(x), block(x), atol=1e-12)
    for norm in block.norms[1:]:
        nn.init.zeros_(norm.weight)
    without = block.fuse().weight
    for norm in block.norms[1:]:
        nn.init.ones_(norm.weight)
    changed = (block.fuse().weight != without).any(dim=0).any(dim=0)
    assert changed.tolist() == [[False, True, False], [True, True, True], [False, True, False]]


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="form: expected one of factorised, branches, got 'both'"):
        AsymmetricConvolution("both")
    with pytest.raises(ValueError, match="kernel_size: expected one in whose middle"):
        AsymmetricConvolution("branches").build(ConvSpec(4, 4, 4))
