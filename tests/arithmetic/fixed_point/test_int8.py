"""INT8 against PyTorch's quantized tensors, and its product against integers of any size."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.ao.quantization.observer import MinMaxObserver

from kernels.arithmetic.fixed_point.int8 import Int8, accumulate, int8_round, integers, multiplier, requantize
from kernels.arithmetic.number_format import Encoded

KINDS = [(True, "tensor"), (False, "tensor"), (True, "channel"), (False, "channel")]
every_kind = pytest.mark.parametrize(("symmetric", "granularity"), KINDS)
INT32 = 2**31 - 1


def numbers(shape, seed=0, dtype=np.float32):
    x = np.random.default_rng(seed).standard_normal(shape) + 0.3
    return (x * np.exp2(np.arange(len(x)) % 5).reshape(-1, *[1] * (len(shape) - 1))).astype(dtype)


def plain(x, form):
    """Each channel by the plain statement."""
    low = -127 if form.symmetric else -128
    scales = np.atleast_1d(form.scale)
    zeros = np.broadcast_to(form.zero_point or 0, scales.shape)
    if form.granularity == "tensor":
        return int8_round(x, scales[0], zeros[0], low)
    return np.stack([int8_round(*row, low) for row in zip(x, scales, zeros, strict=True)])


@every_kind
def test_torch_fake_quantize_agrees(symmetric, granularity):
    x = numbers((12, 3000))
    form = Int8(symmetric, granularity).fit(x)
    wide, low = torch.from_numpy(2 * x), -127 if symmetric else -128  # half of it saturates
    if granularity == "tensor":
        expected = torch.fake_quantize_per_tensor_affine(wide, form.scale, form.zero_point or 0, low, 127)
    else:
        zeros = torch.tensor(form.zero_point or [0] * 12, dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(wide, torch.tensor(form.scale), zeros, 0, low, 127)
    np.testing.assert_array_equal(form.round(wide).numpy(), expected.numpy())
    np.testing.assert_array_equal(form.round(2 * x), plain(2 * x, form))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_torch_quantized_codes_agree_but_at_near_ties():
    """PyTorch's quantized tensors divide by the scale, where fake quantization multiplies by its inverse."""
    x = numbers((50_000,))
    for form in (Int8().fit(x), Int8(symmetric=False).fit(x)):
        theirs = torch.quantize_per_tensor(torch.from_numpy(x), form.scale, form.zero_point or 0, torch.qint8)
        codes = form.encode(x).codes.view(np.int8)
        differs = np.flatnonzero(codes != theirs.int_repr().numpy())
        steps = x[differs].astype(np.float64) / form.scale
        assert len(differs) < 10 and np.allclose(np.abs(steps - np.rint(steps)), 0.5, atol=1e-4)
        same = codes == theirs.int_repr().numpy()
        np.testing.assert_array_equal(form.round(x)[same], theirs.dequantize().numpy()[same])


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_those_of_torchs_observer(symmetric):
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    for seed in range(50):
        x = numbers((7, 9), seed) + np.float32(seed % 3 - 1)
        observer = MinMaxObserver(torch.qint8, scheme, quant_min=-127 if symmetric else -128, quant_max=127)
        observer(torch.from_numpy(x))
        scale, zero = observer.calculate_qparams()
        form = Int8(symmetric).fit(x)
        np.testing.assert_allclose(form.scale, scale.item(), rtol=0 if symmetric else 2.0**-22)
        assert abs((form.zero_point or 0) - zero.item()) <= (0 if symmetric else 1)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1), st.booleans())
def test_zero_is_exact_and_the_ends_are_within_half_a_step(xs, symmetric):
    x = np.float32(xs)
    form = Int8(symmetric).fit(x)
    assert form.round(np.float32(0)) == 0
    slack = 0.501 if symmetric else 1.001  # the zero point, too, is rounded
    assert np.all(np.abs(form.round(x).astype(np.float64) - x) <= slack * form.scale)


