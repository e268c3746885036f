"""Block-circulant convolutions against scipy's circulant matrices and torch's convolution."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional

from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec
from kernels.model.low_rank.circulant_layers import CirculantLayers, expanded, fourier


@pytest.mark.parametrize("block", [2, 4, 6, 8])
def test_blocks_are_the_circulant_matrices_of_scipy(block):
    torch.manual_seed(0)
    layer = CirculantLayers(block).build(ConvSpec(2 * block, 3 * block, 1, bias=False))
    weight = expanded(layer).detach().numpy()[:, :, 0, 0]
    columns = np.einsum("fb,foi->oib", fourier(block), layer.weight.detach().numpy()[..., 0, 0])
    for o in range(3):
        for c in range(2):
            theirs = scipy.linalg.circulant(columns[o, c])
            ours = weight[o * block : (o + 1) * block, c * block : (c + 1) * block]
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("block", [2, 4, 6, 8, 16])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "bias": False}, {"padding": 2, "dilation": 2}])
def test_by_frequencies_is_by_the_expanded_weight(block, options):
    torch.manual_seed(block)
    spec = ConvSpec(block, 2 * block, 3, **options)
    layer, x = CirculantLayers(block).build(spec), torch.randn(3, block, 7, 8)
    plain = functional.conv2d(x, expanded(layer), layer.bias, spec.stride, spec.padding, spec.dilation)
    torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [2, 4, 10])
def test_the_transform_is_that_of_numpy(block):
    x = np.random.default_rng(0).standard_normal(block)
    parts, theirs = fourier(block).numpy() @ x * np.sqrt(block), np.fft.rfft(x)
    half = block // 2
    np.testing.assert_allclose(parts[[0, half]], theirs[[0, half]].real, atol=1e-12)
    np.testing.assert_allclose(parts[1:half] / np.sqrt(2), theirs[1:half].real, atol=1e-12)
    np.testing.assert_allclose(parts[half + 1 :] / np.sqrt(2), theirs[1:half].imag, atol=1e-12)


@pytest.mark.parametrize("block", [2, 4, 8])
def test_parameters_and_products_are_those_of_the_closed_form(block):
    layer = CirculantLayers(block).build(ConvSpec(16, 32, 3, padding=1, bias=False))
    assert parameters(layer) == 16 * 32 * 9 // block
    pairs, places = (16 // block) * (32 // block) * 9, 25
    frequencies = 2 + 4 * (block // 2 - 1)  # two are real, the others complex
    transforms = block * (16 + 32) * places
    assert macs(layer, torch.zeros(1, 16, 5, 5)) == frequencies * pairs * places + transforms


def test_it_learns_as_the_expanded_weight_does():
    torch.manual_seed(0)
    layer, x = CirculantLayers(4).build(ConvSpec(8, 8, 3)), torch.randn(2, 8, 5, 5)
    layer(x).square().sum().backward()
    by_frequency = layer.weight.grad.clone()
    layer.weight.grad = None
    functional.conv2d(x, expanded(layer), layer.bias).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, by_frequency, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    for block in (0, 1, 3):
        with pytest.raises(ValueError, match="block: expected an even number"):
            CirculantLayers(block)
    with pytest.raises(ValueError, match="block: 4 does not divide the 6 input and 8 output channels"):
        CirculantLayers(4).build(ConvSpec(6, 8, 3))
