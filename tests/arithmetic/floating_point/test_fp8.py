"""FP8 against ml_dtypes over 2^24 floats and all codes, against torch, and against the OCP's rules."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.floating_point.fp8 import FIELDS, FP8
from kernels.arithmetic.floating_point.minifloat import minifloat_round
from kernels.arithmetic.number_format import Encoded

TYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
CODES = np.arange(2**8, dtype=np.uint8)
both = pytest.mark.parametrize("name", TYPES)


@both
def test_every_code(name):
    decoded = FP8(name).decode(Encoded(CODES, None, CODES.shape))
    np.testing.assert_array_equal(decoded, CODES.view(TYPES[name]).astype(np.float32))
    number = ~np.isnan(decoded)
    for rounding in ("nearest-even", "toward-zero", "stochastic"):
        form = FP8(name, saturate=False, rounding=rounding)
        np.testing.assert_array_equal(form.encode(decoded).codes[number], CODES[number])
    assert FP8(name).values()[-1] == LARGEST[name]
    assert len(FP8(name).values()) == {"e4m3": 253, "e5m2": 247}[name]


@both
def test_floats_spread_over_all_patterns(name):
    """2^24 of them: low bits 000 meet every tie, 1ff the floats just below."""
    high = np.arange(2**24, dtype=np.uint32)
    x = (high << np.uint32(8) | (high & np.uint32(1)) * np.uint32(0xFF)).view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaN, cast by numpy
        expected = x.astype(TYPES[name]).view(np.uint8)
    form = FP8(name, saturate=False)
    codes = form.encode(x).codes
    number = ~np.isnan(x)
    assert np.array_equal(codes[number], expected[number])
    assert np.all(np.isnan(codes[~number].view(TYPES[name]).astype(np.float32)))
    assert np.array_equal(form.round(x), codes.view(TYPES[name]).astype(np.float32), equal_nan=True)
    bounded = np.clip(x, -LARGEST[name], LARGEST[name])
    assert np.array_equal(FP8(name).round(x), form.round(bounded), equal_nan=True)


@both
def test_torch_agrees(name):
    """Numbers that need no decision on overflow, on which PyTorch's versions differ."""
    kind = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[name]
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 2**20, np.uint32).view(np.float32))
    x = x[x.abs() <= LARGEST[name]]
    assert torch.equal(FP8(name).round(x), x.to(kind).float())
    np.testing.assert_array_equal(FP8(name).encode(x).codes, x.to(kind).view(torch.uint8).numpy())


@both
def test_what_is_too_large_becomes_what_was_asked_for(name):
    largest = LARGEST[name]
    step = {"e4m3": 32.0, "e5m2": 8192.0}[name]  # to what the next code would stand for
    tie = largest + step / 2
    x = np.float32([tie, -tie, np.nextafter(np.float32(tie), np.float32(np.inf)), 1e30, np.inf, -np.inf])
    too_large = np.nan if name == "e4m3" else np.inf
    at_tie = largest if name == "e4m3" else np.inf  # the even code: 448 is S.1111.110, 57344 is S.11110.11
    expected = np.copysign([at_tie, at_tie, too_large, too_large, too_large, too_large], x)
    np.testing.assert_array_equal(FP8(name, saturate=False).round(x), expected)
    np.testing.assert_array_equal(FP8(name).round(x), np.copysign(largest, x))
    cut = np.copysign([largest, largest, largest, largest, too_large, too_large], x)
    np.testing.assert_array_equal(FP8(name, saturate=False, rounding="toward-zero").round(x), cut)
    for form in (FP8(name), FP8(name, saturate=False)):
        nan = form.round(np.float32([np.nan, -np.nan]))
        assert np.all(np.isnan(nan)) and np.array_equal(np.signbit(nan), [False, True])
        assert form.encode(np.float32(np.nan)).codes == (0x7F if name == "e4m3" else 0x7E)


