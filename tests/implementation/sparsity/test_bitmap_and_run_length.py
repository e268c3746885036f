"""Codes against counting by hand, bit for bit; what holds for every sparse operator is in test_sparse_left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.sparsity.bitmap_and_run_length import BitmapAndRunLength, decoded, run_lengths


def runs_by_hand(flags, run_bits):
    """Walk place by place, as a circuit would."""
    most, codes, zeros = 2**run_bits - 1, [], 0
    for flag in flags:
        if not flag:
            zeros += 1
            continue
        while zeros >= most:
            codes.append(most)
            zeros -= most
        codes.append(zeros)
        zeros = 0
    return codes


@given(flags=st.lists(st.booleans(), max_size=300), run_bits=st.integers(1, 8))
def test_runs_are_those_of_a_walk(flags, run_bits):
    assert run_lengths(np.flatnonzero(flags), run_bits).tolist() == runs_by_hand(flags, run_bits)


@given(
    seed=st.integers(0, 2**32 - 1), m=st.integers(0, 8), k=st.integers(0, 200), run_bits=st.integers(1, 8),
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)  # fmt: skip
def test_stored_bits_are_exact_and_the_places_come_back(seed, m, k, run_bits, density):
    a = (np.random.default_rng(seed).random((m, k)) < density).astype(np.float32)
    values = int(a.sum())
    bitmap = BitmapAndRunLength().prepare(a)
    assert bitmap.code_bits() == m * k and bitmap.stored_bits() == 32 * values + m * -(-k // 64) * 64
    runs = BitmapAndRunLength("run-length", run_bits).prepare(a)
    codes = len(runs_by_hand(a.ravel(), run_bits))
    assert runs.codes == codes and runs.code_bits() == (codes * run_bits if codes else m * k)
    assert runs.stored_bits() == 32 * values + 8 * (-(-codes * run_bits // 8) + 1)
    for form in (bitmap, runs):
        assert np.array_equal(decoded(form), np.flatnonzero(a))


@pytest.mark.parametrize("code", ["bitmap", "run-length"])
def test_runs_across_rows_and_words(code):
    a = np.zeros((7, 130), np.float32)
    a[[0, 3, 3, 6], [129, 0, 64, 63]] = [1, 2, 3, 4]
    b = np.arange(130 * 9.0).reshape(130, 9)
    for n in (1, 9):
        for run_bits in (1, 5, 8):
            assert np.array_equal(BitmapAndRunLength(code, run_bits).matmul(a, b[:, :n]), a @ b[:, :n])


def test_other_parameters_are_refused():
    with pytest.raises(ValueError, match="code: expected bitmap or run-length, got 'huffman'"):
        BitmapAndRunLength("huffman")
    for bits in (0, 9, 2.5):
        with pytest.raises(ValueError, match="run_bits: expected an integer from 1 to 8"):
            BitmapAndRunLength(run_bits=bits)
