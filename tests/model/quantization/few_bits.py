"""One update by hand, shared by the tests of networks that learn with few bits."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from datasets import Data, Recipe, Split

RATE = 1e-3


def batch(seed=3, inputs=6, classes=4):
    """One batch as a data set, and the recipe of a single update on it."""
    random = np.random.default_rng(seed)
    split = Split(random.normal(size=(8, inputs)).astype(np.float32), random.integers(0, classes, 8))
    recipe = Recipe(epochs=1, batch=8, learning_rate=RATE, weight_decay=0.0, schedule="constant")
    return Data("hand", split, split, split, classes), recipe


def adam(value, gradient):
    """AdamW's first step moves by the rate against the sign of the gradient."""
    return value - RATE * gradient / (np.abs(gradient) + 1e-8)


def logits_gradient(z, y):
    """Of the mean cross-entropy, with respect to the logits."""
    q = np.exp(z - z.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    return (q - np.eye(z.shape[1])[y]) / len(z)


def chain(seed=0):
    """Three linear layers with rectifiers, the smallest network that has a layer between its ends."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))


def trained_leaves_alone(technique, network=None):
    """Train by one batch; the network given is left as it is, and the same seed gives the same network."""
    data, recipe = batch()
    network = chain() if network is None else network
    start = copy.deepcopy(network)
    first, trace = technique.train(network, data, recipe, seed=1)
    again, same = technique.train(network, data, recipe, seed=1)
    assert all(map(torch.equal, network.parameters(), start.parameters()))
    assert [type(m) for m in network.modules()] == [type(m) for m in start.modules()]
    assert trace == same and all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert not first.training
    return first, trace
