"""Taylor saliencies against finite differences of the loss, and the rounds in which channels go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from kernels import counting
from kernels.model.pruning.channels import Channels
from kernels.model.pruning.removal import RandomChannels
from kernels.model.pruning.taylor_pruning import TaylorPruning, activation_saliency, weight_saliency

DIGITS, NOISY = datasets.workload("digits-mlp"), datasets.workload("noisy-digits-cnn")


class Fork(nn.Module):
    """A stream that is added to and read by three layers; a gate multiplies what they read of it."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.side, self.head = nn.Conv2d(4, 3, 3), nn.Linear(4 * 16, 5)
        self.top = nn.Linear(3, 5)

    def forward(self, x):
        return self.gated(x, 1)

    def gated(self, x, gate):
        x = torch.relu(self.norm(self.stem(x)))
        x = functional.max_pool2d(x + self.inner(gate * x), 2)
        return self.head((gate * x).flatten(1)) + self.top(self.side(gate * x).mean((2, 3)))


def fork():
    torch.manual_seed(0)
    network, x, y = Fork(), torch.randn(6, 1, 8, 8), torch.randint(5, (6,))
    network.train()(x)
    return network.eval(), x, y


def test_the_saliency_of_a_channel_is_the_slope_of_the_loss_by_its_gate():
    network, x, y = fork()
    channels = Channels(network, x)
    stream = next(group for group in channels.groups if "stem" in group.makers)
    assert stream.makers == ("stem", "inner") and set(stream.readers) == {"inner", "side", "head"}
    (ours,) = activation_saliency(network, channels, [stream], x, y)
    exact, step = copy.deepcopy(network).double(), 1e-5
    for i in range(4):
        gates = [torch.ones(1, 4, 1, 1, dtype=torch.float64) for _ in range(2)]
        gates[0][:, i] += step
        gates[1][:, i] -= step
        up, down = (functional.cross_entropy(exact.gated(x.double(), g), y, reduction="none") for g in gates)
        slope = ((up - down) / (2 * step)).abs().mean()
        torch.testing.assert_close(ours[i], slope.detach(), rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in network.parameters()), "the network is left as it is"


def test_items_count_by_themselves_however_they_are_batched():
    network, x, y = fork()
    channels = Channels(network, x)
    (whole, *_) = activation_saliency(network, channels, channels.groups, x, y)
    alone = [activation_saliency(network, channels, channels.groups, x[i : i + 1], y[i : i + 1])[0] for i in range(6)]
    torch.testing.assert_close(whole, torch.stack(alone).mean(0), rtol=1e-5, atol=1e-8)


def test_the_saliency_behind_a_rectifier_and_a_pool_is_that_before_them():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(4, 3)
    )
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    channels = Channels(network, x)
    ours = activation_saliency(network, channels, channels.groups[:1], x, y)[0]
    z = network[0](x).detach().requires_grad_()
    functional.cross_entropy(network[1:](z), y, reduction="sum").backward()
    torch.testing.assert_close(ours, (z.grad * z).sum((2, 3)).abs().mean(0).double().detach(), rtol=1e-4, atol=1e-7)


def test_the_saliency_of_weights_is_the_slope_by_a_factor_on_each():
    network, x, y = fork()
    channels = Channels(network, x)
    (side,) = (group for group in channels.groups if group.makers == ("side",))
    (ours,) = weight_saliency(network, channels, [side], x, y)
    exact, step = copy.deepcopy(network).double(), 1e-6
    weight = exact.side.weight.data
    for i in range(3):
        total = 0.0
        for place in torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(3)).tolist():
            old, losses = weight[(i, *place)].item(), []
            for factor in (1 + step, 1 - step):
                weight[(i, *place)] = old * factor
                losses.append(functional.cross_entropy(exact(x.double()), y).item())
            weight[(i, *place)] = old
            total += abs(losses[0] - losses[1]) / (2 * step)
        assert float(ours[i]) == pytest.approx(total, rel=1e-3)


def test_a_channel_that_nobody_minds_goes_first():
    network, data = NOISY.trained(), NOISY.data()
    with torch.no_grad():
        network[3].weight[:, 5] = 0  # nobody reads channel 5 of the first layer
    small = TaylorPruning(0.97, rounds=1).apply(network, data)
    first = network[0].weight
    assert not any(torch.equal(first[5], own) for own in small[0].weight)


@pytest.mark.parametrize("of", ["activation", "weight"])
def test_rounds_end_at_the_budget_and_saliencies_are_normalised(of):
    network, data = DIGITS.trained(), DIGITS.data()
    before = copy.deepcopy(network.state_dict())
    method = TaylorPruning(0.3, of=of, rounds=4)
    channels = Channels(network, torch.tensor(data.train.x[:2]))
    scores = method.scores(network, channels, channels.groups, data)
    assert [float(score.norm()) for score in scores] == pytest.approx([1, 1])
    small, again = method.apply(network, data), method.apply(network, data)
    total = counting.macs(network, torch.zeros(1, 1, 8, 8))
    assert 0.25 * total < counting.macs(small, torch.zeros(1, 1, 8, 8)) <= 0.3 * total
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    reached = datasets.accuracy(small, data.validation)
    blind = [datasets.accuracy(method.at_random(s).apply(network, data), data.validation) for s in range(5)]
    assert of == "weight" or reached > sum(blind) / 5 + 0.03


def test_training_between_rounds_prunes_as_far_and_reports_every_update():
    network, data, recipe = DIGITS.trained(), DIGITS.data(), DIGITS.recipe
    pruned, trace = TaylorPruning(0.3, rounds=3).gradual(network, data, recipe)
    epoch = recipe.steps(data) // recipe.epochs
    assert len(trace) == recipe.fine_tuning.steps(data) + 2 * epoch
    x = torch.zeros(1, 1, 8, 8)
    assert counting.macs(pruned, x) <= 0.3 * counting.macs(network, x)
    assert datasets.accuracy(pruned, data.validation) > 0.9


def test_random_choice_is_of_the_same_strength():
    assert TaylorPruning(0.3).at_random(4) == RandomChannels(0.3, "global", "all", 4)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="of: expected activation or weight, got 'gradient'"):
        TaylorPruning(of="gradient")
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        TaylorPruning(rounds=0)
    vowels = datasets.workload("vowels-gru")
    with pytest.raises(ValueError, match=r"'gru' \(recurrent\) reads its own state"):
        TaylorPruning().apply(vowels.trained(), vowels.data())
