"""A trained layer against the kernel that counts bits, to the last bit; one update by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.arithmetic.approximate_arithmetic.bit_serial import BitSerial
from kernels.implementation.low_precision_kernels.xnor_popcount import XnorPopcount
from kernels.model.quantization.binarized_network import BinarizedNetwork, SignInputs
from kernels.model.quantization.quantizers import levels_of, pack, unpack
from kernels.model.transform import bake
from tests.model.quantization.few_bits import adam, batch, chain, trained_leaves_alone


@pytest.fixture(scope="module")
def trained():
    workload = datasets.workload("noisy-digits-cnn")
    network, _ = BinarizedNetwork().train(workload.network(), workload.data(), datasets.Recipe(epochs=3, batch=32))
    return workload, bake(network)


def calls_of(network, places, x):
    """What layers are given, after their quantizers, and what they give."""
    found = {}
    handles = [
        network[i].register_forward_hook(lambda layer, args, out, i=i: found.update({i: (args[0], out)}))
        for i in places
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return found


def test_trained_layers_are_counts_of_bits_to_the_last_bit(trained):
    """Convolutions with padding and the linear layer: the kernel's result equals torch's, every bit of it."""
    workload, network = trained
    with torch.no_grad():
        calls = calls_of(network, (3, 7, 12), torch.tensor(workload.data().validation.x[:4]))
    for place, (x, y) in calls.items():
        layer, x = network[place], x.numpy()
        scale = float(layer.weight.detach().abs().max())
        signs = (layer.weight.detach() / scale).numpy()
        assert set(np.unique(x)) == set(np.unique(signs)) == {-1.0, 1.0} and np.log2(scale) % 1 == 0
        if isinstance(layer, nn.Conv2d):
            counted = XnorPopcount().conv2d(x, signs, padding=layer.padding, stride=layer.stride)
            assert np.array_equal(counted, np.rint(counted)) and np.array_equal(counted * scale, y.numpy())
        else:
            counted = XnorPopcount().multiply(x.astype(int), signs.T.astype(int))
            serial = BitSerial(1, 1).multiply(x.astype(int), signs.T.astype(int))
            assert np.array_equal(counted, serial) and np.abs(counted).max() > 5
            product = (counted * scale).astype(np.float32)
            assert np.array_equal(product, nn.functional.linear(torch.tensor(x), layer.weight.detach()).numpy())
            assert np.array_equal(product + layer.bias.detach().numpy(), y.numpy())


def test_weights_are_packed_into_one_bit_each():
    technique = BinarizedNetwork().constrain(datasets.workload("noisy-digits-cnn").trained())
    for place in (0, 3, 7, 12):
        constraint, w = (
            technique[place].parametrizations.weight[0],
            technique[place].parametrizations.weight.original,
        )
        codes, integers, scale = levels_of(constraint, w)
        packed = pack(codes, 1)
        assert 8 * packed.nbytes + 32 == constraint.stored_bits(w)
        read = integers[unpack(packed, 1, w.numel())].reshape(w.shape) * scale
        assert np.array_equal(read.astype(np.float32), bake(technique)[place].weight.detach().numpy())


def test_batch_norm_and_sign_are_one_threshold(trained):
    """What a machine of bits does behind a count: no product, one comparison a channel."""
    _, network = trained
    norm = network[4]
    x = torch.randn(16, 32, 5, 5, generator=torch.Generator().manual_seed(0)) * 2
    with torch.no_grad():
        expected = SignInputs().eval()(norm(x))
        border = norm.running_mean - norm.bias * (norm.running_var + norm.eps).sqrt() / norm.weight
        above = x >= border[:, None, None]
        flips = (norm.weight < 0)[:, None, None]
        found = torch.where(above ^ flips, 1.0, -1.0)
    assert torch.equal(found, expected)


def test_one_update_by_hand():
    data, recipe = batch()
    start = BinarizedNetwork().constrain(chain())
    middle, given, sent = start[2], [], []
    middle.register_forward_pre_hook(lambda layer, args: given.append(args[0].detach()), prepend=True)
    middle.register_full_backward_hook(lambda layer, into, out: sent.append(out[0]))
    start.train()
    nn.functional.cross_entropy(start(torch.tensor(data.train.x)), torch.tensor(data.train.y)).backward()
    x, w = given[0].double().numpy(), middle.parametrizations.weight.original.detach().double().numpy()
    assert x.min() < 0, "the rectifier is gone"
    limit = 2.0 ** round(np.log2((1.5 / 10) ** 0.5))
    of_w = sent[0].double().numpy().T @ np.where(x >= 0, 1.0, -1.0)
    trained, _ = BinarizedNetwork().train(chain(), data, recipe)
    expected = np.clip(adam(w, of_w), -limit, limit)
    assert np.allclose(trained[2].parametrizations.weight.original.detach().numpy(), expected, atol=1e-6)
    into = sent[0].double().numpy() @ (np.where(w >= 0, limit, -limit))
    first_bias = (into * (np.abs(x) <= 1)).sum(0)
    assert np.allclose(start[0].bias.grad.numpy(), first_bias, atol=1e-6), "gradients stop beyond 1"


def test_the_network_given_is_left_alone():
    trained_leaves_alone(BinarizedNetwork())


def test_signs_are_refused_where_there_is_but_one():
    network = BinarizedNetwork().constrain(chain())
    network[1] = nn.ReLU()
    data, recipe = batch()
    with pytest.raises(ValueError, match=r"^2: expected inputs of both signs, got none below zero"):
        recipe.train(network, data)


def test_wrong_input_is_named():
    for bits in (1, 9, 2.0):
        with pytest.raises(ValueError, match="first_bits: expected an integer from 2 to 8"):
            BinarizedNetwork(bits)
    with pytest.raises(ValueError, match=r"^0: expected no recurrent layer"):
        BinarizedNetwork().constrain(nn.Sequential(nn.GRU(2, 3)))
