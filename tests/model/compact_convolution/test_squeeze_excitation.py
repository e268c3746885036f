"""The gate is the paper's equation in numpy, costs what it says, and sees the whole map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.squeeze_excitation import Gate, SqueezeExcitation


def test_the_gate_in_numpy():
    torch.manual_seed(0)
    gate, x = Gate(6, 2).double(), torch.randn(3, 6, 4, 5, dtype=torch.float64)
    (w1, b1), (w2, b2) = ((m.weight.detach().numpy(), m.bias.detach().numpy()) for m in (gate.reduce, gate.restore))
    z = x.numpy().mean(axis=(2, 3))
    s = expit(np.maximum(z @ w1.T + b1, 0) @ w2.T + b2)
    assert np.allclose(gate(x).detach().numpy(), s[:, :, None, None] * x.numpy())


@pytest.mark.parametrize("reduction", [1, 4, 16])
def test_cost_of_the_gate_is_the_papers(reduction):
    gate = SqueezeExcitation(reduction).build(ConvSpec(8, 32, 3, padding=1))[2]
    assert macs(gate, torch.zeros(1, 32, 9, 9)) == 2 * 32 * 32 // reduction
    assert parameters(gate) == 2 * 32 * 32 // reduction + 32 // reduction + 32


def test_a_gate_that_is_open_halves_and_a_closed_one_silences():
    gate, x = Gate(4, 2), torch.randn(2, 4, 3, 3)
    for p in gate.parameters():
        torch.nn.init.zeros_(p)
    assert torch.equal(gate(x), x / 2)
    torch.nn.init.constant_(gate.restore.bias, -100)
    assert gate(x).abs().max() < 1e-30


def test_a_corner_hears_of_the_other():
    torch.manual_seed(0)
    block = SqueezeExcitation().build(ConvSpec(4, 8, 3, padding=1)).eval()
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    block(x)[0, :, 0, 0].sum().backward()
    assert x.grad[0, :, 8, 8].any()


def test_at_least_one_number_is_inside_and_wrong_input_is_named():
    assert SqueezeExcitation(64).build(ConvSpec(4, 8, 3))[2].reduce.out_features == 1
    with pytest.raises(ValueError, match="reduction: expected a positive integer, got 0"):
        SqueezeExcitation(0)
