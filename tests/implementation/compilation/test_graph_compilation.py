"""A compiled network computes what torch computes, whatever the passes did to it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import datasets
from kernels import counting
from kernels.implementation.compilation.graph import fuse, order, simplify, trace
from kernels.implementation.compilation.graph_compilation import GraphCompilation
from kernels.implementation.compilation.plan import Life, place
from kernels.model.block import replace
from kernels.model.compact_convolution.depthwise_separable import DepthwiseSeparable


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lively(network, seed=0):
    """Random weights and running statistics, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
                if "running_var" in name:
                    tensor.abs_().add_(0.5)
    return network.eval()


def agrees(network, shape, items=3, **options):
    compiled = GraphCompilation(**options).compile(network, shape)
    x = torch.randn(items, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network.double()(x.double())
    network.float()
    found = compiled(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1, float(expected.abs().max())) if expected.numel() else True
    return compiled


@pytest.mark.parametrize("name", ["mnist-cnn", "noisy-digits-cnn", "digits-mlp"])
@pytest.mark.parametrize("options", [{}, {"fuse": False}, {"reuse": False}])
def test_the_houses_networks_end_to_end(name, options):
    workload = datasets.workload(name)
    network = workload.trained().eval()
    x = torch.tensor(workload.data().test.x[:256])
    compiled = GraphCompilation(**options).apply(network, workload.data())
    with torch.no_grad():
        expected = network(x)
    assert torch.allclose(compiled(x), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(compiled(x).argmax(1), expected.argmax(1))
    figures, item = compiled.figures(), x[:1]
    assert figures["macs"] == counting.macs(network, item)


convolutions = st.fixed_dictionaries({
    "channels": st.integers(1, 5), "outputs": st.integers(1, 3), "groups": st.sampled_from([1, 1, 2, 3]),
    "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)), "stride": st.integers(1, 3),
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)), "dilation": st.integers(1, 2),
    "size": st.tuples(st.integers(5, 17), st.integers(5, 17)), "bias": st.booleans(),
    "tail": st.lists(st.sampled_from(["norm", "relu", "pool", "overlap", "norm"]), max_size=3),
    "wide": st.sampled_from([1, 1, 8, 20]),
})  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(convolutions, st.booleans(), st.booleans())
def test_convolutions_of_every_kind(c, fuse, reuse):
    inside, outside = c["channels"] * c["groups"], c["outputs"] * c["groups"] * c["wide"]
    layers = [nn.Conv2d(inside, outside, c["kernel"], c["stride"], c["padding"], c["dilation"], c["groups"], c["bias"])]
    for name in c["tail"]:
        layers.append({"norm": nn.BatchNorm2d(outside), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2, ceil_mode=False),
                       "overlap": nn.MaxPool2d(3, 1, 1)}[name])  # fmt: skip
    network = lively(nn.Sequential(*layers))
    shape = (inside, *c["size"])
    with torch.no_grad():
        try:
            smallest = min(network(torch.zeros(1, *shape)).shape)
        except RuntimeError:
            return  # torch refuses it too: nothing is left after the kernel or the pool
    if smallest:
        agrees(network, shape, fuse=fuse, reuse=reuse)


class Residual(nn.Module):
    def __init__(self, after=nn.ReLU):
        super().__init__()
        self.a, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.after, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=2), after(), nn.Linear(4, 3)
        self.register_buffer("scale", torch.randn(4, 1, 1))

    def forward(self, x):
        y = F.relu(self.norm(self.a(x)))
        y = self.after(self.b(y) + y + x) * (self.scale * 2 + 1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.max_pool2d(y, 2), 1), 1)) + 0.5


@pytest.mark.parametrize("options", [{}, {"fuse": False}, {"reuse": False}])
def test_residuals_constants_and_functional_calls(options):
    compiled = agrees(lively(Residual()), (4, 7, 9), **options)
    if options == {}:
        assert any("add" in step for step in compiled.describe())


