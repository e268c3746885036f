"""Thinned, a network costs what the closed form says; the task's own inputs and outputs stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import datasets
from datasets.workloads.mnist_cnn import network as mnist_network
from kernels.counting import macs, macs_by_layer, parameters
from kernels.model.block import NetworkSpec
from kernels.model.compact_convolution.width_multiplier import WidthMultiplier


def spec(id="mnist-cnn"):
    workload = datasets.workload(id)
    return NetworkSpec(workload.network(), workload.input_shape)


def test_products_fall_with_the_square_inside_and_in_proportion_at_the_ends():
    x = torch.zeros(1, 1, 28, 28)
    before, after = macs_by_layer(spec().network, x), macs_by_layer(WidthMultiplier(0.5).build(spec()), x)
    assert [after[name] / n for name, n in before.items()] == [0.5, 0.25, 0.25, 0.5]


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0, 2.0])
def test_it_is_the_workloads_own_network_of_those_widths(width):
    ours, theirs = WidthMultiplier(width).build(spec()), mnist_network(*(round(width * w) for w in (16, 32, 32)))
    assert str(ours) == str(theirs) and parameters(ours) == parameters(theirs)


@pytest.mark.parametrize("resolution", [0.25, 0.5])
def test_resolution_quarters_the_products_of_convolutions_and_keeps_their_parameters(resolution):
    chain = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    whole, x = NetworkSpec(chain, (1, 16, 16)), torch.rand(2, 1, 16, 16)
    small = WidthMultiplier(1.0, resolution).build(whole)
    assert macs_by_layer(small, x)["1"] == resolution**2 * macs_by_layer(chain, x)["0"]
    assert parameters(small) == parameters(chain)
    side = int(16 * resolution)
    assert torch.equal(small[0](x), nn.functional.avg_pool2d(x, 16 // side))


def test_linear_features_are_thinned_but_not_the_answers():
    chain = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    thin = WidthMultiplier(0.5).build(NetworkSpec(chain, (1, 4, 4)))
    assert (thin[1].in_features, thin[1].out_features, thin[3].in_features, thin[3].out_features) == (16, 4, 4, 3)
    assert WidthMultiplier(0.01).build(NetworkSpec(chain, (1, 4, 4)))[1].out_features == 1
    assert macs(thin, torch.zeros(1, 1, 4, 4)) == 16 * 4 + 4 * 3


def test_wrong_input_is_named():
    for width in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="width: expected a positive factor"):
            WidthMultiplier(width)
    for resolution in (0, 1.5):
        with pytest.raises(ValueError, match="resolution: expected 0 < resolution <= 1"):
            WidthMultiplier(resolution=resolution)
    with pytest.raises(TypeError, match="network: layer 0 is a GRU"):
        WidthMultiplier().build(NetworkSpec(nn.Sequential(nn.GRU(4, 4)), (4,)))
