"""One set is the convolution of a kernel of rank one; cost is the paper's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.flattened_convolution import FlattenedConvolution, composed_kernel


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"padding": "same"}, {"padding": 0}])
def test_one_set_equals_the_standard_convolution_of_the_composed_kernel(options):
    torch.manual_seed(0)
    spec = ConvSpec(3, 5, 3, **({"padding": 1, "bias": False} | options))
    block = FlattenedConvolution(1).build(spec).double()
    standard = nn.Conv2d(3, 5, 3, **({"padding": 1, "bias": False} | options)).double()
    standard.weight.data = composed_kernel(*(layer.weight for layer in block))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(block(x), standard(x), atol=1e-12)
    assert torch.linalg.matrix_rank(standard.weight.detach()[0].flatten(1)) == 1


def test_the_equation_by_scipy():
    block = FlattenedConvolution(1).build(ConvSpec(2, 1, 3, bias=False)).double()
    x = np.random.default_rng(0).normal(size=(2, 6, 6))
    a, b, c = (layer.weight.detach().numpy() for layer in block)
    mixed = a[0, 0, 0, 0] * x[0] + a[0, 1, 0, 0] * x[1]
    expected = correlate2d(mixed, np.outer(b[0, 0, :, 0], c[0, 0, 0]), mode="valid")
    assert np.allclose(block(torch.tensor(x)[None]).detach().numpy()[0, 0], expected)


@pytest.mark.parametrize("sets", [1, 2, 3])
def test_cost_is_the_papers(sets):
    block = FlattenedConvolution(sets).build(ConvSpec(8, 12, 3, padding=1, bias=False))
    expected = 12 * (8 + 6) + (sets - 1) * 12 * (12 + 6)
    assert parameters(block) == expected and macs(block, torch.zeros(1, 8, 5, 5)) == 25 * expected
    assert not any(isinstance(layer, nn.ReLU) for layer in block)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="sets: expected a positive integer, got 0"):
        FlattenedConvolution(0)
    with pytest.raises(ValueError, match="kernel_size: expected odd sizes"):
        FlattenedConvolution(2).build(ConvSpec(4, 4, 4, padding=1))
