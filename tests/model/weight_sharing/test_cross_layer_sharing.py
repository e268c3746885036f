"""Blocks that apply one convolution many times: against the unrolled stack; the gradient as a sum over applications."""

from __future__ import annotations

import copy
from dataclasses import replace as changed

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets.workloads.transformer import Transformer
from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec, replace
from kernels.model.compressed_file import decode, encode
from kernels.model.sequence_models.attention import cache_numbers
from kernels.model.transform import bake
from kernels.model.weight_sharing.cross_layer_sharing import CrossLayerSharing, redrawn

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


def transformer(**options):
    torch.manual_seed(0)
    return Transformer(classes=7, **({"width": 8, "layers": 2, "heads": 2, "hidden": 16} | options)).double()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_transformer_with_one_layer_is_the_stack_with_equal_weights_and_its_gradient_the_sum(steps):
    network, x = transformer(), torch.randint(0, 7, (3, 9))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tied, untied = (block.within(network) for block in (CrossLayerSharing(steps), CrossLayerSharing(steps).untied()))
    assert len(tied.layers) == len(untied.layers) == steps
    untied.load_state_dict(tied.state_dict())  # which names the shared numbers once for each layer
    y = tied.embedding(x)
    for _ in range(steps):
        y = tied.layers[0](y)
    outputs = [block.every(x) for block in (tied, untied)]
    torch.testing.assert_close(outputs[0], tied.head(tied.norm(y)))
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for name, weight in tied.layers[0].named_parameters():
        torch.testing.assert_close(weight.grad, sum(layer.get_parameter(name).grad for layer in untied.layers))
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_a_transformer_shares_what_it_is_told_and_costs_what_it_computes():
    network, x = transformer().float(), torch.zeros(1, 9)
    layer = sum(p.numel() for p in network.layers[0].parameters())
    sizes = {part: sum(p.numel() for p in getattr(network.layers[0], part).parameters())
             for part in ("attention", "feedforward")}  # fmt: skip
    stack = CrossLayerSharing(3).untied().within(network)
    for shared, once in {"all": layer, **sizes}.items():
        tied = CrossLayerSharing(3, shared=shared).within(network)
        assert parameters(stack) - parameters(tied) == 2 * once
        assert macs(tied, x) == macs(stack, x) and cache_numbers(tied, 9) == cache_numbers(stack, 9)
        assert parameters(copy.deepcopy(tied)) == parameters(bake(tied)) == parameters(tied)
    shallow = CrossLayerSharing(3).shallow().within(network)
    assert parameters(shallow) == parameters(CrossLayerSharing(3).within(network)) and len(shallow.layers) == 1
    own = CrossLayerSharing(2, shared="attention").within(network).layers
    assert own[0].attention.q.weight is own[1].attention.q.weight
    assert not torch.equal(own[0].feedforward[0].weight, own[1].feedforward[0].weight)


def test_a_shared_layer_stays_shared_while_it_learns():
    workload = datasets.workload("shakespeare-transformer")
    data = workload.data()
    few, tied = changed(data, train=data.train[:640]), CrossLayerSharing(2).within(workload.network())
    before = workload.figures(tied, data.validation[:64])["bits_per_character"]
    changed(workload.recipe, epochs=1).train(tied, few)
    first, second = (dict(layer.named_parameters()) for layer in tied.layers)
    assert all(first[name] is second[name] for name in first)
    assert workload.figures(tied, data.validation[:64])["bits_per_character"] < before - 1


def test_within_a_network_of_convolutions_is_its_replacement():
    network = datasets.workload("noisy-digits-cnn").network()
    built = []
    for put in (lambda block: block.within(network), lambda block: replace(network, block)):
        torch.manual_seed(3)
        built.append(put(CrossLayerSharing(2)).state_dict())
    assert built[0].keys() == built[1].keys() and all(torch.equal(built[0][name], built[1][name]) for name in built[0])


def test_what_cannot_be_shared_is_named():
    with pytest.raises(ValueError, match="shared: expected one of all, attention, feedforward, got 'norm'"):
        CrossLayerSharing(shared="norm")
    with pytest.raises(ValueError, match="shared: a convolution has no attention"):
        CrossLayerSharing(shared="attention").build(SPEC)
    with pytest.raises(ValueError, match="expected a standard convolution"):
        CrossLayerSharing().within(nn.Linear(2, 2))

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match="1: expected a part with reset_parameters, got Scale"):
        redrawn(nn.Sequential(nn.Linear(2, 2), Scale()))


def test_those_beside_it():
    technique = CrossLayerSharing(4)
    assert CrossLayerSharing(2, shared="attention").untied() == CrossLayerSharing(2, tied=False)
    assert technique.untied() == CrossLayerSharing(4, tied=False) and technique.shallow() == CrossLayerSharing(1)
    for steps in (0, -1, 1.5):
        with pytest.raises(ValueError, match="steps: expected an integer of at least 1"):
            CrossLayerSharing(steps)
