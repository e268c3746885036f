"""The largest numbers only: which they are, that nothing is lost, and how many bytes they take."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
from kernels.implementation.distributed.exchange import in_step, over
from kernels.implementation.distributed.gradient_sparsification import GradientSparsification, _largest, largest
from kernels.implementation.distributed.workers import Workers

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
densities = st.sampled_from([0.001, 0.01, 0.1, 0.5, 1.0])


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(0, 40))
def test_the_fast_choice_is_the_plain_one_ties_included(numbers, k):
    v = np.array(numbers, np.float32)
    k = min(k, v.size)
    if k:
        assert _largest(v, k).tolist() == largest(v, k).tolist()
    assert len(largest(v, k)) == k


@settings(max_examples=60, deadline=None)
@given(shapes, densities, st.integers(0, 2**31), st.booleans())
def test_what_is_sent_comes_back_and_torch_chooses_the_same(shape, density, seed, strided):
    subject, v = GradientSparsification(density), drawn(shape, seed)
    if strided and v.ndim > 1:
        v = v.swapaxes(0, -1)
    message = subject.encode(v)
    found = subject.decode(message, v.shape)
    k = subject.count(v.size)
    assert len(message) == subject.message_bytes(v.size) and np.count_nonzero(found) == k
    assert ((found == 0) | (found == v)).all()
    expected = torch.from_numpy(np.abs(np.ascontiguousarray(v)).reshape(-1)).topk(k).values.sort().values
    assert np.array_equal(np.sort(np.abs(found[found != 0])), expected.numpy())
    assert k == min(v.size, max(1 if v.size else 0, math.ceil(density * v.size - 1e-9)))


@pytest.mark.parametrize("density", [0.01, 0.3])
def test_nothing_is_lost_only_late(density):
    """All that was sent, and what is left, are all gradients together."""
    subject, memory = GradientSparsification(density), {}
    gradients = [drawn((20, 30), seed) for seed in range(50)]
    sent = np.zeros((20, 30))
    for key, gradient in enumerate(gradients):
        (result,), _ = in_step([subject.average(gradient, memory, key)])
        sent += result
    total = np.sum(gradients, axis=0, dtype=np.float64)
    assert np.allclose(sent + memory["residual"], total, atol=1e-4)
    assert np.abs(memory["residual"]).max() > 0.1


def test_every_number_is_sent_before_long():
    subject, memory, seen = GradientSparsification(0.1), {}, np.zeros(100, bool)
    for key in range(10):
        (result,), _ = in_step([subject.average(np.ones(100, np.float32), memory, key)])
        seen |= result != 0
    assert seen.all()


def test_without_the_residual_the_rest_is_lost():
    memory = {}
    in_step([GradientSparsification(0.1, residual=False).average(drawn(100), memory)])
    assert memory == {}


def exchanged(group, subject, count, steps):
    memory = {}
    return [over(group, subject.average(drawn(count, 10 * t + group.rank), memory)) for t in range(steps)]


def test_two_processes_agree_on_what_one_process_computes_and_send_what_is_counted():
    subject, steps = GradientSparsification(0.05), 3
    with Workers(2) as team:
        answers = team.call(exchanged, subject, 777, steps)
    memories = [{}, {}]
    for t in range(steps):
        (expected, _), _ = in_step([subject.average(drawn(777, 10 * t + r), memories[r]) for r in range(2)])
        for answer in answers:
            assert answer.value[t].tobytes() == expected.tobytes()
    assert [answer.sent for answer in answers] == [steps * subject.message_bytes(777)] * 2


def test_a_training_learns_for_few_bytes():
    workload, recipe = datasets.workload("digits-mlp"), datasets.Recipe(epochs=4, batch=32)
    network, trace = GradientSparsification(0.05).run(recipe, workload.network(0), workload.data())
    assert datasets.accuracy(network, workload.data().validation) > 0.8
    assert trace[0]["bytes_sent"] < 4 * sum(p.numel() for p in network.parameters()) / 10


def test_bad_input_is_named():
    for bad in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match="density: expected a share above 0, at most 1"):
            GradientSparsification(bad)
    with pytest.raises(ValueError, match="message: expected 5 bytes for shape \\(4,\\), got 0"):
        GradientSparsification(0.1).decode(b"", (4,))
    with pytest.raises(ValueError, match="expected finite numbers"):
        GradientSparsification().encode(np.array([np.inf]))
