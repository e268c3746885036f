"""A recurrent network that was trained on six of the nine speakers, to be adapted to all of them."""

from __future__ import annotations

from functools import cache

from torch import nn

from datasets.data import Data
from datasets.series import load
from datasets.workloads import vowels_gru
from datasets.workloads.base import Workload
from datasets.workloads.recipe import Recipe

KNOWN = 6
"""Speakers of the first training; the network has answers for all nine, three of which were never right."""


@cache
def before() -> Workload:
    """The network as it was before, with the recipe of the whole task on the utterances of those that it knew."""
    whole, recipe = load("japanese-vowels"), vowels_gru.workload().recipe
    splits = (split[split.y < KNOWN] for split in (whole.train, whole.validation, whole.test))
    return Workload("six-speakers-gru", vowels_gru.Speaker, Data("six-speakers", *splits, whole.classes), recipe)


def network() -> nn.Module:
    """The trained one: a start, not drawn."""
    return before().trained().train()


def workload() -> Workload:
    recipe = Recipe(epochs=20, batch=32, learning_rate=0.005, schedule="cosine")
    return Workload("new-speakers-gru", network, load("japanese-vowels"), recipe)
