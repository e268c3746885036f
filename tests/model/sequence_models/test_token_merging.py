"""Pairs are those of the paper's rule worked pair by pair, nothing is lost in a mean, and what is whole stays whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets.workloads.transformer import Transformer, rotate
from kernels.counting import macs
from kernels.model.sequence_models.shared_key_value_heads import SharedKeyValueHeads
from kernels.model.sequence_models.token_merging import (
    TokenMerging,
    merged,
    proportional_attention,
    rotated_at,
    soft_matching,
)

WORKLOAD = datasets.workload("shakespeare-transformer")


def test_pairs_by_the_rule_one_after_the_other():
    torch.manual_seed(0)
    keys = torch.randn(3, 11, 5)
    sources, targets = soft_matching(keys, 3)
    for item in range(3):
        proposals = []
        for a in range(0, 10, 2):
            cosines = {
                b: float(functional.cosine_similarity(keys[item, a], keys[item, b], dim=0)) for b in (1, 3, 5, 7, 9)
            }
            best = max(cosines, key=cosines.get)
            proposals.append((cosines[best], a, best))
        by_hand = [(a, b) for _, a, b in sorted(proposals, reverse=True)[:3]]
        assert list(zip(sources[item].tolist(), targets[item].tolist(), strict=True)) == by_hand


def test_means_are_weighted_by_size_and_nothing_is_lost():
    torch.manual_seed(0)
    values, sizes = torch.randn(2, 6, 3, dtype=torch.float64), torch.tensor([[1.0, 2, 1, 1, 3, 1]] * 2).double()
    sources, targets = torch.tensor([[0, 2], [4, 2]]), torch.tensor([[1, 1], [3, 5]])
    out = merged(values, sizes, sources, targets)
    assert torch.allclose(out[0, 1], (values[0, 0] + 2 * values[0, 1] + values[0, 2]) / 4)
    assert torch.allclose(out[1, 3], (3 * values[1, 4] + values[1, 3]) / 4)
    left = sizes.scatter_add(1, targets, sizes.gather(1, sources)).scatter(1, sources, 0.0)
    assert torch.allclose((out * left[..., None]).sum(1), (values * sizes[..., None]).sum(1))


def test_a_step_that_stands_for_two_alike_is_attended_to_as_both():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 4, 6)
    places, sizes = torch.tensor([[0.0, 1, 2, 3]]), torch.tensor([[1.0, 2, 1, 1]])
    twice = torch.tensor([0, 1, 1, 2, 3])
    doubled = proportional_attention(*(t[:, :, twice] for t in (q, k, v)), places[:, twice], torch.ones(1, 5))
    assert torch.allclose(proportional_attention(q, k, v, places, sizes), doubled[:, :, [0, 1, 3, 4]], atol=1e-6)


def test_whole_places_turn_as_the_network_turns_them():
    x = torch.randn(2, 3, 7, 8)
    assert torch.allclose(rotated_at(x, torch.arange(7.0).expand(2, -1)), rotate(x), atol=1e-6)


@pytest.mark.parametrize("choice", ["similar", "random", "oldest"])
def test_without_pairs_it_is_the_network_and_with_pairs_the_products_are_counted_ones(choice):
    torch.manual_seed(0)
    network, x = (
        Transformer(classes=7, width=12, layers=2, heads=3, hidden=16).eval(),
        torch.randint(0, 7, (3, 21)).float(),
    )
    with torch.no_grad():
        logits, cost = TokenMerging(0, choice).apply(network)(x)
        assert torch.allclose(logits, network(x), atol=1e-5)
        assert float(cost[0]) == macs(network, x[:1])
        fewer, less = TokenMerging(4, choice).apply(network)(x)
    assert not torch.allclose(fewer, logits, atol=1e-3)
    n, m, few, d, hidden = 21, 17, 13, 12, 16
    products = 4 * d * d * (n + m) + 2 * d * (n * n + m * m) + 2 * d * hidden * (m + few) + 7 * d
    matching = 0 if choice == "oldest" else 4 * (10 * 10 + 8 * 8)
    assert less.tolist() == [products + matching] * 3


def test_steps_stay_in_order_and_the_last_alone():
    torch.manual_seed(0)
    module = TokenMerging(5).apply(Transformer(classes=7, width=12, layers=1, heads=3, hidden=16))
    h, keys = torch.randn(4, 20, 12), torch.randn(4, 20, 4)
    places, sizes = torch.arange(20.0).expand(4, -1), torch.ones(4, 20)
    out, left, weights = module.fewer(h, places, sizes, keys, torch.Generator())
    assert out.shape == (4, 15, 12) and (left.diff(dim=1) >= 0).all() and torch.equal(out[:, -1], h[:, -1])
    assert torch.allclose(weights.sum(1), torch.full((4,), 20.0)) and (weights[:, -1] == 1).all()
    assert torch.allclose((left * weights).sum(1), places.sum(1))


def test_similar_pairs_lose_less_than_random_ones():
    some = WORKLOAD.data().validation[:256]
    x, y = torch.tensor(some.x), torch.tensor(some.y)
    network = WORKLOAD.trained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        losses = [
            functional.cross_entropy(subject.apply(network).logits(x), y).item()
            for subject in (TokenMerging(4), TokenMerging(4).at_random(0), TokenMerging(4).at_random(0))
        ]
    assert losses[0] < losses[1] == losses[2]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="merged: expected none or a positive number of pairs, got -1"):
        TokenMerging(-1)
    with pytest.raises(ValueError, match="choice: expected one of similar, random, oldest, got 'best'"):
        TokenMerging(choice="best")
    with pytest.raises(ValueError, match="Linear has none"):
        TokenMerging().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"layers\.0\.attention: expected standard attention, got GroupedAttention"):
        TokenMerging().apply(SharedKeyValueHeads().within(WORKLOAD.network()))
    with pytest.raises(ValueError, match="network: expected one that continues text, got Layer"):
        TokenMerging().apply(WORKLOAD.network().layers[0])
