"""A small convolutional network on few, noisy 8 x 8 digits: hard by design, so that differences show."""

from __future__ import annotations

from torch import nn

from datasets.data import load
from datasets.workloads.base import Workload
from datasets.workloads.recipe import Recipe


def network(*widths: int) -> nn.Module:
    a, b = widths or (16, 32)
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
        nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * b, 10),
    )  # fmt: skip


def student() -> nn.Module:
    return network(4, 8)


def workload() -> Workload:
    recipe = Recipe(epochs=20, batch=32, learning_rate=0.005)
    return Workload("noisy-digits-cnn", network, load("noisy-digits"), recipe, student, committed=True)
