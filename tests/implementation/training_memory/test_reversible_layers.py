"""Reversible layers compute what the same layers compute that keep their activations, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import datasets
from kernels.counting import macs, training_peak_bytes
from kernels.implementation.training_memory.reversible_layers import Coupling, ReversibleLayers
from kernels.model.block import ConvSpec, replace


def pair(depth, channels, dtype=torch.float64, **options):
    """The block that recovers and the one that keeps, with the same weights."""
    torch.manual_seed(0)
    spec = ConvSpec(3, channels, 3, **({"padding": 1} | options))
    recovering = ReversibleLayers(depth).build(spec).to(dtype)
    keeping = ReversibleLayers(depth).kept().build(spec).to(dtype)
    keeping.load_state_dict(recovering.state_dict())
    return recovering, keeping


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(2, 7), st.integers(1, 3), st.sampled_from([1, 2]))
def test_outputs_gradients_and_statistics_are_those_of_the_layers_that_keep(depth, channels, batch, stride):
    recovering, keeping = pair(depth, channels, stride=stride)
    x = torch.randn(batch, 3, 6, 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [net(x) for net, x in zip((recovering, keeping), inputs, strict=True)]
    assert torch.equal(*outputs)
    for y in outputs:
        (y.square().sum() + y.sum()).backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-9)
    for own, other in zip(recovering.parameters(), keeping.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, rtol=1e-8, atol=1e-8)
    for own, other in zip(recovering.buffers(), keeping.buffers(), strict=True):
        assert torch.equal(own, other)


def test_torchs_numerical_gradient_agrees():
    torch.manual_seed(0)
    block = ReversibleLayers(2).build(ConvSpec(2, 4, 1)).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = [*block.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *parameters), atol=1e-6)


def test_the_equations_by_hand():
    step = Coupling(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.constant_(step.f.weight, 2.0)
    nn.init.constant_(step.g.weight, 3.0)
    y = step(torch.tensor([[1.0, 10.0]]))
    assert y.tolist() == [[21.0, 73.0]]  # 1 + 2 * 10, 10 + 3 * 21
    assert step.inverse(y).tolist() == [[1.0, 10.0]]


def test_float32_recovers_to_rounding():
    recovering, keeping = pair(16, 16, torch.float32)
    x = torch.randn(4, 3, 8, 8)
    for net in (recovering, keeping):
        net(x).square().mean().backward()
    own, other = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (recovering, keeping))
    error = float((own - other).norm() / other.norm())
    assert 0 < error < 1e-4


def test_activations_do_not_grow_with_depth():
    def peak(depth, recover):
        block = ReversibleLayers(depth, recover).build(ConvSpec(3, 8, 3, padding=1))
        x = torch.randn(2, 3, 16, 16)
        return training_peak_bytes(block, lambda: block(x).sum().backward())

    assert peak(4, True) == peak(16, True)
    assert peak(16, False) > 3 * peak(4, False) > 3 * peak(4, True)


def test_frozen_parameters_have_no_gradient():
    block, _ = pair(2, 4)
    for p in block[1][0].f.parameters():
        p.requires_grad = False
    block(torch.randn(2, 3, 5, 5, dtype=torch.float64)).sum().backward()
    assert all((p.grad is None) != p.requires_grad for p in block.parameters())


def test_a_network_with_it_learns():
    workload = datasets.workload("noisy-digits-cnn")
    network = replace(workload.network(), ReversibleLayers(1))
    x = torch.zeros(1, *workload.input_shape)
    assert macs(network, x) > macs(workload.network(), x)
    datasets.Recipe(epochs=4, batch=32, learning_rate=0.005).train(network, workload.data())
    assert datasets.accuracy(network, workload.data().validation) > 0.6
    plain = copy.deepcopy(network)
    assert torch.equal(plain(x), network(x))


def test_what_cannot_be_built_is_named():
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError, match="depth: expected a positive integer"):
            ReversibleLayers(bad)
    with pytest.raises(ValueError, match="spec: expected at least 2 output channels, to be halved, got 1"):
        ReversibleLayers().build(ConvSpec(3, 1, 3))
