"""Thinner networks inside a network against the network with the other channels cut off by hand."""

import copy

import pytest
import torch
from torch import nn

from kernels.model.dynamic_inference.learning import learn
from kernels.model.dynamic_inference.slicing import slices, thinned


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()), nn.Flatten(), nn.Linear(8 * 4, 6), nn.ReLU(), nn.Linear(6, 3),
    ).eval()  # fmt: skip


X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_half_is_the_network_whose_other_channels_nobody_reads():
    network, silent = cnn(), cnn()
    with torch.no_grad():
        for layer in (silent[4][0], silent[6], silent[8]):
            layer.weight[:, layer.weight.shape[1] // 2 :] = 0
    torch.testing.assert_close(thinned(network, 0.5)(X), silent(X), rtol=1e-5, atol=1e-6)


def test_the_whole_width_is_the_network_and_a_tiny_one_keeps_a_channel():
    network = cnn()
    assert torch.equal(thinned(network, 1.0)(X), network(X))
    assert [part.out for part in slices(network, 0.01) if isinstance(part.layer, nn.Conv2d | nn.Linear)] == [1, 1, 1, 3]
    assert thinned(network, 0.01)(X).shape == (5, 3)


def test_the_copy_is_a_copy():
    network = cnn()
    before = copy.deepcopy(network.state_dict())
    thin = thinned(network, 0.5)
    with torch.no_grad():
        for parameter in thin.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_what_cannot_be_sliced_is_named():
    with pytest.raises(ValueError, match="1: expected a convolution in one group, got Conv2d"):
        thinned(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4)), 0.5)
    with pytest.raises(ValueError, match="1: expected a layer whose first channels can be taken, got LayerNorm"):
        thinned(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), 0.5)


def test_learning_is_adamw_with_a_falling_rate_and_follows_its_seed():
    class Data:
        class train:
            x, y = X.numpy(), torch.tensor([0, 1, 2, 0, 1]).numpy()

    def run(seed):
        network = cnn()
        losses = learn(network, Data, lambda x, y: nn.functional.cross_entropy(network(x), y), 7, seed)
        return network, losses

    (one, losses), (two, same) = run(0), run(0)
    assert losses == same and len(losses) == 7 and losses[-1] < losses[0] and not one.training
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    by_hand = cnn().train()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.005)
    torch.manual_seed(0)
    items = torch.randperm(5)
    nn.functional.cross_entropy(by_hand(X[items]), torch.tensor(Data.train.y)[items]).backward()
    optimizer.step()
    network = cnn()
    learn(network, Data, lambda x, y: nn.functional.cross_entropy(network(x), y), 1)
    assert all(map(torch.equal, network.parameters(), by_hand.parameters()))
