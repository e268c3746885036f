"""Filter pruning against torch.nn.utils.prune, exhaustive choice, and least squares of scipy."""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as oracle

import datasets
from kernels import counting
from kernels.model.pruning.channels import Channels
from kernels.model.pruning.filter_pruning import FilterPruning, least_missed
from kernels.model.pruning.reconstruction import contributions, patches, positions, refit, rescale
from kernels.model.pruning.removal import RandomChannels

NOISY = datasets.workload("noisy-digits-cnn")
CONVOLUTIONS = ("0", "3", "7")


def widths(network):
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("macs", [0.5, 0.25, 0.1])
def test_the_filters_kept_are_those_of_torch(macs):
    network = NOISY.trained()
    before = copy.deepcopy(network.state_dict())
    small = FilterPruning(macs).apply(network, NOISY.data())
    columns = None
    for name in CONVOLUTIONS:
        theirs, ours = copy.deepcopy(network.get_submodule(name)), small.get_submodule(name)
        oracle.ln_structured(theirs, "weight", amount=theirs.out_channels - ours.out_channels, n=1, dim=0)
        kept = theirs.weight_mask.flatten(1).any(1)
        whole = network.get_submodule(name).weight[kept]
        assert torch.equal(ours.weight, whole if columns is None else whole[:, columns])
        columns = kept
    assert counting.macs(small, torch.zeros(1, 1, 8, 8)) <= macs * counting.macs(network, torch.zeros(1, 1, 8, 8))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert FilterPruning(1.0).apply(network, NOISY.data()).state_dict().keys() == before.keys()


def test_linear_layers_keep_their_neurons():
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 20), nn.ReLU(), nn.Linear(20, 10)
    )
    small = FilterPruning(0.4).apply(network, NOISY.data())
    assert widths(small)[0] < 8 and small[3].out_features == 20


def test_global_scope_lets_filters_of_all_layers_compete():
    network = NOISY.trained()
    small = FilterPruning(0.3, scope="global").apply(network, NOISY.data())
    norms = [network.get_submodule(name).weight.detach().abs().flatten(1).sum(1) for name in CONVOLUTIONS]
    ranked = [(norm.sort(descending=True).values, width) for norm, width in zip(norms, widths(small), strict=True)]
    lowest_kept = min(float(norm[width - 1]) for norm, width in ranked if width > 1)
    assert lowest_kept >= max(float(norm[width]) for norm, width in ranked if width < len(norm))
    assert widths(small)[0] == 1, "filters of nine weights have the smallest norms, and the last one stays"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_each_greedy_step_is_the_best_one(seed, count):
    z = torch.tensor(np.random.default_rng(seed).standard_normal((30, 6)))
    removed = least_missed(z, count)
    for step in range(count):
        costs = {
            i: float(z[:, [*removed[:step], i]].sum(1).square().sum()) for i in range(6) if i not in removed[:step]
        }
        assert removed[step] == min(costs, key=costs.get)
    if count == 1:  # where one goes, greedy is exhaustive
        best = min(combinations(range(6), 1), key=lambda some: float(z[:, list(some)].sum(1).square().sum()))
        assert removed == list(best)


def test_contributions_add_up_to_what_a_layer_gives():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 9, 11)
    for reader in (
        nn.Conv2d(8, 6, 3, padding=(1, 2), stride=2, dilation=(1, 2)),
        nn.Conv2d(8, 6, (5, 3), padding="same"),
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 99, 6)),
    ):
        network = nn.Sequential(nn.Conv2d(2, 8, 1), reader).eval()
        channels, name = Channels(network, x), "1" if isinstance(reader, nn.Conv2d) else "1.1"
        layer, (group,) = network.get_submodule(name), channels.groups
        read, given = positions(network, name, x, 10**6, seed=0)
        z = contributions(channels, group, name, read, layer.weight)
        assert z.shape == (len(given), 6, 8)
        torch.testing.assert_close(z.sum(2) + layer.bias.double(), given.double(), rtol=1e-5, atol=1e-5)
        with torch.no_grad():  # and each is what is missing without its unit
            _, without = positions(channels.silence(network, [group.units[3]]), name, x, 10**6, seed=0)
        torch.testing.assert_close(z[..., 3], (given - without).double(), rtol=1e-4, atol=1e-5)
        some, _ = positions(network, name, x, 4, seed=1)
        assert all(any(torch.equal(one, other) for other in read) for one in some)


