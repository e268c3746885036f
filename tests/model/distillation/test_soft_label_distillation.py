"""One update of distillation equals the paper's equation worked by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import nn

import datasets
from datasets import Data, Recipe, Split
from kernels.model.distillation.soft_label_distillation import SoftLabelDistillation, soft_label_loss


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_loss_and_gradient_are_the_equation(temperature, weight):
    """Against scipy: mean of (1-w) H(y, q) + w T² KL(p_T || q_T), gradient (1-w)(q - y) + w T (q_T - p_T)."""
    random = np.random.default_rng(0)
    z, v, y = random.normal(size=(6, 4)) * 3, random.normal(size=(6, 4)) * 3, random.integers(0, 4, 6)
    q, q_t, p_t = softmax(z, 1), softmax(z / temperature, 1), softmax(v / temperature, 1)
    expected = (1 - weight) * -np.log(q[np.arange(6), y]) + weight * temperature**2 * entropy(p_t, q_t, axis=1)
    gradient = ((1 - weight) * (q - np.eye(4)[y]) + weight * temperature * (q_t - p_t)) / 6
    student = torch.tensor(z, requires_grad=True)
    loss = soft_label_loss(student, torch.tensor(v), torch.tensor(y), temperature, weight)
    loss.backward()
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-12)
    assert np.allclose(student.grad.numpy(), gradient, atol=1e-12)


def test_hot_and_with_centred_logits_it_matches_logits():
    """Section 2.1 of the paper: for high T the gradient is (z - v) / (N T²), here times T²."""
    z, v = (torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    z, v = (a - a.mean(1, keepdim=True) for a in (z, v))
    z.requires_grad_()
    soft_label_loss(z, v, torch.zeros(3, dtype=torch.int64), temperature=1e4, weight=1.0).backward()
    assert torch.allclose(z.grad, (z - v).detach() / 5 / 3, atol=1e-4)


def test_one_update_is_the_one_worked_by_hand():
    """A linear student and one batch; AdamW's first step moves each weight by the rate against the gradient's sign."""
    random = np.random.default_rng(1)
    split = Split(random.normal(size=(8, 3)), random.integers(0, 2, 8))
    recipe = Recipe(epochs=1, batch=8, learning_rate=0.01, weight_decay=0.0, schedule="constant")
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    start = copy.deepcopy(student)
    technique = SoftLabelDistillation(temperature=3.0, weight=0.7)
    trained, trace = technique.train(student, Data("hand", split, split, split, 2), recipe, teacher)

    x = split.x.astype(float)
    w, b, w_t, b_t = (p.detach().double().numpy() for p in (*start.parameters(), *teacher.parameters()))
    z, v = x @ w.T + b, x @ w_t.T + b_t
    in_logits = 0.3 * (softmax(z, 1) - np.eye(2)[split.y]) + 0.7 * 3 * (softmax(z / 3, 1) - softmax(v / 3, 1))
    for after, before, gradient in (
        (trained.weight, w, in_logits.T @ x / 8),
        (trained.bias, b, in_logits.mean(0)),
    ):
        step = 0.01 * gradient / (np.abs(gradient) + 1e-8)
        assert np.allclose(after.detach().numpy(), before - step, atol=1e-6)
    expected = 0.3 * -np.log(softmax(z, 1)[np.arange(8), split.y]) + 0.7 * 9 * entropy(
        softmax(v / 3, 1), softmax(z / 3, 1), axis=1
    )
    assert len(trace) == 1 and trace[0]["loss"] == pytest.approx(expected.mean(), rel=1e-5)
    assert all(map(torch.equal, student.parameters(), start.parameters())), "the student given is left as it is"


def test_teacher_runs_in_evaluation_mode_and_is_left_alone():
    workload = datasets.workload("noisy-digits-cnn")
    teacher = workload.trained().train()
    before = copy.deepcopy(teacher.state_dict())
    recipe = Recipe(epochs=1, batch=200)
    SoftLabelDistillation().train(workload.student(), workload.data(), recipe, teacher)
    assert teacher.training and all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_without_the_teachers_term_it_is_the_plain_recipe():
    workload = datasets.workload("digits-mlp")
    recipe = Recipe(epochs=2)
    plain = workload.student()
    recipe.train(plain, workload.data(), seed=5)
    technique = SoftLabelDistillation(weight=0.0)
    same, _ = technique.train(workload.student(), workload.data(), recipe, workload.trained(), seed=5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(same.parameters(), plain.parameters(), strict=True))


def test_wrong_input_is_named():
    workload = datasets.workload("digits-mlp")
    with pytest.raises(ValueError, match=r"teacher: expected a trained torch\.nn\.Module.*got NoneType"):
        SoftLabelDistillation().train(workload.student(), workload.data(), workload.recipe)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature: expected a positive number"):
            SoftLabelDistillation(temperature=temperature)
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="weight: expected a number from 0 to 1"):
            SoftLabelDistillation(weight=weight)
