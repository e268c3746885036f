"""Blocks that apply one convolution many times: against the unrolled stack; the gradient as a sum over applications."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec, replace
from kernels.model.compressed_file import decode, encode
from kernels.model.weight_sharing.cross_layer_sharing import CrossLayerSharing

SPEC = ConvSpec(3, 5, 3, padding=1)


def pair(steps, seed=0):
    """A tied block, and the untied one with the same numbers in every step."""
    torch.manual_seed(seed)
    tied = CrossLayerSharing(steps).build(SPEC).double()
    untied = CrossLayerSharing(steps).untied().build(SPEC).double()
    untied.first.load_state_dict(tied.first.state_dict())
    for norm, other in zip(tied.norms, untied.norms, strict=True):
        nn.init.normal_(norm.weight)
        other.load_state_dict(norm.state_dict())
    for convolution in untied.convolutions:
        convolution.load_state_dict(tied.convolutions[0].state_dict())
    return tied, untied


def test_the_equation_step_by_step():
    tied, _ = pair(3)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    w = tied.convolutions[0].weight
    for block in (tied.train(), tied.eval()):
        y = functional.conv2d(x, block.first.weight, block.first.bias, padding=1)
        for norm in block.norms:
            options = (norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias, block.training)
            y = y + functional.conv2d(functional.batch_norm(y, *options).relu(), w, padding=1)
        torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_it_is_the_stack_with_equal_weights_and_its_gradient_the_sum_over_the_steps(steps):
    tied, untied = pair(steps)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    outputs = [block(x) for block in (tied, untied)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    expected = sum(convolution.weight.grad for convolution in untied.convolutions)
    torch.testing.assert_close(tied.convolutions[0].weight.grad, expected)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_products_grow_with_the_steps_and_weights_do_not(steps):
    x = torch.zeros(1, 3, 7, 7)
    tied, untied = (block.build(SPEC) for block in (CrossLayerSharing(steps), CrossLayerSharing(steps).untied()))
    assert macs(tied, x) == macs(untied, x) == 49 * (3 * 5 * 9 + steps * 5 * 5 * 9)
    assert parameters(tied) == 3 * 5 * 9 + 5 + 5 * 5 * 9 + steps * 10
    assert parameters(untied) == 3 * 5 * 9 + 5 + steps * (5 * 5 * 9 + 10)
    assert len(encode(untied)) - len(encode(tied)) == pytest.approx(4 * (steps - 1) * 225, abs=8 * steps)
    back = decode(encode(tied), CrossLayerSharing(steps).build(SPEC))
    torch.testing.assert_close(back.eval()(x), tied.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("spec", [{"stride": 2}, {"kernel_size": 5, "padding": 2}, {"padding": "same"}, {"padding": 0}])
def test_the_shape_is_that_of_the_standard_convolution(spec):
    spec = ConvSpec(**({"in_channels": 3, "out_channels": 5, "kernel_size": 3} | spec))
    x = torch.zeros(2, 3, 9, 9)
    assert CrossLayerSharing(2).build(spec)(x).shape == nn.Conv2d(**spec.__dict__)(x).shape


def test_a_network_with_it_learns():
    workload = datasets.workload("noisy-digits-cnn")
    network = replace(workload.network(), CrossLayerSharing(2))
    workload.recipe.train(network, workload.data())
    assert datasets.accuracy(network, workload.data().validation) > 0.75


def test_those_beside_it():
    technique = CrossLayerSharing(4)
    assert technique.untied() == CrossLayerSharing(4, tied=False) and technique.shallow() == CrossLayerSharing(1)
    for steps in (0, -1, 1.5):
        with pytest.raises(ValueError, match="steps: expected an integer of at least 1"):
            CrossLayerSharing(steps)
