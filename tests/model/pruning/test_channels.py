"""Removing channels against the network in which nobody reads them, and against torch's and hand-made counts."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune as oracle

from kernels import counting
from kernels.model.pruning.channels import Channels, weakest, widths


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.outer, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.sigmoid(self.inner_norm(self.inner(x))))
        return self.head(functional.relu(x).mean((2, 3)))


class Inverted(nn.Module):
    """Expand, depthwise with two outputs a channel, squeeze-and-excitation, project; then flattened."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(3, 6, 1)
        self.depth, self.norm = nn.Conv2d(6, 12, 3, padding=1, stride=2, groups=6), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 5, 1)
        self.one, self.two = nn.Linear(5 * 16, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = functional.relu6(self.norm(self.depth(functional.relu6(self.expand(x)))))
        gate = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        x = self.project(x * torch.sigmoid(self.excite(gate)))
        return self.two(functional.gelu(self.one(x.view(x.size(0), -1))))


class Branches(nn.Module):
    """Two branches concatenated, one tensor twice, a grouped convolution, a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 5, padding=2)
        self.grouped, self.again = nn.Conv2d(14, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8 * 16, 5)

    def forward(self, x):
        left, right = self.left(x), functional.relu(self.right(x))
        x = torch.relu(self.grouped(torch.cat([left, right, left], 1)))
        x = torch.relu(self.again(self.norm(self.again(x))))
        return self.head(functional.max_pool2d(x, 2).flatten(1))


class Series(nn.Module):
    def __init__(self, build=nn.GRU):
        super().__init__()
        self.into, self.memory, self.head = nn.Linear(3, 6), build(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.memory(torch.tanh(self.into(x)))[0][:, -1])


class State(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.memory(x)[1][0].permute(1, 0, 2).flatten(1))


IMAGE, STEPS = (3, 8, 8), (5, 3)
NETWORKS = {
    "residual": (Residual, IMAGE), "inverted": (Inverted, IMAGE), "branches": (Branches, IMAGE),
    "gru": (Series, STEPS), "lstm": (lambda: Series(nn.LSTM), STEPS), "rnn": (lambda: Series(nn.RNN), STEPS),
    "state": (State, STEPS),
}  # fmt: skip


def made(name):
    """A network whose norms have statistics and shifts of their own, and items for it."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, x = build(), torch.randn(4, *shape)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            network.train()(x)
    return network.eval(), x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.6, 0.4, 0.3])
def test_the_small_network_computes_what_the_masked_one_does(name, share):
    network, x = made(name)
    before = copy.deepcopy(network.state_dict())
    channels, random = Channels(network, x), torch.Generator().manual_seed(1)
    scores = [torch.rand(len(group), generator=random) for group in channels.groups]
    removed = weakest(channels, channels.groups, scores, share)
    small, masked = channels.without(network, removed), channels.silence(network, removed)
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
        assert (small(x) - network(x)).abs().max() > 1e-3, "removing channels must show"
    assert counting.macs(small, x[:1]) == channels.macs(removed) <= share * channels.macs()
    assert counting.parameters(small) < counting.parameters(network)
    assert all(type(a) is type(b) for a, b in zip(small.modules(), network.modules(), strict=True))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert channels.macs() == counting.macs(network, x[:1])
    # the small one is a network like any other: it can be followed, copied, trained and saved
    again = Channels(small, x)
    assert [len(group) for group in again.groups] <= [len(group) for group in channels.groups]
    small.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_which_channels_go_together():
    def widths_of(name):
        network, x = made(name)
        return {(group.makers, group.readers): len(group) for group in Channels(network, x).groups}

    assert widths_of("residual") == {(("stem", "outer"), ("inner", "head")): 8, (("inner",), ("outer",)): 6}
    assert widths_of("inverted") == {
        (("expand", "depth", "excite"), ("depth", "squeeze", "project")): 6,
        (("squeeze",), ("excite",)): 4,
        (("project",), ("one",)): 5,
        (("one",), ("two",)): 7,
    }
    # of 14 concatenated channels in two groups place i goes with place i + 7, and the left branch stands there twice:
    # l0 r3 l3 r2, l1 r4 r0 and l2 r5 r1 are bound together
    assert widths_of("branches") == {(("left", "right"), ("grouped",)): 3, (("grouped", "again"), ("again", "head")): 4}
    assert widths_of("gru") == {(("into",), ("memory",)): 6, (("memory",), ("head",)): 8}


def test_grouped_convolutions_lose_the_same_place_of_every_group():
    network, x = made("branches")
    channels = Channels(network, x)
    (group,) = (group for group in channels.groups if "grouped" in group.makers)
    assert len(group) == 4 and group.makers == ("grouped", "again")
    small = channels.without(network, group.units[:1])
    assert small.grouped.weight.shape == (6, 7, 3, 3) and small.grouped.groups == 2
    assert torch.equal(small.grouped.weight, network.grouped.weight[[1, 2, 3, 5, 6, 7]])
    assert small.again.weight.shape == (6, 6, 1, 1) and small.head.in_features == 6 * 16


