"""Magnitude pruning against torch.nn.utils.prune, and what must survive fine-tuning."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as oracle

import datasets
from kernels.model.pruning.magnitude_pruning import MagnitudePruning, RandomPruning, cubic_density
from kernels.model.pruning.mask import largest
from kernels.model.transform import bake, layer_weights


def masks(network):
    return [getattr(layer, name) != 0 for layer, name in layer_weights(network)]


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 1.0])
def test_masks_are_those_of_torch(density):
    network, theirs = cnn(), cnn()
    places = list(layer_weights(theirs))
    sizes = [getattr(*place).numel() for place in places]
    oracle.global_unstructured(
        places, pruning_method=oracle.L1Unstructured, amount=sum(sizes) - round(density * sum(sizes))
    )
    for ours, (layer, name) in zip(masks(MagnitudePruning(density).apply(network)), places, strict=True):
        assert torch.equal(ours, getattr(layer, f"{name}_mask").bool())
    theirs = cnn()
    for layer, name in layer_weights(theirs):
        size = getattr(layer, name).numel()
        oracle.l1_unstructured(layer, name, amount=size - round(density * size))
    assert all(map(torch.equal, masks(MagnitudePruning(density, scope="layer").apply(network)), masks(theirs)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, 1e-45, float("inf")]), max_size=30), st.integers(0, 30))
def test_exactly_as_many_as_asked_are_kept_and_ties_go_to_the_earlier(values, kept):
    kept = min(kept, len(values))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:kept]
    assert largest(torch.tensor(values), kept).nonzero().flatten().tolist() == sorted(expected)


def test_all_weights_equal_still_gives_the_exact_count():
    layer = nn.Linear(10, 10)
    nn.init.ones_(layer.weight)
    pruned = MagnitudePruning(0.13).apply(layer)
    assert pruned.weight.count_nonzero() == 13 and pruned.weight.flatten()[:13].all()


def test_values_that_are_kept_are_untouched_and_the_rest_is_positive_zero():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[float("nan"), float("-inf"), -3.0], [1e-45, -0.0, 2.0]])
    pruned = MagnitudePruning(0.5).apply(layer).weight.detach()
    assert pruned[0, 0].isnan() and pruned[0, 1:].tolist() == [float("-inf"), -3.0]
    assert pruned[1].tolist() == [0, 0, 0] and not pruned[1].signbit().any()


def test_the_input_is_untouched_and_only_weights_of_layers_are_pruned():
    network = cnn()
    before = copy.deepcopy(network.state_dict())
    pruned = MagnitudePruning(0.01).apply(network)
    assert network.state_dict().keys() == before.keys() and type(network[0]) is nn.Conv2d
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(pruned[0].bias, network[0].bias) and torch.equal(pruned[1].weight, network[1].weight)


@pytest.mark.parametrize("build", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_compute_with_the_masked_weights(build):
    torch.manual_seed(0)
    network, x = build(5, 4, num_layers=2), torch.randn(7, 3, 5)
    pruned = MagnitudePruning(0.3).apply(network)
    by_hand = copy.deepcopy(network)
    for (layer, name), mask in zip(layer_weights(by_hand), masks(pruned), strict=True):
        getattr(layer, name).data *= mask
    baked = bake(pruned)
    for form in (pruned, baked, copy.deepcopy(pruned)):
        assert torch.equal(form(x)[0], by_hand(x)[0])
    pruned(x)[0].sum().backward()
    gradient = pruned.parametrizations.weight_ih_l0.original.grad
    assert gradient.any() and not gradient[~masks(pruned)[0]].any()
    with torch.no_grad():
        baked.weight_ih_l0.zero_()
        by_hand.weight_ih_l0.zero_()
    assert torch.equal(baked(x)[0], by_hand(x)[0])


def test_masks_survive_fine_tuning_and_bake_keeps_what_the_network_computes():
    workload = datasets.workload("digits-mlp")
    data, network = workload.data(), workload.trained()
    pruned = MagnitudePruning(0.05).apply(network, data)
    before, chosen = datasets.accuracy(pruned, data.validation), masks(pruned)
    workload.recipe.finetune(pruned, data)
    assert datasets.accuracy(pruned, data.validation) > before + 0.2
    baked = bake(pruned)
    assert all(map(torch.equal, masks(baked), chosen))
    assert [*baked.state_dict()] == [*network.state_dict()] and type(baked[1]) is nn.Linear
    assert [*map(torch.numel, baked.parameters())] == [*map(torch.numel, network.parameters())]
    x = torch.tensor(data.test.x)
    assert torch.equal(baked(x), pruned(x))
    assert torch.equal(bake(pruned)(x), pruned(x)), "baking a second time must work"
    assert torch.equal(bake(baked)(x), baked(x)), "and so must baking what is plain"


def test_pruning_what_is_pruned_keeps_a_subset():
    twice = MagnitudePruning(0.1).apply(MagnitudePruning(0.4).apply(cnn()))
    assert all(map(torch.equal, masks(twice), masks(MagnitudePruning(0.1).apply(cnn()))))
    assert len(twice[0].parametrizations.weight) == 1


def test_gradual_pruning_ends_at_the_density_and_never_lets_a_weight_return():
    workload = datasets.workload("digits-mlp")
    history = []

    class Watch:
        fine_tuning = workload.recipe.fine_tuning

        def finetune(self, network, data, on_step, seed):
            def watched(step, network):
                on_step(step, network)
                history.append(torch.cat([mask.flatten() for mask in masks(network)]))

            return workload.recipe.finetune(network, data, on_step=watched, seed=seed)

    network, trace = MagnitudePruning(0.1).gradual(workload.trained(), workload.data(), Watch(), rounds=8)
    counts = [int(mask.sum()) for mask in history]
    total = len(history[0])
    assert len(trace) == len(history) == workload.recipe.fine_tuning.steps(workload.data())
    assert counts[0] == round(cubic_density(1, 8, 0.1) * total) and counts[-1] == round(0.1 * total)
    assert len(set(counts)) == 8 and counts[2 * len(counts) // 3] == counts[-1]
    assert not any((after & ~before).any() for before, after in pairwise(history))
    assert datasets.accuracy(network, workload.data().validation) > 0.85


def test_cubic_schedule_worked_by_hand():
    """Final sparsity 0.9 over 3 steps: 0.9 - 0.9 (2/3)^3, 0.9 - 0.9 (1/3)^3, 0.9."""
    assert [cubic_density(t, 3, 0.1) for t in (1, 2, 3)] == pytest.approx([1 - 0.9 * 19 / 27, 1 - 0.9 * 26 / 27, 0.1])


def test_random_pruning_has_the_same_strength_and_another_choice():
    network, technique = cnn(), MagnitudePruning(0.2, scope="layer")
    rivals = [technique.at_random(seed) for seed in (0, 0, 1)]
    assert rivals[0] == RandomPruning(0.2, "layer", seed=0)
    first, again, other = (masks(rival.apply(network)) for rival in rivals)
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))
    assert [m.sum() for m in first] == [m.sum() for m in masks(technique.apply(network))]


def test_wrong_input_is_named():
    with pytest.raises(
        ValueError, match=r"network: expected convolution, linear or recurrent layers.*Sequential has none"
    ):
        MagnitudePruning().apply(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        MagnitudePruning().apply(3)
    for density in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="density: expected 0 < density <= 1"):
            MagnitudePruning(density=density)
    with pytest.raises(ValueError, match="scope: expected one of global, layer, got 'filter'"):
        MagnitudePruning(scope="filter")
