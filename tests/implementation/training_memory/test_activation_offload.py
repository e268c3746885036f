"""Activations that wait in a file: the same training to the last bit, in less memory, every byte moved counted."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import datasets
from kernels.counting import training_peak_bytes
from kernels.implementation.training_memory.activation_offload import ActivationOffload, Swap


def chain(depth=8, width=16):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for _ in range(depth)))


@pytest.mark.parametrize("smallest", [0, 1024, 10**9])
def test_gradients_equal_plain_training_to_the_bit(smallest):
    net, x = chain(), torch.randn(32, 16)
    net(x).sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    ActivationOffload(smallest).wrap(net)(x).sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(net.parameters(), expected, strict=True))


def test_each_activation_is_sent_once_and_the_file_starts_again_every_step():
    net, x = chain(depth=8), torch.randn(32, 16)
    away = ActivationOffload(0).wrap(net)
    for step in range(1, 4):
        away(x).sum().backward()
        gc.collect()
        # eight outputs of sigmoids, which the sigmoid and the next layer save; the last one only the sigmoid
        assert away.swap.sent == step * 8 * x.nbytes
        assert away.swap.fetched == step * (8 + 7) * x.nbytes
        assert away.swap.end == 0 and away.swap.live == 0


def test_memory_no_longer_grows_with_depth():
    def peak(depth, offload):
        net, x = chain(depth), torch.randn(64, 16)
        subject = ActivationOffload(0).wrap(net) if offload else net
        return training_peak_bytes(net, lambda: subject(x).sum().backward())

    assert peak(32, False) > 1.8 * peak(16, False)
    assert peak(32, True) == peak(16, True) < peak(16, False) / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (2, 3, 5)])
def test_what_is_read_is_what_was_written(dtype, shape):
    swap = Swap()
    tensors = [(torch.randn(shape) * 10).to(dtype) for _ in range(3)]
    tensors.append(tensors[0].mT if len(shape) > 1 else tensors[0])
    slots = [swap.write(t) for t in tensors]
    for slot, tensor in reversed([*zip(slots, tensors, strict=True)]):
        assert torch.equal(swap.read(slot), tensor) and swap.read(slot).dtype == dtype


def test_a_file_that_was_cut_is_noticed():
    swap = Swap()
    slot = swap.write(torch.ones(100))
    swap.file.truncate(10)
    with pytest.raises(OSError, match="swap file: 390 bytes at 10 are missing"):
        swap.read(slot)


def test_a_whole_training_ends_in_the_same_weights():
    workload = datasets.workload("digits-mlp")
    recipe, plain = datasets.Recipe(epochs=2, batch=64), workload.network()
    trace = recipe.train(plain, workload.data())
    trained, own = ActivationOffload(0).run(recipe, workload.network(), workload.data())
    assert own == trace and not trained.training
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), trained.state_dict().values(), strict=True)
    )


def test_bad_size_is_named():
    for bad in (-1, 0.5):
        with pytest.raises(ValueError, match="smallest: expected a number of bytes, 0 or more"):
            ActivationOffload(bad)
