"""Rounded numbers are the nearest of their grid, bytes are really held, and one pass gives the decoder's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import datasets
from datasets.workloads.transformer import Transformer
from kernels import counting
from kernels.model.sequence_models.decoding import Cache, advance
from kernels.model.sequence_models.kv_cache_quantization import (
    KvCacheQuantization,
    QuantizedCache,
    packed,
    quantize,
    unpacked,
)
from kernels.model.sequence_models.shared_key_value_heads import SharedKeyValueHeads

WORKLOAD = datasets.workload("shakespeare-transformer")


def small(heads=2):
    torch.manual_seed(0)
    network = Transformer(classes=7, width=16, layers=2, heads=heads, hidden=16)
    for layer in network.layers:  # so large that the weights are far from even, and rounding shows
        layer.attention.k.weight.data *= 5
    return network.eval()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([-1, -2]))
def test_every_number_becomes_the_nearest_of_its_groups_grid(seed, bits, dim):
    x = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed))
    packed = quantize(x, bits, dim)
    levels = np.arange(2**bits)
    groups = zip(*(np.moveaxis(t.numpy(), dim, -1).reshape(-1, t.shape[dim]) for t in
                   (x, packed.decode(), packed.scale.float(), packed.least.float())), strict=True)  # fmt: skip
    for numbers, found, scale, least in groups:
        grid = levels * scale + least
        nearest = np.abs(numbers[:, None] - grid).min(1)
        assert np.allclose(np.abs(numbers - found), nearest, atol=1e-6)
        # FP16 moves the ends by its rounding, half of 2^-10 of the largest
        assert nearest.max() <= scale.item() / 2 + 2**-9 * np.abs(numbers).max()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_codes_fill_their_bytes(bits):
    packed = quantize(torch.randn(2, 4, 16, 8), bits, -2)
    assert packed.codes.numel() == 2 * 4 * 16 * 8 * bits // 8 and packed.codes.dtype == torch.uint8
    assert packed.nbytes == packed.codes.numel() + 2 * 2 * (2 * 4 * 8)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_are_those_of_numpy_and_give_every_code_back(bits):
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(8).view(8, -1).T.contiguous()
    alone = np.unpackbits(codes.numpy()[..., None], axis=-1, count=bits, bitorder="little")
    expected = np.packbits(alone.reshape(len(codes), -1), axis=-1, bitorder="little")
    assert np.array_equal(packed(codes, bits).numpy(), expected)
    assert torch.equal(unpacked(packed(codes, bits), bits), codes)


def test_constant_and_zero_groups_stay_what_they_are():
    for value in (0.0, -0.0, 2.5):
        x = torch.full((1, 4, 4), value)
        assert torch.equal(quantize(x, 2, -1).decode(), x)


@pytest.mark.parametrize(
    "options", [{}, {"bits": 4}, {"bits": 3}, {"bits": 1}, {"residual": 5}, {"key_axis": "step"}, {"residual": 1}]
)
@pytest.mark.parametrize("groups", [2, 1])
def test_one_pass_gives_the_numbers_of_the_decoder_that_keeps_packed_bytes(options, groups):
    network = SharedKeyValueHeads(groups).convert(small())
    torch.manual_seed(1)
    x = torch.randint(0, 7, (3, 23)).float()
    rounded = KvCacheQuantization(**options).apply(network)
    with torch.no_grad():
        logits, caches = rounded.decode(x)
        assert torch.allclose(logits, rounded.every(x), atol=1e-5)
        assert torch.allclose(rounded(x), logits[:, -1], atol=1e-5)
        assert not torch.allclose(logits, network.every(x), atol=1e-3)
    assert sum(cache.nbytes for cache in caches) == 3 * rounded.cache_bytes(23)


def test_eight_bits_change_almost_nothing_and_a_window_of_all_steps_nothing():
    network, x = small(), torch.randint(0, 7, (2, 20)).float()
    with torch.no_grad():
        plain = network.every(x)
        errors = [(KvCacheQuantization(bits).apply(network).every(x) - plain).abs().max() for bits in (2, 4, 8)]
        assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05
        assert torch.allclose(KvCacheQuantization(residual=21).apply(network).every(x), plain, atol=1e-5)


def test_cached_bytes_by_hand():
    """37 steps of two heads of 8 in two bits, 16 at a time: keys in two groups and 5 whole; 21 values and 16 whole."""
    cache = QuantizedCache(bits=2, residual=16)
    for _ in range(37):
        cache.append(*torch.randn(2, 1, 2, 1, 8))
    keys = 2 * (2 * 16 * 8 * 2 // 8 + 2 * 8 * 4) + 2 * 5 * 8 * 4
    values = 21 * (2 * 8 * 2 // 8 + 2 * 4) + 2 * 16 * 8 * 4
    assert cache.nbytes == keys + values and len(cache) == 37


def test_a_scale_along_the_steps_saves_keys_of_which_one_channel_is_large():
    """KIVI's reason, on keys made for it."""
    torch.manual_seed(0)
    keys = torch.randn(1, 1, 16, 8)
    keys[..., 3] = 50 + torch.randn(16)
    errors = {axis: float((quantize(keys, 2, axis).decode() - keys)[..., :3].square().mean()) for axis in (-1, -2)}
    assert errors[-2] < errors[-1] / 4


def test_plain_caches_decode_what_the_network_says_and_forget_what_they_must():
    network, x = small(), torch.randint(0, 7, (2, 12))
    caches = [Cache(), Cache()]
    with torch.no_grad():
        first = advance(network, x[:, :5], caches)
        advance(network, (x[:, 5:8] + 1) % 7, caches)
        for cache in caches:
            cache.truncate(5)
        rest = torch.cat([advance(network, x[:, i : i + 1], caches) for i in range(5, 12)], 1)
        assert torch.allclose(torch.cat([first, rest], 1), network.every(x), atol=1e-5)
    assert len(caches[0]) == 12 and caches[0].nbytes == 2 * 2 * 12 * 16 * 4


def test_the_trained_network_stays_as_it_was_and_costs_are_those_of_decoding():
    network = WORKLOAD.trained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rounded, x = KvCacheQuantization().apply(network), torch.zeros(1, 64)
    assert rounded.figures(x)["macs"] == counting.macs(network, x) < counting.macs(rounded, x)
    assert counting.parameters(rounded) == counting.parameters(network)
    assert rounded.cache_bytes(64) < 4 * 64 * 256 / 3
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    some = WORKLOAD.data().validation[:64]
    bits = [WORKLOAD.figures(each, some)["bits_per_character"] for each in (network, rounded)]
    assert abs(bits[1] - bits[0]) < 0.06


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"bits: expected one of \(1, 2, 3, 4, 8\), got 5"):
        KvCacheQuantization(5)
    with pytest.raises(ValueError, match="residual: expected a positive number of steps, got 0"):
        KvCacheQuantization(residual=0)
    with pytest.raises(ValueError, match="key_axis: expected channel or step"):
        KvCacheQuantization(key_axis="head")
    with pytest.raises(ValueError, match="Linear has none"):
        KvCacheQuantization().apply(nn.Linear(2, 2))
    odd = Transformer(classes=7, width=12, layers=1, heads=2, hidden=8)
    with pytest.raises(ValueError, match=r"layers\.0\.attention: expected heads of a multiple of 4 numbers, got 6"):
        KvCacheQuantization().apply(odd)
    with pytest.raises(ValueError, match="k: expected one step at a time, got 2"):
        QuantizedCache(2, 16).append(torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8))
