"""Scores before training against derivatives taken another way, and a law of conservation."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

import datasets
from datasets import Recipe
from kernels.model.pruning.masked_training import GradualMagnitude, RandomMask, joined, mask_by, tightening
from kernels.model.pruning.pruning_at_initialisation import PruningAtInitialisation, grasp, snip, synflow
from kernels.model.transform import bake, layer_weights


def mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, 5, generator=generator, dtype=dtype), torch.randint(0, 3, (9,), generator=generator)


def loss_of(network, changes, x, y):
    """The loss with other values of the first and the last weight."""
    names = ("0.weight", "2.weight")
    return functional.cross_entropy(functional_call(network, dict(zip(names, changes, strict=True)), (x,)), y)


def numerically(function, tensors, step=1e-5):
    """Central differences in every element."""
    found = []
    for k, tensor in enumerate(tensors):
        derivative = torch.zeros_like(tensor)
        for i in range(tensor.numel()):
            values = []
            for sign in (1, -1):
                changed = [t.clone() for t in tensors]
                changed[k].view(-1)[i] += sign * step
                values.append(function(changed).item())
            derivative.view(-1)[i] = (values[0] - values[1]) / (2 * step)
        found.append(derivative)
    return found


def test_snip_is_the_derivative_by_a_connections_strength():
    network, (x, y) = mlp(), batch()
    weights = [network[i].weight.detach() for i in (0, 2)]
    strengths = [torch.ones_like(w) for w in weights]
    derivatives = numerically(
        lambda c: loss_of(network, [w * k for w, k in zip(weights, c, strict=True)], x, y), strengths
    )
    for ours, theirs in zip(snip(network, x, y), derivatives, strict=True):
        assert torch.allclose(ours, theirs.abs(), atol=1e-8)


def test_grasp_is_what_the_flow_of_gradients_loses_per_weight():
    """The flow g·g by central differences, of a gradient that autograd gives: twice H g, times the weight, halved."""
    network, (x, y) = mlp(), batch()
    weights = [network[i].weight.detach() for i in (0, 2)]

    def flow(changed):
        changed = [w.requires_grad_() for w in changed]
        network_loss = functional.cross_entropy(
            functional_call(network, dict(zip(("0.weight", "2.weight"), changed, strict=True)), (x,)) / 3.0, y
        )
        return sum((g**2).sum() for g in torch.autograd.grad(network_loss, changed))

    derivatives = numerically(flow, weights)
    for ours, w, theirs in zip(grasp(network, x, y, temperature=3.0), weights, derivatives, strict=True):
        assert torch.allclose(ours, w * theirs / 2, atol=1e-8)


def test_flow_of_two_linear_layers_worked_by_hand():
    """1ᵀ |W2| |W1| 1: the score of a weight is itself times what comes in times what goes out."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    first, second = (layer.weight.detach().abs() for layer in network)
    expected = first * second.sum(0)[:, None], second * first.sum(1)[None, :]
    for ours, theirs in zip(synflow(network, (3,), density=1.0, rounds=1), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)


def test_flow_is_conserved_through_convolution_norm_and_pooling():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False),
    )  # fmt: skip
    sums = [float(s.sum()) for s in synflow(network, (1, 8, 8), density=1.0, rounds=1)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-9) and sums[1] == pytest.approx(sums[2], rel=1e-9)


def test_many_rounds_of_flow_leave_every_layer_some_weights_and_one_round_does_not():
    """A wide layer's weights each carry little, so a single cut to very few takes all of it: layer collapse."""
    torch.manual_seed(0)
    widths = (20, 100, 100, 4)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    network = nn.Sequential(*layers)
    data = datasets.Data("hand", *[datasets.Split(torch.randn(8, 20).numpy(), torch.arange(8).numpy() % 4)] * 3, 4)

    def left(rounds):
        masked = PruningAtInitialisation(0.002, "synflow", rounds=rounds).mask(network, data)
        return [int(getattr(*place).count_nonzero()) for place in layer_weights(masked)]

    assert min(left(100)) > 0 and min(left(1)) == 0


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
def test_the_mask_is_exact_holds_while_training_and_the_input_is_untouched(score):
    digits = datasets.workload("digits-mlp")
    data, network = digits.data(), digits.network()
    before = copy.deepcopy(network.state_dict())
    technique = PruningAtInitialisation(0.4, score, items=64, rounds=20)
    trained, trace = technique.train(network, data, Recipe(epochs=8), seed=1)
    assert network.training and all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    chosen = [getattr(*place) != 0 for place in layer_weights(technique.mask(network, data, seed=1))]
    assert sum(int(mask.sum()) for mask in chosen) == round(0.4 * sum(mask.numel() for mask in chosen))
    for (layer, name), mask in zip(layer_weights(bake(trained)), chosen, strict=True):
        assert not getattr(layer, name)[~mask].any()
    _, same = technique.train(network, data, Recipe(epochs=8), seed=1)
    assert trace == same and len(trace) == Recipe(epochs=8).steps(data)
    assert datasets.accuracy(trained, data.validation) > 0.7


