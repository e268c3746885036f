"""Halvings move to the front: maps by hand, products by the closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import datasets
from kernels.counting import macs_by_layer
from kernels.model.block import NetworkSpec
from kernels.model.compact_convolution.fast_downsampling import FastDownsampling


def spec(id="mnist-cnn"):
    workload = datasets.workload(id)
    return NetworkSpec(workload.network(), workload.input_shape)


def sides(network, shape):
    """Heights of the convolutions' results."""
    found, x = [], torch.zeros(1, *shape)
    for layer in network.eval():
        x = layer(x)
        found += [x.shape[2]] if isinstance(layer, nn.Conv2d) else []
    return found


def test_maps_shrink_where_they_should():
    assert sides(spec().network, (1, 28, 28)) == [28, 14, 7]
    assert sides(FastDownsampling(1).build(spec()), (1, 28, 28)) == [14, 7, 7]
    assert sides(FastDownsampling(2).build(spec()), (1, 28, 28)) == [14, 4, 4]
    small = spec("noisy-digits-cnn")
    assert sides(small.network, (1, 8, 8)) == [8, 8, 4] and sides(FastDownsampling().build(small), (1, 8, 8)) == [
        4,
        4,
        2,
    ]


def test_each_layer_between_costs_a_quarter_and_the_last_map_is_as_large():
    x = torch.zeros(1, 1, 28, 28)
    before, after = (list(macs_by_layer(n, x).values()) for n in (spec().network, FastDownsampling().build(spec())))
    assert [b / a for a, b in zip(before, after, strict=True)] == [0.25, 0.25, 1, 1]


def test_width_is_spent_behind_the_first_convolution():
    wide = FastDownsampling(width=1.5).build(spec())
    assert [m.out_channels for m in wide if isinstance(m, nn.Conv2d)] == [16, 48, 48]
    assert wide(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_what_has_too_few_halvings_is_refused():
    with pytest.raises(ValueError, match="network: expected more than early=2 convolutions and poolings, got 3 and 2"):
        FastDownsampling(2).build(spec("noisy-digits-cnn"))
    with pytest.raises(ValueError, match="early: expected a positive integer, got 0"):
        FastDownsampling(0)
    with pytest.raises(ValueError, match="width: expected a positive factor, got 0"):
        FastDownsampling(width=0)
