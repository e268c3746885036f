"""Whatever drafts, what comes out is distributed as the large network alone: by sums, and by chi-square."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import datasets
from datasets.workloads.transformer import Transformer
from kernels import counting
from kernels.model.dynamic_inference import speculative_decoding as module
from kernels.model.dynamic_inference.speculative_decoding import (
    NGram,
    SpeculativeDecoder,
    SpeculativeDecoding,
    accepted,
    correction,
    expected_tokens,
)

WORKLOAD = datasets.workload("shakespeare-transformer")


def tiny(seed, classes=3):
    torch.manual_seed(seed)
    network = Transformer(classes, width=8, layers=1, heads=2, hidden=8).eval()
    network.head.weight.data *= 4  # so that its distributions differ from even ones
    return network


def distribution(seed, size):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(2, 6))
def test_what_stands_and_what_is_drawn_instead_add_up_to_the_large_models_distribution(a, b, size):
    p, q = distribution(a, size) ** 3, distribution(b, size) ** 3
    p, q = p / p.sum(), q / q.sum()
    stands = q * (p / q).clamp_max(1)
    out = stands + (1 - stands.sum()) * correction(p, q)
    assert torch.allclose(out, p, atol=1e-12)
    assert float(stands.sum()) == pytest.approx(1 - float((p - q).abs().sum()) / 2)


def test_a_draft_that_is_the_model_never_falls():
    p = distribution(0, 5)
    assert torch.equal(correction(p, p), p)
    everything = torch.arange(5)[:, None]
    assert (accepted(p.expand(5, 1, 5), p.expand(5, 1, 5), everything, torch.full((5, 1), 0.999)) == 1).all()


def test_acceptance_stops_at_the_first_that_falls():
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    q = torch.full((3, 2), 0.5)
    drafts, uniforms = torch.tensor([0, 0, 0]), torch.tensor([0.99, 0.5, 0.1])
    assert int(accepted(p, q, drafts, uniforms)) == 1
    assert int(accepted(p, q, drafts, torch.tensor([0.99, 0.2, 0.1]))) == 3
    assert int(accepted(p, q, torch.tensor([1, 0, 0]), uniforms)) == 0


@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_pairs_of_tokens_are_distributed_as_the_large_network_has_them(gamma):
    """Chi-square over all pairs of three characters, beside the product of the network's own probabilities."""
    network, draft = tiny(0), tiny(1)
    context, random, count = torch.tensor([[0, 1, 2, 1]]), torch.Generator().manual_seed(0), 8000
    decoder = SpeculativeDecoder(network, draft, gamma, seed=0)
    with torch.no_grad():
        tokens, stand = decoder.round(context.expand(count, -1), random)
        pairs = tokens[:, :2].clone()
        short = stand == 1
        again, _ = decoder.round(torch.cat([context.expand(count, -1), tokens[:, :1]], 1)[short], random)
        pairs[short, 1] = again[:, 0]
        expected = np.zeros(9)
        for first, second in itertools.product(range(3), repeat=2):
            text = torch.cat([context, torch.tensor([[first, second]])], 1)
            p = network.every(text).softmax(-1)[0]
            expected[3 * first + second] = float(p[3, first] * p[4, second])
    assert 0 < int(short.sum()) < count
    found = torch.bincount(3 * pairs[:, 0] + pairs[:, 1], minlength=9).numpy()
    assert stats.chisquare(found, expected / expected.sum() * count).pvalue > 0.01
    blind = torch.bincount(tokens[:, 0], minlength=3).numpy()
    with torch.no_grad():
        q = draft.every(context).softmax(-1)[0, -1].double().numpy()
    assert stats.chisquare(blind, q / q.sum() * count).pvalue < 1e-6  # the test would tell the draft's distribution


def test_tokens_of_a_pass_are_those_of_the_closed_form():
    """With the same acceptance at every place."""
    random, acceptance, gamma = torch.Generator().manual_seed(0), 0.7, 4
    p, q = torch.tensor([acceptance, 1 - acceptance]), torch.tensor([1.0, 0.0])
    drafts = torch.zeros(50_000, gamma, dtype=torch.long)
    uniforms = torch.rand(drafts.shape, generator=random)
    tokens = accepted(p.expand(50_000, gamma, 2), q.expand(50_000, gamma, 2), drafts, uniforms) + 1
    error = float(tokens.double().std()) / 50_000**0.5
    assert abs(float(tokens.double().mean()) - expected_tokens(acceptance, gamma)) < 4 * error
    assert expected_tokens(1, 4) == 5 and expected_tokens(0, 4) == 1


