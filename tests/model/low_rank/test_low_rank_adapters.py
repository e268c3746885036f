"""One update is the equation's by hand, nothing frozen moves, and merging changes no output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from datasets import Data, Recipe, Split
from kernels.counting import parameters
from kernels.model.low_rank.low_rank_adapters import BiasesAlone, LowRankAdapters, LowRankDelta, adapter_weights
from kernels.model.transform import bake


def line():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def blobs(n=32):
    random = np.random.default_rng(0)
    split = Split(random.normal(size=(n, 5)), random.integers(0, 3, n))
    return Data("blobs", split, split, split, classes=3)


def sgd(parameters, lr, weight_decay):
    return torch.optim.SGD(parameters, lr=lr)


ONE = Recipe(epochs=1, batch=32, learning_rate=0.1, schedule="constant", optimizer=sgd)


def test_one_update_by_hand():
    """dL/dB = s G Aᵀ and dL/dA = s Bᵀ G for the gradient G of the whole weight; B is zero, so A stays at first."""
    network, data = line(), blobs()
    block = LowRankAdapters(rank=2, alpha=6.0, layers="0")
    before = block.adapted(network, seed=0)[0].parametrizations.weight[0]
    a = before.a.detach().clone()
    adapted, trace = block.train(network, data, ONE, seed=0)
    plain = line()
    loss = nn.functional.cross_entropy(plain(torch.tensor(data.train.x)), torch.tensor(data.train.y))
    loss.backward()
    gradient = plain[0].weight.grad
    delta = adapted[0].parametrizations.weight[0]
    assert torch.allclose(delta.b, -0.1 * 3.0 * gradient @ a.T, atol=1e-6) and torch.equal(delta.a, a)
    assert torch.allclose(adapted[0].weight, network[0].weight + 3.0 * delta.b @ a, atol=1e-6)
    assert trace[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)


def test_nothing_changes_before_something_is_learned_and_merging_changes_no_output():
    network, x = line(), torch.randn(6, 5)
    block = LowRankAdapters(rank=2, layers="0 2")
    assert torch.equal(block.adapted(network)(x), network(x))
    adapted, _ = block.train(network, blobs(), replace(ONE, epochs=3))
    merged = bake(adapted)
    assert torch.equal(merged(x), adapted(x)) and not torch.allclose(merged(x), network(x), atol=1e-3)
    assert type(merged[0]) is nn.Linear and parameters(merged) == parameters(network)
    change = merged[0].weight - network[0].weight
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 2


def test_only_adapters_learn():
    network = line()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapted, _ = LowRankAdapters(rank=1, layers="2").train(network, blobs(), replace(ONE, epochs=2))
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(adapted[0].weight, network[0].weight) and torch.equal(adapted[2].bias, network[2].bias)
    assert torch.equal(adapted[2].parametrizations.weight.original, network[2].weight)
    assert sum(w.numel() for w in adapter_weights(adapted).values()) == 4 + 3


def test_a_full_rank_reaches_what_any_change_of_the_weights_reaches():
    """Least squares: with rank min(m, n) the adapters find the weights that the normal equations give."""
    torch.manual_seed(0)
    target = torch.randn(3, 4, dtype=torch.float64)
    delta = LowRankDelta(3, 4, rank=3, alpha=3.0, random=torch.Generator().manual_seed(0)).double()
    weight = torch.randn(3, 4, dtype=torch.float64)
    optimizer = torch.optim.Adam(delta.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (delta(weight) - target).square().sum().backward()
        optimizer.step()
    assert torch.allclose(delta(weight), target, atol=1e-2)


def test_a_low_rank_reaches_the_truncated_singular_values():
    """Eckart and Young: no change of rank 1 comes closer to a target than its largest singular value."""
    torch.manual_seed(0)
    weight, change = torch.randn(2, 6, 5, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(change)
    delta = LowRankDelta(6, 5, rank=1, alpha=1.0, random=torch.Generator().manual_seed(1)).double()
    optimizer = torch.optim.Adam(delta.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (delta(weight) - weight - change).square().sum().backward()
        optimizer.step()
    found = (delta(weight) - weight).detach()
    assert torch.allclose(found, s[0] * u[:, :1] @ vt[:1], atol=0.02)


def test_weights_of_a_task_bring_it_back():
    network, block = line(), LowRankAdapters(rank=2, layers="0 2")
    adapted, _ = block.train(network, blobs(), ONE)
    fresh = block.adapted(network, seed=9)
    missing = fresh.load_state_dict(adapter_weights(adapted), strict=False)
    x = torch.randn(4, 5)
    assert not missing.unexpected_keys and torch.equal(fresh(x), adapted(x))


def test_same_seed_same_adapters():
    runs = [LowRankAdapters(rank=2, layers="0").train(line(), blobs(), ONE, seed=seed)[0] for seed in (1, 1, 2)]
    weights = [bake(run)[0].weight for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_biases_alone_leave_matrices():
    network = line()
    adapted, _ = BiasesAlone().train(network, blobs(), ONE)
    assert torch.equal(adapted[0].weight, network[0].weight) and not torch.equal(adapted[0].bias, network[0].bias)


def test_the_transformer_comes_closer_to_milton():
    workload = datasets.workload("milton-transformer")
    data, some = workload.data(), workload.data().validation[:128]
    few = replace(data, train=data.train[:400])
    network = workload.network()
    adapted, _ = LowRankAdapters().train(network, few, replace(workload.recipe, epochs=1), seed=0)
    bits = [workload.figures(each, some)["bits_per_character"] for each in (network, bake(adapted))]
    assert bits[1] < bits[0] - 0.02


def test_a_recurrent_layer_learns_a_change_of_low_rank_and_merges_it():
    workload = datasets.workload("new-speakers-gru")
    network, data, x = workload.network(), workload.data(), torch.tensor(workload.data().validation.x[:8])
    block = LowRankAdapters(rank=2)
    assert torch.equal(block.adapted(network)(x), network(x))
    learned = 2 * (192 + 12) + 2 * (192 + 64) + 2 * (9 + 64)
    assert sum(p.numel() for p in block.adapted(network).parameters() if p.requires_grad) == learned
    adapted, _ = block.train(network, data, replace(workload.recipe, epochs=4), seed=0)
    merged = bake(adapted)
    assert type(merged.gru) is nn.GRU and torch.equal(merged(x), adapted(x))
    for name in ("weight_ih_l0", "weight_hh_l0"):
        change = getattr(merged.gru, name) - getattr(network.gru, name)
        assert torch.linalg.matrix_rank(change.detach(), atol=1e-5) == 2
    assert torch.equal(merged.gru.bias_hh_l0, network.gru.bias_hh_l0)
    before, after = (datasets.accuracy(each, data.validation) for each in (network, merged))
    assert before < 0.7 < after


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="rank: expected a positive integer, got 0"):
        LowRankAdapters(0)
    with pytest.raises(ValueError, match="alpha: expected a positive number, got 0"):
        LowRankAdapters(alpha=0)
    with pytest.raises(ValueError, match="layers: expected names of linear or recurrent layers, got none"):
        LowRankAdapters(layers=" ")
    with pytest.raises(ValueError, match="linear or recurrent layers of Sequential, got 'q v'"):
        LowRankAdapters(layers="q v").adapted(line())
    with pytest.raises(ValueError, match="2: expected a rank of at most 3, got 4"):
        LowRankAdapters(rank=4, layers="0 2").adapted(line())
    with pytest.raises(ValueError, match="gru: expected a rank of at most 12, got 16"):
        LowRankAdapters(rank=16).adapted(datasets.workload("vowels-gru").network())
    with pytest.raises(TypeError, match="network: expected a torch"):
        LowRankAdapters().adapted("network")
