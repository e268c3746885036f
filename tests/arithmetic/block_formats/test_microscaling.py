"""MX against ml_dtypes' elements and scales, and against exact rationals."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.block_formats.microscaling import ELEMENTS, Microscaling, element_value, microscaling_round
from kernels.arithmetic.number_format import Encoded

TYPES = {
    "fp8-e4m3": ml_dtypes.float8_e4m3fn,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "fp6-e2m3": ml_dtypes.float6_e2m3fn,
    "fp6-e3m2": ml_dtypes.float6_e3m2fn,
    "fp4-e2m1": ml_dtypes.float4_e2m1fn,
}
every_element = pytest.mark.parametrize("element", [*ELEMENTS, "int8"])
every_float = pytest.mark.parametrize("element", [*ELEMENTS])
floats = st.floats(-(2.0**60), 2.0**60, width=32)


@every_float
def test_every_code_is_ml_dtypes(element):
    form = Microscaling(element)
    codes = np.arange(2**form.bits, dtype=np.uint8)
    expected = codes.view(TYPES[element]).astype(np.float64)
    np.testing.assert_array_equal([element_value(int(code), element) for code in codes], expected)
    scales = np.full(-(-codes.size // 32), 4, np.float32)
    np.testing.assert_array_equal(form.decode(Encoded(codes, scales, codes.shape)), 4 * expected)


@every_element
def test_every_element_comes_back(element):
    form = Microscaling(element)
    grid = form.element_values()
    top = np.full(grid.size, grid[-1])
    for scale in (1.0, 2.0**-100, 2.0**90):
        x = (np.stack([grid, top], axis=1) * scale).astype(np.float32)  # a row each: the largest fixes the scale
        encoded = form.encode(x)
        np.testing.assert_array_equal(encoded.scales, scale)
        np.testing.assert_array_equal(form.decode(encoded), x)
        np.testing.assert_array_equal(form.round(x), x)


@every_float
def test_elements_are_rounded_as_ml_dtypes_does(element):
    """Over many floats between zero and the top of a block: 2^20 numbers, their signs alternating."""
    form, most = Microscaling(element), Microscaling(element).element_values()[-1]
    patterns = np.linspace(np.float32(2.0**-30).view(np.int32), np.float32(most).view(np.int32), 31 * 2**15)
    x = patterns.astype(np.int32).view(np.float32).reshape(-1, 31)
    x = np.concatenate([x * np.float32([1, -1] * 15 + [1]), np.full((len(x), 1), most, np.float32)], axis=1)
    expected = x.astype(TYPES[element])
    encoded = form.encode(x)
    np.testing.assert_array_equal(encoded.scales, 1)
    np.testing.assert_array_equal(encoded.codes, expected.view(np.uint8))
    np.testing.assert_array_equal(form.round(x), expected.astype(np.float32))


@every_element
def test_scales_are_e8m0(element):
    form = Microscaling(element)
    x = np.random.default_rng(0).standard_normal((500, 32)) * np.exp2(np.arange(-250.0, 250)[:, None] / 2)
    x = x.astype(np.float32)
    scales = form.encode(x).scales
    assert np.array_equal(scales.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32), scales)
    top = np.abs(x).max(axis=1)
    reach = {"fp8-e4m3": 8, "fp8-e5m2": 15, "fp6-e2m3": 2, "fp6-e3m2": 4, "fp4-e2m1": 2, "int8": 0}[element]
    np.testing.assert_array_equal(scales[:, 0], np.exp2(np.maximum(np.floor(np.log2(top)) - reach, -127)))


@given(st.lists(floats, min_size=1, max_size=40).map(np.float32), st.sampled_from([*ELEMENTS, "int8"]))
def test_exact_rationals(x, element):
    form = Microscaling(element)
    grid = [Fraction(float(value)) for value in form.element_values()]
    encoded, rounded = form.encode(x), form.round(x)
    for i, value in enumerate(x):
        y = Fraction(float(value)) / Fraction(float(encoded.scales[i // 32]))
        got = Fraction(float(rounded[i])) / Fraction(float(encoded.scales[i // 32]))
        distance = min(abs(point - y) for point in grid)
        assert got in grid and abs(got - y) == distance
        ties = [point for point in grid if abs(point - y) == distance]
        if len(ties) == 2:
            assert int(encoded.codes[i]) % 2 == 0


@given(st.lists(floats, min_size=1, max_size=70).map(np.float32), st.sampled_from([*ELEMENTS, "int8"]))
def test_idempotent_symmetric_and_scaled(x, element):
    form = Microscaling(element)
    once = form.round(x)
    np.testing.assert_array_equal(form.round(-x), -once)
    if float(np.abs(x).max(initial=0)) > 2.0**-60:  # below, scales would leave E8M0
        np.testing.assert_array_equal(form.round(x * np.float32(2.0**-20)), once * np.float32(2.0**-20))
    again = form.round(once)
    # what saturates at the top of a block never moves again; nothing else moves at all
    np.testing.assert_array_equal(again, once)


@every_element
def test_fast_equals_plain(element):
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 333)) * np.exp2(random.integers(-30, 30, (50, 333)))
    for numbers in (x, x.astype(np.float32)):
        np.testing.assert_array_equal(Microscaling(element).round(numbers), microscaling_round(numbers, element))


def test_a_nan_takes_its_block_along():
    x = np.ones(96, np.float32)
    x[40] = np.nan
    encoded = Microscaling().encode(x)
    assert np.isnan(encoded.scales).tolist() == [False, True, False]
    assert encoded.scales.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)[1] == 0xFF
    assert np.isnan(Microscaling().decode(encoded)).sum() == 32


def test_torchao_where_it_is_installed():
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    import torch

    x = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32))
    theirs = mx.MXTensor.to_mx(x, torch.float8_e4m3fn, 32).dequantize(torch.float32)
    np.testing.assert_array_equal(Microscaling().round(x).numpy(), theirs.numpy())


def test_an_unknown_element_is_refused():
    with pytest.raises(ValueError, match=r"element: expected fp8-e4m3, .* or int8, got 'fp8'"):
        Microscaling("fp8")
