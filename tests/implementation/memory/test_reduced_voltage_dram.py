"""The bound against numpy, flips by the binomial law, the mapping against a network whose tolerance is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import nn

import datasets
from kernels.implementation.memory.reduced_voltage_dram import ReducedVoltageDram

FORMATS = ["float32", "bfloat16", "int8"]
NORMAL = np.random.default_rng(0).normal(0, 0.3, 200).astype(np.float32)
each_format = pytest.mark.parametrize("format", FORMATS)
finite = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@settings(max_examples=150, deadline=None)
@given(finite, st.sampled_from(FORMATS), st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.5]))
def test_what_is_read_is_plausible_and_otherwise_what_lies_there(w, format, seed, rate):
    dram, plain = ReducedVoltageDram(format), ReducedVoltageDram(format).unprotected()
    stored = dram.protect(w)
    faulty = dram.corrupt(stored, rate, seed)
    raw, read, clean = plain.recover(faulty), dram.recover(faulty), dram.recover(stored)
    assert read.shape == w.shape and read.dtype == np.float32
    low, high = (np.min(clean, initial=0), np.max(clean, initial=0))
    with np.errstate(invalid="ignore"):
        kept = np.clip(raw, low, high) == raw
    assert np.array_equal(read, np.where(kept, raw, 0))
    if rate == 0:
        assert np.array_equal(read, clean)


@each_format
def test_bounding_again_changes_nothing(format):
    dram = ReducedVoltageDram(format)
    read = dram.recover(dram.corrupt(dram.protect(NORMAL), 0.05, 0))
    again = dram.protect(read)
    assert np.allclose(dram.recover(again), read, atol=1e-6 if format != "int8" else 0.01)
    assert NORMAL.min() - 0.01 <= again.low and again.high <= NORMAL.max() + 0.01


@each_format
def test_flips_follow_the_binomial_law_and_a_seed(format):
    dram = ReducedVoltageDram(format)
    stored = dram.protect(np.zeros(50_001, np.float32))
    bits = 50_001 * 8 * stored.words.itemsize
    for rate in (0.0, 1e-4, 1e-2, 1.0):
        flips = np.bitwise_count(dram.corrupt(stored, rate, 5).words).sum()
        low, high = stats.binom.interval(1 - 1e-6, bits, rate)
        assert low <= flips <= high
    a, b, c = (dram.corrupt(stored, 0.01, seed).words for seed in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    plain = dram.unprotected()
    assert np.array_equal(plain.corrupt(plain.protect(np.zeros(50_001)), 0.01, 3).words, a)


def test_nothing_flips_in_the_partition_as_specified():
    dram = ReducedVoltageDram(reduced=False)
    assert np.array_equal(dram.recover(dram.corrupt(dram.protect(NORMAL), 1.0, 0)), NORMAL)
    assert dram.relaxed_bits((9,)) == 0
    assert ReducedVoltageDram().relaxed_bits((9, 2)) == 9 * 2 * 32


class Scored(nn.Module):
    """Two tensors; accuracy falls with the mean change of the first and does not depend on the second."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.felt = nn.Parameter(torch.linspace(-1, 1, size))
        self.unfelt = nn.Parameter(torch.ones(size // 2))


def test_mapping_keeps_what_is_felt_and_lets_go_of_what_is_not():
    network = Scored(2000)
    kept = network.felt.detach().clone()

    def accuracy(read: nn.Module) -> float:
        return 1 - float((read.felt != kept).float().mean())  # at rate r one word in 1 - (1 - r)^32 is wrong

    dram = ReducedVoltageDram(bound=False)
    for rate, tolerated in ((1e-5, True), (1e-2, False)):
        assert [s.reduced for s in dram.mapped(network, accuracy, rate)] == [tolerated, True]
    assert [s.reduced for s in ReducedVoltageDram(loss=1.0).mapped(network, accuracy, 1e-2)] == [True, True]
    assert [s.reduced for s in ReducedVoltageDram(mapping=False).mapped(network, accuracy, 1e-2)] == [True, True]
    assert dram.mapped(network, accuracy, 1e-2) == dram.mapped(network, accuracy, 1e-2)
    assert torch.equal(network.felt, kept)  # the network was left alone


def test_tensors_that_are_tolerated_alone_need_not_be_together():
    network = nn.ParameterList([torch.ones(1000), torch.ones(999)])
    dram = ReducedVoltageDram(loss=0.35)

    def accuracy(read: nn.Module) -> float:  # either tensor alone loses about 0.27
        return 1 - sum(float((p != 1).float().mean()) for p in read)

    assert [s.reduced for s in dram.mapped(network, accuracy, 0.01)] == [True, False]


def short():
    return replace(datasets.workload("digits-mlp").recipe, epochs=4)  # fine-tuning takes a quarter


def test_retraining_leaves_plain_weights_and_its_argument_alone_and_is_its_seeds():
    workload, recipe = datasets.workload("digits-mlp"), short()
    network = workload.trained()
    kept = [p.detach().clone() for p in network.parameters()]
    dram = ReducedVoltageDram("int8")
    a, b, c = (dram.retrained(network, workload.data(), recipe, 0.03, seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), kept, strict=True))
    assert [n for n, _ in a.named_modules()] == [n for n, _ in network.named_modules()] and not a.training
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


def test_without_faults_retraining_is_fine_tuning():
    workload, recipe = datasets.workload("digits-mlp"), short()
    plain = workload.trained()
    recipe.finetune(plain, workload.data(), seed=0)
    read = ReducedVoltageDram().retrained(workload.trained(), workload.data(), recipe, 0.0)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), read.parameters(), strict=True))


@each_format
def test_edges(format):
    dram = ReducedVoltageDram(format)
    for w in (np.zeros((0, 3), np.float32), np.float32(0.5), NORMAL.reshape(10, 20).T[::2], [0.25, -0.5, 0.0]):
        read = dram.recover(dram.corrupt(dram.protect(w), 0.0, 0))
        assert read.shape == np.shape(w) and np.allclose(read, w, atol=0.01)
    with pytest.raises(ValueError, match="weights: expected finite"):
        dram.protect(np.array([1, np.inf], np.float32))
    with pytest.raises(ValueError, match="rate"):
        dram.corrupt(dram.protect(NORMAL), -0.1, 0)


def test_bits_peers_and_wrong_parameters():
    assert ReducedVoltageDram().stored_bits((10,)) == 10 * 32 + 64
    assert ReducedVoltageDram().unprotected().stored_bits((10,)) == 10 * 32
    assert ReducedVoltageDram().others() == {
        "bounded": ReducedVoltageDram(mapping=False),
        "retrained": ReducedVoltageDram(mapping=False, retrain=True),
    }
    assert ReducedVoltageDram(retrain=True).unprotected() == ReducedVoltageDram(bound=False, mapping=False)
    with pytest.raises(LookupError, match="no source"):
        ReducedVoltageDram().energy(32, 0.0)
    with pytest.raises(ValueError, match="loss: expected a share"):
        ReducedVoltageDram(loss=-0.1)
    with pytest.raises(ValueError, match="format: expected one of"):
        ReducedVoltageDram("fp8")
