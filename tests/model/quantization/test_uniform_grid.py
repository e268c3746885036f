"""Uniform grids against torch's fake quantization; packed codes against the bytes that are saved."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernels.model.compressed_file import decode, encode
from kernels.model.quantization.post_training_quantization import PostTrainingQuantization
from kernels.model.quantization.uniform_grid import Grid, fit_grid, keep_codes, pack, unpack
from kernels.model.transform import bake


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("limits", ["min-max", "percentile", "mse"])
def test_rounding_is_that_of_torch(bits, symmetric, limits):
    torch.manual_seed(bits)
    x = torch.randn(5, 2000) + 0.3
    grid = fit_grid(x, bits, limits, symmetric=symmetric)
    theirs = torch.fake_quantize_per_channel_affine(
        x, grid.scale[:, 0], grid.zero[:, 0].int(), 0, grid.low, grid.high
    )  # fmt: skip
    # torch multiplies by 1 / S, we divide: ties fall otherwise once in a while
    assert ((grid.round(x) - theirs).abs() > 1e-6).float().mean() < 1e-3
    assert torch.equal(grid.decode(grid.encode(x)), grid.round(x))
    assert grid.encode(x).amin() >= grid.low and grid.encode(x).amax() <= grid.high


def test_min_max_clips_nothing_and_the_least_squares_has_least():
    torch.manual_seed(0)
    x = torch.randn(4, 1000)
    errors = {}
    for limits in ("min-max", "percentile", "mse"):
        grid = fit_grid(x, 4, limits, symmetric=True)
        errors[limits] = ((grid.round(x) - x) ** 2).sum(1)
        clipped = x.abs() > grid.scale * 7 * 1.0001
        assert clipped.any() == (limits != "min-max")
        if limits == "percentile":
            assert (clipped.sum(1) == 1).all(), "one of a thousand"
    assert (errors["mse"] <= errors["min-max"]).all() and (errors["mse"] <= errors["percentile"] + 1e-9).all()
    best = min(  # the factor found by trying them all, for one row
        (((Grid(4, torch.tensor([[f * x[0].abs().max() / 7]]), torch.tensor([[8.0]]), 1000, True).round(x[:1]) - x[:1])
          ** 2).sum().item()) for f in torch.linspace(0.2, 1, 41)
    )  # fmt: skip
    assert errors["mse"][0].item() == pytest.approx(best, rel=1e-3)


def test_affine_grids_hold_zero_and_groups_have_their_own_scale():
    grid = fit_grid(torch.tensor([[1.0, 3.0, -8.0, -4.0, 5.0]]), 3, symmetric=False, group=2)
    assert grid.scale.shape == (1, 3) and grid.scale[0].tolist() == pytest.approx([3 / 7, 8 / 7, 5 / 7])
    assert grid.zero[0].tolist() == [0, 7, 0] and grid.round(torch.zeros(1, 5)).tolist() == [[0.0] * 5]
    assert grid.stored_bits(5) == 5 * 3 + 3 * (32 + 3)
    zeros = fit_grid(torch.zeros(2, 3), 4, "mse", symmetric=False)
    assert zeros.scale.tolist() == [[1.0], [1.0]] and not zeros.round(torch.zeros(2, 3)).any()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="x: expected finite numbers"):
            fit_grid(torch.tensor([[1.0, bad]]), 4, symmetric=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1), max_size=40))))
def test_packed_codes_come_back_and_leave_no_gap(drawn):
    bits, codes = drawn
    packed = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert packed.numel() == -(-len(codes) * bits // 8)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_layer_keeps_codes_and_nothing_else(symmetric):
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False)
    matrix = layer.weight.detach().clone()
    grid = fit_grid(matrix, 3, symmetric=symmetric, group=16)
    keep_codes(layer, "weight", grid.encode(matrix), grid)
    assert torch.equal(layer.weight, grid.round(matrix))
    held = sum(8 * t.numel() * t.element_size() for t in layer.state_dict().values())
    stored = layer.parametrizations.weight[0].stored_bits(layer.weight)
    assert stored == 64 * 32 * 3 + 32 * 4 * (32 if symmetric else 35)
    assert held == stored + (0 if symmetric else 32 * 4 * 5), "zero points lie in whole bytes"
    saved, copied = io.BytesIO(), copy.deepcopy(layer)
    torch.save(layer.state_dict(), saved)
    assert len(saved.getvalue()) < 64 * 32 * 4 / 2
    assert torch.equal(bake(copied).weight, layer.weight) and type(bake(layer)) is nn.Linear


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 16, 20])
def test_a_file_keeps_the_codes(symmetric, group):
    """Groups of 16 divide the columns, those of 20 do not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32, bias=False))
    matrix = network[0].weight.detach().clone()
    grid = fit_grid(matrix, 3, symmetric=symmetric, group=group)
    keep_codes(network[0], "weight", grid.encode(matrix), grid)
    file = encode(network)
    assert torch.equal(decode(file, nn.Sequential(nn.Linear(64, 32, bias=False)))[0].weight, network[0].weight)
    stored = network[0].parametrizations.weight[0].stored_bits(network[0].weight)
    assert stored / 8 < len(file) < stored / 8 + 200, "nothing but codes, scales, zero points and a header"


def test_a_file_keeps_one_grid_for_a_layer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    method = PostTrainingQuantization(bits=8, inputs=0, granularity="tensor")
    data = SimpleNamespace(train=SimpleNamespace(x=torch.randn(4, 3, 5, 5).numpy()))
    kept = method.apply(network, data)
    form = kept[0].parametrizations.weight[0].encoded(kept[0].weight)
    assert [part.size for part in form.floats] == [1, 1, 0]
    assert np.array_equal(form.values((8, 3, 3, 3)), kept[0].weight.detach().numpy())


def test_recurrent_layers_compute_with_their_codes():
    torch.manual_seed(0)
    layer, x = nn.LSTM(4, 3), torch.randn(5, 2, 4)
    by_hand = copy.deepcopy(layer)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        matrix = getattr(layer, name).detach().clone()
        grid = fit_grid(matrix, 4, symmetric=True)
        getattr(by_hand, name).data.copy_(grid.round(matrix))
        keep_codes(layer, name, grid.encode(matrix), grid)
    assert torch.equal(layer(x)[0], by_hand(x)[0]) and torch.equal(bake(layer)(x)[0], by_hand(x)[0])
