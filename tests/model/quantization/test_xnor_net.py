"""The best scale by exhaustion; gradients by the paper's formula; layers against the kernel that counts bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

import datasets
from kernels.implementation.low_precision_kernels.xnor_popcount import XnorPopcount
from kernels.model.quantization.quantizers import levels_of, pack, unpack
from kernels.model.quantization.xnor_net import ScaledSigns, XnorNet, input_scale
from kernels.model.transform import bake
from tests.model.quantization.few_bits import adam, batch, chain, trained_leaves_alone


def test_no_scaled_signs_are_nearer():
    """Of all 2^n sign vectors, each with its own best scale."""
    for seed in range(10):
        w = np.random.default_rng(seed).normal(size=8)
        best = min(
            ((w - max(0.0, w @ b / 8) * b) ** 2).sum() for b in map(np.array, itertools.product((-1.0, 1.0), repeat=8))
        )
        mine = ScaledSigns()(torch.tensor(w)[None])[0].numpy()
        assert ((w - mine) ** 2).sum() == pytest.approx(best, rel=1e-12)


def test_gradient_of_a_weight_has_two_parts():
    w = np.random.default_rng(0).normal(0, 0.8, (3, 2, 3, 3))
    out = np.random.default_rng(1).normal(size=w.shape)
    given = torch.tensor(w, requires_grad=True)
    (ScaledSigns()(given) * torch.tensor(out)).sum().backward()
    alpha = np.abs(w).mean((1, 2, 3), keepdims=True)
    assert (np.abs(w) > 1).any()
    assert np.allclose(given.grad.numpy(), out * (1 / 18 + alpha * (np.abs(w) <= 1)), atol=1e-12)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_scales_of_places_are_a_box_over_mean_magnitudes(stride, padding):
    x = np.random.default_rng(2).normal(size=(2, 5, 7, 6))
    layer = nn.Conv2d(5, 3, (3, 2), stride=stride, padding=padding)
    found = input_scale(torch.tensor(x), layer).numpy()
    for item, k in zip(x, found, strict=True):
        mean = np.pad(np.abs(item).mean(0), padding)
        expected = correlate2d(mean, np.full((3, 2), 1 / 6), mode="valid")[::stride, ::stride]
        assert np.allclose(k[0], expected, atol=1e-12)


def test_a_trained_convolution_is_counted_bits_times_its_scales():
    workload = datasets.workload("noisy-digits-cnn")
    network, _ = XnorNet().train(workload.network(), workload.data(), datasets.Recipe(epochs=2, batch=32))
    network, found = bake(network), []
    network[7].register_forward_pre_hook(lambda layer, args: found.append(args[0]), prepend=True)
    network[7].register_forward_hook(lambda layer, args, out: found.append(out))
    with torch.no_grad():
        network(torch.tensor(workload.data().validation.x[:3]))
        (x, y), layer = found, network[7]
        signs = torch.where(layer.weight >= 0, 1.0, -1.0).numpy()
        alpha = layer.weight.abs().amax((1, 2, 3))
        counted = XnorPopcount().conv2d(np.where(x.numpy() >= 0, 1.0, -1.0), signs, padding=1)
        assert np.array_equal(counted, np.rint(counted))
        expected = torch.tensor(counted) * alpha[:, None, None] * input_scale(x, layer)
    assert torch.allclose(y, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_linear_layer_is_what_the_kernel_makes_of_real_matrices():
    """`XnorPopcount.matmul` scales rows by K and columns by alpha itself."""
    network, _ = trained_leaves_alone(XnorNet())
    layer, x = bake(network)[2], torch.randn(7, 5, generator=torch.Generator().manual_seed(5))
    product = XnorPopcount().matmul(x, layer.weight.detach().T.contiguous())
    assert torch.allclose(layer(x), product + layer.bias, atol=1e-5)


def test_one_update_by_hand():
    data, recipe = batch()
    start = XnorNet().constrain(chain())
    middle, given, sent = start[2], [], []
    middle.register_forward_pre_hook(lambda layer, args: given.append(args[0].detach()), prepend=True)
    start[3].register_forward_hook(lambda layer, args, out: out.register_hook(sent.append) and None)
    start.train()
    nn.functional.cross_entropy(start(torch.tensor(data.train.x)), torch.tensor(data.train.y)).backward()
    x, w = given[0].double().numpy(), middle.parametrizations.weight.original.detach().double().numpy()
    k = np.abs(x).mean(1, keepdims=True)
    of_seen = (sent[0].double().numpy() * k).T @ np.where(x >= 0, 1.0, -1.0)
    of_w = of_seen * (1 / 5 + np.abs(w).mean(1, keepdims=True) * (np.abs(w) <= 1))
    trained, _ = XnorNet().train(chain(), data, recipe)
    found = trained[2].parametrizations.weight.original.detach().numpy()
    assert np.allclose(found, adam(w, of_w), atol=1e-6)


def test_weights_are_one_bit_and_a_scale_for_each_filter():
    network = XnorNet().constrain(datasets.workload("noisy-digits-cnn").trained())
    constraint, w = network[7].parametrizations.weight[0], network[7].parametrizations.weight.original
    codes, integers, scale = levels_of(constraint, w)
    packed = pack(codes, 1)
    assert 8 * packed.nbytes + 32 * 32 == constraint.stored_bits(w)
    read = integers[unpack(packed, 1, w.numel())].astype(np.float32).reshape(w.shape) * scale
    assert np.array_equal(read, bake(network)[7].weight.detach().numpy())
    assert [network[i].parametrizations.weight[0].bits for i in (0, 3, 7, 12)] == [8, 1, 1, 8]


def test_without_scales_of_inputs_a_layer_is_a_plain_one():
    network = XnorNet(input_scales=False).constrain(chain()).eval()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    signs = torch.where(x >= 0, 1.0, -1.0)
    assert torch.allclose(network[2](x), nn.functional.linear(signs, network[2].weight, network[2].bias))


def test_wrong_input_is_named():
    for options, word in (
        ({"ends": 1}, "ends: expected"),
        ({"input_scales": 1}, "input_scales: expected True or False"),
    ):
        with pytest.raises(ValueError, match=word):
            XnorNet(**options)
    for bad in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3, padding_mode="reflect")):
        with pytest.raises(ValueError, match=r"^1: expected a linear layer or a two-dimensional convolution"):
            XnorNet().constrain(nn.Sequential(nn.Conv2d(1, 4, 3), bad, nn.Linear(4, 2)))
    data, recipe = batch()
    with pytest.raises(ValueError, match=r"^1: expected inputs of both signs"):
        network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4))
        XnorNet().train(nn.Sequential(network[0], network[1], network[2]).apply(_positive), data, recipe)


def _positive(module):
    if isinstance(module, nn.Linear):
        with torch.no_grad():
            module.weight.zero_()
            module.bias.fill_(1.0)
