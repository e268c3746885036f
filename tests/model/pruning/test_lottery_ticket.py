"""A lottery ticket, found step by step with torch's own pruning; its weights are those of the start."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as oracle

import datasets
from datasets import Recipe
from kernels.model.pruning.lottery_ticket import LotteryTicket, redrawn
from kernels.model.pruning.masked_training import GradualMagnitude
from kernels.model.transform import bake, layer_weights

EACH = Recipe(epochs=2)


@pytest.fixture(scope="module")
def digits():
    return datasets.workload("digits-mlp")


def by_hand(start, data, density, rounds):
    """Train, cut the smallest by torch.nn.utils.prune, rewind: the paper's steps with torch's masks."""
    kept = None
    for done in range(1, rounds + 1):
        network = copy.deepcopy(start)
        places = list(layer_weights(network))
        if kept is not None:
            for (layer, name), mask in zip(places, kept, strict=True):
                oracle.custom_from_mask(layer, name, mask)
        EACH.train(network, data, seed=3)
        sizes = [getattr(*place).numel() for place in places]
        if kept is not None:
            for place in places:
                oracle.remove(*place)
        left = round(density ** (done / rounds) * sum(sizes))
        oracle.global_unstructured(places, pruning_method=oracle.L1Unstructured, amount=sum(sizes) - left)
        kept = [getattr(layer, f"{name}_mask").clone() for layer, name in places]
    return kept


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_mask_is_that_of_torch_and_the_weights_are_those_of_the_start(digits, rounds):
    start = digits.network()
    ticket, traces = LotteryTicket(0.2, rounds).find(start, digits.data(), EACH, seed=3)
    expected = by_hand(start, digits.data(), 0.2, rounds)
    assert len(traces) == rounds
    for (layer, name), (first, _), mask in zip(layer_weights(ticket), layer_weights(start), expected, strict=True):
        assert torch.equal(getattr(layer, name), first.weight * mask)
        assert torch.equal(layer.bias, first.bias)


def test_a_norms_statistics_are_rewound_too():
    noisy = datasets.workload("noisy-digits-cnn")
    ticket, _ = LotteryTicket(0.5, rounds=1).find(noisy.network(), noisy.data(), Recipe(epochs=1), seed=0)
    norm = next(layer for layer in ticket.modules() if isinstance(layer, nn.BatchNorm2d))
    assert not norm.running_mean.any() and int(norm.num_batches_tracked) == 0 and ticket.training


def test_all_trainings_share_one_budget(digits):
    recipe = Recipe(epochs=11)
    start, data = digits.network(), digits.data()
    before = copy.deepcopy(start.state_dict())
    technique = LotteryTicket(0.2, rounds=3)
    trained, trace = technique.train(start, data, recipe, seed=1)
    assert [part.epochs for part in technique.shares(recipe)] == [2, 5]
    assert [u["step"] for u in trace] == [*range(recipe.steps(data))]
    assert all(torch.equal(start.state_dict()[key], value) for key, value in before.items())
    weights = [getattr(*place) for place in layer_weights(bake(trained))]
    assert sum(int(w.count_nonzero()) for w in weights) == round(0.2 * sum(w.numel() for w in weights))
    _, same = technique.train(start, data, recipe, seed=1)
    assert trace == same


def test_the_other_weights_have_the_same_mask_and_nothing_else_of_the_ticket(digits):
    technique, recipe = LotteryTicket(0.2, rounds=1), Recipe(epochs=2)
    start, data = digits.network(), digits.data()
    ticket, _ = technique.train(start, data, recipe, seed=1)
    other, trace = technique.reinitialised().train(start, data, recipe, seed=1)
    for (a, name), (b, _) in zip(layer_weights(ticket), layer_weights(other), strict=True):
        assert torch.equal(a.parametrizations[name][0].mask, b.parametrizations[name][0].mask)
        assert not torch.equal(getattr(a, name), getattr(b, name))
    assert len(trace) == recipe.steps(data)
    assert not torch.equal(redrawn(start, 1)[1].weight, start[1].weight)
    spread = [network[1].weight.std().item() for network in (redrawn(start, 1), start)]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_of_everything_it_is_the_last_training_alone(digits):
    """With all weights in the ticket nothing is found: the plain recipe, as long as the last share, bit for bit."""
    technique, recipe = LotteryTicket(1.0, rounds=1), Recipe(epochs=4)
    trained, trace = technique.train(digits.network(), digits.data(), recipe, seed=5)
    plain = digits.network()
    last = Recipe(epochs=2).train(plain, digits.data(), seed=5)
    assert torch.equal(bake(trained)[1].weight, plain[1].weight)
    assert [u["loss"] for u in trace[-len(last) :]] == [u["loss"] for u in last]


def test_wrong_input_is_named(digits):
    for options, word in (
        ({"density": 2.0}, "density: expected 0 < density <= 1"),
        ({"rounds": 0}, "rounds: expected"),
    ):
        with pytest.raises(ValueError, match=word):
            LotteryTicket(**options)
    with pytest.raises(ValueError, match="recipe: expected at least 4 epochs for as many trainings, got 3"):
        LotteryTicket().train(digits.network(), digits.data(), Recipe(epochs=3))
    with pytest.raises(ValueError, match="layers to prune; ReLU has none"):
        LotteryTicket().find(nn.ReLU(), digits.data(), EACH)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match=r"layers that draw their own weights, layer 1 is Own\(\)"):
        redrawn(nn.Sequential(nn.Linear(2, 2), Own()), 0)
    assert LotteryTicket(0.3).magnitude() == GradualMagnitude(0.3)
