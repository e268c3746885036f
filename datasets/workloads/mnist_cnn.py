"""A small convolutional network with batch norm on 28 x 28 handwritten digits."""

from __future__ import annotations

from torch import nn

from datasets.data import load
from datasets.workloads.base import Workload
from datasets.workloads.recipe import Recipe


def network(*widths: int) -> nn.Module:
    a, b, c = widths or (16, 32, 32)
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(b, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(9 * c, 10),
    )  # fmt: skip


def student() -> nn.Module:
    return network(4, 8, 8)


def workload() -> Workload:
    recipe = Recipe(epochs=3, batch=32, learning_rate=0.01)
    return Workload("mnist-cnn", network, load("mnist"), recipe, student, committed=True)
