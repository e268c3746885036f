"""The ternary rule against the best of all ternary tensors; one update against the papers' equations by hand."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn.utils import parametrize

import datasets
from datasets import Data, Recipe, Split
from kernels.model.quantization.ternary_weights import TernaryWeights, ternarize
from kernels.model.transform import bake


def best(w):
    """The least squared distance of a scaled ternary vector: of all 3^n vectors, each with its best scale."""
    errors = []
    for t in itertools.product((-1.0, 0.0, 1.0), repeat=len(w)):
        t = np.array(t)
        scale = max(0.0, w @ t / max(1.0, t @ t))
        errors.append(((w - scale * t) ** 2).sum())
    return min(errors)


def by_sorting(w):
    """The same, of many weights: the k largest magnitudes pass, for the best k (Li et al. 2016, section 2)."""
    largest = np.cumsum(np.sort(np.abs(w))[::-1])
    return (w**2).sum() - (largest**2 / np.arange(1, len(w) + 1)).max()


def test_sorting_finds_what_trying_all_finds():
    for seed in range(20):
        w = np.random.default_rng(seed).normal(size=7)
        assert by_sorting(w) == pytest.approx(best(w), rel=1e-12)


@pytest.mark.parametrize("per", ["layer", "filter"])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.4])
def test_codes_and_scale_are_the_equation(threshold, per):
    w = np.random.default_rng(1).standard_t(4, size=(5, 3, 2, 2))
    codes, scale = ternarize(torch.tensor(w), threshold, per)
    for i, group in enumerate([w] if per == "layer" else w):
        border = threshold * sum(abs(x) for x in group.flat) / group.size
        passing = [abs(x) for x in group.flat if abs(x) > border]
        mine, a = (codes, scale.item()) if per == "layer" else (codes[i], scale[i].item())
        assert a == pytest.approx(sum(passing) / len(passing), rel=1e-12)
        assert mine.flatten().tolist() == [0.0 if abs(x) <= border else np.sign(x) for x in group.flat]
        found = minimize_scalar(lambda s, g=group, t=mine: ((g - s * t.numpy()) ** 2).sum(), bounds=(0, 9))
        assert a == pytest.approx(found.x, rel=1e-5), "no scale is nearer"


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_the_rule_comes_close_to_the_best_threshold(draw):
    """For weights spread normally or evenly, and not for a threshold that is twice as high, or none."""
    w = getattr(np.random.default_rng(2), draw)(-1, 1, 20_000)
    w -= w.mean()

    def distance(threshold):
        codes, scale = ternarize(torch.tensor(w), threshold)
        return ((w - (codes * scale).numpy()) ** 2).sum() / by_sorting(w)

    assert 1 <= distance(0.7) < 1.01
    assert distance(1.4) > 1.1 and distance(0.0) > 1.1


def test_without_a_threshold_weights_are_binary():
    """Rastegari et al. 2016: sign times the mean magnitude, a zero as a plus."""
    codes, scale = ternarize(torch.tensor([0.5, -1.0, 0.0, -0.5]), threshold=0.0)
    assert codes.tolist() == [1.0, -1.0, 1.0, -1.0] and scale.item() == 0.5


def test_weights_that_are_all_zero_stay_so():
    for threshold in (0.0, 0.7):
        codes, scale = ternarize(torch.zeros(2, 3), threshold, "filter")
        assert (codes * scale).tolist() == [[0.0] * 3] * 2


def one_update(technique, scale_of):
    """A linear network, one batch: AdamW's first step moves by the rate against the sign of the gradient."""
    random = np.random.default_rng(3)
    split = Split(random.normal(size=(8, 6)).astype(np.float32), random.integers(0, 4, 8))
    recipe = Recipe(epochs=1, batch=8, learning_rate=1e-3, weight_decay=0.0, schedule="constant")
    network = nn.Linear(6, 4)
    start = copy.deepcopy(network)
    trained, trace = technique.train(network, Data("hand", split, split, split, 4), recipe)
    w, b = (p.detach().double().numpy() for p in start.parameters())
    ternary, share = scale_of(w)
    z = split.x @ ternary.T + b
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    in_logits = (q - np.eye(4)[split.y]) / 8
    assert trace[0]["loss"] == pytest.approx(-np.log(q[np.arange(8), split.y]).mean(), rel=1e-5)
    assert all(map(torch.equal, network.parameters(), start.parameters())), "the network given is left as it is"
    gradient = in_logits.T @ split.x
    below = trained.parametrizations.weight.original.detach().numpy()
    step = share * gradient
    assert np.allclose(below, w - 1e-3 * step / (np.abs(step) + 1e-8), atol=1e-6)
    return trained, ternary, gradient


def test_one_update_goes_straight_through():
    def fitted(w):
        passes = np.abs(w) > 0.7 * np.abs(w).mean()
        return np.sign(w) * passes * np.abs(w[passes]).mean(), 1.0

    one_update(TernaryWeights(), fitted)


