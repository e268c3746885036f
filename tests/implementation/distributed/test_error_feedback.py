"""What is not sent now is sent later: conservation, low rank against numpy's own, and the paper's counterexample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import datasets
from kernels.implementation.distributed.error_feedback import ErrorFeedback, orthonormal
from kernels.implementation.distributed.exchange import in_step, over
from kernels.implementation.distributed.workers import Workers

ALL = [ErrorFeedback(), ErrorFeedback("low-rank"), ErrorFeedback("low-rank", rank=3)]


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("shape", [(20, 30), (8, 3, 3, 3), (17,), (1, 1), (0, 4), ()])
@pytest.mark.parametrize("subject", ALL, ids=str)
def test_all_that_was_sent_and_what_is_left_are_all_gradients(subject, shape, workers):
    memories, sent, total = [{} for _ in range(workers)], np.zeros(shape), np.zeros(shape)
    for t in range(20):
        gradients = [drawn(shape, 100 * t + r) for r in range(workers)]
        steps = [subject.average(g, m) for g, m in zip(gradients, memories, strict=True)]
        results, _ = in_step(steps)
        assert all(np.array_equal(result, results[0]) for result in results)
        sent += results[0]
        total += np.mean(gradients, axis=0, dtype=np.float64)
    left = np.mean([memory.get("residual", np.zeros(shape)) for memory in memories], axis=0)
    assert np.allclose(sent + left, total, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.floats(-8, 8, width=16)))
def test_orthonormal_columns_that_span_the_same(p):
    q = orthonormal(p).astype(np.float64)
    kept = q[:, np.abs(q).sum(0) > 0]
    assert np.allclose(kept.T @ kept, np.eye(kept.shape[1]), atol=1e-5)
    assert np.allclose(q @ (q.T @ p), p, atol=1e-4 * max(1, np.abs(p).max()))


def test_repeated_it_finds_the_best_matrix_of_low_rank():
    """Without feedback, each step is one of subspace iteration: it comes to the singular value decomposition's."""
    m = drawn((12, 20)) * np.float32(0.8) ** np.arange(20, dtype=np.float32)
    u, s, vt = np.linalg.svd(m.astype(np.float64))
    memory = {}
    for _ in range(60):
        (found,), sent = in_step([ErrorFeedback("low-rank", rank=2, feedback=False).average(m, memory)])
    assert np.allclose(found, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-3)
    assert sent == [4 * 2 * (12 + 20)]


def test_what_is_no_larger_than_its_factors_is_sent_as_it_is():
    for shape in ((10,), (2, 2), (5, 1), ()):
        v = drawn(shape)
        (found,), sent = in_step([ErrorFeedback("low-rank").average(v, {})])
        assert np.array_equal(found, v) and sent == [4 * v.size]


def test_a_sign_is_a_bit_and_one_scale():
    v = drawn(1000)
    (found,), sent = in_step([ErrorFeedback().average(v, {})])
    assert sent == [4 + 125] and np.allclose(np.abs(found), np.abs(v).mean(), rtol=1e-6)
    assert (np.sign(found) == np.sign(v)).all()


def test_the_paper_s_counterexample():
    """Karimireddy et al., section 3: f(x, y) = |x + y| / 2 + |x - y|. Signs of its gradients are (1, -1) or (-1, 1), so
    without feedback x + y never changes; with it both go to the minimum at 0."""
    ends = {}
    for feedback in (True, False):
        subject, memory, point = ErrorFeedback(feedback=feedback), {}, np.ones(2)
        for _ in range(2000):
            across = 1.0 if point[0] >= point[1] else -1.0
            gradient = 0.5 * np.sign(point.sum()) * np.ones(2) + across * np.array([1, -1])
            (step,), _ = in_step([subject.average(gradient.astype(np.float32), memory)])
            point = point - 0.01 * step
        ends[feedback] = point
    assert ends[False].sum() == pytest.approx(2) and np.abs(ends[True]).max() < 0.05


def exchanged(group, subject, shape, steps):
    memory = {}
    return [over(group, subject.average(drawn(shape, 10 * t + group.rank), memory)) for t in range(steps)]


def test_two_processes_agree_on_what_one_process_computes_and_send_what_is_counted():
    steps, shape = 3, (24, 4, 3)
    with Workers(2) as team:
        for subject in ALL:
            answers = team.call(exchanged, subject, shape, steps)
            memories, counted = [{}, {}], np.zeros(2, int)
            for t in range(steps):
                parts = [subject.average(drawn(shape, 10 * t + r), memories[r]) for r in range(2)]
                (expected, _), sent = in_step(parts)
                counted += sent
                for answer in answers:
                    assert answer.value[t].tobytes() == expected.tobytes()
            assert [answer.sent for answer in answers] == counted.tolist()


def test_low_rank_trains_with_feedback_and_not_without():
    workload, recipe = datasets.workload("digits-mlp"), datasets.Recipe(epochs=4, batch=32)
    found = {}
    for feedback in (True, False):
        subject = ErrorFeedback("low-rank", feedback=feedback)
        network, _ = subject.run(recipe, workload.network(0), workload.data())
        found[feedback] = datasets.accuracy(network, workload.data().validation)
        assert all(torch.isfinite(p).all() for p in network.parameters())
    assert found[True] > 0.8 and found[True] > found[False]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="compressor: expected sign or low-rank, got 'top'"):
        ErrorFeedback("top")
    with pytest.raises(ValueError, match="rank: expected a positive integer, got 0"):
        ErrorFeedback(rank=0)
    with pytest.raises(ValueError, match="expected finite numbers"):
        in_step([ErrorFeedback().average(np.array([np.nan]), {})])