@every_kind
def test_every_code(symmetric, granularity):
    x = numbers((3, 200))
    form = Int8(symmetric, granularity).fit(x)
    codes = np.tile(np.arange(-127 if symmetric else -128, 128), (3, 1)).astype(np.int8)
    encoded = Encoded(codes.view(np.uint8), form.encode(x).scales, codes.shape)
    values = Int8(symmetric, granularity).decode(encoded)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(form.decode(encoded), values)
    np.testing.assert_array_equal(form.encode(values).codes, encoded.codes)
    np.testing.assert_array_equal(form.round(values), values)
    for c in range(3):
        scale, zero = np.broadcast_to(form.scale, 3)[c], np.broadcast_to(form.zero_point or 0, 3)[c]
        exact = (codes[c].astype(np.float64) - zero) * scale
        np.testing.assert_allclose(values[c], exact, rtol=2.0**-24)
    if granularity == "tensor":
        np.testing.assert_array_equal(form.values(), values[0])
    else:
        with pytest.raises(ValueError, match="values: each channel has a grid of its own"):
            form.values()


@every_kind
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_layouts(symmetric, granularity, dtype):
    x = numbers((6, 8, 10), dtype=dtype)
    x.flags.writeable = False
    views = [x, x.transpose(0, 2, 1), x.T, np.asfortranarray(x), x[::-2, ::-1, 1::3], x[:0], x[:, :0], x[:1], x[0, 0],
             x.astype(">f4" if dtype != np.float64 else dtype), np.broadcast_to(x[0], (3, 8, 10)),
             x[:, :, :1]]  # fmt: skip
    for view in views:
        form = Int8(symmetric, granularity)
        fixed = form.fit(view)
        expected = plain(view.astype(np.float32), fixed) if view.size else view
        for own in (form, fixed):
            rounded = own.round(view)
            assert rounded.dtype == np.float32 and rounded.shape == view.shape
            np.testing.assert_array_equal(rounded, expected)
            np.testing.assert_array_equal(own.decode(own.encode(view)), expected)
        out = np.full(view.T.shape, 7, np.float32).T
        np.testing.assert_array_equal(fixed.round(view, out), expected)


@every_kind
def test_threads_and_overlap_change_nothing(symmetric, granularity):
    x = numbers((5, 20_001))
    form = Int8(symmetric, granularity).fit(x)
    expected = form.round(x)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(form.round(x, threads=threads), expected)
        np.testing.assert_array_equal(form.round(x.T.copy().T, threads=threads), expected)
        np.testing.assert_array_equal(form.encode(x, threads=threads).codes, form.encode(x).codes)
    same = x.copy()
    np.testing.assert_array_equal(form.round(same, same), expected)
    columns = np.asfortranarray(x)
    np.testing.assert_array_equal(form.round(columns, columns), expected)
    shifted = np.concatenate([x, x[:1]], 0)
    form.round(shifted[:-1], shifted[1:])
    np.testing.assert_array_equal(shifted[1:], expected)
    wide = np.zeros((6, 20_001 * 2), np.float32)
    wide[:5, ::2] = x
    form.round(wide[:5, ::2], wide[1:, ::2])
    np.testing.assert_array_equal(wide[1:, ::2], expected)


@every_kind
def test_no_temporary_of_the_arrays_size(symmetric, granularity):
    for dtype in (np.float32, np.float64):
        for x in (numbers((64, 16384), dtype=dtype), numbers((16384, 64), dtype=dtype).T):
            out = np.empty_like(x, np.float32)
            form = Int8(symmetric, granularity).fit(x)
            form.round(x, out)
            tracemalloc.start()
            form.round(x, out)
            Int8(symmetric, granularity).fit(x)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < x.nbytes / 8


@every_kind
def test_special_numbers(symmetric, granularity):
    form = Int8(symmetric, granularity).fit(np.float32([[-1, 1], [-3, 4]]))
    x = np.float32([[np.inf, -np.inf], [0.0, -0.0]])
    rounded = form.round(x)
    np.testing.assert_array_equal(rounded, plain(x, form))
    assert np.isfinite(rounded).all() and not np.signbit(rounded[1]).any()
    tiny = form.round(np.float32([[1e-45, -1e-45], [3.4e38, -3.4e38]]))
    np.testing.assert_array_equal(tiny[0], 0)
    assert np.isfinite(tiny).all()
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="x: expected finite numbers to fit scales to, got NaN or infinity"):
            Int8(symmetric, granularity).round(np.float32([[1, bad]]))
    for verb in (form.round, form.encode):
        with pytest.raises(ValueError, match="got NaN, for which an integer has no code"):
            verb(np.float32([[1, 2], [3, np.nan]]))
    zeros = Int8(symmetric, granularity).fit(np.zeros((2, 3), np.float32))
    assert set(np.atleast_1d(zeros.scale)) == {1.0} and not zeros.round(np.zeros((2, 3))).any()
    for size in (1e-45, 1e-38, 3.4e38):  # scales neither vanish nor overflow
        x = np.float32([[size, -size, size / 3]])
        own = Int8(symmetric, granularity).fit(x)
        assert np.isfinite(own.round(x)).all() and np.all(np.abs(own.round(x) - x) <= 1.01 * np.float32(own.scale))


