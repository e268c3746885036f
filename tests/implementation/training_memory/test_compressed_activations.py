"""Activations kept in few bits: right on average, within a step, and gradients from them likewise."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import datasets
from kernels.counting import training_peak_bytes
from kernels.implementation.training_memory.compressed_activations import (
    GROUP,
    CompressedActivations,
    Quantized,
    Sparse,
    quantize,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([8, 4, 2]), st.integers(0, 2**31), st.booleans())
def test_within_a_step_of_the_group_and_its_ends_kept(shape, bits, seed, strided):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if strided and x.ndim > 1:
        x = x.transpose(0, -1)
    kept = Quantized.of(x, bits, seed)
    back = kept.tensor()
    assert back.shape == x.shape and kept.codes.nbytes == -(-x.numel() * bits // 8)
    for group, found in zip(x.flatten().split(GROUP), back.flatten().split(GROUP), strict=True):
        if group.numel():
            step = (group.max() - group.min()) / (2**bits - 1)
            assert (group - found).abs().max() <= step * (1 + 1e-4)
            assert found[group.argmin()] == group.min() and torch.isclose(found[group.argmax()], group.max())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_fast_version_reaches_the_two_numbers_of_the_plain_one(bits):
    x = torch.randn(3 * GROUP + 5)
    fast = Quantized.of(x, bits, seed=3).tensor().numpy()
    for first in range(0, len(x), GROUP):
        group = x[first : first + GROUP].numpy().astype(np.float64)
        below, above = (quantize(group, bits, np.full(group.shape, u)) for u in (1e-9, 1 - 1e-9))
        found = fast[first : first + GROUP]
        nearer = np.minimum(abs(found - below), abs(found - above))
        assert nearer.max() < 1e-5


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_right_on_average(bits):
    """The mean of many draws lies within five standard errors; a draw's deviation is at most half a step."""
    x, draws = torch.rand(GROUP), 4000
    mean = torch.stack([Quantized.of(x, bits, seed).tensor() for seed in range(draws)]).double().mean(0)
    step = float(x.max() - x.min()) / (2**bits - 1)
    assert (mean - x).abs().max() < 5 * step / 2 / draws**0.5 + 1e-6
    nearest = (x / step).round() * step
    assert (nearest - x).abs().max() > 5 * step / 2 / draws**0.5  # to nearest would fail


@settings(max_examples=40, deadline=None)
@given(shapes, st.floats(0, 1), st.integers(0, 2**31))
def test_leaving_zeros_out_loses_nothing(shape, density, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    kept = Sparse.of(x)
    assert torch.equal(kept.tensor(), x) and kept.values.numel() == x.count_nonzero()


def test_what_is_not_finite_never_comes_back_finite():
    for bad in (np.nan, np.inf, -np.inf):
        x = torch.zeros(2 * GROUP)
        x[3] = bad
        back = Quantized.of(x, 8, 0).tensor()
        assert back[:GROUP].isnan().all() and (back[GROUP:] == 0).all()
        assert torch.equal(Sparse.of(x).tensor(), x) or np.isnan(bad)
    assert Sparse.of(torch.tensor([np.nan])).tensor().isnan().all()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5),
    )  # fmt: skip


def gradients(net, run, x):
    net.zero_grad()
    run(x).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def test_without_loss_gradients_are_those_of_plain_training_to_the_bit():
    net, x = network(), torch.randn(4, 2, 12, 12)
    plain = gradients(net, net, x)
    assert torch.equal(plain, gradients(net, CompressedActivations(bits=32).wrap(net), x))


def test_gradients_of_a_linear_layer_are_right_on_average():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Sigmoid(), nn.Linear(16, 4)), torch.randn(32, 16)
    plain = gradients(net, net, x)
    subject = [gradients(net, CompressedActivations(bits=2, seed=s).wrap(net), x) for s in range(0, 20000, 10)]
    mean, error = torch.stack(subject).mean(0), torch.stack(subject).std(0) / len(subject) ** 0.5
    assert ((mean - plain).abs() <= 5 * error + 1e-5 * plain.abs()).all()
    assert (subject[0] - plain).norm() > 0.01 * plain.norm()


def watched(subject):
    """The subject, and a list of what it keeps."""
    kept, keep = [], subject.keep

    def watch(x):
        kept.append(keep(x))
        return kept[-1]

    subject.keep = watch
    return subject, kept


def stored(form):
    return form.nbytes if isinstance(form, torch.Tensor) else form.codes.nbytes + form.low.nbytes + form.step.nbytes


def test_fewer_bits_are_more_error_and_less_memory():
    net, x = network(), torch.randn(16, 2, 12, 12)
    plain = gradients(net, net, x)
    peaks, errors, sizes = {}, {}, {}
    for bits in (8, 4, 2):
        subject, kept = watched(CompressedActivations(bits).wrap(net))
        errors[bits] = float((gradients(net, subject, x) - plain).norm() / plain.norm())
        sizes[bits] = sum(stored(form) for form in kept)
        kept.clear()
        subject = CompressedActivations(bits).wrap(net)
        peaks[bits] = training_peak_bytes(net, lambda subject=subject: subject(x).square().sum().backward())
    assert 0 < errors[8] < errors[4] < errors[2] < 1
    assert training_peak_bytes(net, lambda: net(x).square().sum().backward()) > peaks[8] > peaks[4] > peaks[2]
    # the first convolution's output, both ReLU's, and pooling's; flattened, the second ReLU's is the same
    elements = 16 * 8 * (2 * 144 + 2 * 36)
    indices, groups = 16 * 8 * 36 * 2, -(-elements // GROUP)
    for bits in (8, 4, 2):
        assert sizes[bits] - indices == pytest.approx(elements * bits / 8 + groups * 8, rel=0.01)


def test_a_tensor_that_two_layers_save_is_kept_once_and_let_go_afterwards():
    net = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 64))
    subject, kept = watched(CompressedActivations().wrap(net))
    loss = subject(torch.randn(64, 64)).sum()
    assert len(kept) == 1
    held = weakref.ref(kept.pop())
    gc.collect()
    assert held() is not None
    loss.backward()
    gc.collect()
    assert held() is None and not len(subject.seen)


def test_forward_is_exact_and_a_training_learns():
    net, x = network(), torch.randn(4, 2, 12, 12)
    assert torch.equal(CompressedActivations(bits=2).wrap(net)(x), net(x))
    workload = datasets.workload("digits-mlp")
    recipe, start = datasets.Recipe(epochs=3, batch=64), workload.network()
    before = copy.deepcopy(start.state_dict())
    trained, trace = CompressedActivations(bits=4).run(recipe, start, workload.data())
    again, _ = CompressedActivations(bits=4).run(recipe, start, workload.data())
    assert datasets.accuracy(trained, workload.data().validation) > 0.85 and not trained.training and trace
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(before.values(), start.state_dict().values(), strict=True))


def test_bad_bits_are_named():
    for bad in (0, 3, 16, "8"):
        with pytest.raises(ValueError, match="bits: expected 8, 4, 2, or 32 for no loss"):
            CompressedActivations(bits=bad)
