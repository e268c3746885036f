"""Second-order pruning against quadratic losses in closed form, torch's Hessian, and gradients taken item by item."""

from __future__ import annotations

import copy
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional

import datasets
from datasets import Data, Split
from kernels.model.pruning.magnitude_pruning import MagnitudePruning, RandomPruning
from kernels.model.pruning.second_order_pruning import (
    SecondOrderPruning,
    compensated,
    curvature,
    removal_costs,
    surgeon,
)
from kernels.model.transform import bake, layer_weights


def quadratic(n, seed=0):
    """Trained weights and the Hessian of a loss that is quadratic around them."""
    random = np.random.default_rng(seed)
    root = random.normal(size=(n, n + 2))
    return torch.tensor(random.normal(size=n)), torch.tensor(root @ root.T / n)


def raised(w, after, h):
    return float((after - w) @ h @ (after - w) / 2)


@pytest.mark.parametrize("i", range(5))
def test_the_harm_predicted_is_the_harm_done_and_no_other_change_does_less(i):
    w, h = quadratic(5)
    after, harm = surgeon(w, h.inverse(), i)
    assert after[i] == 0 and float(harm) == pytest.approx(raised(w, after, h), rel=1e-10)
    others = [j for j in range(5) if j != i]

    def loss(kept):
        change = np.zeros(5)
        change[others], change[i] = kept - w.numpy()[others], -w.numpy()[i]
        return change @ h.numpy() @ change / 2

    found = minimize(loss, w.numpy()[others], tol=1e-12)
    assert found.fun == pytest.approx(float(harm), rel=1e-6)
    assert np.allclose(found.x, after.numpy()[others], atol=1e-4)
    assert float(harm) < float(h[i, i] * w[i] ** 2 / 2), "leaving the others where they are does more harm"


def test_removing_one_after_the_other_is_removing_all_at_once():
    w, h = quadratic(6)
    mask = torch.tensor([True, False, True, False, False, True])
    now, left = w.clone(), list(range(6))
    for i in (4, 1, 3):
        place = left.index(i)
        part, _ = surgeon(now[left], h[left][:, left].inverse(), place)
        now[left] = part
        left.remove(i)
    assert torch.allclose(now, compensated(w, h, mask), rtol=1e-8)
    kept = np.linalg.lstsq(np.linalg.cholesky(h.numpy()).T[:, mask], np.linalg.cholesky(h.numpy()).T @ w.numpy())[0]
    assert np.allclose(compensated(w, h, mask)[mask], kept), "and is the least squares fit of those that are left"
    assert not compensated(w, h, torch.zeros(6, dtype=torch.bool)).any()


def test_the_order_of_removal_is_greedy_and_prices_never_fall():
    problems = [quadratic(6, seed) for seed in range(4)]
    w, h = (torch.stack(part) for part in zip(*problems, strict=True))
    for row, (one, hessian) in enumerate(problems):
        expected, now, left, paid = torch.zeros(6, dtype=torch.float64), one.clone(), list(range(6)), 0.0
        while left:
            inverse = hessian[left][:, left].inverse()
            harms = [float(surgeon(now[left], inverse, k)[1]) for k in range(len(left))]
            cheapest = int(np.argmin(harms))
            paid = max(paid, harms[cheapest])
            expected[left[cheapest]] = paid
            now[left] = surgeon(now[left], inverse, cheapest)[0]
            del left[cheapest]
        assert torch.allclose(removal_costs(w, h)[row], expected, rtol=1e-8)


def test_what_is_zero_already_costs_nothing_and_moves_nothing():
    w, h = quadratic(5)
    w[2] = 0
    others = [0, 1, 3, 4]
    costs = removal_costs(w[None], h[None])[0]
    assert costs[2] == 0 and torch.allclose(
        costs[others], removal_costs(w[None, others], h[None, others][:, :, others])[0]
    )


def test_of_a_linear_softmax_it_is_the_hessian():
    """There Gauss and Newton leave nothing out: torch's own second derivatives, whatever the labels."""
    torch.manual_seed(0)
    network, x, y = nn.Linear(4, 3).double(), torch.randn(7, 4).double(), torch.randint(0, 3, (7,))

    def loss(weight):
        return functional.cross_entropy(functional.linear(x, weight, network.bias.detach()), y)

    exact = torch.autograd.functional.hessian(loss, network.weight.detach())
    for o, block in enumerate(curvature(network, x)[0]):
        assert torch.allclose(block, exact[o, :, o], atol=1e-12)


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    )


def test_gradients_of_single_items_make_it_up():
    network, x = cnn(), torch.randn(5, 2, 6, 6)
    found = curvature(network, x)
    network.eval()
    expected = [torch.zeros_like(block) for block in found]
    for item in x:
        p = network(item[None]).softmax(1).detach()[0]
        for c in range(4):
            logits = network(item[None])
            gradients = torch.autograd.grad(logits.log_softmax(1)[0, c], [network[0].weight, network[4].weight])
            for total, g in zip(expected, gradients, strict=True):
                rows = g.flatten(1).double()
                total += p[c] * rows[:, :, None] * rows[:, None, :] / 5
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)


def data_of(x, classes=4):
    split = Split(x.numpy(), np.zeros(len(x), int))
    return Data("hand", split, split, split, classes)


