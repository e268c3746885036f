"""Tiles of background against the whole convolution."""

import pytest
import torch
from torch import nn

import datasets
from kernels.counting import macs
from kernels.model.dynamic_inference.spatially_adaptive import SpatiallyAdaptive, TiledConv2d

mnist = datasets.workload("mnist-cnn")
X = torch.tensor(mnist.data().validation.x[:24])


def test_it_is_a_deterministic_copy_whose_batches_answer_as_their_items(held):
    held(SpatiallyAdaptive(), mnist, X)


@torch.no_grad()
@pytest.mark.parametrize("tile", [1, 2, 3, 4, 28])
def test_at_threshold_nought_it_is_the_network(tile):
    network = SpatiallyAdaptive(tile=tile).apply(mnist.trained(), mnist.data())
    logits, cost = network(X)
    torch.testing.assert_close(logits, mnist.trained()(X), rtol=1e-3, atol=1e-4)
    assert len(cost.unique()) > 1 or tile == 28


@torch.no_grad()
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 2, "dilation": 2}, {}])
def test_tiles_that_count_are_computed_and_others_are_the_background(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, **options)
    before = torch.randn(1, 2, 9, 7)
    layer = TiledConv2d(conv, before, conv(before), tile=2)
    x = before.repeat(2, 1, 1, 1)
    x[1, 0, 4, 3] += 1.0
    y, cost = layer(x, 0.5)
    torch.testing.assert_close(y, conv(x), rtol=1e-4, atol=1e-5)
    assert cost[0] == 0 and cost[1] > 0
    y, cost = layer(x, 1.5)  # too little a difference to count
    assert torch.equal(y, conv(before).repeat(2, 1, 1, 1)) and (cost == 0).all()


@torch.no_grad()
def test_what_is_reported_is_what_is_multiplied():
    network = SpatiallyAdaptive().apply(mnist.trained(), mnist.data())
    _, cost = network(X)
    assert macs(network, X) == pytest.approx(float(cost.double().sum()))


@torch.no_grad()
def test_an_empty_image_costs_no_convolution_and_one_that_is_no_number_costs_all():
    network = SpatiallyAdaptive(tile=7).apply(mnist.trained(), mnist.data())
    nothing, broken = torch.zeros(1, 1, 28, 28), torch.full((1, 1, 28, 28), float("nan"))
    logits, cost = network(torch.cat([nothing, broken]))
    linear = mnist.trained()[-1].weight.numel()
    assert cost[0] == linear and cost[1] == macs(mnist.trained(), nothing)
    torch.testing.assert_close(logits[:1], mnist.trained()(nothing), rtol=1e-4, atol=1e-4)
    assert logits[1].isnan().all()


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="threshold: expected at least 0"):
        SpatiallyAdaptive(threshold=-1.0)
    with pytest.raises(ValueError, match="tile: expected at least 1"):
        SpatiallyAdaptive(tile=0)
    with pytest.raises(ValueError, match="0: expected a convolution of stride 1"):
        SpatiallyAdaptive().apply(nn.Sequential(nn.Conv2d(1, 2, 3, stride=2)), mnist.data())
    with pytest.raises(ValueError, match="expected a convolution; there is none"):
        SpatiallyAdaptive().apply(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), mnist.data())
