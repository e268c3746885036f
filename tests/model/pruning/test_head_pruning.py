"""Importance is the slope along a gate, by autograd on real gates; a head that goes is a gate that is shut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import datasets
from datasets.workloads.transformer import Attention, NextCharacter, Transformer
from kernels.counting import macs, parameters
from kernels.model.pruning.head_pruning import HeadPruning, every_other, head_importance, keep_heads
from kernels.model.sequence_models.attention import attentions, cache_numbers
from kernels.model.sequence_models.shared_key_value_heads import SharedKeyValueHeads

WORKLOAD = datasets.workload("shakespeare-transformer")


class Gated(Attention):
    """Attention whose heads are multiplied by gates."""

    def mix(self, q, k, v):
        return super().mix(q, k, v) * self.gates[:, None, None]


def gated(network):
    for name, attention in list(attentions(network)):
        new = Gated(attention.o.out_features, attention.heads, attention.head_width)
        new.load_state_dict(attention.state_dict())
        new.gates = torch.ones(attention.heads, requires_grad=True)
        network.set_submodule(name, new)
    return network


def small():
    torch.manual_seed(0)
    return Transformer(classes=7, width=12, layers=2, heads=3, hidden=16)


def items():
    torch.manual_seed(1)
    x = torch.randint(0, 7, (5, 9)).float()
    return x, torch.randint(0, 7, (5,))


@pytest.mark.parametrize("normalise", [False, True])
def test_importance_is_the_mean_slope_of_real_gates(normalise):
    (x, y), network = items(), gated(small())
    slopes = {name: torch.zeros(3) for name, _ in attentions(network)}
    for i in range(5):
        loss = NextCharacter()(network, x[i : i + 1], y[i : i + 1])
        gradients = torch.autograd.grad(loss, [attention.gates for _, attention in attentions(network)])
        for (name, _), gradient in zip(attentions(network), gradients, strict=True):
            slopes[name] += gradient.abs() / 5
    found = head_importance(small(), x, y, normalise)
    for name, slope in slopes.items():
        assert torch.allclose(found[name], slope / slope.norm() if normalise else slope, rtol=1e-3, atol=1e-6)


def test_slopes_are_those_of_finite_differences():
    (x, y), network = items(), gated(small())
    _, first = next(iter(attentions(network)))
    found = head_importance(small(), x[:1], y[:1], normalise=False)
    with torch.no_grad():
        losses = []
        for step in (-0.01, 0.01):
            first.gates = torch.ones(3) + torch.tensor([0, step, 0])
            losses.append(NextCharacter()(network, x[:1], y[:1]).item())
    slope = abs(losses[1] - losses[0]) / 0.02
    assert float(next(iter(found.values()))[1]) == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("heads", [[0], [1, 2], [0, 1, 2]])
def test_a_head_that_goes_is_a_gate_that_is_shut(heads):
    network, (x, _) = gated(small()), items()
    _, first = next(iter(attentions(network)))
    first.gates = torch.zeros(3).scatter_(0, torch.tensor(heads), 1.0)
    pruned = small()
    pruned.layers[0].attention = keep_heads(pruned.layers[0].attention, heads)
    assert torch.allclose(pruned.every(x), network.every(x), atol=1e-5)
    assert cache_numbers(pruned, 10) == 10 * 2 * 4 * (len(heads) + 3)


def test_the_heads_on_which_the_loss_depends_most_stay_and_each_layer_keeps_one():
    network, data = WORKLOAD.trained(), WORKLOAD.data()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    few = data.train[:256]
    worth = head_importance(network, torch.tensor(few.x), torch.tensor(few.y))
    pruned = HeadPruning(keep=0.5).apply(network, data)
    kept = {name: attention for name, attention in attentions(pruned)}
    everything = torch.cat([*worth.values()]).sort(descending=True).values
    for name, attention in attentions(network):
        chosen = [head for head in range(4) if worth[name][head] >= everything[3]]
        rows = attention.v.weight.unflatten(0, (4, 16))[chosen].flatten(0, 1)
        assert chosen and torch.equal(kept[name].v.weight, rows)
    again = HeadPruning(keep=0.5).apply(network, data)
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), again.parameters(), strict=True))
    least = HeadPruning(keep=0.01, items=8).apply(network, data)
    assert [attention.heads for _, attention in attentions(least)] == [1, 1]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_products_and_parameters_are_those_of_the_closed_form():
    n, d, w = 64, 64, 16
    pruned = HeadPruning(keep=0.5, items=8).apply(WORKLOAD.trained(), WORKLOAD.data())
    x = torch.zeros(1, n)
    gone = 4  # heads of both layers together
    assert macs(WORKLOAD.network(), x) - macs(pruned, x) == gone * (4 * n * d * w + 2 * n * n * w)
    assert parameters(WORKLOAD.network()) - parameters(pruned) == gone * 4 * d * w


def test_layers_that_go_are_gone():
    assert every_other(8, 4) == [0, 2, 4, 6] and every_other(3, 3) == [0, 1, 2]
    network, (x, _) = small(), items()
    pruned = HeadPruning(keep=1.0, layers=1, items=2).apply(network, datasets.Data("t", *[split()] * 3, classes=7))
    alone = small()
    alone.layers = alone.layers[:1]
    assert torch.equal(pruned.every(x), alone.every(x)) and len(network.layers) == 2


def split():
    x, y = items()
    return datasets.Split(x.numpy(), y.numpy())


def test_blind_pruning_is_as_strong_and_differs_by_seed():
    network = WORKLOAD.trained()
    blind = [HeadPruning(keep=0.5).at_random(seed).apply(network) for seed in (0, 0, 1, 2)]
    sizes = [parameters(each) for each in blind]
    assert sizes == [parameters(HeadPruning(keep=0.5, items=8).apply(network, WORKLOAD.data()))] * 4
    first = [torch.cat([p.flatten() for p in each.parameters()]) for each in blind]
    assert torch.equal(first[0], first[1])
    assert not (torch.equal(first[0], first[2]) and torch.equal(first[0], first[3]))


def test_mistakes_are_named():
    data = WORKLOAD.data()
    with pytest.raises(ValueError, match="keep: expected 0 < keep <= 1, got 0"):
        HeadPruning(keep=0)
    with pytest.raises(ValueError, match="layers: expected none or a positive number, got -1"):
        HeadPruning(layers=-1)
    with pytest.raises(ValueError, match="items: expected at least one"):
        HeadPruning(items=0)
    with pytest.raises(ValueError, match="layers: expected at most 2, got 5"):
        HeadPruning(layers=5).apply(WORKLOAD.trained(), data)
    with pytest.raises(ValueError, match="Linear has none"):
        HeadPruning().apply(nn.Linear(2, 2), data)
    shared = SharedKeyValueHeads().within(WORKLOAD.network())
    with pytest.raises(ValueError, match=r"layers\.0\.attention: expected standard attention, got GroupedAttention"):
        HeadPruning().apply(shared, data)