def test_damage_keeps_the_largest_half_h_w_squared():
    network, x = cnn(), torch.randn(16, 2, 6, 6)
    blocks = curvature(network, x)
    saliency = torch.cat([
        (torch.diagonal(h, dim1=1, dim2=2) * w.flatten(1).double() ** 2 / 2).flatten()
        for h, w in zip(blocks, (network[0].weight, network[4].weight), strict=True)
    ])  # fmt: skip
    pruned = SecondOrderPruning(0.3, "obd", rounds=1).apply(network, data_of(x))
    kept = torch.cat([getattr(layer, name).flatten() for layer, name in layer_weights(pruned)]) != 0
    assert kept.sum() == round(0.3 * len(kept)) and saliency[kept].min() >= saliency[~kept].max()
    for ours, before in ((pruned[0], network[0]), (pruned[4], network[4])):
        assert torch.equal(ours.weight, torch.where(ours.weight != 0, before.weight, 0.0)), "values are as they were"


def test_the_greedy_order_comes_close_to_the_best_of_all_masks():
    """Small enough to try every mask: greedy need not be best, but must come close, and beat size."""
    harms = {"greedy": 0.0, "best": 0.0, "largest": 0.0}
    for seed in range(20):
        w, h = quadratic(6, seed)

        def harm(kept, w=w, h=h):
            chosen = torch.zeros(6, dtype=torch.bool)
            chosen[list(kept)] = True
            return raised(w, compensated(w, h, chosen), h)

        costs = removal_costs(w[None], h[None])[0]
        harms["greedy"] += harm(costs.argsort(descending=True, stable=True)[:3].tolist())
        harms["largest"] += harm(w.abs().argsort(descending=True)[:3].tolist())
        harms["best"] += min(harm(kept) for kept in combinations(range(6), 3))
    assert harms["best"] <= harms["greedy"] < 1.3 * harms["best"] < harms["largest"]


def test_surgery_does_less_harm_than_damage_and_damage_less_than_size():
    workload = datasets.workload("digits-mlp")
    data = workload.data()

    def loss(technique):
        network = technique.apply(workload.trained(), data)
        with torch.no_grad():
            x, y = torch.tensor(data.validation.x), torch.tensor(data.validation.y)
            return float(functional.cross_entropy(network(x), y))

    obs, obd = (loss(SecondOrderPruning(0.15, method, items=128, rounds=2)) for method in ("obs", "obd"))
    assert obs < obd < loss(MagnitudePruning(0.15))


def test_the_count_is_exact_the_input_untouched_and_tuning_keeps_the_zeros():
    workload = datasets.workload("digits-mlp")
    data, network = workload.data(), workload.trained()
    before = copy.deepcopy(network.state_dict())
    technique = SecondOrderPruning(0.1, items=64, rounds=2)
    first, again = technique.apply(network, data), technique.apply(network, data)
    assert [*network.state_dict()] == [*before]
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    masks = [getattr(*place) != 0 for place in layer_weights(first)]
    assert sum(int(mask.sum()) for mask in masks) == round(0.1 * sum(mask.numel() for mask in masks))
    assert all(torch.equal(getattr(*a), getattr(*b)) for a, b in zip(*map(layer_weights, (first, again)), strict=True))
    datasets.Recipe(epochs=1).train(first, data)
    for (layer, name), mask in zip(layer_weights(bake(first)), masks, strict=True):
        assert not getattr(layer, name)[~mask].any()
    by_layer = SecondOrderPruning(0.25, "obd", scope="layer", items=32).apply(network, data)
    assert [int(getattr(*place).count_nonzero()) for place in layer_weights(by_layer)] == [1024, 512, 80]
    assert technique.at_random(3) == RandomPruning(0.1, "global", 3)


def test_at_full_density_nothing_changes():
    network, x = cnn(), torch.randn(4, 2, 6, 6)
    whole = SecondOrderPruning(1.0, rounds=1).apply(network, data_of(x))
    assert torch.allclose(whole[0].weight, network[0].weight, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.GRU(2, 3), "1"),
        (nn.Conv2d(2, 4, 1, groups=2), "1"),
        (nn.Conv1d(2, 4, 1), "1"),
        (nn.Conv2d(2, 4, 3, padding="same"), "1"),
    ],
    ids=str,
)
def test_layers_that_cannot_be_taken_into_account_are_named(layer, name):
    network = nn.Sequential(nn.Linear(2, 2), layer)
    with pytest.raises(ValueError, match=f"plain two-dimensional convolutions, layer {name} is {type(layer).__name__}"):
        SecondOrderPruning().apply(network, SimpleNamespace())


def test_other_wrong_input_is_named():
    twice = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="expected layer 0 to run once, it runs 2 times"):
        SecondOrderPruning().apply(nn.Sequential(twice, twice), data_of(torch.randn(2, 3), 3))
    constrained = nn.Linear(3, 3)
    nn.utils.parametrize.register_parametrization(constrained, "weight", nn.ReLU())
    with pytest.raises(ValueError, match=r"layer \(the network itself\) has"):
        SecondOrderPruning().apply(constrained, data_of(torch.randn(2, 3), 3))
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        SecondOrderPruning().apply(3, None)
    with pytest.raises(ValueError, match="network: expected convolution, linear or recurrent layers to prune"):
        SecondOrderPruning().apply(nn.Sequential(nn.Flatten()), data_of(torch.randn(2, 3), 3))
    for options, word in (
        ({"density": 0.0}, "density: expected 0 < density <= 1"),
        ({"method": "obc"}, "method: expected one of obs, obd, got 'obc'"),
        ({"scope": "filter"}, "scope: expected one of global, layer"),
        ({"damping": 0.0}, "damping: expected a positive number"),
        ({"rounds": 0}, "rounds, items: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=word):
            SecondOrderPruning(**options)