@pytest.mark.parametrize("network", [
    nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5), nn.BatchNorm1d(5)),
    nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Identity(), nn.Dropout(0.5)),
    nn.Sequential(nn.Flatten(), nn.Linear(72, 40), nn.ReLU(), nn.Linear(40, 7), nn.ReLU()),
    nn.Sequential(nn.ReLU()), nn.Sequential(nn.Flatten()), nn.Sequential(nn.Flatten(), nn.ReLU()),
    nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten()),
    nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
])  # fmt: skip
def test_small_networks(network):
    agrees(lively(network), (2, 6, 6))
    agrees(network, (2, 6, 6), items=0)


def test_a_separable_network():
    workload = datasets.workload("mnist-cnn")
    agrees(lively(replace(workload.network(), DepthwiseSeparable())), (1, 28, 28))


def test_an_image_that_two_layers_read_with_different_padding():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
            self.head = nn.Linear(75, 2)

        def forward(self, x):
            y = self.a(x)
            return self.head((self.b(y) + self.c(y)).flatten(1)) + self.head(y.flatten(1))

    agrees(lively(Two()), (2, 5, 5))


def test_what_is_not_finite_passes_through():
    network = lively(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    compiled = GraphCompilation().compile(network, (1, 6, 6))
    for bad in (np.nan, np.inf, -np.inf):
        x = torch.randn(1, 1, 6, 6)
        x[0, 0, 2, 3] = bad
        with torch.no_grad():
            assert torch.allclose(compiled(x), network(x), equal_nan=True, atol=1e-5)
    assert not compiled(torch.randn(1, 1, 6, 6)).isnan().any()  # nothing of it stays in the arena


def test_passes_do_what_they_say():
    workload = datasets.workload("mnist-cnn")
    graph = trace(workload.trained(), (1, 28, 28))
    assert [n.op for n in order(graph)].count("affine") == 3
    graph = simplify(graph)
    assert [n.op for n in order(graph)] == ["input", *["conv", "relu", "maxpool"] * 3, "flatten", "linear"]
    graph = fuse(graph)
    assert [n.op for n in order(graph)] == ["input", "conv", "conv", "conv", "flatten", "linear"]
    compiled = GraphCompilation().compile(workload.trained(), (1, 28, 28))
    plain = GraphCompilation(fuse=False, reuse=False).compile(workload.trained(), (1, 28, 28))
    assert compiled.figures()["memory_access"] < plain.figures()["memory_access"] / 2
    assert compiled.arena_bytes < GraphCompilation(reuse=False).compile(workload.trained(), (1, 28, 28)).arena_bytes


numbers = st.integers(0, 50), st.integers(0, 8), st.integers(0, 4)
lives = st.lists(st.builds(lambda size, first, more: Life(size, first, first + more), *numbers), max_size=8)


@settings(max_examples=100, deadline=None)
@given(lives, st.sampled_from([1, 16]))
def test_buffers_that_live_at_one_time_never_overlap(found, align):
    given_lives = dict(enumerate(found))
    offsets, size = place(given_lives, align)
    for a, b in combinations(given_lives, 2):
        one, other = given_lives[a], given_lives[b]
        if one.first <= other.last and other.first <= one.last and one.size and other.size:
            assert offsets[a] + one.size <= offsets[b] or offsets[b] + other.size <= offsets[a]
    alive = [sum(life.size for life in found if life.first <= t <= life.last) for t in range(13)]
    assert max(alive) <= size <= sum(-(-life.size // align) * align for life in found)


def test_what_has_no_code_is_named():
    with pytest.raises(ValueError, match=r"no code for _1 \(Sigmoid with \(3,\)\)"):
        GraphCompilation().compile(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), (3,))

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"torch\.fx cannot trace Branching"):
        GraphCompilation().compile(Branching(), (3,))
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        GraphCompilation().compile(3, (3,))
    compiled = GraphCompilation().compile(nn.Sequential(nn.Linear(3, 3)), (3,))
    for bad in (torch.zeros(2, 4), torch.zeros(3), torch.zeros(2, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"x: expected float32 of shape \(items, 3\)"):
            compiled(bad)
