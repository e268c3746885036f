"""Product quantization against scikit-learn's k-means, products by tables against decoded ones, and what is weighed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

import datasets
from kernels.model.compressed_file import decode, encode
from kernels.model.transform import bake, layer_weights
from kernels.model.weight_sharing.product_quantization import (
    ProductQuantization,
    RandomCodewords,
    lookup_product,
    parts,
    second_moment,
)
from taxonomy.measure.figures import stored_bits


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def data(shape=(3, 6, 6)):
    class Split:
        x = np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32)

    return type("Data", (), {"train": Split})


def test_the_codewords_are_those_of_scikit_learn():
    torch.manual_seed(0)
    layer = nn.Linear(24, 50)
    points = layer.weight.detach().numpy().reshape(-1, 4).astype(float)
    different = np.unique(points, axis=0)
    begin = different[np.random.default_rng(3).choice(len(different), 9, replace=False)]
    theirs = KMeans(9, init=begin, n_init=1, algorithm="lloyd", tol=0, max_iter=1000).fit(points)
    shared = ProductQuantization(codewords=9, seed=3).apply(layer)
    expected = theirs.cluster_centers_[theirs.labels_].reshape(50, 24)
    np.testing.assert_allclose(shared.weight.detach().numpy(), expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.integers(1, 8), st.integers(0, 99))
def test_the_product_by_tables_is_that_of_the_decoded_weights(pieces, length, outputs, codewords, seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(pieces * length, outputs, bias=False).double(), torch.randn(7, pieces * length).double()
    shared = ProductQuantization(codewords, length).apply(layer)
    torch.testing.assert_close(lookup_product(x, *parts(shared)), shared(x))


def test_one_update_of_a_codeword_is_the_sum_of_its_places_gradients():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 6), torch.randn(11, 8)
    shared = ProductQuantization(3).apply(layer)
    plain = bake(shared)
    for network in (shared, plain):
        network(x).square().sum().backward()
    codes, codebook = parts(shared)
    pieces = plain.weight.grad.reshape(6, 2, 4)
    expected = torch.stack([pieces[codes == j].sum(0) for j in range(len(codebook))])
    torch.testing.assert_close(shared.parametrizations.weight.original.grad, expected)


def test_the_second_moment_is_that_of_the_windows_by_hand():
    network, x = cnn(), torch.randn(2, 3, 6, 6)
    padded = nn.functional.pad(x, (1, 1, 1, 1)).double()
    windows = [padded[i, :, r : r + 3, c : c + 3].reshape(-1) for i in range(2) for r in range(6) for c in range(6)]
    rows = torch.stack(windows).reshape(-1, 9)
    torch.testing.assert_close(second_moment(network, network[0], x, 9), rows.T @ rows)


def test_weighed_by_inputs_the_outputs_err_less_and_the_weights_more():
    """Inputs of very different size: the sum that each of the two minimises is smaller for it."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 200, bias=False)
    inputs = data((4,))
    inputs.train.x = inputs.train.x * np.array([10, 1, 0.1, 0], np.float32)
    x, w = torch.tensor(inputs.train.x), layer.weight
    errors = {}
    for weighed in (False, True):
        error = (ProductQuantization(8, inputs=weighed).apply(layer, inputs).weight - w).detach()
        errors[weighed] = float((error @ x.T).square().sum()), float(error.square().sum())
    assert errors[True][0] < 0.3 * errors[False][0] and errors[True][1] > errors[False][1]


def test_weighing_by_independent_inputs_of_one_size_changes_nothing():
    layer = nn.Linear(4, 100, bias=False)
    inputs = data((4,))
    inputs.train.x = np.float32(np.sqrt(10)) * np.eye(4, dtype=np.float32)
    plain, weighed = (ProductQuantization(8, inputs=choice).apply(layer, inputs) for choice in (False, True))
    torch.testing.assert_close(plain.weight, weighed.weight)


