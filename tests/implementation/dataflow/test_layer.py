"""Layers read off a network against torch's own shapes and operation counter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kernels.implementation.dataflow.layer import Layer, layers_of, valued_layers

NETWORK = nn.Sequential(
    nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2)),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Conv2d(8, 8, 3, padding="same", groups=8),
    nn.Conv2d(8, 6, 3, dilation=2, padding="valid"),
    nn.Flatten(),
    nn.Linear(6 * 4 * 12, 10),
)


def test_macs_are_those_torch_counts():
    x = torch.zeros(2, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        NETWORK.eval()(x)
    assert 2 * sum(layer.macs for layer in layers_of(NETWORK, x)) == counter.get_total_flops()


def test_the_network_is_left_alone():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = network[1].running_mean.clone()
    layers_of(network, torch.ones(1, 1, 5, 5))
    assert network.training and torch.equal(network[1].running_mean, before)
    assert not network[0]._forward_pre_hooks


def test_a_layer_called_twice_counts_twice():
    shared = nn.Linear(4, 4)
    assert layers_of(nn.Sequential(shared, shared), torch.zeros(3, 4)) == [Layer.gemm(3, 4, 4, "0")] * 2


def test_unknown_layers_are_named():
    with pytest.raises(TypeError, match="1, a GRU"):
        layers_of(nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4)), torch.zeros(1, 2, 4))
    with pytest.raises(TypeError, match="odd kernel"):
        layers_of(nn.Sequential(nn.Conv2d(1, 1, 2, padding="same")), torch.zeros(1, 1, 4, 4))


def test_products_that_no_layer_makes_are_not_forgotten():
    class Attention(nn.Sequential):
        def forward(self, x):
            return super().forward(x) @ x.mT

    with pytest.raises(TypeError, match="no cost model for 36 of its 84 multiply-accumulates"):
        layers_of(Attention(nn.Linear(4, 4)), torch.zeros(1, 3, 4))


def test_an_image_without_a_batch_is_a_batch_of_one():
    (layer,) = layers_of(nn.Conv2d(3, 2, 3), torch.zeros(3, 5, 5))
    assert (layer.batch, layer.macs) == (1, 2 * 9 * 27)


def test_a_layer_called_twice_has_its_inputs_of_each_time():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    x = torch.randn(2, 4)
    first, second = valued_layers(nn.Sequential(shared, nn.ReLU(), shared), x)
    assert np.array_equal(first.inputs[:, 0, 0], x) and np.array_equal(first.weights, second.weights)
    np.testing.assert_allclose(second.inputs[:, 0, 0], shared(x).relu().detach())


def test_values_multiply_to_the_layers_own_output():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(6, 5, 2, padding="same", dilation=2, bias=False), nn.Flatten(), nn.Linear(80, 3, bias=False),
    )  # fmt: skip
    x = torch.randn(2, 4, 8, 8)
    layers, y = valued_layers(network, x), x
    assert network.training
    for layer, module in zip(layers, (network[0], network[1], network[3]), strict=True):
        y = module(y.flatten(1) if isinstance(module, nn.Linear) else y)
        product = np.einsum("igmk,gnk->ignm", layer.inputs, layer.weights).reshape(2, -1)
        np.testing.assert_allclose(product, y.detach().reshape(2, -1).numpy(), rtol=1e-4, atol=1e-5)


def test_neighbours_in_a_brick_are_channels():
    layer = valued_layers(nn.Sequential(nn.Conv2d(3, 1, 2, bias=False)), torch.arange(12.0).reshape(1, 3, 2, 2))[0]
    assert layer.inputs[0, 0, 0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
