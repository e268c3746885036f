"""Grouped attention is standard attention with repeated keys; converting heads that agree changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets.workloads.transformer import Attention, Transformer
from kernels.counting import macs_by_layer
from kernels.model.sequence_models.attention import AttentionSpec, attentions, cache_numbers
from kernels.model.sequence_models.shared_key_value_heads import SharedKeyValueHeads, grouped_attention

SPEC = AttentionSpec(12, heads=6, head_width=2)


def operands(heads, groups, steps=7, width=4):
    torch.manual_seed(0)
    q = torch.randn(2, heads, steps, width, dtype=torch.float64)
    k, v = torch.randn(2, 2, groups, steps, width, dtype=torch.float64)
    return q, k, v


@pytest.mark.parametrize(("heads", "groups"), [(4, 1), (4, 2), (6, 3), (5, 5)])
def test_it_is_torchs_attention_with_keys_and_values_repeated(heads, groups):
    q, k, v = operands(heads, groups)
    repeated = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
    expected = functional.scaled_dot_product_attention(q, *repeated, is_causal=True)
    assert torch.allclose(grouped_attention(q, k, v), expected)
    built = SharedKeyValueHeads(groups).build(AttentionSpec(8, heads, 4))
    assert torch.allclose(built.mix(q, k, v), expected)


def test_with_a_head_for_each_it_is_standard_attention():
    torch.manual_seed(0)
    standard = Attention(12, heads=6, head_width=2)
    shared = SharedKeyValueHeads(6).build(SPEC)
    shared.load_state_dict(standard.state_dict())
    x = torch.randn(3, 9, 12)
    assert torch.allclose(shared(x), standard(x), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_what_is_kept_and_what_is_computed_by_the_closed_form(groups):
    shared = SharedKeyValueHeads(groups).build(SPEC)
    assert cache_numbers(shared, 10) == 10 * 2 * groups * 2
    products = macs_by_layer(shared, torch.zeros(1, 10, 12))
    assert products["k"] == products["v"] == 10 * 12 * groups * 2
    assert products[""] == 2 * 6 * 10 * 10 * 2  # scores and values: sharing saves none
    assert sum(p.numel() for p in shared.parameters()) == 12 * 12 + 2 * 12 * groups * 2 + 12 * 12 + 12


def test_converting_averages_each_groups_heads():
    torch.manual_seed(0)
    network = Transformer(7, width=12, layers=1, heads=6, hidden=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    converted = SharedKeyValueHeads(2).convert(network)
    (_, old), (_, new) = *attentions(network), *attentions(converted)
    for name in ("k", "v"):
        heads = getattr(old, name).weight.reshape(6, 2, 12)
        by_hand = torch.cat([(heads[0] + heads[1] + heads[2]) / 3, (heads[3] + heads[4] + heads[5]) / 3])
        assert torch.allclose(getattr(new, name).weight, by_hand)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(new.q.weight, old.q.weight) and torch.equal(new.o.bias, old.o.bias)


def test_converting_a_network_whose_heads_already_agree_changes_no_output():
    torch.manual_seed(0)
    network = Transformer(7, width=12, layers=2, heads=6, hidden=8)
    for _, attention in attentions(network):
        for layer in (attention.k, attention.v):
            layer.weight.data = layer.weight[:2].repeat(6, 1)
    x = torch.randint(0, 7, (3, 9)).float()
    converted = SharedKeyValueHeads(1).convert(network)
    assert torch.allclose(converted.every(x), network.every(x), atol=1e-6)
    assert cache_numbers(converted, 9) * 6 == cache_numbers(network, 9)


def test_averaged_heads_heal_with_little_training():
    """Against the same layers drawn anew, which need to learn what the averages still know."""
    workload = datasets.workload("shakespeare-transformer")
    data, block = workload.data(), SharedKeyValueHeads(2)
    few = replace(data, train=data.train[:480])
    recipe = replace(workload.recipe, epochs=1, schedule="cosine")
    bits = {}
    trained = workload.trained()
    for who, network in (("averaged", block.convert(trained)), ("anew", block.within(trained))):
        recipe.train(network, few, seed=0)
        bits[who] = workload.figures(network, data.validation[:128])["bits_per_character"]
    assert bits["averaged"] < bits["anew"] - 0.02


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="key_value_heads: expected a positive integer, got 0"):
        SharedKeyValueHeads(0)
    with pytest.raises(ValueError, match="expected a divisor of 6 heads, got 4"):
        SharedKeyValueHeads(4).build(SPEC)
    with pytest.raises(ValueError, match="Linear has none"):
        SharedKeyValueHeads().within(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got str"):
        SharedKeyValueHeads().within("network")
    once = SharedKeyValueHeads().within(Transformer(7, width=12, layers=1, heads=6, hidden=8))
    with pytest.raises(ValueError, match=r"layers\.0\.attention: expected standard attention, got GroupedAttention"):
        SharedKeyValueHeads().within(once)