def test_lengths_that_do_not_divide_a_row_give_way_and_convolutions_are_cut_by_channel():
    network = ProductQuantization(5, length=10).apply(cnn())
    assert network[0].parametrizations.weight.original.shape == (5, 9)
    assert network[3].parametrizations.weight.original.shape == (5, 9)
    kernels = network[0].weight.detach().reshape(-1, 9)
    assert len(kernels.unique(dim=0)) == 5
    assert ProductQuantization(5, length=4).apply(cnn())[0].parametrizations.weight.original.shape == (5, 3)


def test_stored_bits_by_hand_and_the_file_gives_the_weights_back():
    torch.manual_seed(0)
    layer = nn.Linear(64, 40, bias=False)
    shared = ProductQuantization(16, 4).apply(layer)
    assert stored_bits(shared) == 8 * (1 + 40 * 16 * 4 // 8) + 16 * 4 * 32
    assert torch.equal(decode(encode(shared), layer).weight, shared.weight)
    assert len(encode(shared)) < stored_bits(shared) / 8 + 250


def test_fine_tuning_keeps_the_codes_and_regains_accuracy():
    workload = datasets.workload("digits-mlp")
    split = workload.data()
    shared = ProductQuantization(16, inputs=True).apply(workload.trained(), split)
    before = datasets.accuracy(shared, split.validation)
    codes = shared[1].parametrizations.weight[0].codes.clone()
    workload.recipe.finetune(shared, split)
    assert datasets.accuracy(shared, split.validation) > before + 0.02
    assert torch.equal(shared[1].parametrizations.weight[0].codes, codes)
    x = torch.tensor(split.test.x)
    assert torch.equal(bake(shared)(x), shared(x))
    assert [*bake(shared).state_dict()] == [*workload.trained().state_dict()]


@pytest.mark.parametrize("weighed", [False, True])
def test_the_input_is_untouched_and_the_same_seed_gives_the_same_network(weighed):
    network = cnn()
    before = copy.deepcopy(network.state_dict())
    first, again, other = (
        bake(ProductQuantization(5, inputs=weighed, seed=seed).apply(network, data())) for seed in (3, 3, 4)
    )
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert network.training and not network[0]._forward_pre_hooks
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(first[3].weight, other[3].weight)


def test_few_different_pieces_are_all_kept():
    layer = nn.Linear(8, 3, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2, 3, 4] * 2, [0, 0, 0, 0, 1, 2, 3, 4], [5.0] * 8])
    assert torch.equal(ProductQuantization().apply(layer).weight, layer.weight)


def test_random_codewords_are_as_many_and_blind():
    rival = ProductQuantization(6, 3).at_random(1)
    assert rival == RandomCodewords(6, 3, 1)
    network = cnn()
    first, again = (bake(rival.apply(network)) for _ in range(2))
    assert torch.equal(first[3].weight, again[3].weight)
    for (mine, _), (theirs, _) in zip(layer_weights(first), layer_weights(network), strict=True):
        points, pieces = mine.weight.detach().reshape(-1, 3), theirs.weight.detach().reshape(-1, 3)
        for word in points.unique(dim=0):
            torch.testing.assert_close(pieces[(points == word).all(1)].mean(0), word)


def test_recurrent_layers():
    torch.manual_seed(0)
    shared, x = ProductQuantization(4, 5).apply(nn.GRU(5, 6)), torch.randn(7, 2, 5)
    assert torch.equal(bake(shared)(x)[0], shared(x)[0]) and len(bake(shared).weight_ih_l0.unique(dim=0)) == 4


def test_wrong_input_is_named():
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        ProductQuantization().apply(3)
    with pytest.raises(ValueError, match="network: expected convolution, linear or recurrent layers; ReLU has none"):
        ProductQuantization().apply(nn.ReLU())
    with pytest.raises(ValueError, match="data: expected training data"):
        ProductQuantization(inputs=True).apply(cnn())
    network = cnn()
    network[3].weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"3\.weight: expected finite weights"):
        ProductQuantization().apply(network)
    for name in ("codewords", "length"):
        with pytest.raises(ValueError, match=f"{name}: expected a positive integer, got 0"):
            ProductQuantization(**{name: 0})
