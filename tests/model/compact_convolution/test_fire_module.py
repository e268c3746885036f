"""Squeeze and expand by their equation; cost is the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.fire_module import FireModule


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 0}, {"bias": False}])
def test_the_equation(options):
    torch.manual_seed(0)
    spec = ConvSpec(6, 8, 3, **({"padding": 1} | options))
    block, x = FireModule().build(spec), torch.randn(2, 6, 7, 7)
    stride, padding = spec.stride, spec.padding
    z = functional.conv2d(x, block[0].weight, block[0].bias).relu()
    inside = z if padding else z[..., 1:-1, 1:-1]
    small, large = block[2].small[-1], block[2].large
    expected = torch.cat([
        functional.conv2d(inside, small.weight, small.bias, stride),
        functional.conv2d(z, large.weight, large.bias, stride, padding),
    ], dim=1)  # fmt: skip
    assert torch.allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize(("squeeze", "small"), [(0.125, 0.5), (0.25, 0.5), (0.5, 0.25)])
def test_cost_is_the_papers(squeeze, small):
    block = FireModule(squeeze, small).build(ConvSpec(16, 32, 3, padding=1, bias=False))
    s, e = int(32 * squeeze), int(32 * small)
    products = s * (16 + e + 9 * (32 - e))
    assert macs(block, torch.zeros(1, 16, 5, 5)) == 25 * products and parameters(block) == products + s


def test_at_least_one_channel_is_left():
    assert FireModule(squeeze=0.01).build(ConvSpec(4, 4, 3))[0].out_channels == 1


def test_wrong_input_is_named():
    for name in ("squeeze", "small"):
        for share in (0.0, 1.0, -0.5, float("nan")):
            with pytest.raises(ValueError, match=f"{name}: expected a share between 0 and 1"):
                FireModule(**{name: share})
    with pytest.raises(ValueError, match=r"out_channels: expected filters of both sizes at small=0\.5, got 1"):
        FireModule().build(ConvSpec(4, 1, 3))
    with pytest.raises(ValueError, match="kernel_size: expected one in whose middle"):
        FireModule().build(ConvSpec(4, 4, 2))
    assert isinstance(FireModule().build(ConvSpec(4, 4, 3))[1], nn.ReLU)