@both
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("rounding", ["nearest-even", "toward-zero"])
def test_fast_equals_plain(name, saturate, rounding):
    e, m, bias, specials = FIELDS[name]
    random = np.random.default_rng(1)
    with np.errstate(invalid="ignore"):
        for x in (
            random.integers(0, 2**32, 100_000, np.uint32).view(np.float32).astype(np.float64),
            random.integers(0, 2**63 - 2**60, 100_000, np.uint64).view(np.float64),  # positive, below 10^232
            random.standard_normal(100_000) * 2.0 ** random.uniform(-20, 20, 100_000),
        ):
            plain = minifloat_round(x, e, m, bias, True, specials, saturate, rounding)
            np.testing.assert_array_equal(FP8(name, saturate, rounding).round(x), plain)


@given(st.sampled_from([*TYPES]), st.lists(st.floats(allow_nan=False), min_size=2))
def test_idempotent_monotone_symmetric(name, xs):
    form, x = FP8(name), np.sort(xs)
    rounded = form.round(x)
    np.testing.assert_array_equal(form.round(rounded), rounded)
    assert np.all(np.diff(rounded) >= 0)
    np.testing.assert_array_equal(form.round(-x), -rounded)


@given(st.sampled_from([*TYPES]), st.floats(-500, 500))
def test_nearest(name, x):
    values = FP8(name).values()
    assert abs(float(FP8(name).round(x)) - x) == np.min(np.abs(values - x))


@both
def test_a_scale_a_tensor(name):
    form = FP8(name, scaled=True)
    for exponent in (-90, -9, 0, 40):
        x = (np.random.default_rng(0).standard_normal(1000) * 2.0**exponent).astype(np.float32)
        own = form.fit(x)
        assert LARGEST[name] / 2 < np.abs(x).max() / own.scale <= LARGEST[name]
        np.testing.assert_array_equal(own.round(x), FP8(name).round(x / own.scale) * np.float32(own.scale))
        np.testing.assert_array_equal(form.round(x), own.round(x))
        encoded = form.encode(x)
        np.testing.assert_array_equal(encoded.codes, FP8(name).encode(x / own.scale).codes)
        np.testing.assert_array_equal(form.decode(encoded), own.round(x))
    assert form.stored_bits((1000,)) == own.stored_bits((1000,)) == 8008
    assert FP8(name).stored_bits((1000,)) == 8000 and FP8(name).fit(x) == FP8(name)
    for largest, scale in ((LARGEST[name], 1), (LARGEST[name] * 1.001, 2), (LARGEST[name] / 2, 0.5)):
        assert form.fit(np.float32([0, -largest])).scale == scale
    assert form.fit(np.float32([0, -0.0])).scale == form.fit(np.float32([np.inf])).scale == 1


def test_stochastic_rounding_leaves_the_mean():
    """Within five standard deviations of the mean of n draws, a step of 2^-5 apart."""
    n, step = 1 << 18, 2.0**-5
    for form in (FP8(rounding="stochastic", seed=1), FP8(rounding="stochastic", seed=2)):
        p = 0.2
        x = np.float32(0.25 + p * step)
        drawn = form.round(np.full(n, x))
        assert set(drawn.tolist()) == {0.25, 0.25 + step}
        assert abs(drawn.mean(dtype=np.float64) - float(x)) < 5 * step * np.sqrt(p * (1 - p) / n)
        np.testing.assert_array_equal(form.round(np.full(n, x), threads=2), drawn)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "e3m4"}, "format: expected e4m3 or e5m2, got 'e3m4'"),
        ({"rounding": "up"}, "rounding: expected nearest-even or toward-zero or stochastic, got 'up'"),
        ({"scale": 2.0}, "scale: expected none without scaled=True, got 2.0"),
        ({"scaled": True, "scale": 0.3}, r"scale: expected a power of two from 2\^-116 to 2\^113, got 0.3"),
        ({"scaled": True, "scale": -2.0}, r"scale: expected a power of two from 2\^-116 to 2\^113, got -2.0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FP8(**fields)
