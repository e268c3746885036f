"""Separable filters against scipy's correlation with the composed kernel, and against the best matrix of the rank."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.signal import correlate2d
from torch import nn

from kernels.counting import parameters
from kernels.model.low_rank.separable_filters import SeparableFilters


def composed(small):
    vertical, horizontal = (layer.weight.detach().double() for layer in small)
    return torch.einsum("nrj,rci->ncij", horizontal[:, :, 0], vertical[:, :, :, 0])


def test_two_convolutions_are_one_with_the_composed_kernel():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, (3, 5), padding=(1, 2), bias=True)
    small = SeparableFilters(share=0.4).apply(layer)
    image = torch.randn(6, 10, 11)
    kernel, got = composed(small).numpy(), small(image[None])[0].detach().numpy()
    for n in range(8):
        expected = sum(correlate2d(image[c].numpy(), kernel[n, c], mode="same") for c in range(6))
        np.testing.assert_allclose(got[n], expected + layer.bias[n].item(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_no_sum_of_as_many_separable_filters_is_nearer(share):
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 12, 3, bias=False)
    small = SeparableFilters(share).apply(layer)
    weight = layer.weight.detach().double()
    rank = small[0].out_channels
    assert parameters(small) == rank * 3 * (8 + 12) <= share * weight.numel()
    matrix = np.concatenate([np.concatenate([weight[n, :, :, j].reshape(1, -1) for j in range(3)]) for n in range(12)])
    least = np.sqrt(np.sum(scipy.linalg.svdvals(matrix)[rank:] ** 2))
    assert (composed(small) - weight).norm().item() == pytest.approx(least, rel=1e-5)


def test_a_stride_and_filters_that_are_separable_already():
    torch.manual_seed(2)
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("nrj,rci->ncij", torch.randn(8, 2, 3), torch.randn(2, 4, 3)))
    small, x = SeparableFilters(share=0.25).apply(layer), torch.randn(3, 4, 8, 8)
    assert small[0].out_channels == 2
    torch.testing.assert_close(small(x), layer(x), rtol=1e-4, atol=1e-4)


def test_linear_and_pointwise_layers_stay():
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(32, 32))
    small = SeparableFilters(0.3).apply(network)
    assert [type(layer).__name__ for layer in small] == ["Sequential", "Conv2d", "Flatten", "Linear"]