def test_one_update_of_trained_scales():
    """Zhu et al. 2017: the scales' gradients are sums over their weights, each weight's is times its scale."""
    start = {}

    def trained(w):
        a = np.abs(w[np.abs(w) > 0.7 * np.abs(w).mean()]).mean()
        border = 0.05 * np.abs(w).max()
        start["up"], start["down"], start["a"] = w > border, w < -border, a
        return a * (start["up"].astype(float) - start["down"]), np.where(np.abs(w) > border, a, 1.0)

    network, _, gradient = one_update(TernaryWeights(0.05, "trained"), trained)
    scales = network.parametrizations.weight[0]
    for scale, total in ((scales.up, gradient[start["up"]].sum()), (scales.down, -gradient[start["down"]].sum())):
        assert scale.item() == pytest.approx(start["a"] - 1e-3 * np.sign(total), abs=1e-6)


@pytest.mark.parametrize(
    "technique", [TernaryWeights(), TernaryWeights(0.05, "trained"), TernaryWeights(per="filter")], ids=str
)
def test_a_trained_network_is_ternary_and_knows_its_digits(technique):
    digits = datasets.workload("digits-mlp")
    network, _ = technique.train(digits.network(), digits.data(), Recipe(epochs=10))
    baked = bake(network)
    for layer in (baked[1], baked[3], baked[5]):
        for row in layer.weight if technique.per == "filter" else [layer.weight]:
            assert len(row.unique()) <= 3 and row.min() < 0 < row.max()
    x = torch.tensor(digits.data().validation.x)
    assert torch.equal(baked(x), network(x))
    assert datasets.accuracy(baked, digits.data().validation) > 0.9


def test_recurrent_layers_become_ternary():
    workload = datasets.workload("vowels-gru")
    network, _ = TernaryWeights().train(workload.network(), workload.data(), Recipe(epochs=1))
    gru = next(layer for layer in bake(network).modules() if isinstance(layer, nn.GRU))
    assert len(gru.weight_ih_l0.unique()) == len(gru.weight_hh_l0.unique()) == 3


def test_afterwards_it_is_the_plain_recipe_to_the_last_bit():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=2)
    plain = digits.network()
    trace = recipe.train(plain, digits.data(), seed=5)
    after, same = TernaryWeights().afterwards().train(digits.network(), digits.data(), recipe, seed=5)
    assert trace == same
    for mine, w in ((after[1].weight, plain[1].weight), (after[5].weight, plain[5].weight)):
        codes, scale = ternarize(w.detach())
        assert torch.equal(mine, codes * scale)


@pytest.mark.parametrize(
    ("technique", "width", "scales"),
    [
        (TernaryWeights(), 2, 1),
        (TernaryWeights(threshold=0.0), 1, 1),
        (TernaryWeights(per="filter"), 2, "filters"),
        (TernaryWeights(0.05, "trained"), 2, 2),
    ],
    ids=str,
)
def test_bits_are_those_of_packed_codes(technique, width, scales):
    """Counted by packing: the codes of each weight as bits, in numpy, and its scales as an FP32 array."""
    network = technique.constrain(datasets.workload("noisy-digits-cnn").network())
    layers = [layer for layer in network.modules() if parametrize.is_parametrized(layer)]
    assert [layer.weight.numel() for layer in layers] == [144, 4608, 9216, 1280]
    for layer in layers:
        codes = np.sign(layer.weight.detach().numpy()).astype(int).ravel() + 1
        packed = sum(np.packbits(plane).nbytes for plane in [(codes // 2) & 1, codes & 1][:width])
        count = len(layer.weight) if scales == "filters" else scales
        bits = 8 * (packed + np.zeros(count, np.float32).nbytes)
        assert layer.parametrizations.weight[0].stored_bits(layer.weight) == bits


def test_wrong_input_is_named():
    for options, word in (
        ({"threshold": -0.1}, "threshold: expected a number of at least 0"),
        ({"threshold": float("nan")}, "threshold: expected a number of at least 0"),
        ({"scales": "learned"}, "scales: expected fitted or trained, got 'learned'"),
        ({"per": "row"}, "per: expected layer or filter"),
        ({"scales": "trained", "threshold": 1.0}, "trained scales expect a threshold between 0 and 1"),
        ({"scales": "trained", "threshold": 0.1, "per": "filter"}, "trained scales expect"),
    ):
        with pytest.raises(ValueError, match=word):
            TernaryWeights(**options)
    with pytest.raises(ValueError, match=r"layers; ReLU has none$"):
        TernaryWeights().constrain(nn.ReLU())
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w: expected finite weights"):
            ternarize(torch.tensor([1.0, bad]))
        layer = TernaryWeights(0.05, "trained").constrain(nn.Linear(2, 1))
        with torch.no_grad():
            layer.parametrizations.weight.original[0, 0] = bad
        with pytest.raises(ValueError, match="w: expected finite weights"):
            layer(torch.ones(1, 2))
