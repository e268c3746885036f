"""What goes past is really there; costs are the papers'; without it the same layers stand in a plain stack."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kernels.counting import macs
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import Shortcut
from kernels.model.compact_convolution.skip_connections import SkipConnections

SPEC = ConvSpec(32, 32, 3, padding=1, bias=False)


@pytest.mark.parametrize(
    ("form", "products"),
    [
        ("bottleneck", 32 * 8 + 9 * 8 * 8 + 8 * 32),
        ("residual", 2 * 9 * 32 * 32),
        ("dense", 9 * 32 * 8 + 9 * 40 * 8 + 48 * 32),
    ],
)
def test_products_are_the_papers(form, products):
    assert macs(SkipConnections(form).build(SPEC), torch.zeros(1, 32, 5, 5)) == 25 * products


@pytest.mark.parametrize("form", ["bottleneck", "residual"])
def test_the_input_is_added(form):
    torch.manual_seed(0)
    block, x = SkipConnections(form).build(SPEC).eval(), torch.randn(2, 32, 5, 5)
    assert torch.equal(block(x), x + block.branch(x))
    nn.init.zeros_(block.branch[-1].weight)  # a branch that says nothing leaves the identity
    assert torch.equal(block(x), x)
    plain = SkipConnections(form, connected=False).build(SPEC).eval()
    assert not isinstance(plain, Shortcut) and macs(plain, x) == macs(block, x)


def test_a_projection_goes_past_where_shapes_differ():
    for spec in (ConvSpec(8, 16, 3, padding=1), ConvSpec(8, 8, 3, stride=2, padding=1), ConvSpec(8, 8, 3)):
        block = SkipConnections().build(spec)
        assert isinstance(block.past, nn.Sequential)
        assert block.past[0][-1].kernel_size == (1, 1) and block.past[0][-1].stride == (spec.stride, spec.stride)


def test_dense_layers_read_all_that_came_before():
    torch.manual_seed(0)
    block, x = SkipConnections("dense", depth=3).build(ConvSpec(8, 16, 3, padding=1)).eval(), torch.randn(1, 8, 5, 5)
    layers = block[0].layers
    assert [layer[2].in_channels for layer in layers] == [8, 12, 16] and block[-1].in_channels == 20
    first = layers[0](x)
    second = layers[1](torch.cat([x, first], 1))
    third = layers[2](torch.cat([x, first, second], 1))
    assert torch.equal(block[0](x), torch.cat([x, first, second, third], 1))
    plain = SkipConnections("dense", connected=False, depth=3).build(ConvSpec(8, 16, 3, padding=1)).eval()
    stack = plain[0].layers
    assert torch.equal(plain[0](x), stack[2](stack[1](stack[0](x)))) and plain[-1].in_channels == 4


def test_gradients_have_a_way_past():
    """A deep plain stack hands little back to its input, a residual one at least what goes past."""
    torch.manual_seed(0)
    small = ConvSpec(8, 8, 3, padding=1)

    def size(connected):
        blocks = nn.Sequential(*(SkipConnections("bottleneck", connected).build(small).eval() for _ in range(12)))
        x = torch.randn(1, 8, 6, 6, requires_grad=True)
        blocks(x).sum().backward()
        return x.grad.norm().item()

    assert size(True) > 10 * size(False)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="form: expected one of bottleneck, residual, dense, got 'highway'"):
        SkipConnections("highway")
    with pytest.raises(ValueError, match="depth: expected a positive integer, got 0"):
        SkipConnections("dense", depth=0)
    with pytest.raises(ValueError, match="spec: expected a convolution that keeps the size"):
        SkipConnections("dense").build(ConvSpec(8, 8, 3, stride=2, padding=1))