def test_float64_beyond_float32_is_fitted_to_what_it_is_narrowed_to():
    largest = float(np.finfo(np.float32).max)
    for ends in ([-1e308, 1e308], [-1e308, 0.0], [0.0, 1e308]):
        wide, narrow = np.array(ends), np.clip(ends, -largest, largest).astype(np.float32)
        for symmetric in (True, False):
            assert Int8(symmetric).fit(wide) == Int8(symmetric).fit(narrow)


def test_what_stands_for_it_where_numbers_change():
    x = numbers((4, 5))
    for symmetric in (True, False):
        assert Int8(symmetric, "channel").fit(x).for_activations() == Int8(symmetric)
    assert Int8().stored_bits((4, 5)) == 8 * 20 + 32 and Int8(False).stored_bits((4, 5)) == 8 * 20 + 40
    assert Int8(True, "channel").stored_bits((4, 5)) == 8 * 20 + 4 * 32
    assert Int8(False, "channel").stored_bits((4, 5)) == 8 * 20 + 4 * 40
    assert isinstance(Int8().round(torch.ones(3)), torch.Tensor)


def test_bad_input():
    for parameters, error in (
        ({"symmetric": "yes"}, "symmetric: expected True or False, got 'yes'"),
        ({"granularity": "row"}, "granularity: expected tensor or channel, got 'row'"),
        ({"zero_point": 3}, "zero_point: expected none without a scale, got 3"),
        ({"scale": 0.0}, "scale: expected positive numbers"),
        ({"scale": -1.0}, "scale: expected positive numbers"),
        ({"scale": float("nan")}, "scale: expected positive numbers"),
        ({"scale": 1e37}, "scale: expected positive numbers"),
        ({"scale": (1.0,)}, r"scale: expected a number, got \(1.0,\)"),
        ({"scale": 1.0, "granularity": "channel"}, "scale: expected a tuple"),
        ({"scale": 1.0, "zero_point": 3}, "zero_point: expected none in a symmetric format, got 3"),
        ({"scale": 1.0, "zero_point": 128, "symmetric": False}, "zero_point: expected an integer from -128 to 127"),
        (
            {"scale": (1.0, 2.0), "zero_point": (1,), "granularity": "channel", "symmetric": False},
            "zero_point: expected an integer",
        ),
    ):
        with pytest.raises(ValueError, match=error):
            Int8(**parameters)
    channels = Int8(granularity="channel").fit(numbers((3, 4)))
    with pytest.raises(ValueError, match=r"x: expected 3 channels on the first axis, got ndarray of shape \(4, 3\)"):
        channels.round(numbers((4, 3)))
    with pytest.raises(ValueError, match="x: expected an array with a first axis of channels, got a scalar"):
        Int8(granularity="channel").round(np.float32(1))
    encoded = channels.encode(numbers((3, 4)))
    with pytest.raises(ValueError, match="encoded: expected one scale, got 3"):
        Int8().decode(encoded)
    with pytest.raises(ValueError, match="encoded: expected scales and zero points"):
        Int8(symmetric=False).decode(encoded)
    with pytest.raises(ValueError, match="encoded: expected codes of 3 channels, got 4 codes"):
        channels.decode(Encoded(np.zeros(4, np.uint8), encoded.scales, (4,)))


# --- the product ------------------------------------------------------------------------------------------------------


def exact_product(a: Encoded, b: Encoded, form: Int8, bias=None) -> np.ndarray:
    """Python's integers and rationals: sums without bounds, the factor M0 2^-n cut to 31 bits once."""
    (qa, za), (qb, zb) = integers(a), integers(b)
    sa, sb = (np.float64(x.scales if np.ndim(x.scales) == 1 else x.scales[0]) for x in (a, b))
    low, high = (-127, 127) if form.symmetric else (-128, 127)
    out = np.empty((len(qa), qb.shape[1]), np.int64)
    for i in range(out.shape[0]):
        z, s = int(za[i % len(za)]), float(sa[i % len(sa)])
        factor = Fraction(s * sb[0] / np.float64(np.float32(form.scale)))
        shift = 0
        while factor * 2**shift < 2**30:
            shift += 1
        cut = Fraction(round(factor * 2**shift), 2**shift)
        for j in range(out.shape[1]):
            total = sum((int(x) - z) * (int(y) - int(zb[0])) for x, y in zip(qa[i], qb[:, j], strict=True))
            total = min(max(total + (0 if bias is None else int(bias[i])), -INT32 - 1), INT32)
            out[i, j] = min(max(floor(total * cut + Fraction(1, 2)) + (form.zero_point or 0), low), high)
    return out


