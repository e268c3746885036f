"""A causal transformer of two layers that reads 64 characters of plays and predicts the next."""

from __future__ import annotations

from torch import nn

from datasets.text import ALPHABET, load
from datasets.workloads.recipe import Recipe
from datasets.workloads.transformer import NextCharacter, TextWorkload, Transformer


def network() -> nn.Module:
    return Transformer(len(ALPHABET), width=64, layers=2, heads=4, hidden=256)


def student() -> nn.Module:
    return Transformer(len(ALPHABET), width=32, layers=1, heads=2, hidden=128)


def workload() -> TextWorkload:
    recipe = Recipe(epochs=4, batch=16, learning_rate=0.005, loss=NextCharacter())
    return TextWorkload("shakespeare-transformer", network, load("shakespeare"), recipe, student, committed=True)
