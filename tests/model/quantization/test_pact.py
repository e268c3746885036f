"""The clipping level's gradient against the paper's, one update by hand, weights against DoReFa's rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.model.quantization.pact import ClippedInputs, Pact, clipped_rounded
from kernels.model.transform import bake
from tests.model.quantization.few_bits import adam, batch, chain, trained_leaves_alone


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_value_and_gradients_are_the_equations(bits):
    level, top = 1.3, 2**bits - 1
    values = np.array([-1.0, -1e-3, 0.2, 0.66, 1.29, 1.3, 1.31, 7.0])
    clipped = 0.5 * (np.abs(values) - np.abs(values - level) + level)
    expected = np.rint(clipped * top / level) * level / top
    x = torch.tensor(values, requires_grad=True)
    a = torch.tensor(level, dtype=torch.float64, requires_grad=True)
    y = clipped_rounded(x, a, bits)
    assert np.allclose(y.detach().numpy(), expected, atol=1e-12)
    for place, number in enumerate(values):
        of_x, of_a = torch.autograd.grad(y[place], (x, a), retain_graph=True)
        assert of_a.item() == float(number >= level)
        assert of_x[place].item() == float(0 < number < level)


def test_one_update_of_a_level():
    """Its gradient is the sum over what it clips; the penalty adds twice itself."""
    data, recipe = batch()
    method = Pact(start=0.05, penalty=0.1)
    start = method.constrain(chain())
    middle, given, sent = start[2], [], []
    middle.register_forward_pre_hook(lambda layer, args: given.append(args[0].detach()), prepend=True)
    middle.register_full_backward_hook(lambda layer, into, out: sent.append(out[0]))
    start.train()
    loss = nn.functional.cross_entropy(start(torch.tensor(data.train.x)), torch.tensor(data.train.y))
    loss.backward()
    into = (sent[0] @ middle.weight.detach()).double().numpy()
    clipped = given[0].numpy() >= 0.05
    assert 0 < clipped.sum() < clipped.size
    assert middle.input_quantizer.level.grad.item() == pytest.approx((into * clipped).sum(), rel=1e-4)
    trained, trace = method.train(chain(), data, recipe)
    gradient = (into * clipped).sum() + 2 * 0.1 * 0.05
    assert trained[2].input_quantizer.level.item() == pytest.approx(adam(0.05, gradient), abs=1e-6)
    assert trace[0]["loss"] == pytest.approx(loss.item() + 0.1 * 0.05**2, rel=1e-5)


def test_a_layer_is_a_product_of_integers():
    network, _ = trained_leaves_alone(Pact(3, 4))
    layer, x = network[2], torch.randn(20, 5, generator=torch.Generator().manual_seed(2))
    level = layer.input_quantizer.level.item()
    codes = np.rint(np.clip(x.numpy(), 0, level) * 15 / level).astype(int)
    integers, scale = layer.parametrizations.weight[0].integers(layer.parametrizations.weight.original.detach())
    assert set(np.unique(integers.numpy())) <= set(range(-7, 8, 2))
    expected = codes @ integers.numpy().astype(int).T * (level / 15) * scale.item() + layer.bias.detach().numpy()
    assert np.allclose(layer(x).detach().numpy(), expected, atol=1e-5)


def test_a_level_stays_above_zero():
    quantizer = ClippedInputs(2, 1.0)
    with torch.no_grad():
        quantizer.level.fill_(-2.0)
    y = quantizer(torch.tensor([0.5, -0.5]))
    assert y[0] > 0 and y[1] == 0
    y.sum().backward()
    assert quantizer.level.grad == 1, "it can come back"


def test_a_penalty_pulls_levels_in():
    workload = datasets.workload("noisy-digits-cnn")
    found = {}
    for penalty in (0.0, 0.3):
        network, _ = Pact(penalty=penalty).train(
            workload.network(), workload.data(), datasets.Recipe(epochs=3, batch=32)
        )
        found[penalty] = [network[i].input_quantizer.level.item() for i in (3, 7)]
        assert len(bake(network)[3].weight.unique()) <= 4
    assert all(high > low for high, low in zip(found[0.0], found[0.3], strict=True))


def test_wrong_input_is_named():
    for options, word in (
        ({"input_bits": 0}, "input_bits: expected an integer from 1 to 8, got 0"),
        ({"weight_bits": 12}, "weight_bits: expected"),
        ({"start": 0.0}, "start: expected a finite number above"),
        ({"start": float("inf")}, "start: expected"),
        ({"penalty": -1.0}, "penalty: expected a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=word):
            Pact(**options)
    with pytest.raises(ValueError, match=r"^2: expected no recurrent layer"):
        Pact().constrain(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.RNN(2, 2), nn.Linear(2, 2)))
