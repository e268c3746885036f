"""Branches become one convolution: by torch's own folding and padding, and to rounding on data."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec, fused
from kernels.model.compact_convolution.re_parameterisation import ReParameterisation


def trained(spec, **options):
    """A block in float64 whose norms have statistics and scales of their own."""
    torch.manual_seed(0)
    block = ReParameterisation(**options).build(spec).double().train()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    for _ in range(3):
        block(2 + torch.randn(16, spec.in_channels, 8, 8, dtype=torch.float64))
    return block.eval()


@pytest.mark.parametrize("options", [{}, {"identity": False}, {"pointwise": False}])
@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(6, 6, 3, padding=1), ConvSpec(4, 6, 3, padding=1, bias=False), ConvSpec(6, 6, 3, stride=2, padding=1),
        ConvSpec(6, 6, 5, padding=2), ConvSpec(6, 6, 3), ConvSpec(6, 6, 3, padding=2, dilation=2),
    ],
)  # fmt: skip
def test_one_convolution_computes_what_all_branches_do(spec, options):
    block, x = trained(spec, **options), torch.randn(3, spec.in_channels, 9, 9, dtype=torch.float64)
    one = block.fuse()
    assert type(one) is nn.Conv2d and torch.allclose(one(x), block(x), rtol=1e-10, atol=1e-10)
    assert torch.equal(fused(nn.Sequential(block))(x), one(x))


def test_the_kernel_is_that_of_torchs_own_folding():
    spec = ConvSpec(5, 5, 3, padding=1)
    block = trained(spec)
    large = fuse_conv_bn_eval(block.convolutions[0][0], block.norms[0])
    small = fuse_conv_bn_eval(block.convolutions[1][0], block.norms[1])
    same = nn.Conv2d(5, 5, 1, bias=False).double().eval()
    same.weight.data = torch.eye(5, dtype=torch.float64)[..., None, None]
    same = fuse_conv_bn_eval(same, block.identity)
    expected = large.weight + nn.functional.pad(small.weight + same.weight, (1, 1, 1, 1))
    assert torch.allclose(block.fuse().weight, expected, atol=1e-12)
    assert torch.allclose(block.fuse().bias, large.bias + small.bias + same.bias, atol=1e-12)


def test_branches_are_where_they_can_be():
    build = ReParameterisation().build
    assert build(ConvSpec(4, 4, 3, padding=1)).identity is not None
    for spec in (ConvSpec(4, 8, 3, padding=1), ConvSpec(4, 4, 3, stride=2, padding=1), ConvSpec(4, 4, 3)):
        assert build(spec).identity is None
    assert [c[-1].kernel_size for c in build(ConvSpec(4, 4, 5, padding=2)).convolutions] == [(5, 5), (1, 1)]


def test_it_costs_what_the_standard_convolution_costs_and_more_while_training():
    standard, x = nn.Conv2d(8, 8, 3, padding=1), torch.zeros(1, 8, 6, 6)
    block = ReParameterisation().build(ConvSpec.of(standard)).eval()
    assert macs(block, x) == macs(standard, x) * 10 // 9
    assert macs(block.fuse(), x) == macs(standard, x) and parameters(block.fuse()) == parameters(standard)


def test_an_even_kernel_has_no_middle():
    with pytest.raises(ValueError, match=r"kernel_size: expected one in whose middle \(1, 1\) lies, got 4"):
        ReParameterisation().build(ConvSpec(4, 4, 4))
