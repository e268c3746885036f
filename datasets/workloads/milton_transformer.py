"""The transformer that was trained on Shakespeare's plays, to be adapted to a poem by Milton."""

from __future__ import annotations

from torch import nn

from datasets.text import load
from datasets.workloads import shakespeare_transformer
from datasets.workloads.recipe import Recipe
from datasets.workloads.transformer import NextCharacter, TextWorkload


def network() -> nn.Module:
    """The trained one: a start, not drawn."""
    return shakespeare_transformer.workload().trained().train()


def workload() -> TextWorkload:
    recipe = Recipe(epochs=3, batch=16, learning_rate=0.002, schedule="cosine", loss=NextCharacter())
    return TextWorkload("milton-transformer", network, load("milton"), recipe)
