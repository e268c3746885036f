"""Channel pruning against scikit-learn's lasso, an update worked by hand, and what a layer loses without refitting."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, lars_path
from torch import nn
from torch.nn import functional

import datasets
from kernels import counting
from kernels.model.pruning.channel_pruning import ChannelPruning, RandomlyRead, lasso, lasso_keeps, norm_scales, slim
from kernels.model.pruning.channels import Channels
from kernels.model.pruning.filter_pruning import FilterPruning

NOISY = datasets.workload("noisy-digits-cnn")


def widths(network):
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def sample(seed, n=80, channels=7):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, channels)) * rng.uniform(0.1, 3, channels) + rng.standard_normal((n, 1))
    return z, z.sum(1) + rng.standard_normal(n)


@pytest.mark.parametrize("penalty", [0.01, 0.3, 3.0, 100.0])
def test_the_lasso_is_that_of_scikit_learn(penalty):
    z, y = sample(1)
    theirs = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(z, y).coef_
    ours = lasso(torch.tensor(z.T @ z / len(z)), torch.tensor(z.T @ y / len(z)), penalty)
    np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_the_channels_kept_stand_on_the_path_of_the_lasso(count):
    for seed in range(3):
        z, y = sample(seed)
        _, _, path = lars_path(z, y, method="lasso")
        supports = [np.flatnonzero(np.abs(beta) > 1e-9).tolist() for beta in path.T]
        assert lasso_keeps(torch.tensor(z), torch.tensor(y), count) in [s for s in supports if len(s) == count]


def test_a_penalty_however_small_is_found_where_nearly_all_stay():
    z = torch.tensor(sample(0, channels=6)[0])
    tiny = torch.cat(
        [z, 1e-4 * z[:, :1].roll(1, 0)], 1
    )  # it leaves first, at a penalty that is tiny beside the others'
    assert lasso_keeps(tiny, tiny.sum(1), 6) == [0, 1, 2, 3, 4, 5]
    last = tiny[:, [6, 0, 1, 2, 3, 4, 5]]
    assert lasso_keeps(last, last.sum(1), 6) == [1, 2, 3, 4, 5, 6]


def test_channels_that_are_always_zero_go_first_and_equal_ones_leave_an_exact_count():
    z = torch.tensor(sample(0)[0])
    z[:, 2] = 0
    assert 2 not in lasso_keeps(z, z.sum(1), 6)
    same = torch.ones(10, 4)
    assert len(lasso_keeps(same, same.sum(1), 2)) == 2


def test_one_update_of_slimming_worked_by_hand():
    network, data = NOISY.trained(), NOISY.data()
    before = copy.deepcopy(network.state_dict())
    slimmed = slim(network, data, penalty=0.5, updates=1, seed=7)
    items = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(7))[:32].numpy()
    by_hand = copy.deepcopy(network).train()
    functional.cross_entropy(by_hand(torch.tensor(data.train.x[items])), torch.tensor(data.train.y[items])).backward()
    scales = {f"{i}.weight" for i, layer in enumerate(network) if isinstance(layer, nn.BatchNorm2d)}
    for (name, new), (_, old) in zip(slimmed.named_parameters(), by_hand.named_parameters(), strict=True):
        gradient = old.grad + 0.5 * old.detach().sign() * (name in scales)
        # the first step with Nesterov's momentum 0.9 is 1.9 times the plain one
        torch.testing.assert_close(new.detach(), old.detach() - 0.01 * 1.9 * gradient, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert not slimmed.training


def test_the_penalty_drives_scales_to_zero_and_those_channels_go():
    network, data = NOISY.trained(), NOISY.data()
    plain, slimmed = (slim(network, data, penalty, updates=100, seed=0) for penalty in (0.0, 0.1))
    assert slimmed[1].weight.abs().sum() < 0.8 * plain[1].weight.abs().sum()
    method = ChannelPruning(0.5, criterion="scales", penalty=0.1, updates=100)
    small, scale = method.apply(network, data), slimmed[1].weight.abs()
    kept = scale.argsort(descending=True)[: widths(small)[0]].sort().values
    assert torch.equal(small[1].weight, slimmed[1].weight[kept])
    everywhere = ChannelPruning(0.5, scope="global", criterion="scales", penalty=0.1, updates=100).apply(network, data)
    scales = [slimmed[i].weight.detach().abs() for i in (1, 4, 8)]
    bound = torch.cat(scales).sort(descending=True).values[sum(widths(everywhere)) - 1]
    assert widths(everywhere) == [int((some >= bound).sum()) for some in scales] != widths(small)


def test_refitting_brings_back_most_of_what_removal_costs():
    network, data = NOISY.trained(), NOISY.data()
    before = copy.deepcopy(network.state_dict())
    method = ChannelPruning(0.5)
    small = method.apply(network, data)
    plain = FilterPruning(0.5).apply(network, data)
    reached = datasets.accuracy(small, data.validation)
    assert widths(small) == widths(plain) and reached > 0.3 + datasets.accuracy(plain, data.validation)
    assert datasets.accuracy(network, data.validation) - reached < 0.1
    assert counting.macs(small, torch.zeros(1, 1, 8, 8)) <= 0.5 * counting.macs(network, torch.zeros(1, 1, 8, 8))
    again = method.apply(network, data)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    # where nothing goes, the refitted weights are the old ones: the fit is exact
    whole = ChannelPruning(1.0).apply(network, data)
    torch.testing.assert_close(whole[3].weight, network[3].weight, rtol=1e-2, atol=1e-3)


def test_random_choice_has_the_same_strength_and_the_same_help():
    network, data = NOISY.trained(), NOISY.data()
    rival = ChannelPruning(0.3).at_random(seed=2)
    assert rival == RandomlyRead(0.3, seed=2)
    assert widths(rival.apply(network, data)) == widths(ChannelPruning(0.3).apply(network, data))
    blind = ChannelPruning(0.5, criterion="scales", updates=3).at_random(seed=0)
    assert (blind.penalty, blind.updates, blind.criterion) == (0, 3, "scales")
    trained = slim(network, data, penalty=0, updates=3, seed=0)
    small = blind.apply(network, data)
    kept = [i for i, w in enumerate(trained[0].weight) if any(torch.equal(w, own) for own in small[0].weight)]
    assert len(kept) == widths(small)[0] < 16


def test_wrong_input_is_named():
    data = NOISY.data()
    with pytest.raises(ValueError, match="criterion: expected lasso or scales, got 'norm'"):
        ChannelPruning(criterion="norm")
    with pytest.raises(ValueError, match="scope: expected 'layer' with the lasso, got 'global'"):
        ChannelPruning(scope="global")
    for wrong in ({"penalty": -1.0}, {"penalty": float("nan")}, {"updates": -1}):
        with pytest.raises(ValueError, match="penalty, updates: expected numbers of at least 0"):
            ChannelPruning(**wrong)
    bare = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    with pytest.raises(ValueError, match="behind every layer, but what '0' gives passes none"):
        ChannelPruning(criterion="scales", updates=0).apply(bare, data)
    channels = Channels(NOISY.trained(), torch.zeros(1, 1, 8, 8))
    scales = norm_scales(channels, NOISY.trained(), channels.groups[0])
    assert torch.equal(scales, NOISY.trained()[1].weight.detach().abs().double())