@pytest.mark.parametrize("own", [True, False])
def test_the_decoder_with_caches_verifies_with_the_networks_own_probabilities(own, monkeypatch):
    network = tiny(0)
    text = torch.tensor([0, 1, 2, 0, 1, 1, 2])
    decoder = SpeculativeDecoder(network, tiny(1) if own else NGram(text, 3, order=2), gamma=2, seed=3)
    seen, real = [], module._corrected

    def watch(p, q, drafts, random):
        tokens, count = real(p, q, drafts, random)
        seen.append((p, q, drafts, tokens[:, : int(count)]))
        return tokens, count

    monkeypatch.setattr(module, "_corrected", watch)
    out = decoder.generate(text[None], steps=12)
    assert out.shape == (1, 12) and torch.equal(out, decoder.generate(text[None], steps=12))
    known = text[None]
    for p, q, drafts, tokens in seen[: len(seen) // 2]:
        with torch.no_grad():
            whole = torch.cat([known, drafts], 1)
            assert torch.allclose(p, network.every(whole)[:, -3:].softmax(-1), atol=1e-5)
            alone = torch.stack([decoder.drafted(whole[:, : known.shape[1] + i]) for i in range(2)], 1)
            assert torch.allclose(q, alone, atol=1e-5)
        known = torch.cat([known, tokens], 1)
    assert torch.equal(known[:, 7:19], out)


def test_counts_by_hand():
    text = torch.tensor([0, 1, 0, 1, 1])
    draft = NGram(text, classes=2, order=2, smoothing=2.0)
    alone = (torch.tensor([2.0, 3.0]) + 2 * 0.5) / (5 + 2)
    after = {0: torch.tensor([0.0, 2.0]), 1: torch.tensor([1.0, 1.0])}
    for last, counts in after.items():
        by_hand = (counts + 2 * alone) / (counts.sum() + 2)
        assert torch.allclose(draft(torch.tensor([[1, last]]))[0], by_hand)
    assert torch.allclose(NGram(text, 2, order=3).table.sum(1), torch.ones(4))
    long = NGram(torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2]), classes=3, order=3)
    assert int(long(torch.tensor([[2, 0, 1]])).argmax()) == 2 and int(long(torch.tensor([[1, 2]])).argmax()) == 0


def test_figures_are_of_what_ran_and_longer_contexts_draft_better():
    network, some = WORKLOAD.trained(), torch.tensor(WORKLOAD.data().validation.x[:96])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = {}
    for order in (1, 3):
        decoder = SpeculativeDecoding(gamma=2, order=order).apply(network, WORKLOAD.data())
        logits, cost = decoder(some)
        again = decoder(some)[1]
        figures = decoder.figures()
        found[order] = figures["self"]["passes_per_token"]
        assert torch.equal(cost, again) and cost.shape == (96,)
        assert float(cost[0]) == pytest.approx(decoder.macs()["self"] / decoder.tokens)
        assert figures["baseline"]["memory_access"] == 4 * (counting.parameters(network) + 61 * 256)
        with torch.no_grad():
            assert torch.equal(logits, network(some))
    assert 1 / 3 < found[3] < found[1] - 0.1 < 0.9
    # three new tokens: three times the products of one, but for attention, where each sees one more than the last
    one, three = decoder.macs()["baseline"], decoder.macs()["self"]
    assert three == 3 * one + 3 * 2 * 2 * 2 * 64
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_a_network_that_drafts_has_the_width_it_is_told_and_is_trained_once():
    data = WORKLOAD.data()
    few = replace(data, train=data.train[:64])
    one, other = (SpeculativeDecoding(gamma, "network", width=8).apply(WORKLOAD.trained(), few) for gamma in (1, 2))
    assert one.draft.embedding.embedding_dim == 8 and len(one.draft.layers) == 1
    weights = [each.draft.state_dict() for each in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    one.draft.head.weight.data.zero_()
    assert SpeculativeDecoding(1, "network", width=8).apply(WORKLOAD.trained(), few).draft.head.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 0}, "gamma: expected a positive integer, got 0"),
        ({"order": 0}, "order: expected a positive integer"),
        ({"width": 6}, "width: expected a positive multiple of 4, got 6"),
        ({"draft": "oracle"}, "draft: expected one of n-gram, network, got 'oracle'"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoding(**wrong)


def test_networks_that_do_not_continue_text_are_refused():
    with pytest.raises(ValueError, match="Linear has none"):
        SpeculativeDecoding().apply(nn.Linear(2, 2), WORKLOAD.data())
    with pytest.raises(ValueError, match="network: expected one that continues text, got Layer"):
        SpeculativeDecoding().apply(WORKLOAD.network().layers[0], WORKLOAD.data())
