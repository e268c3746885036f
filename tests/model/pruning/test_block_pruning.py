"""Block pruning: blocks one by one, magnitude pruning where a block is one weight, the kernel that skips blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import datasets
from kernels.implementation.sparsity.block_sparse import BlockSparse
from kernels.model.pruning.block_pruning import BlockPruning, RandomBlocks, block_scores
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake, layer_weights
from taxonomy.measure.figures import stored_bits


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


@pytest.mark.parametrize("rows, columns", [(1, 4), (4, 1), (3, 5), (16, 16)])
def test_scores_are_those_of_blocks_taken_one_by_one(rows, columns):
    torch.manual_seed(0)
    weight = torch.randn(7, 2, 3, 3)
    scores, matrix = block_scores(weight, rows, columns), weight.reshape(7, 18)
    assert scores.shape == (-(-7 // rows), -(-18 // columns))
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            block = matrix[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            assert scores[i, j].item() == pytest.approx((block**2).mean().sqrt().item())


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_blocks_of_one_weight_are_magnitude_pruning(density):
    ours, theirs = BlockPruning(density, rows=1).apply(cnn()), MagnitudePruning(density).apply(cnn())
    for (layer, name), (other, _) in zip(layer_weights(ours), layer_weights(theirs), strict=True):
        assert torch.equal(getattr(layer, name), getattr(other, name))


@pytest.mark.parametrize("rows, columns", [(4, 1), (1, 8), (5, 3)])
def test_blocks_stay_and_go_whole_and_the_strongest_stay(rows, columns):
    pruned = BlockPruning(0.3, rows, columns).apply(cnn())
    kept_scores, lost_scores, kept = [], [], 0
    for layer, name in layer_weights(pruned):
        original = layer.parametrizations.weight.original.detach()
        mask = (getattr(layer, name) != 0).flatten(1)
        scores = block_scores(original, rows, columns)
        for i in range(scores.shape[0]):
            for j in range(scores.shape[1]):
                block = mask[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                assert block.all() or not block.any()
                (kept_scores if block.all() else lost_scores).append(scores[i, j])
                kept += bool(block.all())
    assert min(kept_scores) >= max(lost_scores) and kept == round(0.3 * (len(kept_scores) + len(lost_scores)))


def test_the_kernel_for_blocks_stores_no_zero():
    pruned = bake(BlockPruning(0.2, rows=8).apply(datasets.workload("digits-mlp").trained()))
    for layer in (pruned[1], pruned[3]):
        matrix = layer.weight.detach().numpy()
        prepared = BlockSparse(rows=8, columns=1).prepare(matrix)
        assert (prepared.to_dense() == matrix).all() and (prepared.values != 0).all()


def test_what_is_stored_is_counted():
    pruned = BlockPruning(0.5, rows=4).apply(nn.Linear(6, 8, bias=False))
    assert stored_bits(pruned) == 32 * (6 * 4) + 2 * 6
    edge = BlockPruning(1.0, rows=4, columns=4).apply(nn.Linear(5, 5, bias=False))
    assert stored_bits(edge) == 32 * 25 + 2 * 2


def test_blocks_survive_fine_tuning_and_the_input_is_untouched():
    workload = datasets.workload("digits-mlp")
    data, network = workload.data(), workload.trained()
    before = copy.deepcopy(network.state_dict())
    pruned = BlockPruning(0.15, rows=4).apply(network, data)
    first, zero = datasets.accuracy(pruned, data.validation), pruned[1].weight == 0
    datasets.Recipe(epochs=3).train(pruned, data)
    baked, x = bake(pruned), torch.tensor(data.test.x)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(baked(x), pruned(x)) and not baked[1].weight[zero].any()
    assert datasets.accuracy(baked, data.validation) > first + 0.1


def test_by_chance_as_many_blocks_and_others():
    rivals = [BlockPruning(0.25, rows=4).at_random(seed) for seed in (0, 0, 1)]
    assert rivals[0] == RandomBlocks(0.25, 4, 1, seed=0)
    first, again, other = (
        torch.cat([(getattr(*p) != 0).flatten() for p in layer_weights(r.apply(cnn()))]) for r in rivals
    )
    ours = BlockPruning(0.25, rows=4).apply(cnn())
    assert torch.equal(first, again) and not torch.equal(first, other)
    counts = [sum(int(block_scores(getattr(*p), 4, 1).count_nonzero()) for p in layer_weights(n))
              for n in (ours, rivals[0].apply(cnn()))]  # fmt: skip
    assert counts[0] == counts[1]


def test_recurrent_layers_and_wrong_input():
    torch.manual_seed(0)
    memory, x = nn.LSTM(4, 4), torch.randn(5, 2, 4)
    pruned = BlockPruning(0.5, rows=4).apply(memory)
    assert torch.equal(bake(pruned)(x)[0], pruned(x)[0])
    for density in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="density: expected 0 < density <= 1"):
            BlockPruning(density=density)
    for shape in ({"rows": 0}, {"columns": -1}):
        with pytest.raises(ValueError, match="rows, columns: expected at least 1"):
            BlockPruning(**shape)
    with pytest.raises(ValueError, match=r"network: expected convolution.*Flatten has none"):
        BlockPruning().apply(nn.Flatten())
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got str"):
        BlockPruning().at_random(0).apply("network")
