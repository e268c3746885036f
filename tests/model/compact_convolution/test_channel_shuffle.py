"""The shuffle is torch's own; the unit costs what the paper says; only shuffled, groups hear of each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernels.counting import macs
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.channel_shuffle import ChannelShuffle, Concatenated, Shuffle, shuffle
from kernels.model.compact_convolution.geometry import Shortcut


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6))
def test_the_shuffle_is_torchs_and_its_inverse_has_the_groups_exchanged(groups, each):
    x = torch.arange(2.0 * groups * each * 6).view(2, groups * each, 2, 3)
    assert torch.equal(shuffle(x, groups), nn.functional.channel_shuffle(x, groups))
    assert torch.equal(shuffle(shuffle(x, groups), each), x) and torch.equal(Shuffle(groups)(x), shuffle(x, groups))


@pytest.mark.parametrize(("m", "n", "g", "bottleneck"), [(32, 32, 4, 1), (16, 32, 4, 2), (32, 16, 8, 1)])
def test_products_are_the_papers(m, n, g, bottleneck):
    unit, b = ChannelShuffle(g, bottleneck).build(ConvSpec(m, n, 3, padding=1)), n // bottleneck
    own = n - m if n > m else n
    assert macs(unit, torch.zeros(1, m, 5, 5)) == 25 * (m * b // g + 9 * b + b * own // g)


@pytest.mark.parametrize("shuffled", [True, False])
def test_what_an_output_depends_on(shuffled):
    """Two layers in 4 groups: unshuffled, a channel reads its own group; shuffled, a share of every group."""
    torch.manual_seed(0)
    unit = ChannelShuffle(4, shuffled=shuffled).build(ConvSpec(16, 16, 3, padding=1)).eval()
    x = torch.randn(1, 16, 5, 5, requires_grad=True)
    unit.branch(x)[0, 0].sum().backward()
    read = (x.grad.abs().sum((0, 2, 3)) > 0).view(4, 4)
    assert read.any(1).tolist() == ([True] * 4 if shuffled else [True, False, False, False])


def test_the_input_goes_past_as_the_paper_has_it():
    build = ChannelShuffle(2).build
    x = torch.randn(1, 4, 6, 6)
    grows, keeps = build(ConvSpec(4, 8, 3, padding=1)).eval(), build(ConvSpec(4, 4, 3, padding=1)).eval()
    assert type(grows) is Concatenated and torch.equal(grows(x)[:, :4], x)
    assert type(keeps) is Shortcut and torch.equal(keeps(x), x + keeps.branch(x))
    shrinks = build(ConvSpec(4, 8, 3, stride=2, padding=1)).eval()
    assert torch.equal(shrinks(x)[:, :4], nn.functional.avg_pool2d(x, 3, 2, 1))
    assert type(build(ConvSpec(8, 4, 3, padding=1))) is nn.Sequential
    assert type(build(ConvSpec(4, 4, 3, stride=2, padding=1))) is nn.Sequential


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="groups: expected a positive integer, got 0"):
        ChannelShuffle(0)
    with pytest.raises(ValueError, match="bottleneck: expected a positive integer, got 0"):
        ChannelShuffle(bottleneck=0)
    with pytest.raises(ValueError, match="in_channels: expected a multiple of 4 groups, got 6"):
        ChannelShuffle(4).build(ConvSpec(6, 8, 3))
    with pytest.raises(ValueError, match="channels inside: expected a multiple of 4 groups, got 2"):
        ChannelShuffle(4, bottleneck=4).build(ConvSpec(8, 8, 3))
    with pytest.raises(ValueError, match="dilation: expected 1 where maps shrink, got 2"):
        ChannelShuffle(4).build(ConvSpec(8, 16, 3, dilation=2))
