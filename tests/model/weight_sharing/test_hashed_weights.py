"""Hashed layers: the hash against xxHash's test vectors, the layer and its gradient against the written-out weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

import datasets
from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec, replace
from kernels.model.compressed_file import decode, encode
from kernels.model.weight_sharing.hashed_weights import HashedConv2d, HashedWeights, RandomEdges, hash32


def hash_in_python(number: int, seed: int) -> int:
    """xxHash32 of four bytes, as its specification words it, in unbounded integers."""
    m = 2**32 - 1
    rotated = lambda x, r: (x << r | x >> 32 - r) & m  # noqa: E731
    h = (seed + 0x165667B1 + 4) & m
    h = rotated((h + number * 0xC2B2AE3D) & m, 17) * 0x27D4EB2F & m
    h = (h ^ h >> 15) * 0x85EBCA77 & m
    h = (h ^ h >> 13) * 0xC2B2AE3D & m
    return h ^ h >> 16


def test_the_hash_is_xxhash():
    assert hash32(np.frombuffer(b"abcd", "<u4")).tolist() == [0xA3643705]  # a published test vector
    numbers = np.array([0, 1, 2, 255, 12345, 2**31, 2**32 - 1], np.uint32)
    for seed in (0, 1, 2**32 - 1):
        assert hash32(numbers, seed).tolist() == [hash_in_python(int(n), seed) for n in numbers]


def test_buckets_and_signs_are_even():
    """What a fair die would give: chi-square of the counts, and of signs against buckets' parity."""
    places, signs = HashedWeights(share=0.005)._drawn(40_000)
    counts = np.bincount(places)
    assert len(counts) == 200 and stats.chisquare(counts).pvalue > 0.001
    table = [[((places % 2 == p) & (signs == s)).sum() for s in (-1, 1)] for p in (0, 1)]
    assert set(signs) == {-1, 1} and stats.chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": "same"}, {"dilation": 2}, {"bias": False}, {"kernel_size": (3, 1)}]
)
def test_it_is_the_standard_convolution_of_its_virtual_weights(options):
    spec = ConvSpec(**({"in_channels": 3, "out_channels": 5, "kernel_size": 3, "padding": 1} | options))
    layer, standard = HashedWeights(0.2).build(spec), nn.Conv2d(**spec.__dict__)
    standard.weight.data = layer.virtual().detach()
    if spec.bias:
        standard.bias.data = layer.bias.detach()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(layer(x), standard(x))
    assert macs(layer, x) == macs(standard, x)


def test_places_and_signs_of_a_small_layer_by_hand():
    layer = HashedWeights(share=0.5, seed=7).linear(2, 3)
    real = 3
    buckets = [hash_in_python(i, 7) * real >> 32 for i in range(6)]
    signs = [1 if hash_in_python(i, 8) & 1 else -1 for i in range(6)]
    renumbered = sorted(set(buckets))
    real_weights = layer.weight.tolist()
    expected = [s * real_weights[renumbered.index(b)] for b, s in zip(buckets, signs, strict=True)]
    assert layer.virtual().flatten().tolist() == pytest.approx(expected, abs=1e-7)


def test_the_gradient_of_a_real_weight_is_the_signed_sum_over_its_places():
    torch.manual_seed(0)
    layer, x = HashedWeights(0.1).linear(20, 15), torch.randn(6, 20)
    virtual = layer.virtual().detach().requires_grad_()
    functional.linear(x, virtual, layer.bias.detach()).square().sum().backward()
    layer(x).square().sum().backward()
    expected = torch.stack([(layer.factors * virtual.grad)[layer.places == k].sum() for k in range(len(layer.weight))])
    torch.testing.assert_close(layer.weight.grad, expected)


def test_only_real_weights_are_stored_and_the_file_finds_the_places_again():
    spec = ConvSpec(16, 32, 3)
    layer = HashedWeights(0.05).build(spec)
    assert parameters(layer) == round(0.05 * 16 * 32 * 9) + 32 and [*layer.state_dict()] == ["weight", "bias"]
    other = HashedWeights(0.05).build(spec)
    back = decode(encode(layer), other)
    assert torch.equal(back.virtual(), layer.virtual()) and len(encode(layer)) < 4 * parameters(layer) + 250
    assert not torch.equal(HashedWeights(0.05, seed=1).build(spec).places, layer.places)
    assert torch.equal(copy.deepcopy(layer).virtual(), layer.virtual())


def test_virtual_weights_begin_as_large_as_standard_ones():
    torch.manual_seed(0)
    spec = ConvSpec(32, 64, 3)
    virtual, standard = HashedWeights(0.1).build(spec).virtual(), nn.Conv2d(32, 64, 3).weight
    assert float(virtual.detach().std()) == pytest.approx(float(standard.detach().std()), rel=0.05)
    assert virtual.abs().max() <= 1 / (32 * 9) ** 0.5


def test_random_edges_have_as_many_weights_each_used_once():
    technique, spec = HashedWeights(0.1), ConvSpec(8, 16, 3)
    rival = technique.at_random(3)
    assert rival == RandomEdges(0.1, 3)
    layer, again, other = rival.build(spec), rival.build(spec), technique.at_random(4).build(spec)
    assert layer.weight.numel() == technique.build(spec).weight.numel() == 115
    kept = layer.factors != 0
    assert kept.sum() == 115 and sorted(layer.places[kept].tolist()) == [*range(115)]
    assert torch.equal(layer.places, again.places) and not torch.equal(layer.factors, other.factors)


def test_a_network_with_it_learns_and_hashing_all_is_one_weight():
    workload = datasets.workload("noisy-digits-cnn")
    network = replace(workload.network(), HashedWeights(0.125))
    assert sum(isinstance(layer, HashedConv2d) for layer in network) == 2
    workload.recipe.train(network, workload.data())
    assert datasets.accuracy(network, workload.data().validation) > 0.75
    single = HashedWeights(1e-9).build(ConvSpec(4, 4, 3))
    assert single.weight.numel() == 1 and len(single.virtual().abs().unique()) == 1


def test_wrong_shares_are_named():
    for share in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share: expected 0 < share <= 1"):
            HashedWeights(share)
