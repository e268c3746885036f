"""Gradients in few levels: right on average, within the paper's bound, in as many bytes as counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
from kernels.implementation.distributed.exchange import in_step, over
from kernels.implementation.distributed.gradient_quantization import GradientQuantization, quantized, signs
from kernels.implementation.distributed.workers import Workers

UNBIASED = [
    GradientQuantization(levels=1, bucket=64),
    GradientQuantization(levels=7, bucket=64),
    GradientQuantization("ternary", bucket=64),
]
ALL = [*UNBIASED, GradientQuantization("sign", bucket=64), GradientQuantization(levels=32768)]
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("subject", UNBIASED, ids=str)
def test_right_on_average_and_within_the_bound(subject):
    """The mean of many draws lies within five standard errors; the variance within QSGD's lemma 3.1 in each bucket."""
    v, draws = drawn(100), 4000
    found = np.stack([subject.decode(subject.encode(v, key), v.shape) for key in range(draws)]).astype(np.float64)
    error = found.std(0) / draws**0.5
    assert (np.abs(found.mean(0) - v) <= 5 * error + 1e-6).all()
    assert (found.std(0) > 0).mean() > 0.95  # it is rounded
    for bucket in (slice(0, 64), slice(64, 100)):
        square, n = float((v[bucket].astype(np.float64) ** 2).sum()), v[bucket].size
        variance = ((found[:, bucket] - v[bucket]) ** 2).sum(1).mean()
        if subject.scheme == "qsgd":
            assert variance <= min(n / subject.levels**2, n**0.5 / subject.levels) * square
        else:  # a Bernoulli variable each: m |v| - v^2
            m = np.abs(v[bucket]).max()
            assert variance == pytest.approx((m * np.abs(v[bucket]) - v[bucket] ** 2).sum(), rel=0.05)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(ALL), st.integers(0, 2**31), st.booleans())
def test_bytes_are_those_counted_and_numbers_a_level_from_their_own(shape, subject, key, strided):
    v = drawn(shape, key)
    if strided and v.ndim > 1:
        v = v.swapaxes(0, -1)
    message = subject.encode(v, key)
    found = subject.decode(message, v.shape)
    assert len(message) == subject.message_bytes(v.size) and found.shape == v.shape and found.dtype == np.float32
    flat, back = np.ascontiguousarray(v).reshape(-1), found.reshape(-1)
    for first in range(0, flat.size, subject.bucket):
        x, y = (a[first : first + subject.bucket].astype(np.float64) for a in (flat, back))
        if subject.scheme == "sign":
            assert np.allclose(y, signs(x), rtol=1e-6)
            continue
        scale = np.float64(np.float32(np.linalg.norm(x) if subject.scheme == "qsgd" else np.abs(x).max()))
        below, above = (quantized(x, scale, subject.steps, np.full(x.shape, u)) for u in (0.0, 1 - 1e-12))
        tolerance = 1e-5 * scale
        assert (np.minimum(np.abs(y - below), np.abs(y - above)) <= tolerance).all()


def test_the_plain_statement_averages_over_even_draws():
    v, n = np.array([0.3, -0.7, 0.0, 1.0]), 1000
    mean = np.mean([quantized(v, 1.0, 3, np.full(4, (i + 0.5) / n)) for i in range(n)], axis=0)
    assert np.allclose(mean, v, atol=1e-3)
    assert (quantized(np.zeros(3), 0.0, 1, np.full(3, 0.9)) == 0).all()


def test_sizes_by_hand():
    count = 6570
    buckets = -(-count // 512)
    assert GradientQuantization().message_bytes(count) == 4 * buckets + -(-count * 4 // 8)  # sixteen digits a word
    assert GradientQuantization("sign").message_bytes(count) == 4 * buckets + -(-count // 8)
    assert GradientQuantization("ternary").message_bytes(4000) == 4 * 8 + 4000 // 40 * 8


@pytest.mark.parametrize("subject", ALL, ids=str)
def test_zeros_stay_zeros_and_what_is_not_finite_is_refused(subject):
    zeros = np.zeros((3, 50), np.float32)
    assert (subject.decode(subject.encode(zeros), zeros.shape) == 0).all()
    with pytest.raises(ValueError, match="expected finite numbers"):
        subject.encode(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"message: expected .* bytes for shape \(2,\)"):
        subject.decode(b"", (2,))


def exchanged(group, subject, count):
    gradient = drawn(count, group.rank)
    return over(group, subject.average(gradient, {}, key=group.rank))


def test_two_processes_agree_on_what_one_process_computes_and_send_what_is_counted():
    with Workers(2) as team:
        for subject in ALL:
            answers = team.call(exchanged, subject, 1001)
            (expected, _), sent = in_step([subject.average(drawn(1001, r), {}, key=r) for r in range(2)])
            assert [answer.sent for answer in answers] == sent == [subject.message_bytes(1001)] * 2
            for answer in answers:
                assert answer.value.tobytes() == expected.tobytes()


def test_a_training_learns_for_fewer_bytes():
    workload, recipe = datasets.workload("digits-mlp"), datasets.Recipe(epochs=3, batch=32)
    network, trace = GradientQuantization().run(recipe, workload.network(0), workload.data())
    again, _ = GradientQuantization().run(recipe, workload.network(0), workload.data())
    count = sum(p.numel() for p in network.parameters())
    assert datasets.accuracy(network, workload.data().validation) > 0.8 and trace[0]["bytes_sent"] < 4 * count / 7
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_bad_parameters_are_named():
    with pytest.raises(ValueError, match="scheme: expected one of qsgd, ternary, sign, got 'binary'"):
        GradientQuantization("binary")
    with pytest.raises(ValueError, match="levels: expected an integer from 1"):
        GradientQuantization(levels=0)
    with pytest.raises(ValueError, match="bucket: expected a positive integer"):
        GradientQuantization(bucket=0)
