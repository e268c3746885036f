"""A small recurrent network that tells nine speakers by two vowels: 29 steps of twelve coefficients."""

from __future__ import annotations

from torch import Tensor, nn

from datasets.series import load
from datasets.workloads.base import Workload
from datasets.workloads.recipe import Recipe


class Speaker(nn.Module):
    """A gated recurrent unit over the steps; its last state is classified."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.gru = nn.GRU(12, width, batch_first=True)
        self.classifier = nn.Linear(width, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.gru(x)[0][:, -1])


def student() -> nn.Module:
    return Speaker(16)


def workload() -> Workload:
    recipe = Recipe(epochs=40, batch=32, learning_rate=0.005)
    return Workload("vowels-gru", Speaker, load("japanese-vowels"), recipe, student, committed=True)
