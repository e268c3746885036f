"""Shifted-squeezed FP8: the equations in torch with its own FP8, by hand on a small tensor, and fast against plain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.floating_point.fp8 import FP8
from kernels.arithmetic.floating_point.shifted_squeezed_fp8 import (
    ShiftedSqueezedFP8,
    shift_and_squeeze,
    shifted_squeezed_round,
)
from kernels.arithmetic.number_format import Encoded

CODES = np.arange(256, dtype=np.uint8)


def tensors():
    random = np.random.default_rng(0)
    yield random.standard_normal(20_000).astype(np.float32)
    yield (random.standard_normal(20_000) * 1e-7).astype(np.float32)
    yield np.exp2(random.uniform(-60, 20, 20_000)).astype(np.float32)  # wider than FP8
    yield (1 + random.uniform(0, 0.1, 20_000)).astype(np.float32)  # much narrower
    yield np.where(random.uniform(size=20_000) < 0.5, 0, random.standard_normal(20_000)).astype(np.float32)


def test_by_hand():
    """Logarithms 0, 2, 4 of mean 2 and maximum 4: α = 15/2, β = -15; what was 1 becomes 2^-15, what was 16 2^15."""
    x = np.float32([1, -4, 16])
    assert shift_and_squeeze(x) == (7.5, -15.0)
    form = ShiftedSqueezedFP8().fit(x)
    assert (form.squeeze, form.shift) == (7.5, -15.0)
    np.testing.assert_array_equal(form.round(x), x)  # powers of two that are E5M2 numbers there
    y = FP8("e5m2").encode(np.float32([2.0**-15, -1, 2.0**15])).codes
    np.testing.assert_array_equal(form.encode(x).codes, y)
    np.testing.assert_array_equal(shift_and_squeeze(np.float32([0, 1, -4, 16, 0])), (7.5, -15.0))


def test_the_equations_in_torch():
    """The paper's steps with PyTorch's logarithm, powers and float8_e5m2, in float64 between."""
    for x in tensors():
        t = torch.from_numpy(x).double()
        logarithms = t[t != 0].abs().log2()
        squeeze = 15 / (logarithms.max() - logarithms.mean())
        shift = -squeeze * logarithms.mean()
        form = ShiftedSqueezedFP8().fit(x)
        assert form.squeeze == pytest.approx(float(squeeze), rel=1e-6)
        assert form.shift == pytest.approx(float(shift), rel=1e-6, abs=1e-6)
        y = t.sign() * 2 ** (form.shift + form.squeeze * t.abs().log2())
        narrow = y.float().to(torch.float8_e5m2)  # rounds twice: where y is a tie but for a float32's last bit
        back = narrow.double().sign() * 2 ** ((narrow.double().abs().log2() - form.shift) / form.squeeze)
        rounded = form.round(x)
        same = np.isclose(rounded, back.numpy(), rtol=1e-6, atol=0)
        assert np.mean(same) > 0.9999
        codes = form.encode(x).codes
        assert np.mean(codes == narrow.view(torch.uint8).numpy()) > 0.9999
        np.testing.assert_array_equal(form.decode(form.encode(x)), rounded)


def test_fast_equals_plain():
    for x in tensors():
        form = ShiftedSqueezedFP8().fit(x)
        for numbers in (x, x[:100] * 8, -x, np.float32([0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, 3e38])):
            plain = shifted_squeezed_round(numbers, form.squeeze, form.shift)
            plain = np.clip(plain, -np.finfo(np.float32).max, np.finfo(np.float32).max)
            rounded = form.round(numbers)
            same = np.isclose(rounded, plain.astype(np.float32), rtol=2e-7, atol=0, equal_nan=True)
            assert np.mean(same) > 0.9999 or (numbers.size < 200 and same.all())
            np.testing.assert_array_equal(np.signbit(rounded), np.signbit(numbers))
        np.testing.assert_array_equal(form.round(x.astype(np.float64)), form.round(x))
        np.testing.assert_array_equal(form.round(x.reshape(100, 200).T), form.round(x).reshape(100, 200).T)
        np.testing.assert_array_equal(form.round(x, threads=2), form.round(x))


def test_without_shift_and_squeeze_it_is_e5m2():
    form = ShiftedSqueezedFP8(squeeze=1.0, shift=0.0)
    high = np.arange(2**22, dtype=np.uint32)
    x = (high << np.uint32(10) | (high & np.uint32(1)) * np.uint32(0x3FF)).view(np.float32)
    assert np.array_equal(form.round(x), FP8("e5m2").round(x), equal_nan=True)
    number = ~np.isnan(x)
    assert np.array_equal(form.encode(x).codes[number], FP8("e5m2").encode(x).codes[number])
    number = np.abs(CODES.astype(int) % 128) < 124
    decoded = form.decode(Encoded(CODES, np.float32([1, 0]), CODES.shape))
    np.testing.assert_array_equal(decoded[number], FP8("e5m2").decode(Encoded(CODES, None, CODES.shape))[number])
    assert np.all(np.isnan(decoded[~number]))
    np.testing.assert_array_equal(form.values(), FP8("e5m2").values())


def test_every_code_comes_back():
    for x in tensors():
        form = ShiftedSqueezedFP8().fit(x)
        decoded = form.decode(Encoded(CODES, form.encode(x).scales, CODES.shape))
        kept = np.isfinite(decoded) & (np.abs(decoded) > 1e-38) & (np.abs(decoded) < 3e38)
        np.testing.assert_array_equal(form.encode(decoded).codes[kept], CODES[kept])
        assert np.all(np.diff(decoded[:124]) >= 0)


def test_it_wins_precision_where_numbers_are_close_and_range_where_they_are_not():
    _, small, wide, narrow, _ = tensors()
    for x in (small, wide, narrow):
        form = ShiftedSqueezedFP8()
        error, plain = (np.sum((np.log2(np.abs(x) + 1e-30) - np.log2(np.abs(f.round(x)) + 1e-30)) ** 2)
                        for f in (form, FP8("e5m2")))  # fmt: skip
        assert error < plain / 4


@given(st.lists(st.floats(width=32), min_size=1))
def test_monotone_symmetric_and_bounded_by_what_it_was_fitted_to(xs):
    x = np.sort(np.float32([v for v in xs if not np.isnan(v)] or [0]))
    form = ShiftedSqueezedFP8().fit(x)
    rounded = form.round(x)
    assert np.all(np.isfinite(rounded)) and np.all(rounded[1:] >= rounded[:-1])
    np.testing.assert_array_equal(form.round(-x), -rounded)
    np.testing.assert_array_equal(form.decode(form.encode(x)), rounded)


def test_a_signalling_nan_is_fitted_around_in_silence():
    x = np.array([0x7F800001, 0x3F800000, 0x40000000], np.uint32).view(np.float32)
    assert ShiftedSqueezedFP8().fit(x) == ShiftedSqueezedFP8().fit(x[1:])


def test_tensors_that_cannot_be_squeezed():
    assert shift_and_squeeze(np.float32([])) == shift_and_squeeze(np.float32([0, np.nan, np.inf])) == (1.0, 0.0)
    assert shift_and_squeeze(np.float32([8, -8])) == (1.0, -3.0)
    np.testing.assert_array_equal(ShiftedSqueezedFP8().round(np.float32([8, -8, 0])), [8, -8, 0])
    assert ShiftedSqueezedFP8().round(np.float32([])).shape == (0,)
    assert ShiftedSqueezedFP8().stored_bits((100,)) == 864


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"squeeze": 2.0}, "squeeze, shift: expected both or neither, got 2.0 and None"),
        ({"squeeze": -1.0, "shift": 0.0}, "squeeze: expected a positive number, got -1.0"),
        ({"squeeze": 1.0, "shift": np.inf}, "shift: expected a number, got inf"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ShiftedSqueezedFP8(**fields)
