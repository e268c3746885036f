"""Perforated convolutions against torch's at the kept places, and scipy's nearest neighbours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree
from torch import nn

from kernels.counting import macs
from kernels.model.dynamic_inference.perforation import PerforatedConv2d, Perforation, kept_places, nearest


def test_it_is_a_deterministic_copy_whose_batches_answer_as_their_items(held, noisy, items):
    held(Perforation(rate=0.4), noisy, items)


@torch.no_grad()
@pytest.mark.parametrize("mask", ["grid", "random"])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 2, "bias": False}, {"dilation": 2}])
def test_kept_places_are_torchs_and_others_copy_the_nearest(options, mask):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 5, (3, 2), **options), torch.randn(2, 3, 9, 11)
    whole, got = conv(x), PerforatedConv2d(conv, 0.3, mask)(x)
    rows, columns = whole.shape[2:]
    kept = kept_places(rows, columns, 0.3, mask)
    torch.testing.assert_close(got.flatten(2)[:, :, kept], whole.flatten(2)[:, :, kept], rtol=1e-4, atol=1e-5)
    source = kept[nearest(rows, columns, 0.3, mask)]
    torch.testing.assert_close(got.flatten(2), whole.flatten(2)[:, :, source], rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 1.0), st.sampled_from(["grid", "random"]))
def test_nearest_is_that_of_scipy(rows, columns, rate, mask):
    kept = kept_places(rows, columns, rate, mask)
    assert len(kept.unique()) == len(kept) >= 1 and kept.max() < rows * columns
    points = [(int(k) // columns, int(k) % columns) for k in kept]
    places = [(i, j) for i in range(rows) for j in range(columns)]
    apart, _ = KDTree(points).query(places)
    for (i, j), own, least in zip(places, nearest(rows, columns, rate, mask).tolist(), apart, strict=True):
        assert (i - points[own][0]) ** 2 + (j - points[own][1]) ** 2 == pytest.approx(least**2)


@torch.no_grad()
def test_the_whole_rate_is_the_network_and_the_cost_is_counted(noisy, items):
    network = Perforation(rate=0.25).apply(noisy.trained(), noisy.data())
    _, less = network(items)
    network.set_rate(1.0)
    logits, cost = network(items)
    assert torch.equal(logits, noisy.trained()(items)) and (cost == macs(noisy.trained(), items[:1])).all()
    first = 8 * 8 * 16 * 9
    linear = noisy.trained()[-1].weight.numel()
    assert (less[0] - first - linear).item() == pytest.approx(0.25 * (cost[0] - first - linear).item(), rel=1e-6)


def test_wrong_input_is_named(noisy):
    for rate in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate: expected 0 < rate <= 1"):
            Perforation(rate=rate)
    with pytest.raises(ValueError, match="mask: expected one of grid, random, got 'holes'"):
        Perforation(mask="holes")
    with pytest.raises(ValueError, match="1: expected a plain convolution in one group"):
        Perforation().apply(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4)), noisy.data())
    with pytest.raises(ValueError, match="expected at least two convolutions"):
        Perforation().apply(nn.Sequential(nn.Conv2d(1, 4, 3)), noisy.data())
