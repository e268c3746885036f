"""Forward and backward pass against PyTorch's fake quantization; a layer against its product of integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.model.quantization.quantization_aware_training import QuantizationAwareTraining, fake_quantize
from kernels.model.quantization.quantizers import affine_grid
from kernels.model.transform import bake
from tests.model.quantization.few_bits import RATE, batch, chain, trained_leaves_alone


def theirs(x, low, high, bits, channels=False):
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round().int()
    if channels:
        return torch.fake_quantize_per_channel_affine(x, scale, zero, 0, 0, 2**bits - 1)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 2**bits - 1)


@pytest.mark.parametrize("per", ["layer", "filter"])
@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 3)], ids=str)
def test_one_update_is_that_of_torch(bits, per):
    """The same network written with PyTorch's own fake quantization, one batch, its own AdamW."""
    data, recipe = batch()
    x, y = torch.tensor(data.train.x), torch.tensor(data.train.y)
    reference = chain()
    layers = [m for m in reference if isinstance(m, nn.Linear)]
    optimizer = torch.optim.AdamW(reference.parameters(), lr=RATE, weight_decay=0.0)
    h = x
    for place, layer in enumerate(layers):
        w, still = layer.weight, layer.weight.detach()
        if per == "layer":
            w = theirs(w, still.min(), still.max(), bits[0])
        else:
            w = theirs(w, still.amin(1), still.amax(1), bits[0], channels=True)
        h = h.relu() if place else h
        h = theirs(h, h.detach().min(), h.detach().max(), bits[1])
        h = nn.functional.linear(h, w, layer.bias)
    loss = nn.functional.cross_entropy(h, y)
    loss.backward()
    optimizer.step()
    trained, trace = QuantizationAwareTraining(*bits, per).train(chain(), data, recipe)
    assert trace[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for mine, other in zip([trained[i] for i in (0, 2, 4)], layers, strict=True):
        assert torch.allclose(mine.parametrizations.weight.original, other.weight, atol=2e-6)
        assert torch.allclose(mine.bias, other.bias, atol=2e-6)


def test_a_layer_is_a_product_of_integers():
    """(q_w - Z_w) (q_x - Z_x), summed in integers, times S_w S_x: what an integer machine computes."""
    workload = datasets.workload("digits-mlp")
    network, _ = QuantizationAwareTraining(4, 5).train(workload.network(), workload.data(), datasets.Recipe(epochs=1))
    layer, given = network[3], []
    layer.register_forward_pre_hook(lambda layer, args: given.append(args[0]))
    network(torch.tensor(workload.data().validation.x))
    quantizer = layer.input_quantizer
    scale_x, zero_x = affine_grid(quantizer.low, quantizer.high, 5)
    codes = (given[0] / scale_x + zero_x).detach().numpy()
    assert np.abs(codes - np.rint(codes)).max() < 1e-4 and codes.min() > -0.5 and codes.max() < 31.5
    w = layer.parametrizations.weight.original.detach()
    integers, scale_w = layer.parametrizations.weight[0].integers(w)
    sums = (np.rint(codes).astype(np.int32) - int(zero_x)) @ integers.numpy().astype(np.int32).T
    expected = sums * float(scale_w * scale_x) + layer.bias.detach().numpy()
    assert np.allclose(layer(given[0]).detach().numpy(), expected, atol=1e-5)


def test_the_statement_is_what_the_layers_compute():
    x = torch.randn(100, generator=torch.Generator().manual_seed(4))
    expected = theirs(x, torch.tensor(-1.0), torch.tensor(1.5), 3)
    assert torch.allclose(fake_quantize(x, torch.tensor(-1.0), torch.tensor(1.5), 3), expected, atol=1e-6)


def test_the_network_given_is_left_alone():
    trained_leaves_alone(QuantizationAwareTraining(3, 3))


def test_eight_bits_change_next_to_nothing_and_two_do_not_survive_without_training():
    workload = datasets.workload("noisy-digits-cnn")
    trained, data = workload.trained(), workload.data()
    known = datasets.accuracy(trained, data.validation)
    found = {}
    for bits in (8, 2):
        network = QuantizationAwareTraining(bits, bits).afterwards().finish(trained, data)
        found[bits] = datasets.accuracy(bake(network), data.validation)
    assert abs(found[8] - known) < 0.01 and found[2] < known - 0.2


def test_wrong_input_is_named():
    for options, word in (
        ({"weight_bits": 1}, "weight_bits: expected an integer from 2 to 8, got 1"),
        ({"input_bits": 9}, "input_bits: expected an integer from 2 to 8, got 9"),
        ({"weight_bits": 4.0}, "weight_bits: expected an integer"),
        ({"per": "row"}, "per: expected layer or filter, got 'row'"),
        ({"momentum": 1.0}, "momentum: expected a number of at least 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=word):
            QuantizationAwareTraining(**options)
    with pytest.raises(ValueError, match=r"^1: expected no recurrent layer, .* got LSTM$"):
        QuantizationAwareTraining().constrain(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 3)))
