"""What holds of every factorisation: the input stays, layers are refused by name, and only large ones change."""

import copy

import pytest
import torch
from torch import nn

from kernels.counting import parameters
from kernels.model.low_rank.cp_decomposition import CpDecomposition
from kernels.model.low_rank.factorised import rank_within
from kernels.model.low_rank.separable_filters import SeparableFilters
from kernels.model.low_rank.svd_factorisation import SvdFactorisation
from kernels.model.low_rank.tensor_train import TensorTrain
from kernels.model.low_rank.tucker_decomposition import TuckerDecomposition
from kernels.model.transform import constrain

METHODS = [
    SvdFactorisation(energy=0.6), SeparableFilters(0.3), CpDecomposition(0.3), TuckerDecomposition(0.3),
    TensorTrain(0.3),
]  # fmt: skip


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 3, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(24 * 9, 36),
    )  # fmt: skip


X = torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_network_becomes_smaller_and_the_original_stays(method):
    network = cnn()
    before = copy.deepcopy(network.state_dict())
    small = method.apply(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert parameters(small) < parameters(network) and small(X).shape == network(X).shape
    assert isinstance(small[2], nn.Conv2d)  # in groups: as it was
    again = method.apply(network).state_dict()
    assert all(torch.equal(again[name], value) for name, value in small.state_dict().items())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_random_factors_have_the_same_layers_and_follow_their_seed(method):
    if not isinstance(method, SvdFactorisation):  # its ranks follow from the weights
        shapes = [value.shape for value in method.apply(cnn()).state_dict().values()]
        assert [value.shape for value in method.at_random(0).apply(cnn()).state_dict().values()] == shapes
    same, other = (method.at_random(seed).apply(cnn())(X) for seed in (0, 1))
    assert torch.equal(method.at_random(0).apply(cnn())(X), same) and not torch.equal(same, other)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_factors_learn(method):
    small = method.apply(cnn())
    small(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_what_cannot_be_factorised_is_refused_by_name(method):
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn.Module, got int"):
        method.apply(3)
    recurrent = nn.ModuleDict({"first": nn.Linear(64, 64), "listens": nn.GRU(8, 8)})
    with pytest.raises(ValueError, match="listens: expected convolutions in two dimensions and linear layers, got GRU"):
        method.apply(recurrent)
    network = cnn()
    constrain(network[3], "weight", nn.Identity())
    with pytest.raises(ValueError, match="3: its weight is under a constraint; bake"):
        method.apply(network)
    with pytest.raises(ValueError, match="makes no layer of Sequential smaller"):
        method.apply(nn.Sequential(nn.ReLU()))


def test_small_layers_stay():
    network = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 400), nn.Linear(400, 1))
    small = SvdFactorisation(energy=0.3).apply(network)
    assert [type(layer).__name__ for layer in small] == ["Linear", "Sequential", "Linear"]


@pytest.mark.parametrize("share", [0.0, -1, 1.5, float("nan")])
def test_a_share_is_a_share(share):
    for method in (SeparableFilters, CpDecomposition, TuckerDecomposition, TensorTrain):
        with pytest.raises(ValueError, match="share: expected 0 < share <= 1"):
            method(share=share)
    with pytest.raises(ValueError, match="energy: expected 0 < energy <= 1"):
        SvdFactorisation(energy=share)


def test_ranks_keep_within_the_share():
    for share in (0.1, 0.5, 0.9):
        rank = rank_within(share, 1000, 30)
        assert rank * 30 <= share * 1000 < (rank + 1) * 30
    assert rank_within(1.0, 100, 100) is None
