"""Rounding against the paper's equation in numpy; counts of the wide network by hand; one update by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels import counting
from kernels.model.quantization.quantizers import levels_of, pack, unpack
from kernels.model.quantization.wide_reduced_precision import ClippedWeights, WideReducedPrecision, widened
from kernels.model.transform import bake
from tests.model.quantization.few_bits import adam, batch, chain, trained_leaves_alone


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_are_the_equation_gradient_included(bits):
    w = np.random.default_rng(bits).normal(0, 0.8, (6, 20))
    given, top = torch.tensor(w, requires_grad=True), 2 ** (bits - 1) - 1
    y = ClippedWeights(bits)(given)
    assert np.allclose(y.detach().numpy(), np.rint(np.clip(w, -1, 1) * top) / top, atol=1e-12)
    y.sum().backward()
    assert np.array_equal(given.grad.numpy(), (np.abs(w) <= 1).astype(float)) and (np.abs(w) > 1).any()


def test_twice_the_filters_are_four_times_the_products_between_the_ends():
    workload = datasets.workload("noisy-digits-cnn")
    plain, wide = workload.network(), widened(workload.network(), 2)
    x = torch.zeros(1, 1, 8, 8)
    before, after = counting.macs_by_layer(plain, x), counting.macs_by_layer(wide, x)
    assert {name: after[name] / before[name] for name in before} == {"0": 2, "3": 4, "7": 4, "12": 2}
    assert wide[4].num_features == 64 and wide(x).shape == (1, 10)
    assert plain[3].weight.shape == (32, 16, 3, 3), "the network given is left as it is"


def test_a_wide_network_is_drawn_as_torch_draws_one():
    narrow = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.manual_seed(4)
    wide = widened(narrow, 3)
    torch.manual_seed(4)
    fresh = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2))
    assert all(map(torch.equal, wide.parameters(), fresh.parameters()))


def test_what_cannot_be_widened_is_named():
    for network, word in (
        (
            nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
            "^1: expected convolutions, .* got LayerNorm$",
        ),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "^0: expected a convolution in one group"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 1, 3)), "^1: expected no transposed convolution"),
        (nn.Sequential(nn.LSTM(2, 2)), "^0: expected no recurrent layer"),
    ):
        with pytest.raises(ValueError, match=word):
            widened(network, 2)
    with pytest.raises(ValueError, match=r"^0: expected a whole number of 1\.5 times 3 filters"):
        widened(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), 1.5)


def test_one_update_of_a_network_as_narrow_as_the_one_given():
    """The layer in the middle, its weights stretched so that the largest is 1."""
    data, recipe = batch()
    start = WideReducedPrecision(1, 3, 2).constrain(chain())
    middle, given, sent = start[2], [], []
    with torch.no_grad():
        middle.parametrizations.weight.original /= chain()[2].weight.abs().max()
    middle.register_forward_pre_hook(lambda layer, args: given.append(args[0].detach()), prepend=True)
    middle.register_full_backward_hook(lambda layer, into, out: sent.append(out[0]))
    start.train()
    nn.functional.cross_entropy(start(torch.tensor(data.train.x)), torch.tensor(data.train.y)).backward()
    w = middle.parametrizations.weight.original.detach().double().numpy()
    gradient = sent[0].double().numpy().T @ (np.rint(np.clip(given[0].double().numpy(), 0, 1) * 3) / 3)
    trained, _ = WideReducedPrecision(1, 3, 2).train(chain(), data, recipe)
    found = trained[2].parametrizations.weight.original.detach().numpy()
    sure = np.abs(gradient) > 1e-7
    assert sure.sum() > 10 and np.allclose(found[sure], adam(w, gradient)[sure], atol=2e-6)


def test_the_wide_network_follows_the_seed():
    network, _ = trained_leaves_alone(WideReducedPrecision(2, 2, 2))
    assert network[2].weight.shape == (10, 10) and network[4].weight.shape == (4, 10)
    data, recipe = batch()
    other, _ = WideReducedPrecision(2, 2, 2).train(chain(), data, recipe, seed=2)
    assert not torch.equal(network[0].parametrizations.weight.original, other[0].parametrizations.weight.original)
    constraint, w = network[2].parametrizations.weight[0], network[2].parametrizations.weight.original
    codes, integers, scale = levels_of(constraint, w)
    read = integers[unpack(pack(codes, 2), 2, w.numel())].astype(np.float32).reshape(w.shape) * scale
    assert np.array_equal(read, bake(network)[2].weight.detach().numpy()) and set(integers) <= {-1, 0, 1}


def test_training_counts_the_products_of_the_wide_network():
    """Of twice the filters: three passes over each item, with the wide network's products."""
    from taxonomy.measure.protocols.training import _taught

    workload, recipe = datasets.workload("noisy-digits-cnn"), datasets.Recipe(epochs=1, batch=100)
    values, _ = _taught(WideReducedPrecision(), workload, "network", 0, recipe)
    wide = counting.macs(widened(workload.network(), 2), torch.zeros(1, 1, 8, 8))
    assert values["training_macs"] == 3 * wide * len(workload.data().train)
    macs = counting.macs_by_layer(widened(workload.network(), 2), torch.zeros(1, 1, 8, 8))
    assert values["bit_operations"] == 64 * (macs["0"] + macs["12"]) + 4 * (macs["3"] + macs["7"])


def test_wrong_input_is_named():
    for options, word in (
        ({"width": 0.5}, "width: expected a finite number of at least 1"),
        ({"weight_bits": 1}, "weight_bits: expected an integer from 2 to 8"),
        ({"input_bits": 0}, "input_bits: expected"),
        ({"ends": 1}, "ends: expected"),
    ):
        with pytest.raises(ValueError, match=word):
            WideReducedPrecision(**options)
