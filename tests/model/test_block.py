"""Blocks stand where standard convolutions stood, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import datasets
from kernels.model.block import ConvSpec, StandardConvolution, replace
from kernels.model.compact_convolution.depthwise_separable import DepthwiseSeparable


def test_only_standard_convolutions_are_replaced_also_deep_inside():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 8, (1, 3), stride=2, bias=False),
    )
    changed = replace(network, DepthwiseSeparable())
    kinds = [type(layer) for layer in (changed[0], changed[1][0], changed[1][1], changed[2], changed[3], changed[4])]
    assert kinds == [nn.Conv2d, nn.Sequential, nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.Sequential]
    assert type(network[1][0]) is nn.Conv2d and changed[0].weight is not network[0].weight
    x = torch.randn(2, 1, 12, 12)
    assert changed(x).shape == network(x).shape


def test_standard_convolutions_rebuild_the_same_network():
    network = datasets.workload("mnist-cnn").network()
    again = replace(network, StandardConvolution())
    assert str(again) == str(network) and again.state_dict().keys() == network.state_dict().keys()


def test_a_convolution_alone_is_replaced():
    layer = nn.Conv2d(3, 5, 3, stride=2, padding="valid")
    assert ConvSpec.of(layer).bias and str(replace(layer, StandardConvolution())) == str(layer)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"network: expected a standard convolution.*Linear has none"):
        replace(nn.Linear(3, 3), StandardConvolution())
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got str"):
        replace("network", StandardConvolution())
