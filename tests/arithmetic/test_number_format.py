"""What holds for every format: shapes, layouts, tensors, rounding once, refusals."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.alternative_numbers.posit import Posit
from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.floating_point.fp8 import FP8
from kernels.arithmetic.floating_point.fp16 import FP16
from kernels.arithmetic.floating_point.fp32 import FP32
from kernels.arithmetic.floating_point.minifloat import Minifloat
from kernels.arithmetic.floating_point.tf32 import TF32
from kernels.arithmetic.number_format import Encoded, _round_to_odd

FORMATS = [
    *(Posit(), Posit(8, 0), Posit(6, 2), Posit(32, 2), BFloat16(), BFloat16("toward-zero")),
    *(FP32(), FP16(), FP8(), FP8("e5m2", saturate=False), TF32("dlfloat")),
    Minifloat(3, 2, subnormals=False, specials="none"),
]
every_format = pytest.mark.parametrize("form", FORMATS, ids=str)
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 5e-39, 3.4e38, -3.4e38, 1.0, -1.0, np.pi]


def numbers(shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@every_format
def test_layouts_give_what_the_flat_array_gives(form):
    x = numbers((6, 8, 10))
    views = [
        x,
        x.T,
        np.asfortranarray(x),
        x[::2, ::-1, 1::3],
        x[:0],
        x[0, 0, 0],
        np.broadcast_to(x[0, 0], (4, 10)),
        x.astype(">f4"),
        np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32),
    ]  # unaligned
    for view in views:
        before = view.copy()
        flat = form.round(np.array(view, np.float32).ravel())
        rounded = form.round(view)
        assert isinstance(rounded, np.ndarray) and rounded.shape == view.shape and rounded.dtype == form.dtype
        np.testing.assert_array_equal(rounded.ravel(), flat)
        np.testing.assert_array_equal(view, before)
        encoded = form.encode(view)
        assert encoded.codes.shape == encoded.shape == view.shape and encoded.codes.dtype == form.code_dtype
        np.testing.assert_array_equal(form.decode(encoded), rounded)


@every_format
def test_codes_stand_for_the_rounded_numbers(form):
    for dtype in (np.float16, np.float32, np.float64):
        with np.errstate(over="ignore"):
            x = np.array([*SPECIAL, *numbers(1000, np.float64) * 10.0 ** np.arange(-50, 50).repeat(10)], dtype)
        rounded, decoded = form.round(x), form.decode(form.encode(x))
        np.testing.assert_array_equal(decoded, rounded)
        np.testing.assert_array_equal(np.signbit(decoded[rounded == 0]), np.signbit(rounded[rounded == 0]))
        np.testing.assert_array_equal(form.round(rounded), rounded)


@every_format
def test_tensors(form):
    x = torch.from_numpy(numbers((5, 7))).t()
    rounded = form.round(x)
    assert isinstance(rounded, torch.Tensor) and rounded.shape == x.shape
    np.testing.assert_array_equal(rounded.numpy(), form.round(x.numpy()))
    out = torch.empty(7, 5, dtype=rounded.dtype)
    assert form.round(x, out) is out and torch.equal(out, rounded)
    assert torch.equal(form.round(x.bfloat16()), form.round(x.bfloat16().float()))
    assert not form.round(x.clone().requires_grad_()).requires_grad
    assert form.round(torch.tensor(1.5)).shape == ()


@every_format
def test_out(form):
    x = numbers((30, 40))
    expected = form.round(x)
    out = np.full((40, 30), 7, form.dtype).T
    assert form.round(x, out) is out
    np.testing.assert_array_equal(out, expected)
    same = x.astype(form.dtype)
    np.testing.assert_array_equal(form.round(same, same), expected)
    shifted = np.concatenate([x.ravel(), [0]]).astype(form.dtype)  # out overlaps x, one place further
    form.round(shifted[:-1], shifted[1:])
    np.testing.assert_array_equal(shifted[1:], expected.ravel())
    with pytest.raises(ValueError, match=r"out: expected the shape of x, \(30, 40\).*\(40, 30\)"):
        form.round(x, np.empty((40, 30), form.dtype))
    with pytest.raises(TypeError, match=r"out: expected dtype.*int64"):
        form.round(x, np.empty(x.shape, np.int64))
    with pytest.raises(TypeError, match=r"out: expected dtype.*bfloat16"):  # of which there is no view
        form.round(x, torch.empty(x.shape, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"out: expected dtype.*>f"):
        form.round(x, np.empty(x.shape, np.dtype(form.dtype).newbyteorder(">")))
    expected.setflags(write=False)
    with pytest.raises(ValueError, match="out: expected an array that can be written"):
        form.round(x, expected)
    with pytest.raises(TypeError, match="out: expected an array"):
        form.round(x, [0.0])


@every_format
@pytest.mark.parametrize(
    "bad",
    [[1, 2], np.arange(3), True, torch.arange(3), 1j, "x", np.float32([1]).astype("O"), np.longdouble(1)],
    ids=repr,
)
def test_what_is_no_float_is_refused(form, bad):
    for verb in (form.round, form.encode, form.fit):
        with pytest.raises(TypeError, match="x: expected"):
            verb(bad)


@every_format
def test_no_temporary_of_the_arrays_size(form):
    for dtype in (np.float32, np.float64):
        x = numbers(1 << 20, dtype)
        out = np.empty_like(x, dtype=form.dtype)
        form.round(x, out)
        tracemalloc.start()
        form.round(x, out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes / 8


@every_format
def test_decode_refuses_what_the_format_did_not_make(form):
    encoded = form.encode(numbers((3, 4)))
    with pytest.raises(TypeError, match=r"encoded: expected codes of dtype.*int64"):
        form.decode(replace(encoded, codes=encoded.codes.astype(np.int64)))
    with pytest.raises(ValueError, match=r"encoded: expected codes of shape \(3, 4\).*\(12,\)"):
        form.decode(replace(encoded, codes=encoded.codes.ravel()))
    if form.bits < 8 * form.code_dtype().itemsize:
        with pytest.raises(ValueError, match=r"expected codes below 2\^6, got 64"):
            form.decode(Encoded(np.array([64], form.code_dtype), None, (1,)))
    assert form.stored_bits((3, 4)) == 12 * form.bits and form.stored_bits(()) == form.bits
    assert form.fit(numbers(3)) is form


@every_format
def test_values(form):
    if form.bits > 16:
        with pytest.raises(ValueError, match="at most 16 bits"):
            form.values()
        return
    values = form.values()
    assert values.dtype == np.float64 and np.all(np.diff(values) > 0) and np.all(np.isfinite(values))
    assert not np.signbit(values[values == 0]).any()
    np.testing.assert_array_equal(values, -values[::-1])
    np.testing.assert_array_equal(form.round(values), values)


def test_float64_is_rounded_once():
    """Just beyond a tie, by less than float32 can tell: through float32 both would go to the even side."""
    for form, tie, above in ((BFloat16(), 1 + 2.0**-8, 1 + 2.0**-7), (Posit(16, 1), 1 + 2.0**-13, 1 + 2.0**-12)):
        x = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, -tie - 2.0**-40])
        np.testing.assert_array_equal(form.round(x), [1, above, 1, -above])
        assert form.round(x.astype(np.float32))[1] == 1
    assert BFloat16("toward-zero").round(1 - 2.0**-40) == 1 - 2.0**-8


@given(st.lists(st.floats(width=64), min_size=1))
def test_rounding_to_odd(xs):
    x, out = np.array(xs), np.empty(len(xs), np.float32)
    _round_to_odd(x, out)
    wide = out.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(x))
    x, out, wide = (v[~np.isnan(x)] for v in (x, out, wide))
    assert np.all((wide == x) | (out.view(np.uint32) & 1 == 1))  # exact, or odd
    with np.errstate(over="ignore"):  # infinity is beside the largest
        beside = np.nextafter(out, np.where(x > wide, np.inf, -np.inf).astype(np.float32)).astype(np.float64)
    assert np.all((wide == x) | (np.minimum(wide, beside) < x) & (x < np.maximum(wide, beside)))  # and adjacent


def test_every_16_bit_float_type_is_taken():
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(Posit(16, 2).round(x), Posit(16, 2).round(x.astype(np.float64)))
    brain = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(BFloat16().round(brain), brain)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 100_003])
def test_threads_change_nothing(threads, size):
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    number_format = BFloat16()
    np.testing.assert_array_equal(number_format.round(x, threads=threads), number_format.round(x))
    np.testing.assert_array_equal(number_format.encode(x, threads=threads).codes, number_format.encode(x).codes)


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_threads_are_a_positive_integer(threads):
    with pytest.raises(ValueError, match="threads: expected a positive integer"):
        BFloat16().round(np.zeros(3, np.float32), threads=threads)
