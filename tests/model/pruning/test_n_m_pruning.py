"""N:M pruning: groups one by one, an update of SR-STE by hand, torch's own semi-structured layout."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import datasets
from kernels.implementation.sparsity.two_four_sparse import TwoFourSparse
from kernels.model.pruning.n_m_pruning import NMPruning, RandomNM, n_of_m
from kernels.model.transform import bake, layer_weights
from taxonomy.measure.figures import stored_bits


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))), st.integers(1, 3),
       st.integers(1, 12), st.integers(0, 99))  # fmt: skip
def test_each_group_keeps_its_largest(nm, rows, columns, seed):
    n, m = nm
    scores = torch.randint(0, 5, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    mask = n_of_m(scores, n, m)
    for row, kept in zip(scores.tolist(), mask.tolist(), strict=True):
        for start in range(0, columns, m):
            group = row[start : start + m]
            order = sorted(range(len(group)), key=lambda j, group=group: (-group[j], j))[:n]
            assert [j for j, one in enumerate(kept[start : start + m]) if one] == sorted(order)


def test_two_of_four_keeps_the_most_of_all_patterns():
    """Mishra et al.'s criterion: among the six patterns of a group, the one of the largest sum of magnitudes."""
    torch.manual_seed(0)
    groups = torch.randn(50, 4)
    kept = NMPruning().apply(nn.Linear(4, 50, bias=False))
    kept.parametrizations.weight.original.data = groups
    best = torch.stack([groups.abs()[:, list(pair)].sum(1) for pair in itertools.combinations(range(4), 2)]).amax(0)
    assert torch.allclose(kept.weight.abs().sum(1), best)


def test_the_kernel_for_two_of_four_takes_it_as_it_is():
    baked = bake(NMPruning().apply(cnn()))
    for layer, name in layer_weights(baked):
        matrix = getattr(layer, name).detach().flatten(1).numpy()
        assert (TwoFourSparse().prepare(matrix).to_dense() == matrix).all()


def test_one_update_is_the_papers_by_hand():
    weight = torch.tensor([[1.0, -4.0, 3.0, 0.5]])
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = weight.clone()
    pruned = NMPruning(decay=0.1).apply(layer)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert pruned(x).item() == -4 * 2 + 3 * 3
    (0.5 * pruned(x) ** 2).sum().backward()
    sgd = torch.optim.SGD(pruned.parameters(), lr=0.01)
    sgd.step()
    gradient = 1.0 * x  # the output is 1: dL/dw_tilde = 1 x, for the dropped weights, too
    dropped = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    expected = weight - 0.01 * (gradient + 0.1 * dropped * weight)
    assert torch.allclose(pruned.parametrizations.weight.original, expected)


def test_a_dropped_weight_can_come_back_unless_masks_are_fixed():
    def trained(masks):
        torch.manual_seed(0)
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([[1.0, 0.9]])
        pruned = NMPruning(n=1, m=2, masks=masks).apply(layer)
        sgd = torch.optim.SGD(pruned.parameters(), lr=0.1)
        for _ in range(30):  # the second input is the one that is asked for
            sgd.zero_grad()
            x = torch.randn(16, 2)
            ((pruned(x)[:, 0] - 2 * x[:, 1]) ** 2).mean().backward()
            sgd.step()
        return (pruned.weight != 0).tolist()

    assert trained("refined") == [[False, True]] and trained("fixed") == [[True, False]]


@pytest.mark.parametrize("masks", ["refined", "fixed"])
def test_the_pattern_survives_fine_tuning_and_the_input_is_untouched(masks):
    workload = datasets.workload("digits-mlp")
    data, network = workload.data(), workload.trained()
    before = copy.deepcopy(network.state_dict())
    pruned = NMPruning(n=1, m=4, masks=masks).apply(network, data)
    first = datasets.accuracy(pruned, data.validation)
    datasets.Recipe(epochs=3).train(pruned, data)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    baked = bake(pruned)
    for layer, name in layer_weights(baked):
        assert (getattr(layer, name) != 0).unflatten(1, (-1, 4)).sum(2).max() == 1
    x = torch.tensor(data.test.x)
    assert torch.equal(baked(x), pruned(x)) and datasets.accuracy(baked, data.validation) > first + 0.1


def test_what_is_stored_is_counted():
    pruned = NMPruning().apply(nn.Linear(10, 3, bias=False))
    assert stored_bits(pruned) == 3 * (2 + 2 + 2) * (32 + 2), "two groups of four and one of two"
    assert stored_bits(NMPruning(n=1, m=8, masks="fixed").apply(nn.Linear(16, 3, bias=False))) == 3 * 2 * 35


def test_by_chance_the_pattern_is_the_same_and_the_choice_is_not():
    network = cnn()
    rivals = [NMPruning().at_random(seed) for seed in (0, 0, 1)]
    assert rivals[0] == RandomNM(2, 4, seed=0)
    first, again, other = ([getattr(*p) != 0 for p in layer_weights(rival.apply(network))] for rival in rivals)
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))
    ours = [getattr(*p) != 0 for p in layer_weights(NMPruning().apply(network))]
    assert [m.sum() for m in first] == [m.sum() for m in ours]


def test_recurrent_layers_and_wrong_input():
    torch.manual_seed(0)
    memory, x = nn.GRU(4, 4), torch.randn(5, 2, 4)
    pruned = NMPruning(masks="fixed").apply(memory)
    assert torch.equal(bake(pruned)(x)[0], pruned(x)[0]) and (pruned.weight_hh_l0 == 0).float().mean() == 0.5
    for n, m in ((0, 4), (5, 4), (-1, 2)):
        with pytest.raises(ValueError, match="n, m: expected 1 <= n <= m"):
            NMPruning(n=n, m=m)
    with pytest.raises(ValueError, match="masks: expected one of refined, fixed"):
        NMPruning(masks="both")
    with pytest.raises(ValueError, match="decay: expected"):
        NMPruning(decay=float("nan"))
    with pytest.raises(ValueError, match=r"network: expected convolution.*ReLU has none"):
        NMPruning().apply(nn.ReLU())
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        NMPruning().at_random(0).apply(3)
