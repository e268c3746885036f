"""Attention maps and hints against the papers' equations in numpy, and one update worked by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets import Data, Recipe, Split
from kernels.model.distillation.feature_distillation import FeatureDistillation, attention_loss, attention_map


def test_maps_and_their_distance_are_the_equation():
    random = np.random.default_rng(0)
    own, other = random.normal(size=(4, 3, 5, 6)), random.normal(size=(4, 8, 5, 6))
    maps = [np.square(a).sum(1).reshape(4, -1) for a in (own, other)]
    maps = [q / np.linalg.norm(q, axis=1, keepdims=True) for q in maps]
    np.testing.assert_allclose(attention_map(torch.tensor(own)).numpy(), maps[0])
    expected = 0.5 * np.linalg.norm(maps[0] - maps[1], axis=1).mean()
    assert attention_loss(torch.tensor(own), torch.tensor(other)).item() == pytest.approx(expected, rel=1e-6)


def test_two_equal_maps_teach_nothing_and_scale_does_not_count():
    features = torch.randn(3, 4, 5, 5, requires_grad=True)
    loss = attention_loss(features, 7 * features.detach())
    loss.backward()
    assert loss < 1e-5 and torch.isfinite(features.grad).all()


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


def test_one_update_of_attention_is_the_gradient_of_the_equation():
    random = np.random.default_rng(1)
    split = Split(random.normal(size=(6, 1, 4, 4)).astype(np.float32), random.integers(0, 2, 6))
    recipe = Recipe(
        epochs=1, batch=6, learning_rate=0.01, weight_decay=0.0, schedule="constant", optimizer=torch.optim.SGD
    )
    student, teacher = small(), nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 2))
    trained, trace = FeatureDistillation(weight=4.0).train(
        student, Data("hand", split, split, split, 2), recipe, teacher
    )
    by_hand, x, y = copy.deepcopy(student), torch.tensor(split.x), torch.tensor(split.y)
    own, other = by_hand[:2](x), teacher[:2](x).detach()
    maps = [functional.normalize(a.square().sum(1).flatten(1), dim=1) for a in (own, other)]
    loss = functional.cross_entropy(by_hand(x), y) + 4.0 * 0.5 * (maps[0] - maps[1]).norm(dim=1).mean()
    loss.backward()
    assert trace[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for after, before in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.01 * before.grad, rtol=1e-4, atol=1e-6)


def test_hints_move_the_lower_half_alone_and_come_nearer_to_the_teachers_features():
    workload = datasets.workload("noisy-digits-cnn")
    data, student, teacher = workload.data(), workload.student(), workload.trained()
    method = FeatureDistillation(way="hint", hint_share=0.5)
    recipe = Recipe(epochs=4, batch=100, learning_rate=0.01)
    _, trace = method.train(student, data, recipe, teacher)
    first = [update["loss"] for update in trace if update["epoch"] < 2]
    assert len(trace) == recipe.steps(data) and first[-1] < 0.8 * first[0]
    # with all epochs but one for hints, the classifier has learned in the last one only
    hinted, _ = FeatureDistillation(way="hint", hint_share=0.99).train(
        student, data, Recipe(epochs=1, batch=400), teacher
    )
    assert not torch.equal(hinted[0].weight, student[0].weight) and torch.equal(hinted[-1].weight, student[-1].weight)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="way: expected one of attention, hint, got 'both'"):
        FeatureDistillation(way="both")
    with pytest.raises(ValueError, match="weight: expected a positive number"):
        FeatureDistillation(weight=0.0)
    with pytest.raises(ValueError, match="hint_share: expected 0 < hint_share < 1"):
        FeatureDistillation(hint_share=1.0)
    mlp = datasets.workload("digits-mlp")
    with pytest.raises(
        ValueError, match=r"2: expected maps of as many rows and columns as the teacher's 4, got \(8,\)"
    ):
        FeatureDistillation().train(mlp.student(), mlp.data(), Recipe(epochs=1), mlp.trained())
