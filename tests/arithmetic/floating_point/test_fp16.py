"""FP16 against numpy's own over 2^24 floats and all codes, against torch, and fast against plain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.floating_point.fp16 import FIELDS, FP16
from kernels.arithmetic.floating_point.minifloat import minifloat_round
from kernels.arithmetic.number_format import Encoded

CODES = np.arange(2**16, dtype=np.uint16)


def test_every_code():
    decoded = FP16().decode(Encoded(CODES, None, CODES.shape))
    np.testing.assert_array_equal(decoded, CODES.view(np.float16).astype(np.float32))
    number = ~np.isnan(decoded)
    for rounding in ("nearest-even", "toward-zero", "stochastic"):
        np.testing.assert_array_equal(FP16(rounding).encode(decoded).codes[number], CODES[number])
    values = FP16().values()
    assert len(values) == 2**16 - 2 * 2**10 - 1 and values[-1] == 65504 and values[values > 0][0] == 2.0**-24


def test_floats_spread_over_all_patterns():
    """2^24 of them: low bits 000 meet every tie, 1ff the floats just below."""
    high = np.arange(2**24, dtype=np.uint32)
    x = (high << np.uint32(8) | (high & np.uint32(1)) * np.uint32(0xFF)).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    codes = FP16().encode(x).codes
    number = ~np.isnan(x)
    assert np.array_equal(codes[number], expected.view(np.uint16)[number])
    assert np.all(codes[~number] & 0x7FFF == 0x7E00) and np.array_equal(codes[~number] >> 15, np.signbit(x[~number]))
    assert np.array_equal(FP16().round(x), expected.astype(np.float32), equal_nan=True)


def test_float64_is_rounded_as_numpy_does():
    random = np.random.default_rng(0)
    ties = 1 + (2 * random.integers(0, 2**10, 10_000) + 1) * 2.0**-11
    x = np.concatenate([ties, ties + 2.0**-50, ties - 2.0**-50, random.standard_normal(10_000) * 1e-6])
    np.testing.assert_array_equal(FP16().round(x), x.astype(np.float16).astype(np.float32))


def test_torch_agrees():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 2**20, np.uint32).view(np.float32))
    np.testing.assert_array_equal(FP16().round(x).numpy(), x.half().float().numpy())


@pytest.mark.parametrize("rounding", ["nearest-even", "toward-zero"])
def test_fast_equals_plain(rounding):
    random = np.random.default_rng(1)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 2.0**-25, 2.0**-25 * 1.01, -(2.0**-24)]
    for x in (random.standard_normal(100_000) * 2.0 ** random.uniform(-30, 20, 100_000), np.array(special)):
        np.testing.assert_array_equal(FP16(rounding).round(x), minifloat_round(x, *FIELDS, rounding=rounding))


@given(st.lists(st.floats(allow_nan=False), min_size=2), st.sampled_from(["nearest-even", "toward-zero"]))
def test_idempotent_monotone_symmetric(xs, rounding):
    form, x = FP16(rounding), np.sort(xs)
    rounded = form.round(x)
    np.testing.assert_array_equal(form.round(rounded), rounded)
    assert np.all(rounded[1:] >= rounded[:-1])
    np.testing.assert_array_equal(form.round(-x), -rounded)


def test_stochastic_rounding_leaves_the_mean_even_of_what_would_vanish():
    """A gradient of a tenth of the smallest FP16 survives on average: within five standard deviations."""
    n, smallest = 1 << 20, 2.0**-24
    drawn = FP16("stochastic", seed=5).round(np.full(n, 0.1 * smallest, np.float32)).astype(np.float64)
    assert set(drawn.tolist()) == {0.0, smallest}
    assert abs(drawn.mean() - 0.1 * smallest) < smallest * (5 * np.sqrt(0.1 * 0.9 / n) + 2.0**-23)
    assert not FP16().round(np.full(3, 0.1 * smallest, np.float32)).any()


def test_an_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match="rounding: expected nearest-even or toward-zero or stochastic, got 'up'"):
        FP16("up")
