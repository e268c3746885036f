"""Two hidden layers on 8 x 8 digits: trains in about a second."""

from __future__ import annotations

from torch import nn

from datasets.data import load
from datasets.workloads.base import Workload
from datasets.workloads.recipe import Recipe


def network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


def student() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def workload() -> Workload:
    recipe = Recipe(epochs=40, batch=32, learning_rate=0.005)
    return Workload("digits-mlp", network, load("digits"), recipe, student, committed=True)