def test_a_batch_norms_statistics_are_not_touched_by_scoring():
    noisy = datasets.workload("noisy-digits-cnn")
    masked = PruningAtInitialisation(0.5).mask(noisy.network(), noisy.data())
    norm = next(layer for layer in masked.modules() if isinstance(layer, nn.BatchNorm2d))
    assert not norm.running_mean.any() and int(norm.num_batches_tracked) == 0


def test_at_full_density_it_is_the_plain_recipe_to_the_last_bit():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=2)
    plain = digits.network()
    trace = recipe.train(plain, digits.data(), seed=5)
    for technique in (PruningAtInitialisation(1.0), RandomMask(1.0), GradualMagnitude(1.0)):
        trained, same = technique.train(digits.network(), digits.data(), recipe, seed=5)
        assert trace == same and torch.equal(bake(trained)[1].weight, plain[1].weight)


def test_contestants_have_the_same_strength_and_the_same_number_of_updates():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=3)
    technique = PruningAtInitialisation(0.2, scope="layer")
    assert technique.random() == RandomMask(0.2, "layer") and technique.magnitude() == GradualMagnitude(0.2, "layer")
    for contestant in (technique.random(), technique.magnitude()):
        network, trace = contestant.train(digits.network(), digits.data(), recipe, seed=2)
        assert [int(getattr(*place).count_nonzero()) for place in layer_weights(network)] == [819, 410, 64]
        assert len(trace) == recipe.steps(digits.data())


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 1000])
def test_tightening_ends_at_the_density_and_leaves_time_to_heal(steps):
    due = [tightening(steps, 0.1)(step) for step in range(steps)]
    given = [density for density in due if density is not None]
    assert given[-1] == pytest.approx(0.1) and given == sorted(given, reverse=True) and len(given) <= 10
    assert steps < 10 or all(density is None for density in due[2 * steps // 3 + 1 :])


def test_joined_counts_through_and_masks_follow_given_scores():
    assert [u["step"] for u in joined([{"step": 0}, {"step": 1}], [{"step": 0}])] == [0, 1, 2]
    network = mlp()
    scores = [torch.rand(getattr(*place).shape) for place in layer_weights(network)]
    mask_by(network, scores, 0.3)
    kept = torch.cat([getattr(*place).flatten() for place in layer_weights(network)]) != 0
    together = torch.cat([s.flatten() for s in scores])
    assert kept.sum() == round(0.3 * len(kept)) and together[kept].min() >= together[~kept].max()


def test_wrong_input_is_named():
    for options, word in (
        ({"density": 0.0}, "density: expected 0 < density <= 1"),
        ({"score": "size"}, "score: expected one of snip, grasp, synflow, got 'size'"),
        ({"scope": "filter"}, "scope: expected one of global, layer"),
        ({"rounds": 0}, "items, rounds: expected at least 1 of each"),
    ):
        with pytest.raises(ValueError, match=word):
            PruningAtInitialisation(**options)
    vowels = datasets.workload("vowels-gru")
    for score, what in (("grasp", "gradient flow"), ("synflow", "synaptic flow")):
        with pytest.raises(ValueError, match=rf"layers that {what} is defined for, layer \w+ is GRU"):
            PruningAtInitialisation(0.5, score).mask(vowels.network(), vowels.data())
    with pytest.raises(ValueError, match="layers to prune; Sequential has none"):
        snip(nn.Sequential(nn.ReLU()), *batch())
