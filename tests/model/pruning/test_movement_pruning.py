"""Movement pruning: scores are sums of the paper's gradients, worked out update by update without autograd's help."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

import datasets
from datasets import Data, Recipe, Split
from kernels.model.pruning.masked_training import GradualMagnitude, RandomMask
from kernels.model.pruning.movement_pruning import MovementPruning
from kernels.model.transform import bake, layer_weights


def sgd(parameters, lr, weight_decay):
    return torch.optim.SGD(parameters, lr=lr)


def linear():
    torch.manual_seed(0)
    split = Split(torch.randn(6, 8).numpy(), torch.randint(0, 4, (6,)).numpy())
    return nn.Linear(8, 4).double(), Data("hand", split, split, split, 4)


class Doubled(nn.Module):
    """The same in float64, so that sums over many updates can be compared."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.double())


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_scores_sum_up_what_pushes_weights_away_from_zero(density):
    layer, data = linear()
    recipe = Recipe(epochs=12, batch=6, schedule="constant", learning_rate=0.5, weight_decay=0.0, optimizer=sgd)
    network, trace = MovementPruning(density, begin=0.2).train(Doubled(layer), data, recipe)

    x, y = data.train.x.astype(float), data.train.y
    w, b = (p.detach().numpy().copy() for p in layer.parameters())
    mask, score = np.ones_like(w), np.zeros_like(w)
    first, last = int(0.2 * 12), int(2 / 3 * 12)
    for step in range(12):
        q = softmax(x @ (w * mask).T + b, axis=1)
        assert trace[step]["loss"] == pytest.approx(-np.log(q[np.arange(6), y]).mean(), rel=1e-6)
        in_logits = (q - np.eye(4)[y]) / 6
        gradient = in_logits.T @ x
        score -= 0.5 * gradient * w
        w -= 0.5 * gradient * mask
        b -= 0.5 * in_logits.sum(0)
        left = min(max(step + 1 - first, 0), last - first) / (last - first)
        kept = round((density + (1 - density) * (1 - left) ** 3) * w.size)
        mask = np.zeros_like(w)
        mask.flat[np.argsort(-score.ravel(), kind="stable")[:kept]] = 1
    found = network.layer.parametrizations.weight[0]
    assert np.allclose(found.scores.detach().numpy(), score, atol=1e-9)
    assert np.array_equal(found.mask.numpy(), mask.astype(bool)) and mask.sum() == round(density * w.size)
    assert np.allclose(network.layer.weight.detach().numpy(), w * mask, atol=1e-9)


def test_a_large_weight_that_shrinks_goes_and_a_small_one_that_grows_stays():
    """Magnitude would choose the other way round: that is the point."""
    x = np.tile(np.eye(2, dtype=np.float32), (8, 1))
    split = Split(x, np.tile([0, 1], 8))
    data = Data("hand", split, split, split, 2)
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.2, 2.0], [2.0, 0.2]]))
    recipe = Recipe(epochs=6, batch=16, learning_rate=0.1, weight_decay=0.0, optimizer=sgd)
    moved, _ = MovementPruning(0.5).train(layer, data, recipe)
    largest, _ = GradualMagnitude(0.5).train(layer, data, recipe)
    assert torch.equal(moved.weight != 0, torch.eye(2, dtype=torch.bool))
    assert torch.equal(largest.weight != 0, ~torch.eye(2, dtype=torch.bool))
    assert datasets.accuracy(moved, split) == 1.0


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_count_is_exact_the_input_untouched_and_baking_leaves_no_scores(scope):
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=6)
    start, data = digits.network(), digits.data()
    before = copy.deepcopy(start.state_dict())
    technique = MovementPruning(0.25, scope=scope)
    network, trace = technique.train(start, data, recipe, seed=1)
    baked = bake(network)
    counts = [int(getattr(*place).count_nonzero()) for place in layer_weights(baked)]
    assert sum(counts) == 1616 and (scope == "global" or counts == [1024, 512, 80])
    assert [*baked.state_dict()] == [*before]
    assert all(torch.equal(start.state_dict()[key], value) for key, value in before.items())
    _, same = technique.train(start, data, recipe, seed=1)
    assert trace == same and datasets.accuracy(baked, data.validation) > 0.8


def test_at_full_density_it_is_the_plain_recipe():
    """Scores learn, but select nothing."""
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=2)
    plain = digits.network()
    recipe.train(plain, digits.data(), seed=5)
    network, _ = MovementPruning(1.0).train(digits.network(), digits.data(), recipe, seed=5)
    assert torch.allclose(bake(network)[1].weight, plain[1].weight, atol=1e-6)


def test_wrong_input_is_named():
    for options, word in (
        ({"density": 1.5}, "density: expected 0 < density <= 1"),
        ({"begin": 0.7}, "begin: expected 0 <= begin < 2/3"),
        ({"scope": "filter"}, "scope: expected one of global, layer"),
    ):
        with pytest.raises(ValueError, match=word):
            MovementPruning(**options)
    with pytest.raises(ValueError, match="layers; ReLU has none"):
        MovementPruning().train(nn.ReLU(), linear()[1], Recipe(epochs=1))
    technique = MovementPruning(0.3)
    assert technique.random() == RandomMask(0.3) and technique.magnitude() == GradualMagnitude(0.3)
