"""Checkpointed training is plain training to the last bit, in less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import datasets
from kernels.counting import training_peak_bytes
from kernels.implementation.training_memory.gradient_checkpointing import GradientCheckpointing, recomputed


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def chain(depth=9, width=6):
    torch.manual_seed(0)
    unit = [(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3))] * depth
    network = nn.Sequential(*(copy.deepcopy(module) for modules in unit for module in modules), nn.Flatten())
    return network


def backward(network, run, x):
    torch.manual_seed(1)
    run(x).square().sum().backward()
    return [parameter.grad for parameter in network.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("segments", [1, 2, 4, "sqrt", 37])
@pytest.mark.parametrize("input_gradient", [False, True])
def test_gradients_and_statistics_equal_plain_training_to_the_bit(segments, input_gradient):
    x = torch.randn(4, 6, 5, 5)
    plain, subject = chain(), chain()
    plain_x, own_x = (x.clone().requires_grad_(input_gradient) for _ in range(2))
    expected = backward(plain, plain, plain_x)
    found = backward(subject, GradientCheckpointing(segments).wrap(subject), own_x)
    assert same(expected, found)
    assert same(plain.state_dict().values(), subject.state_dict().values())
    assert subject[1].num_batches_tracked == 1 and not subject[1].running_mean.equal(torch.zeros(6))
    assert not input_gradient or torch.equal(plain_x.grad, own_x.grad)


def test_the_plain_statement_agrees():
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    plain, subject = chain(4), chain(4)
    assert same(backward(plain, plain, x), backward(subject, lambda x: recomputed(subject, x), x))
    assert same(plain.state_dict().values(), subject.state_dict().values())


def test_forgetting_the_buffers_would_count_a_batch_twice():
    """The pitfall is real: torch's own checkpoint_sequential moves running statistics twice."""
    from torch.utils.checkpoint import checkpoint_sequential

    plain, naive, x = chain(4), chain(4), torch.randn(4, 6, 5, 5)
    backward(plain, plain, x)
    backward(naive, lambda x: checkpoint_sequential(naive, 2, x, use_reentrant=False), x)
    assert naive[1].num_batches_tracked == 2 * plain[1].num_batches_tracked


@pytest.mark.parametrize("name", ["digits-mlp", "noisy-digits-cnn"])
@pytest.mark.parametrize("segments", [2, "sqrt"])
def test_a_whole_training_ends_in_the_same_weights(name, segments):
    workload = datasets.workload(name)
    recipe = datasets.Recipe(epochs=2, batch=64)
    plain, network = workload.network(), workload.network()
    before = copy.deepcopy(network.state_dict())
    trace = recipe.train(plain, workload.data())
    trained, own_trace = GradientCheckpointing(segments).run(recipe, network, workload.data())
    assert trace == own_trace
    assert same(plain.state_dict().values(), trained.state_dict().values())
    assert type(trained) is type(network) and not trained.training
    assert same(before.values(), network.state_dict().values())


def test_memory_follows_the_papers_cost():
    """n equal layers: everything is n; k segments keep k inputs and n / k activations, smallest at the root of n."""
    depth, width, batch = 64, 32, 16
    x = torch.randn(batch, width)

    def peak(segments):
        network = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for _ in range(depth)))
        subject = network if segments is None else GradientCheckpointing(segments).wrap(network)
        return training_peak_bytes(network, lambda: subject(x).sum().backward()) / (4 * width * batch)

    peaks = {k: peak(k) for k in (None, 1, 2, 4, 8, 16, 32)}
    assert peaks[None] == peaks[1] == pytest.approx(depth, abs=3)  # the sigmoids' outputs, each read by the next layer
    for k in (2, 4, 8, 16, 32):
        assert peaks[k] == pytest.approx(k + depth / k, abs=5)
    assert min(peaks, key=peaks.get) == 8


def test_evaluation_is_the_chain_itself():
    network, x = chain().eval(), torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        assert torch.equal(GradientCheckpointing("sqrt").wrap(network)(x), network(x))


def test_the_last_result_depends_on_random_numbers_of_the_first_pass_only():
    """After a checkpointed step the generator stands where plain training leaves it."""
    plain, subject, x = chain(3), chain(3), torch.randn(2, 6, 5, 5)
    backward(plain, plain, x)
    expected = torch.rand(3)
    backward(subject, GradientCheckpointing(3).wrap(subject), x)
    assert torch.equal(torch.rand(3), expected)


def test_what_cannot_be_cut_is_named():
    class Net(nn.Module):
        pass

    with pytest.raises(TypeError, match=r"network: expected an nn\.Sequential.*got Net"):
        GradientCheckpointing().wrap(Net())
    with pytest.raises(ValueError, match="segments: expected at most the 2 modules of the chain, got 3"):
        GradientCheckpointing(3).wrap(nn.Sequential(nn.ReLU(), nn.ReLU()))
    for bad in (0, -1, 1.5, "root"):
        with pytest.raises(ValueError, match="segments: expected a positive integer or 'sqrt'"):
            GradientCheckpointing(bad)
