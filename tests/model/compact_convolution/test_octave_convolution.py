"""The four paths by torch, products by the paper's share, and maps at two resolutions from first to last."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kernels.counting import macs
from kernels.model.block import ConvSpec, NetworkSpec
from kernels.model.compact_convolution.octave_convolution import Octave, OctaveConvolution, Octaves


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_products_are_the_papers_share(alpha):
    """Section 3.3: 1 - 3/4 alpha (2 - alpha), with alpha on both sides."""
    spec, low = ConvSpec(16, 32, 3, padding=1, bias=False), (int(16 * alpha), int(32 * alpha))

    class OfTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.octave = Octave(spec, *low)

        def forward(self, high, low):
            return self.octave((high, low))

    octave = macs(OfTwo(), (torch.zeros(1, 16 - low[0], 8, 8), torch.zeros(1, low[0], 4, 4)))
    assert octave == (1 - 0.75 * alpha * (2 - alpha)) * 9 * 16 * 32 * 64


def test_four_paths_by_torch():
    torch.manual_seed(0)
    octave = Octave(ConvSpec(6, 8, 3, padding=1), 2, 4).double()
    high, low = torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)

    def conv(x, path):
        return functional.conv2d(x, path.weight, path.bias, padding=1)

    up = nn.Upsample(scale_factor=2)(conv(low, octave.low_to_high))
    expected = conv(high, octave.high_to_high) + up
    pooled = functional.avg_pool2d(high, 2)
    expected_low = conv(pooled, octave.high_to_low) + conv(low, octave.low_to_low)
    y, z = octave((high, low))
    assert torch.allclose(y, expected) and torch.allclose(z, expected_low)
    biases = [octave.high_to_high.bias, octave.low_to_low.bias, octave.high_to_low.bias, octave.low_to_high.bias]
    assert [b is not None for b in biases] == [True, True, False, False]


def test_without_low_maps_it_is_the_standard_convolution():
    octave, x = Octave(ConvSpec(4, 6, 3, padding=1), 0, 0), torch.randn(1, 4, 5, 5)
    assert torch.equal(octave(x), octave.high_to_high(x))


def test_maps_of_odd_size_meet_again():
    octave = Octave(ConvSpec(4, 4, 3, padding=1), 2, 0)
    assert octave((torch.zeros(1, 2, 7, 7), torch.zeros(1, 2, 3, 3))).shape == (1, 4, 7, 7)


def chain(*between):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), *between, nn.Conv2d(8, 4, 3, padding=1)
    )


def test_from_the_first_standard_convolution_to_the_last():
    network = OctaveConvolution(0.25).build(
        NetworkSpec(chain(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)), (1, 8, 8))
    )
    assert [type(m) for m in network] == [nn.Conv2d, Octave, Octaves, Octaves, Octaves, Octave]
    assert (network[2].high.num_features, network[2].low.num_features) == (6, 2)
    x = torch.randn(2, 1, 8, 8)
    high, low = network[:5](x)
    assert high.shape == (2, 6, 4, 4) and low.shape == (2, 2, 2, 2) and network(x).shape == (2, 4, 4, 4)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(TypeError, match="network: layer 2, a Flatten, stands between"):
        OctaveConvolution().build(NetworkSpec(chain(nn.Flatten()), (1, 8, 8)))
    with pytest.raises(ValueError, match="network: expected at least two standard convolutions in a chain, got 1"):
        OctaveConvolution().build(NetworkSpec(nn.Sequential(nn.Conv2d(4, 4, 3)), (4, 8, 8)))
    with pytest.raises(ValueError, match="spec: expected a convolution that keeps the size of maps"):
        Octave(ConvSpec(4, 4, 3), 2, 2)
    for alpha in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="alpha: expected 0 < alpha < 1"):
            OctaveConvolution(alpha)
