"""Mutual learning against scipy's divergence, and against two networks updated by hand."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import nn

import datasets
from datasets import Data, Recipe, Split
from kernels.model.distillation.mutual_distillation import MutualDistillation, mutual_loss, redrawn
from kernels.model.distillation.soft_label_distillation import SoftLabelDistillation

workload = datasets.workload("digits-mlp")


def test_the_loss_is_the_equation_and_the_other_gets_no_gradient():
    random = np.random.default_rng(0)
    z1, z2, y = random.normal(size=(5, 4)), random.normal(size=(5, 4)), random.integers(0, 4, 5)
    p1, p2 = softmax(z1, 1), softmax(z2, 1)
    expected = -np.log(p1[np.arange(5), y]) + entropy(p2, p1, axis=1)
    own, other = (torch.tensor(z, requires_grad=True) for z in (z1, z2))
    loss = mutual_loss(own, other, torch.tensor(y))
    loss.backward()
    assert loss.item() == pytest.approx(expected.mean()) and other.grad is None
    np.testing.assert_allclose(own.grad.numpy(), ((p1 - np.eye(4)[y]) + (p1 - p2)) / 5, atol=1e-12)


def test_one_update_moves_each_network_by_its_own_loss():
    random = np.random.default_rng(1)
    split = Split(random.normal(size=(8, 3)).astype(np.float32), random.integers(0, 2, 8))
    recipe = Recipe(
        epochs=1, batch=8, learning_rate=0.1, weight_decay=0.0, schedule="constant", optimizer=torch.optim.SGD
    )
    network = nn.Linear(3, 2)
    trained, trace = MutualDistillation().train(network, Data("hand", split, split, split, 2), recipe, seed=5)
    own, other = copy.deepcopy(network), redrawn(network, 6)
    x, y = torch.tensor(split.x), torch.tensor(split.y)
    loss = mutual_loss(own(x), other(x), y)
    loss.backward()
    torch.testing.assert_close(trained.weight, own.weight - 0.1 * own.weight.grad)
    assert trace[0]["loss"] == pytest.approx((loss + mutual_loss(other(x), own(x), y)).item(), rel=1e-5)


def test_a_second_generation_is_soft_label_distillation_from_the_first():
    recipe, data, start = Recipe(epochs=2), workload.data(), workload.student()
    network, trace = MutualDistillation(way="born-again").train(start, data, recipe, seed=2)
    first = copy.deepcopy(start)
    recipe.train(first, data, seed=2)
    second, _ = SoftLabelDistillation().train(redrawn(start, 3), data, recipe, first, seed=2)
    assert all(map(torch.equal, network.parameters(), second.parameters()))
    assert len(trace) == 2 * recipe.steps(data)


def test_the_longer_recipe_has_the_whole_budget():
    recipe, data = Recipe(epochs=2), workload.data()
    assert MutualDistillation().longer().times == 2 and MutualDistillation("born-again", 3).longer().times == 3
    _, trace = MutualDistillation().longer().train(workload.student(), data, recipe)
    assert len(trace) == 2 * recipe.steps(data)


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match="way: expected one of mutual, born-again, got 'alone'"):
        MutualDistillation(way="alone")
    with pytest.raises(ValueError, match="generations: expected at least 2, got 1"):
        MutualDistillation(generations=1)