@pytest.mark.parametrize(("symmetric", "granularity"), KINDS)
@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("outputs", [True, False])
def test_product_is_exact_in_integers(symmetric, granularity, inputs, outputs):
    random = np.random.default_rng(0)
    for m, k, n in ((5, 7, 4), (1, 1, 1), (3, 64, 2), (2, 0, 3), (0, 3, 2)):
        a, b = numbers((m, k)), random.standard_normal((k, n)).astype(np.float32) + np.float32(0.5)
        weights, x = Int8(symmetric, granularity).fit(a), Int8(inputs).fit(b)
        product = Int8(outputs).fit(0.7 * (a @ b))  # some saturate
        ea, eb = weights.encode(a), x.encode(b)
        bias = random.integers(-5000, 5000, m).astype(np.int32)
        for offsets in (None, bias):
            got = product.matmul(ea, eb, offsets)
            assert got.codes.dtype == np.uint8 and got.shape == (m, n)
            np.testing.assert_array_equal(got.codes.view(np.int8), exact_product(ea, eb, product, offsets))
        reals = weights.decode(ea).astype(np.float64) @ x.decode(eb).astype(np.float64)
        low, high = product.round(np.float32([-1e30, 1e30]))
        error = np.abs(product.decode(product.matmul(ea, eb)) - np.clip(reals, low, high))
        assert np.all(error <= 0.5001 * product.scale)


def test_sums_fill_32_bits_and_no_more():
    k = INT32 // (255 * 255)
    a = Encoded(np.full((1, k), 127, np.int8).view(np.uint8), np.float32([[1], [-128]]), (1, k))
    b = Encoded(np.full((k, 1), -128, np.int8).view(np.uint8), np.float32([[1], [127]]), (k, 1))
    assert accumulate(a, b) == -k * 255 * 255
    longer = Encoded(np.zeros((1, k + 1), np.uint8), a.scales, (1, k + 1))
    with pytest.raises(ValueError, match=f"a: expected at most {k} columns"):
        accumulate(longer, Encoded(np.zeros((k + 1, 1), np.uint8), b.scales, (k + 1, 1)))


@given(st.integers(-(2**31), INT32), st.floats(2.0**-80, 2.0**40), st.integers(-128, 127))
def test_requantization_is_exact(total, factor, zero):
    m0, shift = multiplier(factor)
    assert 2**30 <= m0[0] < 2**31 and abs(
        Fraction(int(m0[0])) / Fraction(2) ** int(shift[0]) / Fraction(factor) - 1
    ) <= Fraction(1, 2**31)
    got = requantize(np.full((1, 1), total, np.int32), m0, shift, zero, -128, 127)
    exact = floor(total * Fraction(int(m0[0])) / Fraction(2) ** int(shift[0]) + Fraction(1, 2)) + zero
    assert got[0, 0] == min(max(exact, -128), 127)


def test_product_refuses_what_does_not_fit():
    one = Int8(scale=1.0)
    a, b = one.encode(np.ones((2, 3), np.float32)), one.encode(np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match="matmul: expected the product's format with one fixed scale"):
        Int8().matmul(a, b)
    with pytest.raises(ValueError, match=r"b: expected 3 rows, got ndarray of shape \(2, 3\)"):
        one.matmul(a, a)
    with pytest.raises(ValueError, match="a: expected 8-bit codes of a matrix"):
        one.matmul(one.encode(np.ones(3, np.float32)), b)
    with pytest.raises(ValueError, match="b: expected one scale, since channels would be summed over, got 3"):
        one.matmul(a, Int8(granularity="channel").encode(np.ones((3, 4), np.float32)))
    with pytest.raises(ValueError, match=r"bias: expected int32 of shape \(2,\)"):
        one.matmul(a, b, np.zeros(2))
    with pytest.raises(ValueError, match="a: expected numbers encoded by an Int8, with their scales"):
        one.matmul(Encoded(a.codes, None, a.shape), b)
