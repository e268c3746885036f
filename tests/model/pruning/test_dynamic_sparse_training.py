"""Connections that move: one move worked by hand, what stays the same through all of them, and the shares of layers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import datasets
from datasets import Data, Recipe, Split
from kernels.model.pruning.dynamic_sparse_training import DynamicSparseTraining, erdos_renyi, rewired
from kernels.model.pruning.masked_training import GradualMagnitude, falling
from kernels.model.transform import bake, layer_weights


@pytest.fixture(scope="module")
def digits():
    return datasets.workload("digits-mlp")


def masks(network):
    return [layer.parametrizations[name][0].mask.clone() for layer, name in layer_weights(network)]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**31), st.data())
def test_a_move_drops_the_smallest_and_grows_the_most_promising(n, seed, data):
    generator = torch.Generator().manual_seed(seed)
    w, promise = torch.randn(n, generator=generator), torch.randn(n, generator=generator)
    mask = torch.rand(n, generator=generator) < 0.5
    moved = data.draw(st.integers(0, int(mask.sum())))
    after = rewired(w, mask, promise, moved)
    here = sorted(mask.nonzero().flatten().tolist(), key=lambda i: -abs(w[i]))
    kept = here[: len(here) - moved]
    elsewhere = sorted((i for i in range(n) if i not in kept), key=lambda i: -abs(promise[i]))
    assert sorted(after.nonzero().flatten().tolist()) == sorted(kept + elsewhere[:moved])


def test_one_move_of_a_network_is_the_papers():
    """A linear network whose second update moves connections, by gradients that autograd gives for masked weights."""
    torch.manual_seed(0)
    start = nn.Linear(8, 6)
    split = Split(torch.randn(6, 8).numpy(), torch.randint(0, 6, (6,)).numpy())
    data = Data("hand", split, split, split, 6)
    technique = DynamicSparseTraining(0.5, share=0.5, every=1, until=1.0)
    before = technique.wire(start, seed=3)
    once = Recipe(epochs=1, batch=6, schedule="constant", weight_decay=0.0)
    once.train(before, data, seed=3)
    (mask,), weight = masks(before), before.weight.detach().requires_grad_()
    loss = functional.cross_entropy(
        functional.linear(torch.tensor(split.x), weight, before.bias), torch.tensor(split.y)
    )
    (gradient,) = torch.autograd.grad(loss, weight)
    moved = round(0.25 * (1 + math.cos(math.pi / 2)) * 24)
    expected = rewired(weight.detach(), mask, gradient, moved)

    twice = Recipe(epochs=2, batch=6, schedule="constant", weight_decay=0.0)
    after, trace = technique.train(start, data, twice, seed=3)
    assert torch.equal(masks(after)[0], expected) and not torch.equal(expected, mask)
    assert trace[1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    both, new = mask & expected, expected & ~mask
    assert torch.equal(after.weight[both], weight[both]), "connections move in place of weights"
    assert new.any() and not after.weight[new].any() and torch.equal(after.bias, before.bias)


def test_a_grown_connection_has_no_memory_of_moments():
    recipe, seen = Recipe(epochs=4, batch=6, schedule="constant", weight_decay=0.0), []

    class Watched(torch.optim.AdamW):
        def step(self, closure):
            value = super().step(closure)
            seen.append(self)
            return value

    torch.manual_seed(0)
    start = nn.Linear(8, 6)
    split = Split(torch.randn(6, 8).numpy(), torch.randint(0, 6, (6,)).numpy())
    technique = DynamicSparseTraining(0.5, share=0.9, every=3, until=1.0)
    before = masks(technique.wire(start, 0))[0]
    recipe = Recipe(epochs=4, batch=6, schedule="constant", weight_decay=0.0, optimizer=Watched)
    network, _ = technique.train(start, Data("hand", split, split, split, 6), recipe, seed=0)
    after = masks(network)[0]
    (moment,) = [s["exp_avg"] for s in seen[0].state.values() if s["exp_avg"].shape == (6, 8)]
    assert (after & ~before).any() and not moment[after & ~before].any() and moment[after & before].all()


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_every_layers_count_stays_and_the_input_is_untouched(digits, growth):
    start, data, recipe = digits.network(), digits.data(), Recipe(epochs=4)
    before = copy.deepcopy(start.state_dict())
    technique = DynamicSparseTraining(0.2, growth, every=5)
    first = masks(technique.wire(start, seed=1))
    network, trace = technique.train(start, data, recipe, seed=1)
    _, same = technique.train(start, data, recipe, seed=1)
    last = masks(network)
    assert [int(m.sum()) for m in first] == [int(m.sum()) for m in last] and len(trace) == recipe.steps(data)
    assert sum(int(m.sum()) for m in last) == round(0.2 * sum(m.numel() for m in last))
    assert not any(map(torch.equal, first[:2], last[:2])) and trace == same
    assert all(torch.equal(start.state_dict()[key], value) for key, value in before.items())
    for (layer, name), mask in zip(layer_weights(bake(network)), last, strict=True):
        assert not getattr(layer, name)[~mask].any()


def test_gradients_grow_where_there_is_something_to_see(digits):
    """Some pixels are always zero: no gradient leads there, and chance grows there all the same."""
    data = digits.data()
    dead = torch.tensor(data.train.x.reshape(len(data.train), -1) == 0).all(0)
    assert dead.any()

    def share(growth):
        technique = DynamicSparseTraining(0.3, growth, share=0.9, every=20, until=1.0)  # one move
        network, _ = technique.train(digits.network(), data, Recipe(epochs=2), seed=0)
        grown = masks(network)[0] & ~masks(technique.wire(digits.network(), 0))[0]
        return float(grown[:, dead].sum() / grown.sum())

    assert share("gradient") < 0.02 < 0.5 * float(dead.float().mean()) < share("random")


def test_the_shares_follow_the_cosine_and_stop():
    technique = DynamicSparseTraining(share=0.4, every=4, until=0.5)
    shares = technique.moves(80)
    for step in range(80):
        due = step and step % 4 == 0 and step < 40
        assert shares(step) == pytest.approx(0.2 * (1 + math.cos(math.pi * step / 40)) if due else 0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5), st.floats(0.02, 1.0))
def test_shares_of_layers_are_in_proportion_but_for_full_ones(shapes, density):
    counts = erdos_renyi(shapes, density)
    sizes = [a * b for a, b in shapes]
    assert sum(counts) == round(density * sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    scales = [c / (a + b) for c, (a, b), size in zip(counts, shapes, sizes, strict=True) if c < size - len(shapes)]
    for scale, (a, b) in zip(scales, shapes, strict=False):
        assert max(scales) - scale <= (len(shapes) + 1) / min(a + b for a, b in shapes)


def test_without_moves_it_is_a_fixed_mask_and_at_full_density_the_plain_recipe(digits):
    recipe, plain = Recipe(epochs=2), digits.network()
    trace = recipe.train(plain, digits.data(), seed=5)
    whole, same = DynamicSparseTraining(1.0).fixed().train(digits.network(), digits.data(), recipe, seed=5)
    assert trace == same and torch.equal(bake(whole)[1].weight, plain[1].weight)
    technique = DynamicSparseTraining(0.2)
    fixed, _ = technique.fixed().train(digits.network(), digits.data(), recipe, seed=5)
    assert all(map(torch.equal, masks(fixed), masks(technique.wire(digits.network(), 5))))
    assert technique.magnitude() == GradualMagnitude(0.2)


def test_recurrent_layers_are_rewired_too():
    vowels = datasets.workload("vowels-gru")
    network, _ = DynamicSparseTraining(0.3, every=1).train(vowels.network(), vowels.data(), Recipe(epochs=1))
    found = masks(network)
    assert sum(int(m.sum()) for m in found) == round(0.3 * sum(m.numel() for m in found))


def test_a_falling_density_ends_where_it_should():
    after = falling(90, 0.1, begin=1 / 3, end=2 / 3)
    assert [after(step) for step in (0, 29)] == [1.0, 1.0] and after(59) == after(89) == pytest.approx(0.1)
    assert after(44) == pytest.approx(0.1 + 0.9 / 8)
    assert falling(1, 0.3)(0) == pytest.approx(0.3)


def test_wrong_input_is_named():
    for options, word in (
        ({"density": 0.0}, "density: expected 0 < density <= 1"),
        ({"growth": "rigl"}, "growth: expected one of gradient, random, got 'rigl'"),
        ({"share": 1.0}, "share: expected 0 <= share < 1"),
        ({"every": 0}, "every, until: expected >= 1"),
        ({"until": 0.0}, "every, until: expected >= 1"),
    ):
        with pytest.raises(ValueError, match=word):
            DynamicSparseTraining(**options)
    with pytest.raises(ValueError, match="layers; ReLU has none"):
        DynamicSparseTraining().wire(nn.ReLU(), 0)
