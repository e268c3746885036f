"""Skipped channels against everything computed and then multiplied by nought."""

import pytest
import torch
from torch import nn

from kernels.counting import macs
from kernels.model.dynamic_inference.dynamic_channels import PREDICTORS, BoostedConv, DynamicChannels


@pytest.fixture(scope="module")
def boosted(noisy):
    return DynamicChannels(density=0.4, steps=20).apply(noisy.trained(), noisy.data())


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_it_is_a_deterministic_copy_whose_batches_answer_as_their_items(held, noisy, items, predictor):
    held(DynamicChannels(steps=3, predictor=predictor), noisy, items[:20])


@torch.no_grad()
def test_skipping_computes_what_the_whole_layers_give(boosted, items):
    logits, _ = boosted(items)
    torch.testing.assert_close(logits, boosted.learned(items)[0], rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("predictor", ["standardized", "fixed"])
def test_so_it_does_with_other_predictors(noisy, items, predictor):
    network = DynamicChannels(density=0.4, steps=20, predictor=predictor).apply(noisy.trained(), noisy.data())
    torch.testing.assert_close(network(items)[0], network.learned(items)[0], rtol=1e-3, atol=1e-4)
    layer = [stage for stage in network.stages if isinstance(stage, BoostedConv)][1]
    sets = {tuple(row) for row in (layer.called(network.stages[0](items)[0]) > 0).tolist()}
    assert len(sets) == 1 if predictor == "fixed" else len(sets) > 10


@torch.no_grad()
def test_what_is_standardized_has_mean_nought_and_spread_one(noisy):
    network = DynamicChannels(steps=0, predictor="standardized").apply(noisy.trained(), noisy.data())
    layer = network.stages[0]
    summaries = torch.rand(500, 1) * 3 + 5
    layer.usual.train()(summaries)
    layer.usual.momentum = 1.0
    layer.usual(summaries)
    found = layer.usual.eval()(summaries)
    assert found.mean().abs() < 1e-3 and found.std().item() == pytest.approx(1, abs=1e-3)


def test_seeds_differ(noisy):
    one, two = (DynamicChannels(steps=0, seed=seed).apply(noisy.trained(), noisy.data()) for seed in (0, 1))
    assert not torch.equal(one.stages[0].saliency.weight, two.stages[0].saliency.weight)


@torch.no_grad()
def test_with_all_channels_and_untaught_it_is_the_network(noisy, items):
    whole = DynamicChannels(density=1.0, steps=0).fixed().apply(noisy.trained(), noisy.data())
    torch.testing.assert_close(whole(items)[0], noisy.trained()(items), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_winners_are_the_largest_saliencies(boosted, items):
    layer = next(m for m in boosted.modules() if isinstance(m, BoostedConv))
    g = layer.called(items)
    whole = layer.saliency(items.abs().mean((2, 3))).relu()
    assert (g.count_nonzero(1) <= layer.kept).all() and layer.kept == 7  # of 16, the ceiling of 6.4
    for own, every in zip(g, whole, strict=True):
        kept = own > 0
        assert torch.equal(own[kept], every[kept])
        assert not kept.any() or every[~kept].max() <= own[kept].min()


@torch.no_grad()
def test_what_is_reported_is_what_is_multiplied(boosted, items):
    for item in items[:5].split(1):
        _, cost = boosted(item)
        # counting also sees the pass of one filter that tells the size of each map
        sizes = sum(macs(nn.Sequential(c), torch.zeros(1, 1, s, s)) for c, s in _single(boosted))
        assert macs(boosted, item) == cost.item() + sizes


def _single(boosted):
    side = 8
    for stage in boosted.stages:
        if isinstance(stage, BoostedConv):
            yield nn.Conv2d(1, 1, stage.conv.kernel_size, padding=stage.conv.padding, bias=False), side
        elif isinstance(stage, nn.MaxPool2d):
            side //= 2


@torch.no_grad()
def test_items_call_for_different_channels_and_each_is_right(noisy, items):
    network = DynamicChannels(density=0.4, steps=0).apply(noisy.trained(), noisy.data())
    random = torch.Generator().manual_seed(0)
    for stage in network.stages:
        if isinstance(stage, BoostedConv):
            stage.saliency.weight.copy_(torch.randn(stage.saliency.weight.shape, generator=random))
    layer = [stage for stage in network.stages if isinstance(stage, BoostedConv)][1]
    sets = {tuple(row) for row in (layer.called(network.stages[0](items)[0]) > 0).tolist()}
    assert len(sets) > 5
    torch.testing.assert_close(network(items)[0], network.learned(items)[0], rtol=1e-3, atol=1e-3)


def test_wrong_input_is_named(noisy):
    for density in (0.0, 1.2):
        with pytest.raises(ValueError, match="density: expected 0 < density <= 1"):
            DynamicChannels(density=density)
    with pytest.raises(ValueError, match="steps, penalty: expected at least 0"):
        DynamicChannels(penalty=-1)
    with pytest.raises(ValueError, match="predictor: expected one of magnitudes, standardized, fixed, got 'guess'"):
        DynamicChannels(predictor="guess")
    with pytest.raises(ValueError, match="expected a convolution followed by batch norm and ReLU; there is none"):
        DynamicChannels().apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), noisy.data())
    grouped = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.BatchNorm2d(2), nn.ReLU())
    with pytest.raises(ValueError, match="0: expected a convolution in one group"):
        DynamicChannels().apply(grouped, noisy.data())
