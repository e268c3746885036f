"""Pruning and splicing: the paper's two thresholds word for word, and an update that reaches what is pruned."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import datasets
from datasets import Data, Recipe, Split
from kernels.model.pruning.masked_training import GradualMagnitude
from kernels.model.pruning.prune_and_splice import PruneAndSplice, _Spliced, band, surgery
from kernels.model.transform import bake, constrain, layer_weights


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**31), st.floats(0.0, 0.5), st.data())
def test_the_next_mask_is_that_of_two_thresholds(n, seed, margin, data):
    """Below a it goes, from b on it comes, in between it stays as it is: equation 3 of the paper, place by place."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, generator=generator) < 0.5
    kept = data.draw(st.integers(1, n))
    after = surgery(w, mask, kept, margin)
    assert after.sum() == kept
    middle = float(band(w, mask, margin)[after].min())
    a, b = (1 - margin) * middle * (1 - 1e-6), (1 + margin) * middle * (1 - 1e-6)
    for weight, was, now in zip(w.abs().tolist(), mask.tolist(), after.tolist(), strict=True):
        assert now == (False if weight < a else True if weight >= b else was)


def linear(seed=0):
    torch.manual_seed(seed)
    split = Split(torch.randn(6, 8).numpy(), torch.randint(0, 4, (6,)).numpy())
    return nn.Linear(8, 4), Data("hand", split, split, split, 4)


def test_an_update_is_that_of_the_paper_and_reaches_pruned_weights():
    layer, data = linear()
    before = layer.weight.detach().clone()
    mask = torch.rand(4, 8) < 0.5
    constrain(layer, "weight", _Spliced(mask))
    seen = (before * mask).requires_grad_()
    loss = functional.cross_entropy(
        functional.linear(torch.tensor(data.train.x), seen, layer.bias.detach()), torch.tensor(data.train.y)
    )
    (gradient,) = torch.autograd.grad(loss, seen)
    recipe = Recipe(epochs=1, batch=6, schedule="constant", learning_rate=0.1, weight_decay=0.0, optimizer=sgd)
    recipe.train(layer, data)
    after = layer.parametrizations.weight.original.detach()
    assert torch.allclose(after, before - 0.1 * gradient, atol=1e-7) and gradient[~mask].any()
    assert torch.equal(layer.weight, after * mask)


def sgd(parameters, lr, weight_decay):
    return torch.optim.SGD(parameters, lr=lr)


def test_what_is_missed_returns_and_without_a_gradient_nothing_does():
    """A weight that the loss asks for is pruned by hand; splicing brings it back, a plain mask does not."""
    x = torch.eye(4).repeat(8, 1)
    split = Split(x.numpy(), torch.arange(4).repeat(8).numpy())
    data = Data("hand", split, split, split, 4)
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(0.3 * torch.ones(4, 4) + 0.1 * torch.rand(4, 4))
        layer.weight.fill_diagonal_(0.0)  # what solves the task is the smallest, and goes first
    recipe = Recipe(epochs=200, batch=32, learning_rate=0.05, weight_decay=0.0, optimizer=sgd)
    spliced, trace = PruneAndSplice(0.25, slowing=0.0).train(layer, data, recipe)
    gradual, _ = GradualMagnitude(0.25).train(layer, data, recipe)
    assert torch.equal(spliced.weight != 0, torch.eye(4, dtype=torch.bool)) and sum(u["spliced"] for u in trace) >= 4
    assert datasets.accuracy(spliced, split) == 1.0 > datasets.accuracy(gradual, split)


def test_the_count_is_exact_the_input_untouched_and_the_same_seed_the_same():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=6)
    start, data = digits.network(), digits.data()
    before = copy.deepcopy(start.state_dict())
    for technique in (PruneAndSplice(0.2), PruneAndSplice(0.2, scope="layer", slowing=5.0)):
        network, trace = technique.train(start, data, recipe, seed=1)
        weights = [getattr(*place) for place in layer_weights(bake(network))]
        assert sum(int(w.count_nonzero()) for w in weights) == pytest.approx(
            0.2 * sum(w.numel() for w in weights), abs=2
        )
        assert len(trace) == recipe.steps(data)
        assert all(torch.equal(start.state_dict()[key], value) for key, value in before.items())
    _, same = technique.train(start, data, recipe, seed=1)
    assert trace == same and datasets.accuracy(network, data.validation) > 0.7
    often, rarely = (
        sum(u["spliced"] > 0 for u in PruneAndSplice(0.2, slowing=s).train(start, data, recipe)[1]) for s in (0.0, 0.5)
    )
    assert rarely < often / 3


def test_at_full_density_it_is_the_plain_recipe():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=2)
    plain = digits.network()
    trace = recipe.train(plain, digits.data(), seed=5)
    network, same = PruneAndSplice(1.0).train(digits.network(), digits.data(), recipe, seed=5)
    assert [u["loss"] for u in same] == [u["loss"] for u in trace]
    assert torch.equal(bake(network)[1].weight, plain[1].weight)


def test_wrong_input_is_named():
    for options, word in (
        ({"density": 0.0}, "density: expected 0 < density <= 1"),
        ({"margin": 1.0}, "margin: expected 0 <= margin < 1"),
        ({"slowing": -1.0}, "slowing: expected a number of at least 0"),
        ({"scope": "filter"}, "scope: expected one of global, layer"),
    ):
        with pytest.raises(ValueError, match=word):
            PruneAndSplice(**options)
    with pytest.raises(ValueError, match="layers; ReLU has none"):
        PruneAndSplice().train(nn.ReLU(), linear()[1], Recipe(epochs=1))