def test_the_filters_that_go_are_those_of_torch():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10 * 36, 4))
    theirs = oracle.ln_structured(copy.deepcopy(network[0]), "weight", amount=4, n=1, dim=0)
    channels = Channels(network, torch.zeros(1, *IMAGE))
    norms = network[0].weight.detach().abs().flatten(1).sum(1)
    removed = weakest(channels, channels.groups, [norms], macs=0.6)
    kept = theirs.weight_mask.flatten(1).any(1)
    small = channels.without(network, removed)
    assert torch.equal(small[0].weight, network[0].weight[kept])
    assert torch.equal(small[0].bias, network[0].bias[kept])
    columns = kept.repeat_interleave(36)
    assert torch.equal(small[3].weight, network[3].weight[:, columns])


def test_a_zeroed_filter_is_not_silent_behind_a_norm_unless_scale_and_shift_are_zero_too():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten(),
        nn.Linear(5 * 64, 3),
    )  # fmt: skip
    x = torch.randn(6, *IMAGE)
    nn.init.constant_(network[1].bias, 0.7)
    network.train()(x)
    network.eval()
    channels = Channels(network, x)
    unit = channels.out["0"][2]
    with torch.no_grad():
        small = channels.without(network, [unit])(x)
        zeroed = copy.deepcopy(network)
        zeroed[0].weight[2], zeroed[0].bias[2] = 0, 0
        assert (zeroed(x) - small).abs().max() > 0.01
        zeroed[1].weight[2], zeroed[1].bias[2] = 0, 0
        torch.testing.assert_close(zeroed(x), small, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.06, 1.0), st.sampled_from(["layer", "global"]), st.integers(0, 99))
def test_the_budget_is_kept_and_used(share, scope, seed):
    network, x = made("residual")
    channels = Channels(network, x)
    scores = [torch.rand(len(group), generator=torch.Generator().manual_seed(seed)) for group in channels.groups]
    removed = weakest(channels, channels.groups, scores, share, scope)
    assert channels.macs(removed) <= share * channels.macs()
    if removed and scope == "global":  # the last that went was one too many to keep
        pairs = zip([u for g in channels.groups for u in g.units], torch.cat(scores).tolist(), strict=True)
        by_unit = dict(pairs)
        last = max(removed, key=lambda unit: by_unit[unit])
        assert channels.macs(removed - {last}) > share * channels.macs()
    if scope == "layer":
        kept = [sum(unit not in removed for unit in group.units) for group in channels.groups]
        assert kept == widths(channels, channels.groups, share)
        more = {u for g, k in zip(channels.groups, kept, strict=True) for u in g.units[min(k + 1, len(g)) :]}
        assert kept == [len(g) for g in channels.groups] or channels.macs(more) > share * channels.macs()
        for group, count in zip(channels.groups, kept, strict=True):
            assert abs(count / len(group) - kept[0] / len(channels.groups[0])) <= 1 / len(group) + 1 / 8


def test_what_meets_the_input_or_the_output_stays():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.other(x + self.conv(x))

    assert Channels(Skip(), torch.zeros(1, *IMAGE)).groups == ()


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(x.view(x.size(0), 4, 2, 8, 8).transpose(1, 2).flatten(1, 2))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)), IMAGE, r"'1' \(GroupNorm\)"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), STEPS, r"'1' \(LayerNorm\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 2, 2)), IMAGE, r"'1' \(ConvTranspose2d\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1)), IMAGE, r"'1' \(Softmax\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(8, 2)), IMAGE, r"'1' \(Linear\).* on axis 1"),
        (nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 5, num_layers=2)), STEPS, r"'1' \(GRU\).*single layer"),
        (Shuffled(), IMAGE, r"'view' \(view\)"),
        (Branching(), IMAGE, "Branching cannot be traced"),
    ],
)
def test_what_cannot_be_followed_is_named(network, shape, message):
    with pytest.raises(ValueError, match=message):
        Channels(network, torch.zeros(1, *shape))


def test_wrong_input_is_named():
    network, x = made("residual")
    channels = Channels(network, x)
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        Channels(3, x)
    with pytest.raises(ValueError, match="removed: expected units of the groups, got"):
        channels.without(network, [10**6])
    with pytest.raises(ValueError, match="removed: expected at least one unit to remain of layer 'stem'"):
        channels.without(network, channels.groups[0].units)
    with pytest.raises(
        ValueError, match=r"macs: expected a share that a network of one channel a layer has, got 0\.001"
    ):
        widths(channels, channels.groups, 0.001)
    masked = oracle.l1_unstructured(nn.Linear(3, 4), "weight", 2)
    with pytest.raises(ValueError, match="layer '0' is constrained"):
        Channels(nn.Sequential(masked, nn.Linear(4, 2)), torch.zeros(1, 3))
    nn.utils.parametrizations.weight_norm(network.inner)
    with pytest.raises(ValueError, match="layer 'inner' is constrained"):
        Channels(network, x)
