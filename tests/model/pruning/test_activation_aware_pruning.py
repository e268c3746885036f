"""Wanda's ranking by hand, SparseGPT's repair against least squares, magnitude against torch.nn.utils.prune."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as oracle

import datasets
from datasets import Data, Split
from kernels.model.calibration import output_error
from kernels.model.pruning.activation_aware_pruning import (
    ActivationAwarePruning,
    PrunedWithoutLooking,
    lowest,
    sparse_columns,
)
from kernels.model.transform import bake

NOISY = datasets.workload("noisy-digits-cnn")


def data_of(x):
    split = Split(x.numpy(), torch.zeros(len(x), dtype=torch.int64).numpy())
    return Data("noise", split, split, split, 2)


def problem(seed, outputs=5, k=12, groups=1):
    torch.manual_seed(seed)
    rows = torch.randn(groups, 80, k).double() @ torch.randn(groups, k, k).double()
    return torch.randn(groups, outputs, k).double(), rows.mT @ rows / 80


def test_wanda_keeps_for_each_output_what_moves_it_most():
    torch.manual_seed(0)
    x = torch.randn(50, 8) * torch.logspace(-1, 1, 8)
    layer = nn.Linear(8, 6)
    ours = ActivationAwarePruning(0.25, "wanda").apply(nn.Sequential(layer), data_of(x))
    norms = [float(sum(value**2 for value in column) ** 0.5) for column in x.T.tolist()]
    for row, pruned in zip(layer.weight.tolist(), ours[0].weight.detach(), strict=True):
        scores = [abs(w) * n for w, n in zip(row, norms, strict=True)]
        kept = sorted(range(8), key=lambda j: -scores[j])[:2]
        assert sorted(pruned.nonzero().flatten().tolist()) == sorted(kept)
        assert all(pruned[j] == row[j] for j in kept)


def test_magnitude_is_that_of_torch():
    torch.manual_seed(0)
    layer = nn.Linear(10, 6)
    rival = ActivationAwarePruning(0.3, "wanda").rivals(0)["magnitude"].apply(nn.Sequential(layer), None)
    for row, pruned in zip(layer.weight.detach(), rival[0].weight, strict=True):
        single = nn.Linear(10, 1)
        single.weight.data = row[None].clone()
        oracle.l1_unstructured(single, "weight", amount=7)
        assert torch.equal(single.weight[0], pruned)
    blind = [PrunedWithoutLooking(0.3, seed).apply(nn.Sequential(layer), None)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(blind[0], blind[1]) and not torch.equal(blind[0], blind[2])
    assert ((blind[0] != 0).sum(1) == 3).all()


@pytest.mark.parametrize("block", [3, 12])
def test_repair_lies_between_least_squares_and_no_repair(block):
    """With the same mask, least squares is the best there is; the repair moves later columns only, and comes near."""
    for seed in range(5):
        weight, moment = problem(seed)
        repaired, mask = sparse_columns(weight, moment, 0.5, damping=1e-9, block=block)
        assert not repaired[~mask].any()
        plain = output_error(weight * mask - weight, moment)
        ours = output_error(repaired - weight, moment)
        best = torch.zeros(1).double()
        for row, kept in zip(weight[0], mask[0], strict=True):
            solved = torch.zeros_like(row)
            solved[kept] = torch.linalg.solve(moment[0][kept][:, kept], moment[0][kept] @ row)
            best += output_error((solved - row)[None, None], moment)
        assert best <= ours * 1.0001 and ours < plain


def test_the_mask_of_the_only_block_is_that_of_the_scores_and_the_density_holds():
    weight, moment = problem(7, groups=2)
    _, mask = sparse_columns(weight, moment, 0.4, damping=0.01)
    for g in range(2):
        damped = moment[g] + 0.01 * moment[g].diagonal().mean() * torch.eye(12)
        inverse = [torch.linalg.inv(damped[j:, j:])[0, 0] for j in range(12)]  # of what is left when j is settled
        scores = weight[g] ** 2 / torch.stack(inverse)
        threshold = scores.flatten().sort(descending=True).values[23]
        assert torch.equal(mask[g], scores >= threshold) and mask[g].sum() == 24
    _, mask = sparse_columns(weight, moment, 0.4, block=5)
    assert [int(mask[0, :, a:b].sum()) for a, b in ((0, 5), (5, 10), (10, 12))] == [10, 10, 4]


def test_with_everything_kept_nothing_changes():
    weight, moment = problem(1)
    repaired, mask = sparse_columns(weight, moment, 1.0)
    assert mask.all() and torch.equal(repaired, weight)


def test_uncorrelated_inputs_leave_nothing_to_repair():
    weight, _ = problem(2)
    diagonal = torch.diag(torch.rand(12).double() + 0.5)[None]
    repaired, mask = sparse_columns(weight, diagonal, 0.5, damping=0.0)
    assert torch.allclose(repaired, weight * mask)
    assert torch.equal(mask, lowest((weight**2 * diagonal.diagonal(dim1=1, dim2=2)[:, None]).flatten(1), 0.5, 1)
                       .reshape(weight.shape))  # fmt: skip


def test_a_network_without_training():
    data = NOISY.data()
    network, method = NOISY.trained(), ActivationAwarePruning(0.5, items=128)
    before = copy.deepcopy(network.state_dict())
    ours, again = method.apply(network, data), method.apply(network, data)
    rivals = {who: rival.apply(network, data) for who, rival in method.rivals(0).items()}
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    accuracy = {who: datasets.accuracy(n, data.validation) for who, n in {"self": ours, **rivals}.items()}
    assert accuracy["self"] > accuracy["magnitude"] + 0.05 > accuracy["blind"] + 0.05
    x = torch.tensor(data.test.x[:20])
    assert torch.equal(ours(x), again(x)) and torch.equal(bake(ours)(x), ours(x))
    weights = [bake(ours).get_submodule(path).weight for path in ("0", "3", "7", "12")]
    assert sum(int(w.count_nonzero()) for w in weights) <= sum(round(0.5 * w.numel()) for w in weights) + 2


def test_masks_hold_while_it_is_fine_tuned():
    data, recipe = NOISY.data(), datasets.Recipe(epochs=1)
    pruned = ActivationAwarePruning(0.5, items=64).apply(NOISY.trained(), data)
    zero = pruned.get_submodule("3").weight == 0
    recipe.train(pruned, data)
    assert not bake(pruned).get_submodule("3").weight[zero].any()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_recurrent_and_depthwise_layers(method):
    workload = datasets.workload("vowels-gru")
    pruned = ActivationAwarePruning(0.5, method).apply(workload.trained(), workload.data())
    assert datasets.accuracy(pruned, workload.data().validation) > 0.8
    assert (pruned.gru.weight_hh_l0 == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    torch.manual_seed(0)
    x = torch.randn(30, 4, 6, 6)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 4, 3, groups=2))
    pruned = ActivationAwarePruning(5 / 9, method).apply(network, data_of(x))
    kept = pruned[0].parametrizations.weight[0].mask.flatten(1).sum(1)
    assert (kept == 5).all() if method == "wanda" else (kept[0::2] + kept[1::2] == 10).all()


def test_wrong_parameters_and_layers_are_named():
    for parameters, name in (
        ({"density": 0}, "density"), ({"density": 1.1}, "density"), ({"method": "magnitude"}, "method"),
        ({"damping": -1}, "damping"), ({"block": 0}, "block"), ({"items": 0}, "items"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: expected"):
            ActivationAwarePruning(**parameters)
    with pytest.raises(ValueError, match=r"layer '1': expected .* got ConvTranspose1d"):
        ActivationAwarePruning().apply(
            nn.Sequential(nn.ReLU(), nn.ConvTranspose1d(1, 1, 2)), data_of(torch.ones(2, 1, 4))
        )
    with pytest.raises(ValueError, match="layer '0': moment: expected positive definite"):
        ActivationAwarePruning(damping=0.0).apply(nn.Sequential(nn.Linear(4, 2)), data_of(torch.ones(8, 4)))
