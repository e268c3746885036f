"""Shares of zeros against a count by hooks, and which units go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from kernels import counting
from kernels.model.pruning.channels import Channels
from kernels.model.pruning.neuron_pruning import NeuronPruning, share_of_zeros
from kernels.model.pruning.removal import RandomChannels

DIGITS, NOISY = datasets.workload("digits-mlp"), datasets.workload("noisy-digits-cnn")


def counted(network, places, x):
    """The share of zeros of what each place gives, by channel, as numpy counts it."""
    seen = {}
    for place in places:
        network[place].register_forward_hook(lambda _, inputs, out, place=place: seen.update({place: out.numpy()}))
    with torch.no_grad():
        network(torch.tensor(x))
    return [(seen[p] == 0).mean(axis=tuple(a for a in range(seen[p].ndim) if a != 1)) for p in places]


@pytest.mark.parametrize(("workload", "places"), [(DIGITS, (2, 4)), (NOISY, (2, 5, 9))])
def test_shares_of_zeros_are_those_of_a_plain_count(workload, places):
    network, x = workload.trained(), workload.data().validation.x
    channels = Channels(network, torch.tensor(x[:2]))
    ours = [share_of_zeros(channels, group, torch.tensor(x)).tolist() for group in channels.groups]
    for own, theirs in zip(ours, counted(network, places, x), strict=True):
        assert own == pytest.approx(theirs.tolist(), abs=1e-12)


@pytest.mark.parametrize(("workload", "places"), [(DIGITS, (2, 4)), (NOISY, (2, 5, 9))])
def test_the_units_that_are_zero_most_often_go(workload, places):
    network, data = workload.trained(), workload.data()
    before = copy.deepcopy(network.state_dict())
    small = NeuronPruning(0.4).apply(network, data)
    x = torch.zeros(1, 1, 8, 8)
    assert counting.macs(small, x) <= 0.4 * counting.macs(network, x)
    layer = next(m for m in network if isinstance(m, (nn.Conv2d, nn.Linear)))
    shrunk = next(m for m in small if isinstance(m, (nn.Conv2d, nn.Linear)))
    zeros = torch.tensor(counted(workload.trained(), places, data.validation.x)[0])
    kept = zeros.argsort(stable=True)[: len(shrunk.weight)].sort().values
    assert torch.equal(shrunk.weight, layer.weight[kept])
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_functional_rectifiers_are_seen_and_several_are_averaged():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            x = functional.relu(self.a(x))
            return self.head(torch.relu(x + self.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    network, x = Stream(), torch.randn(5, 1, 8, 8)
    channels = Channels(network, x)
    with torch.no_grad():
        first = functional.relu(network.a(x))
        second = torch.relu(first + network.b(first))
    zeros = (first == 0).float().mean((0, 2, 3)) + (second == 0).float().mean((0, 2, 3))
    (group,) = channels.groups
    torch.testing.assert_close(share_of_zeros(channels, group, x), zeros.double() / 2)


def test_dead_units_go_without_a_trace():
    network, data = DIGITS.trained(), DIGITS.data()
    with torch.no_grad():  # ten neurons of the first layer and five of the second never fire
        network[1].bias[:10], network[3].bias[:5] = -1e3, -1e3
    macs = (64 * 54 + 54 * 27 + 27 * 10) / (64 * 64 + 64 * 32 + 32 * 10)
    small = NeuronPruning(macs + 1e-9).apply(network, data)
    assert [m.out_features for m in small if isinstance(m, nn.Linear)] == [54, 27, 10]
    x = torch.tensor(data.validation.x)  # where they were seen to be zero
    torch.testing.assert_close(small(x), network(x), rtol=1e-4, atol=1e-5)


def test_random_choice_is_of_the_same_strength():
    assert NeuronPruning(0.3).at_random(4) == RandomChannels(0.3, "layer", "all", 4)


def test_wrong_input_is_named():
    data = DIGITS.data()
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 10))
    with pytest.raises(ValueError, match=r"expected a rectifier behind every layer.*what '3' gives passes none"):
        NeuronPruning().apply(smooth, data)
    with pytest.raises(ValueError, match="network: expected hidden channels to remove; Sequential has none"):
        NeuronPruning().apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data)
    with pytest.raises(ValueError, match="scope: expected layer or global, got 'network'"):
        NeuronPruning(scope="network")
