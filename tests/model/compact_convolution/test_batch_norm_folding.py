"""Folding against torch's own, on chains and on networks that are none; what cannot be folded is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import datasets
from kernels.model.compact_convolution.batch_norm_folding import BatchNormFolding


def drawn(norm):
    """A norm with statistics of its own."""
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.2, 2)
    return norm.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape", "oracle"),
    [
        (nn.Conv1d, nn.BatchNorm1d, (3, 9), fuse_conv_bn_eval),
        (nn.Conv2d, nn.BatchNorm2d, (3, 9, 9), fuse_conv_bn_eval),
        (nn.Conv3d, nn.BatchNorm3d, (3, 5, 5, 5), fuse_conv_bn_eval),
        (nn.Linear, nn.BatchNorm1d, (3,), fuse_linear_bn_eval),
    ],
)
def test_weights_are_those_of_torch(layer, norm, shape, oracle, bias):
    torch.manual_seed(0)
    options = (3, 8, 3) if layer is not nn.Linear else (3, 8)
    network = nn.Sequential(layer(*options, bias=bias), drawn(norm(8))).double().eval()
    ours, theirs = BatchNormFolding().apply(network)[0], oracle(*network)
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-12, atol=1e-14)
    assert torch.allclose(ours.bias, theirs.bias, rtol=1e-12, atol=1e-14)
    x = torch.randn(2, *shape, dtype=torch.float64)
    assert torch.allclose(BatchNormFolding().apply(network)(x), network(x), atol=1e-12)


def test_worked_by_hand_without_scale_and_shift():
    """w = 2, b = 1, mean 3, variance 4 - eps: 2 x + 1 becomes (2 x + 1 - 3) / 2 = x - 1."""
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, affine=False)).eval()
    network[0].weight.data.fill_(2)
    network[0].bias.data.fill_(1)
    network[1].running_mean.fill_(3)
    network[1].running_var.fill_(4 - network[1].eps)
    folded = BatchNormFolding().apply(network)[0]
    assert folded.weight.item() == pytest.approx(1) and folded.bias.item() == pytest.approx(-1)


class Branching(nn.Module):
    """No chain: the order in which layers run is not that in which they stand."""

    def __init__(self):
        super().__init__()
        self.norm, self.other = drawn(nn.BatchNorm2d(4)), drawn(nn.BatchNorm2d(4))
        self.grouped, self.conv = nn.Conv2d(4, 4, 3, groups=2, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))) + self.other(self.grouped(x))


def test_networks_that_branch_are_followed():
    torch.manual_seed(0)
    network, x = Branching().eval(), torch.randn(2, 4, 6, 6)
    before = copy.deepcopy(network.state_dict())
    folded = BatchNormFolding().apply(network)
    assert torch.allclose(folded(x), network(x), atol=1e-5)
    assert type(folded) is Branching and not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert str(BatchNormFolding().apply(network).state_dict()) == str(folded.state_dict())


@pytest.mark.parametrize("id", ["mnist-cnn", "noisy-digits-cnn"])
def test_trained_networks_answer_the_same(id):
    workload = datasets.workload(id)
    network, x = workload.trained(), torch.tensor(workload.data().validation.x[:200])
    folded = BatchNormFolding().apply(network.train())
    network.eval()
    assert (folded(x) - network(x)).abs().max() < 1e-4 * network(x).abs().max()
    assert torch.equal(folded(x).argmax(1), network(x).argmax(1)) and not folded.training


class Uses(nn.Module):
    """A convolution and a norm in some relation that does not fold."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), how

    def forward(self, x):
        if self.how == "used elsewhere":
            y = self.conv(x)
            return self.bn(y) + y
        if self.how == "called more than once":
            return self.conv(self.bn(self.conv(x)))
        if self.how == "not the result of a layer":
            return self.bn(x)
        if self.how == "it is called more than once":
            return self.bn(nn.functional.relu(self.bn(self.conv(x))))
        if self.how == "cannot trace":
            return self.bn(self.conv(x)) if x.sum() > 0 else x
        return self.bn(torch.relu(self.conv(x)))


@pytest.mark.parametrize(
    "how", ["used elsewhere", "called more than once", "not the result of a layer", "cannot trace", "input is 'relu'"]
)
def test_what_cannot_be_folded_is_refused(how):
    name = "" if how == "cannot trace" else "batch norm 'bn' cannot be folded.*"
    with pytest.raises(ValueError, match=f"network: .*{name}{how}"):
        BatchNormFolding().apply(Uses(how))


def test_layers_without_weights_and_norms_without_statistics_are_named():
    behind = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="batch norm '2' cannot be folded: its input comes from '1', a ReLU"):
        BatchNormFolding().apply(behind)
    free = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="batch norm '1' cannot be folded: it keeps no mean"):
        BatchNormFolding().apply(free)
    with pytest.raises(ValueError, match="network: expected a batch norm; Linear has none"):
        BatchNormFolding().apply(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        BatchNormFolding().apply(3)
