"""One update against the paper's equations by hand; drawn signs against their law; bits by packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn.utils import parametrize

import datasets
from kernels.model.quantization.binary_weights import BinaryWeights, SignWeights, glorot
from kernels.model.quantization.quantizers import levels_of, pack, unpack
from kernels.model.transform import bake
from tests.model.quantization.few_bits import adam, batch, logits_gradient, trained_leaves_alone


@pytest.mark.parametrize("magnitude", ["one", "glorot"])
def test_one_update_moves_the_weights_below_and_clips_them(magnitude):
    data, recipe = batch()
    torch.manual_seed(0)
    network = nn.Linear(6, 4)
    limit = 1.0 if magnitude == "one" else (1.5 / 10) ** 0.5
    with torch.no_grad():
        network.weight[0] = torch.tensor([2.0, -2.0, 0.0, -0.0, limit, -limit])
    w, b = (p.detach().double().numpy().copy() for p in network.parameters())
    trained, _ = BinaryWeights(magnitude=magnitude).train(network, data, recipe)
    seen = np.where(w >= 0, limit, -limit)
    gradient = logits_gradient(data.train.x @ seen.T + b, data.train.y).T @ data.train.x
    expected = np.clip(adam(w, gradient), -limit, limit)
    assert np.allclose(trained.parametrizations.weight.original.detach().numpy(), expected, atol=1e-6)
    assert set(trained.weight.detach().numpy().ravel()) == {np.float32(limit), np.float32(-limit)}


def test_signs_are_drawn_by_the_hard_sigmoid():
    torch.manual_seed(3)
    constraint, draws = SignWeights(0.5, stochastic=True), 4000
    for w, chance in ((0.0, 0.5), (0.25, 0.75), (-0.4, 0.1), (0.5, 1.0), (-0.5, 0.0)):
        drawn = constraint(torch.full((draws,), w))
        assert set(drawn.tolist()) <= {0.5, -0.5}
        assert binomtest(int((drawn > 0).sum()), draws, chance).pvalue > 1e-3
    still = torch.tensor([0.1, -0.1, 0.0])
    assert constraint.eval()(still).tolist() == [0.5, -0.5, 0.5], "in evaluation nothing is drawn"


def test_drawn_signs_follow_the_seed():
    _, trace = trained_leaves_alone(BinaryWeights(stochastic=True))
    other, _ = BinaryWeights(stochastic=True).train(network=nn.Linear(6, 4), data=batch()[0], recipe=batch()[1], seed=2)
    assert trace[0]["loss"] > 0 and len(bake(other).weight.unique()) == 2


@pytest.mark.parametrize("technique", [BinaryWeights(), BinaryWeights(magnitude="one")], ids=str)
def test_the_network_given_is_left_alone(technique):
    trained_leaves_alone(technique)


def test_a_weight_is_one_bit():
    network = BinaryWeights().constrain(datasets.workload("noisy-digits-cnn").trained())
    layers = [layer for layer in network.modules() if parametrize.is_parametrized(layer)]
    assert [layer.weight.numel() for layer in layers] == [144, 4608, 9216, 1280]
    for layer in layers:
        w = layer.parametrizations.weight.original
        codes, integers, scale = levels_of(layer.parametrizations.weight[0], w)
        packed = pack(codes, 1)
        assert 8 * packed.nbytes + 32 == layer.parametrizations.weight[0].stored_bits(w)
        read = integers[unpack(packed, 1, w.numel())].reshape(w.shape) * scale
        assert np.array_equal(
            read.astype(np.float32),
            bake(network).get_parameter(f"{list(network).index(layer)}.weight").detach().numpy(),
        )


def test_it_learns_and_rounding_afterwards_does_not():
    workload, recipe = datasets.workload("noisy-digits-cnn"), datasets.Recipe(epochs=8, batch=32)
    network, _ = BinaryWeights().train(workload.network(), workload.data(), recipe)
    after, _ = BinaryWeights().afterwards().train(workload.network(), workload.data(), recipe)
    split = workload.data().validation
    assert datasets.accuracy(bake(network), split) > 0.75 > 0.5 > datasets.accuracy(bake(after), split)


def test_recurrent_layers_become_binary():
    workload = datasets.workload("vowels-gru")
    gru = next(m for m in bake(BinaryWeights().constrain(workload.network())).modules() if isinstance(m, nn.GRU))
    assert len(gru.weight_ih_l0.unique()) == len(gru.weight_hh_l0.unique()) == 2


def test_the_constant_counts_the_places_of_a_kernel():
    assert glorot(torch.zeros(8, 4, 3, 3)) == pytest.approx((1.5 / (9 * 4 + 9 * 8)) ** 0.5, rel=1e-12)


def test_wrong_input_is_named():
    for options, word in (
        ({"magnitude": "two"}, "magnitude: expected one or glorot, got 'two'"),
        ({"stochastic": 1}, "stochastic: expected True or False, got 1"),
    ):
        with pytest.raises(ValueError, match=word):
            BinaryWeights(**options)
    with pytest.raises(ValueError, match=r"layers; ReLU has none$"):
        BinaryWeights().constrain(nn.ReLU())
    with pytest.raises(ValueError, match="w: expected finite weights"):
        SignWeights()(torch.tensor([1.0, float("nan")]))
