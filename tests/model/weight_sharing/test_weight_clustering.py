"""K-means weight sharing against scikit-learn's, its gradient by sums over clusters, and what it leaves alone."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

import datasets
from kernels.model.batch_norm import fold
from kernels.model.compressed_file import decode, encode
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake, layer_weights
from kernels.model.weight_sharing.k_means import k_means, k_means_of_numbers, nearest
from kernels.model.weight_sharing.weight_clustering import RandomSharing, WeightClustering, first_values
from taxonomy.measure.figures import stored_bits


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def inertia(x, centres, labels, h=None):
    return float((((x - centres[labels]) ** 2).sum(1) * (1 if h is None else h)).sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("k", "d"), [(2, 1), (5, 1), (16, 1), (4, 3), (8, 4)])
def test_k_means_is_that_of_scikit_learn(k, d, weighted):
    random = np.random.default_rng(k + d)
    x = random.normal(size=(400, d))
    h = random.random(400) if weighted else None
    begin = x[random.choice(400, k, replace=False)]
    theirs = KMeans(k, init=begin, n_init=1, algorithm="lloyd", tol=0, max_iter=1000).fit(x, sample_weight=h)
    centres, labels = k_means(x, begin, h, iterations=1000)
    assert inertia(x, centres, labels, h) == pytest.approx(theirs.inertia_, rel=1e-9)
    assert np.array_equal(labels, theirs.labels_)
    np.testing.assert_allclose(centres, theirs.cluster_centers_, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 16, 300])
def test_on_a_line_it_is_the_same(k):
    """The last k is more than there are points: some centres have none, and stay."""
    random = np.random.default_rng(k)
    x, begin = random.normal(size=200), np.linspace(-3, 3, k)
    centres, labels = k_means_of_numbers(x, begin)
    theirs, of_theirs = k_means(x[:, None], begin[:, None])
    assert np.array_equal(labels, of_theirs)
    np.testing.assert_allclose(centres, theirs[:, 0], rtol=1e-12)


def test_on_a_line_ties_go_to_the_lower_and_equal_numbers_stay_together():
    centres, labels = k_means_of_numbers(np.array([1.0, 1.0, 0.0, 2.0]), np.array([0.0, 2.0]), iterations=0)
    assert labels.tolist() == [0, 0, 0, 1] and centres.tolist() == [0.0, 2.0]
    assert len(k_means_of_numbers(np.zeros(0), np.array([1.0]))[1]) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 3))
def test_no_step_of_k_means_raises_the_sum_and_it_ends_where_nothing_moves(seed, k, d):
    random = np.random.default_rng(seed)
    x, begin = random.integers(-3, 4, (30, d)).astype(float), random.normal(size=(k, d))
    sums = [inertia(x, *k_means(x, begin, iterations=steps)) for steps in range(6)]
    assert all(after <= before + 1e-9 for before, after in pairwise(sums))
    centres, labels = k_means(x, begin)
    assert np.array_equal(nearest(x, centres), labels)
    for j in set(labels):
        np.testing.assert_allclose(centres[j], x[labels == j].mean(0), atol=1e-12)


def test_the_weights_of_a_layer_are_those_values():
    network = cnn()
    shared = WeightClustering(6).apply(network)
    for (layer, name), (mine, _) in zip(layer_weights(network), layer_weights(shared), strict=True):
        w = getattr(layer, name).detach().numpy().reshape(-1, 1).astype(float)
        begin = np.linspace(w.min(), w.max(), 6)[:, None]
        theirs = KMeans(6, init=begin, n_init=1, algorithm="lloyd", tol=0, max_iter=1000).fit(w)
        expected = theirs.cluster_centers_[theirs.labels_, 0]
        np.testing.assert_allclose(mine.weight.detach().numpy().ravel(), expected, atol=1e-7)


def test_one_update_of_the_codebook_is_the_sum_of_its_weights_gradients():
    torch.manual_seed(0)
    layer, x, rate = nn.Linear(7, 5), torch.randn(11, 7), 0.1
    shared = WeightClustering(3).apply(layer)
    plain = bake(shared)
    optimizer = torch.optim.SGD(shared.parameters(), rate)
    for network in (shared, plain):
        network(x).square().sum().backward()
    values, codes = torch.unique(plain.weight.detach(), return_inverse=True)
    sums = torch.stack([plain.weight.grad[codes == j].sum() for j in range(3)])
    mine = shared.parametrizations.weight.original
    torch.testing.assert_close(mine.grad, sums)
    optimizer.step()
    torch.testing.assert_close(shared.weight.detach(), (values - rate * sums)[codes])


def test_beginnings_worked_by_hand():
    w, random = np.array([-1.0, -0.1, 0.0, 0.1, 0.2, 3.0]), np.random.default_rng(0)
    assert first_values(w, 5, "linear", random).tolist() == [-1, 0, 1, 2, 3]
    assert first_values(w, 6, "density", random).tolist() == pytest.approx(sorted(w))
    drawn = first_values(np.array([1.0, 1.0, 2.0]), 5, "random", random)
    assert drawn.tolist() == [1, 2]


def test_only_even_spreading_leaves_values_among_the_large_weights():
    w = np.concatenate([np.random.default_rng(0).normal(0, 0.1, 5000), [2.0, -2.0]])
    for initial, expected in (("linear", True), ("density", False)):
        begin = first_values(w, 8, initial, np.random.default_rng(0))
        assert ((np.abs(begin[1:-1]) > 0.5).any()) == expected


def test_zeros_stay_zeros_outside_the_codebook_and_fine_tuning_keeps_the_sharing():
    workload = datasets.workload("digits-mlp")
    data = workload.data()
    pruned = bake(MagnitudePruning(0.2).apply(workload.trained()))
    shared = WeightClustering(2).apply(pruned)
    before = datasets.accuracy(shared, data.validation)
    assert [len(getattr(*place).unique()) for place in layer_weights(shared)] == [3, 3, 3]
    workload.recipe.finetune(shared, data)
    assert datasets.accuracy(shared, data.validation) > before + 0.02
    for mine, theirs in zip(layer_weights(shared), layer_weights(pruned), strict=True):
        w = getattr(*mine)
        assert torch.equal(w == 0, getattr(*theirs) == 0) and len(w.unique()) == 3
    baked = bake(shared)
    x = torch.tensor(data.test.x)
    assert torch.equal(baked(x), shared(x)) and type(baked[1]) is nn.Linear
    assert [*baked.state_dict()] == [*workload.trained().state_dict()]


def test_the_stored_bits_are_codes_and_codebook_and_the_file_gives_the_weights_back():
    layer = nn.Linear(100, 80, bias=False)
    shared = WeightClustering(16).apply(layer)
    assert stored_bits(shared) == 8 * (1 + 100 * 80 * 4 // 8) + 16 * 32
    assert torch.equal(decode(encode(shared), layer).weight, shared.weight)
    pruned = WeightClustering(4).apply(MagnitudePruning(0.1).apply(layer))
    assert stored_bits(pruned) < 100 * 80 * 0.1 * (2 + 6) + 4 * 32 + 100


@pytest.mark.parametrize("initial", ["linear", "density", "random"])
def test_the_input_is_untouched_and_the_same_seed_gives_the_same_network(initial):
    network = cnn()
    before = copy.deepcopy(network.state_dict())
    first, again = (WeightClustering(5, initial, seed=3).apply(network) for _ in range(2))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert torch.equal(first[0].bias, network[0].bias)
    with torch.no_grad():
        first[4].bias.fill_(9.0)
    assert not (network[4].bias == 9).any()


def test_few_different_weights_are_all_kept_and_an_empty_layer_stays_empty():
    layer = nn.Linear(4, 3)
    layer.weight.data = torch.tensor([[1.0, 2, 0, 2], [1, 1, 2, 0], [0, 0, 0, 0]])
    assert torch.equal(WeightClustering(16, "random").apply(layer).weight, layer.weight)
    nn.init.zeros_(layer.weight)
    assert not WeightClustering().apply(layer).weight.any()


def test_random_sharing_is_as_small_and_blind():
    network = cnn()
    rival = WeightClustering(4).at_random(7)
    assert rival == RandomSharing(4, seed=7)
    first, again, other = (bake(r.apply(network)) for r in (rival, rival, WeightClustering(4).at_random(8)))
    assert torch.equal(first[4].weight, again[4].weight) and not torch.equal(first[4].weight, other[4].weight)
    w, mine = network[4].weight, first[4].weight
    for value in mine.unique():
        torch.testing.assert_close(w[mine == value].mean(), value, atol=1e-6, rtol=0)
    assert stored_bits(rival.apply(network)) <= stored_bits(WeightClustering(4).apply(network))


def test_recurrent_layers_and_folded_norms():
    torch.manual_seed(0)
    shared, x = WeightClustering(4).apply(nn.GRU(5, 6)), torch.randn(7, 2, 5)
    assert torch.equal(bake(shared)(x)[0], shared(x)[0]) and len(bake(shared).weight_hh_l0.unique()) == 4
    workload = datasets.workload("noisy-digits-cnn")
    trained, items = workload.trained(), torch.tensor(workload.data().test.x[:9])
    folded = WeightClustering(256, fold=True).apply(trained)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(items), trained(items), atol=0.5, rtol=0.1)
        torch.testing.assert_close(fold(trained)(items), trained(items), atol=1e-4, rtol=1e-4)
    assert not folded.training


def test_wrong_input_is_named():
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        WeightClustering().apply(3)
    with pytest.raises(ValueError, match="network: expected convolution, linear or recurrent layers; Sequential has"):
        WeightClustering().apply(nn.Sequential(nn.ReLU()))
    network = cnn()
    network[4].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"4\.weight: expected finite weights"):
        WeightClustering().apply(network)
    for clusters in (0, -1, 2.5):
        with pytest.raises(ValueError, match="clusters: expected a positive integer"):
            WeightClustering(clusters)
    with pytest.raises(ValueError, match="initial: expected one of linear, density, random, got 'even'"):
        WeightClustering(initial="even")
