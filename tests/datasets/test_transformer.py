"""The transformer is causal, its attention is the textbook's, and it learns at every position what it is judged by."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import datasets
from datasets.workloads.transformer import Attention, NextCharacter, Transformer, bits_per_character, rotate
from kernels import counting

WORKLOAD = datasets.workload("shakespeare-transformer")


def small():
    torch.manual_seed(0)
    return Transformer(classes=7, width=8, layers=2, heads=2, hidden=16)


def test_attention_is_torchs_multi_head_attention_when_positions_do_not_turn(monkeypatch):
    monkeypatch.setattr("datasets.workloads.transformer.rotate", lambda x, start=0: x)
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3, 4), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.o.state_dict())
    x = torch.randn(2, 9, 12)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    assert torch.allclose(ours(x), theirs(x, x, x, attn_mask=mask, need_weights=False)[0], atol=1e-6)


def test_rotary_products_depend_on_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(1, 8, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    products = [float((rotate(q, 5 + shift) * rotate(k, shift)).sum()) for shift in (0, 1, 17)]
    assert products == pytest.approx([products[0]] * 3)
    assert torch.allclose(rotate(q, 3).norm(), q.norm()) and torch.equal(rotate(q), q)
    # the first pair turns by one radian a step
    one = rotate(torch.eye(8, dtype=torch.float64)[:1], 1)[0]
    assert float(one[0]) == pytest.approx(math.cos(1)) and float(one[4]) == pytest.approx(math.sin(1))


def test_what_comes_later_changes_nothing_before():
    network, x = small(), torch.randint(0, 7, (2, 10)).float()
    other = x.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 7
    assert torch.allclose(network.every(x)[:, :6], network.every(other)[:, :6], atol=1e-6)
    assert not torch.allclose(network.every(x)[:, 6], network.every(other)[:, 6])
    assert torch.allclose(network(x), network.every(x)[:, -1], atol=1e-6)


def test_loss_is_the_mean_over_every_step_and_bits_are_it_in_twos():
    network, data = WORKLOAD.trained(), WORKLOAD.data()
    some = data.validation[:40]
    x, y = torch.tensor(some.x), torch.tensor(some.y)
    with torch.no_grad():
        p = network.every(x).double().softmax(-1)
    total = sum(-math.log(p[i, t, int(x[i, t + 1]) if t < 63 else int(y[i])]) for i in range(40) for t in range(64))
    assert NextCharacter()(network, x, y).item() == pytest.approx(total / 40 / 64, rel=1e-5)
    assert bits_per_character(network, some, batch=16) == pytest.approx(total / 40 / 64 / math.log(2), rel=1e-5)
    smoothed = NextCharacter(smoothing=0.1)(network, x, y)
    assert smoothed.item() > NextCharacter()(network, x, y).item()


def test_the_committed_network_predicts_better_than_the_frequencies_of_pairs():
    """An order-one model: for each character the distribution of the next one in the training text."""
    data = WORKLOAD.data()
    x = torch.tensor(data.train.x).long()
    pairs = torch.zeros(67, 67, dtype=torch.float64).index_put_(
        (x[:, :-1].flatten(), x[:, 1:].flatten()), torch.tensor(1.0, dtype=torch.float64), accumulate=True
    )
    test = torch.tensor(data.test.x).long()
    p = (pairs + 0.1) / (pairs + 0.1).sum(1, keepdim=True)
    bits = float(-p[test[:, :-1], test[:, 1:]].log2().mean())
    found = WORKLOAD.figures(WORKLOAD.trained())["bits_per_character"]
    assert found < bits - 0.4
    likeliest = pairs.argmax(1)[test[:, -1]] == torch.tensor(data.test.y)
    assert datasets.accuracy(WORKLOAD.trained(), data.test) > float(likeliest.double().mean()) + 0.1


def test_products_are_those_of_the_closed_form():
    """Of one window: four products of n d², two with the feedforward weights, and n² d each for scores and values."""
    n, d, hidden, classes, layers = 64, 64, 256, 67, 2
    expected = layers * (4 * n * d * d + 2 * n * d * hidden + 2 * n * n * d) + d * classes
    assert counting.macs(WORKLOAD.trained(), torch.zeros(1, 64)) == expected
