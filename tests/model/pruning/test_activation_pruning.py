"""Blocks of activations against scipy's block-sparse rows; gradients against those of an input pruned by hand."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import bsr_matrix
from torch import nn
from torch.nn import functional

import datasets
from datasets import Recipe
from kernels.counting import training_peak_bytes
from kernels.implementation.training_memory.compressed_activations import CompressedActivations
from kernels.model.pruning.activation_pruning import ActivationPruning, BlockSparse, Signs


def pruned_by_hand(x, density, block):
    """Block by block, in numpy."""
    matrix = x.reshape(len(x), -1)
    padded = np.zeros([-(-n // block) * block for n in matrix.shape], matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    corners = [(i, j) for i in range(0, padded.shape[0], block) for j in range(0, padded.shape[1], block)]
    order = sorted(corners, key=lambda c: -np.abs(padded[c[0] : c[0] + block, c[1] : c[1] + block]).sum())
    for i, j in order[round(density * len(corners)) :]:
        padded[i : i + block, j : j + block] = 0
    return padded


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 5), st.floats(0.01, 1.0), st.integers(0, 2**31)
)
def test_the_largest_blocks_are_kept_as_they_are(shape, block, density, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = BlockSparse.of(x, density, block)
    padded = pruned_by_hand(x.numpy(), density, block)
    rows, columns = np.prod(shape[:1]), int(np.prod(shape[1:]))
    assert np.array_equal(kept.tensor().numpy().reshape(rows, columns), padded[:rows, :columns])
    theirs = bsr_matrix(padded, blocksize=(block, block))
    stored = kept.values[kept.values.flatten(1).any(1)]
    assert len(stored) == len(theirs.data) and stored.numel() == theirs.data.size


def test_at_random_as_many_are_kept_and_others():
    x = torch.randn(64, 64)
    blind, best = (BlockSparse.of(x, 0.25, 8, g) for g in (torch.Generator().manual_seed(0), None))
    assert blind.values.shape == best.values.shape == (16, 8, 8)
    assert best.values.abs().sum() > 1.05 * blind.values.abs().sum()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=3), st.integers(0, 2**31))
def test_signs_come_back(shape, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()
    kept = Signs.of(x)
    assert torch.equal(kept.tensor(), (x > 0).float()) and kept.bits.nbytes == -(-x.numel() // 8)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5),
    )  # fmt: skip


def gradients(net, run, x):
    net.zero_grad()
    run(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def test_with_every_block_gradients_are_those_of_plain_training_to_the_bit():
    """What a rectifier and a pooling keep is enough, whatever stands beside."""
    net, x = network(), torch.randn(4, 2, 12, 12)
    for subject in (
        ActivationPruning(1.0).wrap(net),
        ActivationPruning(1.0).wrap(net, CompressedActivations(32).wrap(net)),
    ):
        assert all(map(torch.equal, gradients(net, net, x), gradients(net, subject, x)))
        assert torch.equal(subject(x), net(x))


def test_a_layers_gradient_is_that_of_its_pruned_input_and_what_is_passed_on_is_exact():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 3)), torch.randn(32, 24)
    plain = gradients(net, net, x)
    found = gradients(net, ActivationPruning(0.3, block=8).wrap(net), x)
    hidden = net[1](net[0](x)).detach()
    seen = torch.tensor(pruned_by_hand(hidden.numpy(), 0.3, 8)[:32, :40])
    assert torch.allclose(found[2], (2 * net(x).detach()).T @ seen, atol=1e-5)
    assert not torch.allclose(found[2], plain[2], atol=1e-2)
    for exact in (0, 1, 3):  # the first layer's weights and bias, to which the gradient came through, and the last bias
        assert torch.equal(found[exact], plain[exact])


def deep():
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(12) for m in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 4))


def peak(net, run, x):
    net(x).sum().backward()
    return training_peak_bytes(net, lambda: run(x).square().sum().backward())


def test_bytes_fall_with_the_density_by_what_the_blocks_take():
    net, x = deep(), torch.randn(256, 64)
    peaks = {density: peak(net, ActivationPruning(density).wrap(net), x) for density in (0.5, 0.25, 0.125)}
    layers, blocks = 12, 32 * 8
    # each of twelve inputs keeps fewer blocks of 64 numbers and a place; the rest of the peak is the same
    assert peaks[0.5] - peaks[0.25] == pytest.approx(layers * 0.25 * blocks * (64 * 4 + 4), rel=0.1)
    assert peak(net, net, x) > peaks[0.5] > peaks[0.25] > peaks[0.125]


def test_what_is_pruned_is_let_go():
    net, x = deep(), torch.randn(256, 64)
    inputs = []
    net[2].register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0].untyped_storage())))
    loss = ActivationPruning(0.25).wrap(net)(x).sum()
    gc.collect()
    assert inputs[0]() is None
    loss.backward()
    assert not any(layer._forward_hooks for layer in net) and len(net[2]._forward_pre_hooks) == 1


def test_the_largest_blocks_give_a_better_gradient_than_any():
    digits = datasets.workload("digits-mlp")
    x = torch.tensor(digits.data().train.x[:64])
    likeness = {"magnitude": 0.0, "random": 0.0}
    for seed in range(5):
        net = digits.network(seed)
        plain = torch.cat([g.flatten() for g in gradients(net, net, x)])
        for choice in likeness:
            subject = ActivationPruning(0.25, choice=choice, seed=seed).wrap(net)
            found = torch.cat([g.flatten() for g in gradients(net, subject, x)])
            likeness[choice] += float(functional.cosine_similarity(plain, found, 0)) / 5
    assert 1 > likeness["magnitude"] > likeness["random"] + 0.01


def test_a_training_learns_the_same_seed_the_same_and_the_start_is_untouched():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=4)
    start, data = digits.network(), digits.data()
    before = copy.deepcopy(start.state_dict())
    trained, trace = ActivationPruning(0.25).run(recipe, start, data)
    _, same = ActivationPruning(0.25).run(recipe, start, data)
    assert trace == same and not trained.training and datasets.accuracy(trained, data.validation) > 0.75
    assert all(torch.equal(start.state_dict()[key], value) for key, value in before.items())
    plain = digits.network()
    assert recipe.train(plain, data) == ActivationPruning(1.0).run(recipe, digits.network(), data)[1]


def test_wrong_input_is_named():
    for options, word in (
        ({"density": 0.0}, "density: expected 0 < density <= 1"),
        ({"block": 0}, "block: expected at least 1"),
        ({"choice": "smallest"}, "choice: expected one of magnitude, random, got 'smallest'"),
    ):
        with pytest.raises(ValueError, match=word):
            ActivationPruning(**options)
