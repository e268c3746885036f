"""The generator's losses against the paper's equations, and that true items play no part."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

import datasets
from datasets import Data, Recipe, Split
from kernels.model.distillation.data_free_distillation import CODE, DataFreeDistillation, Generator, generator_losses

workload = datasets.workload("noisy-digits-cnn")


def test_the_three_losses_are_the_equations():
    random = np.random.default_rng(0)
    logits, features = random.normal(size=(6, 4)), random.normal(size=(6, 5))
    one_hot, activation, information = generator_losses(torch.tensor(logits), torch.tensor(features))
    assert one_hot.item() == pytest.approx(-log_softmax(logits, 1).max(1).mean())
    assert activation.item() == pytest.approx(-np.abs(features).mean())
    assert information.item() == pytest.approx(-entropy(softmax(logits, 1).mean(0)))


def test_sure_answers_spread_over_all_classes_are_the_best():
    sure = torch.eye(4) * 50
    one_hot, _, information = generator_losses(sure, torch.ones(4, 2))
    assert one_hot < 1e-6 and information.item() == pytest.approx(-np.log(4))
    _, _, one_class = generator_losses(sure[:1].expand(4, 4), torch.ones(4, 2))
    assert one_class > information


def test_items_of_the_right_shape_with_mean_nought_and_spread_one():
    items = Generator((3, 8, 6))(torch.randn(64, CODE))
    assert items.shape == (64, 3, 8, 6)
    assert items.mean((0, 2, 3)).abs().max() < 1e-4 and (items.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_true_items_and_labels_are_never_used():
    """Other items of the same mean and spread give the same student."""
    data, recipe = workload.data(), Recipe(epochs=1, batch=100)
    shuffled = np.random.default_rng(0).permutation(data.train.x.ravel()).reshape(data.train.x.shape)
    other = Split(shuffled, np.zeros_like(data.train.y))
    without = Data("shuffled", other, other, other, data.classes)
    one, two = (
        DataFreeDistillation().train(workload.student(), d, recipe, workload.trained())[0] for d in (data, without)
    )
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_student_comes_nearer_to_the_teacher():
    recipe = Recipe(epochs=6, batch=50, learning_rate=0.01)
    for method in (DataFreeDistillation(), DataFreeDistillation().noise()):
        _, trace = method.train(workload.student(), workload.data(), recipe, workload.trained())
        losses = [update["loss"] for update in trace]
        assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:8])


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="information: expected a number of at least 0, got -1"):
        DataFreeDistillation(information=-1)
    with pytest.raises(ValueError, match="source: expected generator or noise, got 'data'"):
        DataFreeDistillation(source="data")
    vowels = datasets.workload("vowels-gru")
    with pytest.raises(ValueError, match=r"expected images of even height and width, got items of shape \(29, 12\)"):
        DataFreeDistillation().train(vowels.student(), vowels.data(), Recipe(epochs=1), vowels.trained())