def test_rescaling_is_the_least_squares_of_scipy():
    rng = np.random.default_rng(0)
    z, weight = rng.standard_normal((50, 5)), rng.standard_normal((3, 5, 2, 2))
    ours = rescale(torch.tensor(weight), torch.tensor([0, 3]), torch.tensor(z), {0: [0], 3: [3]}).numpy()
    theirs = scipy.optimize.lsq_linear(z[:, [0, 3]], z.sum(1)).x
    np.testing.assert_allclose(ours[:, [0, 3]] / weight[:, [0, 3]], theirs[None, :, None, None] * np.ones((3, 2, 2, 2)))
    np.testing.assert_array_equal(ours[:, [1, 2, 4]], weight[:, [1, 2, 4]])


def test_refitting_is_the_least_squares_of_scipy():
    rng = np.random.default_rng(0)
    read, target = rng.standard_normal((60, 4, 3)), rng.standard_normal((60, 2))
    ours = refit(torch.tensor(read), torch.tensor(target), torch.zeros(2, 4, 3, dtype=torch.float64), [0, 2]).numpy()
    for j in range(2):
        theirs = scipy.optimize.lsq_linear(read[:, [0, 2]].reshape(60, -1), target[:, j]).x
        np.testing.assert_allclose(ours[j, [0, 2]].ravel(), theirs, atol=1e-12)
    assert not ours[:, [1, 3]].any()


def test_reconstruction_misses_less_than_chance_and_stays_dense():
    network, data = NOISY.trained(), NOISY.data()
    method = FilterPruning(0.5, criterion="reconstruction")
    rivals = [method.at_random(seed) for seed in range(3)]
    small = method.apply(network, data)
    blind = [datasets.accuracy(rival.apply(network, data), data.validation) for rival in rivals]
    assert datasets.accuracy(small, data.validation) > max(blind) + 0.03
    assert widths(small) == widths(rivals[0].apply(network, data)) == widths(FilterPruning(0.5).apply(network, data))
    again = method.apply(network, data)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))


def test_where_a_channel_is_read_twice_all_readers_decide():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.made, self.a, self.b = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            x = torch.relu(self.made(x))
            return self.head((self.a(x) + self.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    network = Fork()
    with torch.no_grad():  # a hardly reads the first three channels, b reads nothing but them
        network.a.weight[:, :3] *= 0.01
        network.b.weight[:, 3:] *= 0.0
        network.b.weight[:, 2] *= 0.001
    small = FilterPruning(0.75, criterion="reconstruction").apply(network, NOISY.data())
    kept = [i for i, w in enumerate(network.made.weight) if any(torch.equal(w, own) for own in small.made.weight)]
    assert len(kept) < 6 and 2 not in kept


def test_pruned_networks_learn_again():
    data, small = NOISY.data(), FilterPruning(0.25).apply(NOISY.trained(), NOISY.data())
    before = datasets.accuracy(small, data.validation)
    NOISY.recipe.finetune(small, data)
    assert datasets.accuracy(small, data.validation) > before + 0.3


def test_random_choice_is_of_the_same_strength():
    network, data = NOISY.trained(), NOISY.data()
    rivals = [FilterPruning(0.3).at_random(seed) for seed in (0, 0, 1)]
    assert rivals[0] == RandomChannels(0.3, "layer", "convolutions", seed=0)
    first, again, other = (rival.apply(network, data)[0].weight for rival in rivals)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first) == len(FilterPruning(0.3).apply(network, data)[0].weight)


def test_wrong_input_is_named():
    data = NOISY.data()
    for macs in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="macs: expected 0 < macs <= 1"):
            FilterPruning(macs)
    with pytest.raises(ValueError, match="criterion: expected l1 or reconstruction, got 'l3'"):
        FilterPruning(criterion="l3")
    with pytest.raises(ValueError, match="scope: expected 'layer' with reconstruction"):
        FilterPruning(criterion="reconstruction", scope="global")
    with pytest.raises(TypeError, match=r"data: expected a datasets\.Data.*NoneType"):
        FilterPruning().apply(NOISY.trained(), None)
    mlp = datasets.workload("digits-mlp")
    with pytest.raises(ValueError, match="network: expected convolutions whose filters to remove; Sequential has none"):
        FilterPruning().apply(mlp.trained(), mlp.data())
    odd = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=r"'1' \(Conv2d\) is not"):
        FilterPruning(0.6, criterion="reconstruction").apply(odd, data)
    with pytest.raises(ValueError, match=r"'x' \(Linear\) is not"):
        patches("x", nn.Linear(3, 4), torch.zeros(1, 2, 3))
    assert Channels(odd, torch.zeros(1, 1, 8, 8)).groups
