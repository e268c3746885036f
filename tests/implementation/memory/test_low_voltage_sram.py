"""Masks against a loop over bits and against numpy's own integers; flips by the binomial law; energy worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from kernels.implementation.memory.low_voltage_sram import VOLTAGES, LowVoltageSram, masked

FORMATS = ["int8", "bfloat16", "float32"]
RECOVERIES = ["bit-mask", "word-mask", "none"]
NORMAL = np.random.default_rng(0).normal(0, 0.3, 200).astype(np.float32)
every = pytest.mark.parametrize(
    "sram", [LowVoltageSram(f, r) for f in FORMATS for r in RECOVERIES], ids=lambda s: f"{s.format}, {s.recovery}"
)
finite = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_every_byte_with_every_flag_equals_the_plain_statement(recovery):
    words, flags = (x.ravel().astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
    for format, twos in (("int8", True), ("float32", False)):  # of a byte of a float: sign and magnitude
        got = LowVoltageSram(format, recovery).mask(words, flags)
        expected = [
            masked(int(w), int(f), 8, recovery, twos_complement=twos) for w, f in zip(words, flags, strict=True)
        ]
        assert got.dtype == np.uint8 and got.tolist() == expected


def test_a_masked_integer_never_leaves_its_side_of_zero_nor_grows():
    words, flags = (x.ravel().astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
    clean = words.view(np.int8).astype(int)  # numpy's own two's complement
    read = LowVoltageSram().mask(words ^ flags, flags).view(np.int8).astype(int)
    assert (np.abs(read) <= np.abs(clean)).all() and (read * clean >= 0).all()


@settings(max_examples=100, deadline=None)
@given(finite, st.sampled_from(FORMATS), st.integers(0, 2**32), st.sampled_from([0.01, 0.2, 1.0]))
def test_a_masked_weight_is_never_larger_than_it_was_and_finite(w, format, seed, rate):
    for recovery in ("bit-mask", "word-mask"):
        sram = LowVoltageSram(format, recovery)
        stored = sram.protect(w)
        read = sram.recover(sram.corrupt(stored, rate, seed))
        assert read.shape == w.shape and read.dtype == np.float32 and np.isfinite(read).all()
        assert (np.abs(read) <= np.abs(sram.recover(stored))).all()


@every
def test_flags_are_exactly_the_flips_and_masking_again_changes_nothing(sram):
    stored = sram.protect(NORMAL)
    faulty = sram.corrupt(stored, 0.05, 1)
    assert np.array_equal(faulty.flags, faulty.words ^ stored.words) and faulty.flags.any()
    assert not stored.flags.any()  # corrupt left its argument alone
    once = sram.mask(faulty.words, faulty.flags)
    assert np.array_equal(sram.mask(once, faulty.flags), once)
    twice = sram.corrupt(faulty, 0.05, 2)  # what failed before stays flagged
    assert np.array_equal(twice.flags & faulty.flags, faulty.flags)


@every
def test_no_fault_changes_nothing_and_a_seed_its_own(sram):
    stored = sram.protect(NORMAL)
    assert np.array_equal(sram.corrupt(stored, 0.0, 0).words, stored.words)
    assert np.array_equal(sram.recover(sram.corrupt(stored, 0.0, 0)), sram.recover(stored))
    a, b, c = (sram.corrupt(stored, 0.05, seed).words for seed in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    plain = sram.unprotected()
    assert np.array_equal(plain.corrupt(plain.protect(NORMAL), 0.05, 3).words, a)  # the same flips, masked or not
    assert np.array_equal(plain.recover(plain.protect(NORMAL)), sram.recover(stored))


def test_flips_follow_the_binomial_law():
    sram = LowVoltageSram()
    stored = sram.protect(np.zeros(100_001, np.float32))
    for rate in (1e-4, 1e-2, 0.5, 1.0):
        flips = int(np.bitwise_count(sram.corrupt(stored, rate, 5).flags).sum())
        low, high = stats.binom.interval(1 - 1e-6, 8 * 100_001, rate)
        assert low <= flips <= high


def test_word_masking_zeroes_as_many_weights_as_are_hit():
    sram = LowVoltageSram("bfloat16", "word-mask")
    stored = sram.protect(np.ones(50_000, np.float32))
    read = sram.recover(sram.corrupt(stored, 0.01, 0))
    assert set(np.unique(read)) == {0.0, 1.0}
    low, high = stats.binom.interval(1 - 1e-6, 50_000, 1 - 0.99**16)
    assert low <= (read == 0).sum() <= high


@every
def test_edges(sram):
    for w in (np.zeros((0, 3), np.float32), np.float32(0.5), NORMAL.reshape(10, 20).T[::2], [0.25, -0.5, 0.0]):
        read = sram.recover(sram.corrupt(sram.protect(w), 0.0, 0))
        assert read.shape == np.shape(w) and np.allclose(read, w, atol=0.01)
    with pytest.raises(ValueError, match="weights: expected finite"):
        sram.protect(np.array([1, np.nan], np.float32))
    with pytest.raises(ValueError, match="rate"):
        sram.corrupt(sram.protect(NORMAL), 1.5, 0)


def test_energy_is_capacitance_times_voltage_squared():
    sram = LowVoltageSram()
    assert sram.energy(64, 0.0) == pytest.approx(10e-12)  # one access of 64 bits to the smallest memory of the table
    assert sram.energy(64 * 8 * 1024, 0.01) == pytest.approx(8 * 1024 * 100e-12 * VOLTAGES[0.01] ** 2)
    with pytest.raises(LookupError, match=r"0.001 of the bits"):
        sram.energy(64, 0.001)
    with pytest.raises(LookupError, match="no cited energy"):
        sram.energy(2**40, 0.0)


def test_who_stands_beside_it_and_wrong_parameters():
    assert LowVoltageSram().others() == {"word-mask": LowVoltageSram(recovery="word-mask")}
    assert LowVoltageSram(recovery="word-mask").others() == {"bit-mask": LowVoltageSram()}
    assert LowVoltageSram().unprotected().others() == {}
    assert [LowVoltageSram(f).stored_bits((9,)) for f in FORMATS] == [9 * 8 + 32, 9 * 16, 9 * 32]
    with pytest.raises(ValueError, match="recovery: expected 'bit-mask'"):
        LowVoltageSram(recovery="retry")
    with pytest.raises(ValueError, match="format: expected one of"):
        LowVoltageSram("fp8")
