"""The training protocol on a small task: equal starts, equal updates, and every pass metered."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from datasets import Data, Recipe, Split, Workload
from kernels.model.distillation.soft_label_distillation import SoftLabelDistillation
from taxonomy.measure.protocol import Case
from taxonomy.measure.protocols.training import _plain, protocol


def blobs(n, seed):
    random, y = np.random.default_rng(seed), np.arange(n) % 3
    return Split(random.normal(size=(n, 5)) + 2 * np.eye(5)[y], y)


WORKLOAD = Workload(
    "blobs",
    lambda: nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 3)),
    Data("blobs", blobs(90, 0), blobs(30, 1), blobs(300, 2), 3),
    Recipe(epochs=3, batch=32, learning_rate=0.05),
    student=lambda: nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 3)),
)
STUDENT, TEACHER = 5 * 2 + 2 * 3, 5 * 20 + 20 * 3


def quality(subject, network="student", seed=0):
    return protocol.quality(Case(SimpleNamespace(settings={"network": network}), {}, subject, WORKLOAD, {}, seed))


@pytest.fixture(scope="module")
def values():
    return quality(SoftLabelDistillation())


def test_every_pass_is_metered(values):
    """3 epochs of 90 items: a training pass three times the student's products, and the teacher's answers once."""
    items = 3 * 90
    assert values["self"]["training_macs"] == items * (3 * STUDENT + TEACHER)
    for who in ("baseline", "label-smoothing"):
        assert values[who]["training_macs"] == items * 3 * STUDENT
    assert {values[who]["steps"] for who in ("self", "baseline", "label-smoothing")} == {9}


def test_who_is_compared(values):
    assert set(values) == {"self", "baseline", "label-smoothing", "teacher"}
    assert values["self"]["macs"] == values["baseline"]["macs"] == STUDENT and values["teacher"]["macs"] == TEACHER
    assert values["self"]["parameters"] == STUDENT + 5 and values["teacher"]["parameters"] == TEACHER + 23
    assert set(protocol.metrics) <= set(values["self"])
    assert values["teacher"]["accuracy"] > 0.6


def test_deterministic_for_a_seed(values):
    torch.manual_seed(5)
    _plain.cache_clear()
    assert quality(SoftLabelDistillation()) == values
    assert quality(SoftLabelDistillation(), seed=1)["baseline"] != values["baseline"]


class Plain:
    """The recipe itself, as a technique: it must come out as its own baseline."""

    def train(self, network, data, recipe, teacher=None, *, seed=None):
        return network, recipe.train(network, data, seed=seed)


def test_the_plain_recipe_equals_its_baseline():
    for which in ("student", "network"):
        values = quality(Plain(), which)
        assert values["self"] == values["baseline"] and "teacher" not in values


def test_label_smoothing_is_the_known_loss(values):
    network = WORKLOAD.student(0)

    def loss(network, x, y):
        q = functional.log_softmax(network(x), 1)
        return -(0.9 * q[torch.arange(len(y)), y] + 0.1 * q.mean(1)).mean()

    WORKLOAD.recipe.train(network, WORKLOAD.data(), loss=loss, seed=0)
    x = torch.tensor(WORKLOAD.data().test.x)
    right = (network(x).argmax(1).numpy() == WORKLOAD.data().test.y).mean()
    assert values["label-smoothing"]["accuracy"] == pytest.approx(right, abs=0.005)


def test_trials_are_five_seeds():
    assert [t.seed for t in protocol.trials(None, {}, WORKLOAD)] == [0, 1, 2, 3, 4]
