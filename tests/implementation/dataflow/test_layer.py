"""Layers read off a network against torch's own shapes and operation counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kernels.implementation.dataflow.layer import Layer, layers_of

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
