"""What all blocks of the family hold: shapes, what is refused, and that a network built with one learns."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import datasets
from kernels.model.block import ConvSpec, NetworkSpec, StandardConvolution, fused, substitute
from kernels.model.compact_convolution.asymmetric_convolution import AsymmetricConvolution
from kernels.model.compact_convolution.channel_shuffle import ChannelShuffle
from kernels.model.compact_convolution.fast_downsampling import FastDownsampling
from kernels.model.compact_convolution.fire_module import FireModule
from kernels.model.compact_convolution.fitted import fitted
from kernels.model.compact_convolution.flattened_convolution import FlattenedConvolution
from kernels.model.compact_convolution.geometry import centred, geometry, keeps_size
from kernels.model.compact_convolution.ghost_module import GhostModule
from kernels.model.compact_convolution.group_convolution import GroupConvolution
from kernels.model.compact_convolution.inverted_residual import InvertedResidual
from kernels.model.compact_convolution.multiplier_free_layers import MultiplierFreeLayers
from kernels.model.compact_convolution.octave_convolution import OctaveConvolution
from kernels.model.compact_convolution.re_parameterisation import ReParameterisation
from kernels.model.compact_convolution.skip_connections import SkipConnections
from kernels.model.compact_convolution.squeeze_excitation import SqueezeExcitation
from kernels.model.compact_convolution.width_multiplier import WidthMultiplier

BLOCKS = [
    AsymmetricConvolution(), AsymmetricConvolution("branches"), ChannelShuffle(), ChannelShuffle(shuffled=False),
    FireModule(), FlattenedConvolution(), GhostModule(), GhostModule(ratio=3), GroupConvolution(), InvertedResidual(),
    InvertedResidual(linear=False), MultiplierFreeLayers(), MultiplierFreeLayers("adder"),
    MultiplierFreeLayers("deepshift"), ReParameterisation(), SkipConnections(), SkipConnections("residual"),
    SkipConnections("dense"), SqueezeExcitation(),
]  # fmt: skip
WHOLE = [WidthMultiplier(), FastDownsampling(), OctaveConvolution()]
SAME = {"padding": 1}
SPECS = [
    ConvSpec(8, 8, 3, **SAME), ConvSpec(8, 16, 3, **SAME), ConvSpec(16, 8, 3, padding="same", bias=False),
    ConvSpec(8, 8, 3, stride=2, **SAME), ConvSpec(8, 16, 5, stride=2, padding=2), ConvSpec(8, 8, 3),
    ConvSpec(8, 16, 3, padding=2, dilation=2), ConvSpec(8, 16, (3, 5), padding=(1, 2), stride=(2, 1)),
    ConvSpec(4, 8, 3, padding="valid"),
]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_shapes_are_those_of_the_standard_convolution_or_it_is_refused(block):
    x, taken = torch.randn(2, 16, 9, 10), 0
    for spec in SPECS:
        items = x[:, : spec.in_channels]
        expected = StandardConvolution().build(spec)(items).shape
        try:
            built = block.build(spec)
        except ValueError as error:
            assert str(error).partition(":")[0] in ("spec", "padding", "in_channels", "dilation")
            continue
        taken += 1
        assert built(items).shape == expected == fused(built.eval())(items).shape
    assert taken >= 3


@pytest.mark.parametrize("block", [*BLOCKS, *WHOLE], ids=str)
def test_a_network_with_it_learns_and_the_standard_one_is_left_as_it_is(block):
    workload = datasets.workload("noisy-digits-cnn")
    standard = workload.network()
    before = copy.deepcopy(standard.state_dict())
    torch.manual_seed(0)
    network = substitute(standard, block, workload.input_shape)
    dataclasses.replace(workload.recipe, epochs=4).train(network, workload.data())
    ready = fused(network)
    chance = 0.1
    assert datasets.accuracy(ready, workload.data().validation) > 2 * chance
    x = torch.tensor(workload.data().validation.x[:50])
    assert torch.allclose(ready(x), network(x), atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in standard.state_dict().items())


def test_what_a_block_does_itself_is_taken_over_only_right_behind_it():
    def chain(*layers):
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), *layers, nn.BatchNorm2d(8), nn.ReLU())

    def kinds(network, block):
        return [type(layer).__name__ for layer in substitute(network, block, (8, 6, 6))][1:]

    assert kinds(chain(), InvertedResidual()) == ["Identity", "Identity"]
    assert kinds(chain(), SqueezeExcitation()) == ["Identity", "ReLU"]
    assert kinds(chain(), GroupConvolution()) == ["BatchNorm2d", "ReLU"]
    assert kinds(chain(nn.MaxPool2d(2)), InvertedResidual()) == ["MaxPool2d", "BatchNorm2d", "ReLU"]
    inner = substitute(nn.Sequential(chain(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), InvertedResidual(), (8, 6, 6))
    assert [type(layer).__name__ for layer in inner[0]][1:] == ["Identity", "Identity"]
    assert type(inner[2]) is nn.BatchNorm2d, "behind a convolution that is no standard one"


def test_fused_leaves_what_has_no_other_form():
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    assert str(fused(network)) == str(network) and fused(network)[0] is not network[0]


@pytest.mark.parametrize("spec", SPECS[:8])
def test_a_centred_kernel_is_the_large_one_with_zeros_around(spec):
    x, large = torch.randn(1, spec.in_channels, 9, 10), StandardConvolution().build(spec)
    small = centred(spec, (1, 1))
    g = geometry(spec)
    with torch.no_grad():
        large.weight.zero_()
        large.weight[..., g.kernel[0] // 2, g.kernel[1] // 2] = small[-1].weight[..., 0, 0]
        if large.bias is not None:
            large.bias.zero_()
    assert torch.allclose(small(x), large(x), atol=1e-6)


def test_sizes_that_have_no_middle_are_refused():
    with pytest.raises(ValueError, match=r"kernel_size: expected one in whose middle \(1, 1\) lies, got 4"):
        centred(ConvSpec(4, 4, 4), (1, 1))
    with pytest.raises(ValueError, match='kernel_size: expected odd sizes with padding "same"'):
        geometry(ConvSpec(4, 4, 4, padding="same"))
    assert keeps_size(ConvSpec(4, 4, 4, padding="same")) and not keeps_size(ConvSpec(4, 4, 4, padding=1))


def test_a_chain_is_fitted_layer_by_layer_or_the_layer_is_named():
    chain = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 3)]
    built = fitted(chain, (1, 10, 12), {0: 5})
    assert [getattr(layer, "in_channels", getattr(layer, "in_features", None)) for layer in built] == [
        1, None, None, 5, None, 6 * 2 * 3,
    ]  # fmt: skip
    assert not built[1].running_mean.any() and built[1].num_batches_tracked == 0
    assert built(torch.zeros(2, 1, 10, 12)).shape == (2, 3)
    with pytest.raises(TypeError, match="network: layer 1 is a LSTM"):
        fitted([nn.Flatten(), nn.LSTM(4, 4)], (1, 2, 2))
    with pytest.raises(TypeError, match="network: layer 0 is a Conv2d"):
        fitted([nn.Conv2d(4, 4, 3, groups=2)], (4, 5, 5))
    with pytest.raises(TypeError, match=r"network: expected an nn\.Sequential"):
        WidthMultiplier().build(NetworkSpec(nn.Linear(2, 2), (2,)))
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got str"):
        substitute("network", WidthMultiplier(), (1, 2, 2))
