"""Group sparsity against scipy's minimum, the plain recipe, and the network with its idle channels still in it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

import datasets
from datasets import Recipe
from kernels import counting
from kernels.model.pruning.channels import Channels
from kernels.model.pruning.group_sparsity import GroupSparsity, PrunedAfterwards, Structure, structures
from kernels.model.pruning.removal import removable

DIGITS, NOISY = datasets.workload("digits-mlp"), datasets.workload("noisy-digits-cnn")


def widths(network):
    return [len(m.weight) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize("amount", [0.05, 0.3, 2.0])
def test_shrinking_is_the_proximal_step(amount):
    """arg min of half the squared distance and the weighted norms, as scipy finds it where it is smooth."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((3, 4)).astype(np.float32)
    w, b = nn.Parameter(torch.tensor(start[:, :3])), nn.Parameter(torch.tensor(start[:, 3]))
    rows = Structure([5, 6, 7])
    rows.add(w, 0, [5, 6, 7])
    rows.add(b, 0, [5, 6, 7])
    assert rows.sizes.tolist() == [4, 4, 4]
    torch.testing.assert_close(rows.norms(), torch.tensor(start).norm(dim=1))
    rows.shrink(amount)
    ours = np.column_stack([w.detach().numpy(), b.detach().numpy()])
    for before, after in zip(start.astype(float), ours, strict=True):

        def objective(v, before=before):
            return 0.5 * ((v - before) ** 2).sum() + amount * 2 * np.linalg.norm(v)

        found = scipy.optimize.minimize(
            objective, before, method="Nelder-Mead", options={"fatol": 1e-12, "xatol": 1e-9}
        )
        assert objective(after.astype(float)) <= found.fun + 1e-6
        if np.linalg.norm(before) <= 2 * amount:
            assert not after.any()


def test_slices_of_columns_and_places_that_stand_several_times():
    w = nn.Parameter(torch.ones(2, 6))
    columns = Structure([1, 2])
    columns.add(w, 1, [1, 1, 2, 9, 2, 9])  # unit 9 has no group
    columns.add(None, 0, [1, 2])
    assert columns.norms().tolist() == [2.0, 2.0] and columns.sizes.tolist() == [4, 4]
    columns.shrink(0.5)
    assert w[0].tolist() == [0.5, 0.5, 0.5, 1, 0.5, 1]


def test_without_a_penalty_it_is_the_plain_recipe_in_two_parts():
    recipe = replace(DIGITS.recipe, epochs=4)
    network = DIGITS.network(3)
    before = copy.deepcopy(network.state_dict())
    ours, trace = GroupSparsity(1.0, penalty=0.0).train(network, DIGITS.data(), recipe, seed=5)
    plain = DIGITS.network(3)
    first = replace(recipe, epochs=3).train(plain, DIGITS.data(), seed=5)
    rest = recipe.finetune(plain, DIGITS.data(), seed=5)
    assert trace == first + rest and len(trace) == recipe.steps(DIGITS.data())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_one_update_worked_by_hand():
    data, network = DIGITS.data(), DIGITS.network(0)
    seen = {}

    class Watched(torch.optim.SGD):
        def step(self, closure):
            value = super().step(closure)
            seen.setdefault("w", [p.detach().clone() for p in self.param_groups[0]["params"]])
            seen.setdefault("lr", self.param_groups[0]["lr"])
            return value

    once = []

    class Recording(Recipe):
        def train(self, network, data, **options):
            def on_step(step, network):
                if not once:
                    once.extend(p.detach().clone() for p in network.parameters())

            return super().train(network, data, on_step=on_step, **options)

    recipe = Recording(epochs=2, optimizer=Watched)
    GroupSparsity(penalty=0.7).train(network, data, recipe)
    (w1, b1, w2, *_), step = seen["w"], 0.7 * seen["lr"]
    norm = (w1.square().sum(1) + b1.square()).sqrt()
    made = (1 - step * 65**0.5 / norm).clamp(min=0)
    torch.testing.assert_close(once[0], w1 * made[:, None])
    torch.testing.assert_close(once[1], b1 * made)
    # the second layer's rows shrink as what makes its units, then its columns as what reads the first layer's
    rows = (1 - step * 65**0.5 / (w2.square().sum(1) + seen["w"][3].square()).sqrt()).clamp(min=0)
    shrunk = w2 * rows[:, None]
    columns = (1 - step * 32**0.5 / shrunk.norm(dim=0)).clamp(min=0)
    torch.testing.assert_close(once[2], shrunk * columns)


def test_idle_channels_are_gone_and_computed_nothing():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 16, 10),
    )  # fmt: skip
    x = torch.randn(4, 1, 8, 8)
    network.train()(x)
    network.eval()
    channels = Channels(network, x)
    groups = removable(network, channels)
    parts = structures(network, channels, groups)
    first, second = channels.out["0"], channels.out["3"]
    with torch.no_grad():
        network[0].weight[1], network[0].bias[1], network[1].weight[1], network[1].bias[1] = 0, 0, 0, 0
        network[0].weight[2], network[0].bias[2], network[1].weight[2] = 0, 0, 0  # the shift is left: not idle
        network[1].bias[2] = 0.3
        network[3].weight[:, 4] = 0
        network[6].weight[:, 3 * 16 : 4 * 16] = 0
    made, read = (part.norms() for part in parts)
    zero = {unit for i, unit in enumerate(parts[0].units) if made[i] == 0 or read[i] == 0}
    assert zero == {first[1], first[4], second[3]}
    with torch.no_grad():
        torch.testing.assert_close(channels.without(network, zero)(x), network(x), rtol=1e-4, atol=1e-5)


def test_it_narrows_the_network_and_is_the_same_each_time():
    data, recipe = DIGITS.data(), replace(DIGITS.recipe, epochs=12)
    (small, trace), (again, _) = (GroupSparsity(0.5).train(DIGITS.network(), data, recipe, seed=1) for _ in range(2))
    whole = counting.macs(DIGITS.network(), torch.zeros(1, 1, 8, 8))
    assert 0.4 * whole < counting.macs(small, torch.zeros(1, 1, 8, 8)) <= 0.5 * whole
    assert len(trace) == recipe.steps(data) and datasets.accuracy(small, data.validation) > 0.85
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))
    for rival in (GroupSparsity(0.5).by_norm(), GroupSparsity(0.5).blind()):
        network, same = rival.train(DIGITS.network(), data, recipe, seed=1)
        assert widths(network) == widths(small)
        assert len(same) == len(trace)


def test_a_penalty_that_is_too_large_leaves_one_channel_of_each_layer_and_no_less():
    recipe = replace(DIGITS.recipe, epochs=3)
    small, _ = GroupSparsity(macs=0.9, penalty=100.0).train(DIGITS.network(), DIGITS.data(), recipe)
    assert widths(small) == [1, 1, 10]


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="macs: expected 0 < macs <= 1, got 0"):
        GroupSparsity(macs=0)
    for penalty in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="penalty: expected a number of at least 0"):
            GroupSparsity(penalty=penalty)
    with pytest.raises(ValueError, match="choice: expected norm or random, got 'best'"):
        PrunedAfterwards(GroupSparsity(), "best")
    vowels = datasets.workload("vowels-gru")
    with pytest.raises(ValueError, match="'gru' is recurrent"):
        GroupSparsity().train(vowels.network(), vowels.data(), vowels.recipe)
    normed = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10))
    with pytest.raises(ValueError, match=r"'2' \(LayerNorm\) is none"):
        GroupSparsity().train(normed, DIGITS.data(), DIGITS.recipe)
