"""Direct convolution against torch in float64, within the bound that it states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.implementation.convolution.direct_convolution import DirectConvolution, Filters, seven_loops

UNIT = 2.0**-24
op = DirectConvolution()


def torch_float64(x, w, bias, *geometry):
    tensors = (None if t is None else torch.from_numpy(np.array(t, np.float64)) for t in (x, w, bias))
    return torch.nn.functional.conv2d(*tensors, *geometry).numpy()


def assert_within_bound(y, x, w, bias, *geometry):
    """|y - exact| <= gamma_{s + 1} (|w| * |x| + |bias|), with s terms in a sum."""
    exact = torch_float64(x, w, bias, *geometry)
    size = torch_float64(np.abs(x), np.abs(w), None if bias is None else np.abs(bias), *geometry)
    terms = (w[0].size + 1) * UNIT
    assert y.shape == exact.shape and y.dtype == np.float32
    assert np.all(np.abs(y - exact) <= terms / (1 - terms) * size)


def operands(seed, images, groups, channels, outputs, size, kernel, bias):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, groups * channels, *size), np.float32)
    w = rng.standard_normal((groups * outputs, channels, *kernel), np.float32)
    return x, w, rng.standard_normal(groups * outputs, np.float32) if bias else None


pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), images=st.integers(0, 2), groups=st.integers(1, 4), channels=st.integers(1, 4),
    outputs=st.integers(1, 10), size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), stride=pair, dilation=pair,
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)), bias=st.booleans(), prepared=st.booleans(),
)  # fmt: skip
# Margins wider than the filter; phases of the stride that end where their plane does; one pixel; a filter of one row.
@example(0, 1, 1, 2, 3, (4, 5), (1, 1), (1, 1), (1, 1), (5, 5), True, True)
@example(0, 1, 3, 1, 1, (5, 5), (3, 3), (1, 2), (1, 1), (0, 1), True, True)
@example(0, 2, 1, 1, 1, (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), False, False)
@example(0, 2, 2, 1, 1, (7, 1), (1, 5), (1, 1), (1, 1), (0, 2), True, False)
def test_any_geometry_is_within_the_stated_bound(
    seed, images, groups, channels, outputs, size, kernel, stride, dilation, padding, bias, prepared
):
    x, w, b = operands(seed, images, groups, channels, outputs, size, kernel, bias)
    filters = op.prepare(w, groups) if prepared else w
    if any(size[a] + 2 * padding[a] < dilation[a] * (kernel[a] - 1) + 1 for a in (0, 1)):
        with pytest.raises(ValueError, match="x: expected images of at least the kernel's size"):
            op.conv2d(x, filters, b, stride, padding, dilation, groups)
        return
    y = op.conv2d(x, filters, b, stride, padding, dilation, groups)
    assert_within_bound(y, x, w, b, stride, padding, dilation, groups)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), groups=st.integers(2, 5), outputs=st.integers(1, 3), images=st.integers(0, 2),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)), side=st.sampled_from([3, 5]),
    padding=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)  # fmt: skip
def test_depthwise_tiles_may_reach_over_any_edge(seed, groups, outputs, images, size, side, padding):
    padding = tuple(max(p, (side - s + 1) // 2) for p, s in zip(padding, size, strict=True))
    x, w, b = operands(seed, images, groups, 1, outputs, size, (side, side), True)
    assert_within_bound(op.conv2d(x, w, b, 1, padding, 1, groups), x, w, b, 1, padding, 1, groups)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 2), channels=st.integers(1, 2), stride=pair, dilation=pair,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)  # fmt: skip
def test_the_plain_loops_are_torchs(seed, groups, channels, stride, dilation, padding, kernel):
    x, w, b = operands(seed, 1, groups, channels, 2, (7, 8), kernel, True)
    geometry = (stride, padding, dilation, groups)
    exact = torch_float64(x, w, b, *geometry)
    np.testing.assert_allclose(seven_loops(x, w, b, *geometry), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 64])
def test_a_layer_of_real_size(groups):
    x, w, b = operands(0, 2, groups, 64 // groups, 64 // groups, (28, 28), (3, 3), True)
    assert_within_bound(op.conv2d(x, op.prepare(w, groups), b, padding=1), x, w, b, 1, 1, 1, groups)


def test_tensors_and_strided_images_are_taken():
    x, w, b = operands(1, 2, 1, 3, 5, (9, 11), (3, 3), True)
    tensors = [torch.from_numpy(t) for t in (x, w, b)]
    y = op.conv2d(tensors[0].contiguous(memory_format=torch.channels_last), op.prepare(tensors[1]), tensors[2])
    assert isinstance(y, torch.Tensor)
    assert_within_bound(y.numpy(), x, w, b)
    mirrored = x[:, :, ::-1, ::-2]
    assert_within_bound(op.conv2d(mirrored, w[::-1], b), np.ascontiguousarray(mirrored), w[::-1].copy(), b)
    assert_within_bound(op.conv2d(x.astype(np.float64), w.tolist(), b), x, w, b)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_nan_and_infinity_reach_the_outputs_that_see_them_and_no_other(groups, stride):
    x, w, _ = operands(2, 2, groups, 2 // groups, 2 // groups, (17, 19), (3, 3), False)
    x[0, 1, 4, 18], x[0, 0, 16, 0] = np.nan, np.inf
    y, exact = op.conv2d(x, w, None, stride, 1, 1, groups), torch_float64(x, w, None, stride, 1, 1, groups)
    assert np.array_equal(np.isnan(y), np.isnan(exact)) and np.array_equal(np.isinf(y), np.isinf(exact))
    assert np.array_equal(np.sign(y[np.isinf(y)]), np.sign(exact[np.isinf(exact)]))


@pytest.mark.parametrize("groups", [1, 2])
def test_margins_take_part_as_zeros(groups):
    w = np.zeros((2, 2 // groups, 3, 3), np.float32)
    w[:, :, 0, 0] = np.nan
    assert np.isnan(op.conv2d(np.ones((1, 2, 4, 4)), w, padding=1, groups=groups)).all()


def test_subnormal_numbers_are_kept():
    tiny = np.full((1, 2, 3, 3), 1e-45, np.float32)
    assert np.array_equal(op.conv2d(tiny, np.ones((2, 1, 1, 1)), groups=2), tiny)
    assert np.array_equal(op.conv2d(tiny, np.eye(2).reshape(2, 2, 1, 1)), tiny)


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        ((2, 3, 4), (1, 3, 1, 1), {}, "x: expected an array of 4 dimensions"),
        ((1, 3, 4, 4), (1, 3, 1), {}, "w: expected an array of 4 dimensions"),
        ((1, 3, 4, 4), (2, 4, 1, 1), {}, r"x: expected 4 channels, as w of shape \(2, 4, 1, 1\) takes"),
        ((1, 3, 4, 4), (4, 2, 1, 1), {"groups": 2}, "x: expected 4 channels.* in 2 groups"),
        ((1, 4, 4, 4), (3, 2, 1, 1), {"groups": 2}, "groups: expected a divisor of w's 3 output channels, got 2"),
        ((1, 4, 4, 4), (3, 2, 1, 1), {"groups": 0}, "groups: expected a divisor"),
        ((1, 1, 4, 4), (1, 1, 0, 1), {}, "w: expected a kernel of at least one weight"),
        ((1, 1, 4, 4), (2, 1, 1, 1), {"bias": np.zeros(3)}, "bias: expected 2 numbers"),
        ((1, 1, 4, 4), (1, 1, 1, 1), {"stride": 0}, "stride: expected one or two integers of at least 1, got 0"),
        ((1, 1, 4, 4), (1, 1, 1, 1), {"padding": (1, -1)}, "padding: expected one or two integers of at least 0"),
        ((1, 1, 4, 4), (1, 1, 1, 1), {"dilation": (1, 1, 1)}, "dilation: expected one or two integers"),
        ((1, 1, 4, 4), (1, 1, 1, 1), {"stride": 1.5}, "stride: expected one or two integers"),
        ((1, 1, 4, 9), (1, 1, 7, 3), {"padding": 1, "dilation": 2}, r"got 4 x 9.*the output would be -6 x 7"),
    ],
)
def test_wrong_operands_are_named(x, w, options, message):
    with pytest.raises(ValueError, match=message):
        op.conv2d(np.zeros(x), np.zeros(w), **options)


def test_prepared_filters_know_their_groups_and_are_immutable():
    filters = op.prepare(np.ones((4, 1, 3, 3)), groups=4)
    assert isinstance(filters, Filters) and filters.depthwise and not op.prepare(np.ones((4, 1, 3, 3))).depthwise
    x = np.ones((1, 4, 3, 3))
    assert np.array_equal(op.conv2d(x, filters), op.conv2d(x, filters, groups=4))
    with pytest.raises(ValueError, match="groups: expected 4, for which w was prepared, got 2"):
        op.conv2d(x, filters, groups=2)
    with pytest.raises(ValueError, match="read-only"):
        filters.packed[:] = 0
    with pytest.raises(TypeError, match="x: expected real numbers"):
        op.conv2d(np.ones((1, 4, 3, 3), complex), filters)


def test_nothing_to_sum_leaves_the_bias():
    y = op.conv2d(np.zeros((2, 0, 3, 3)), np.zeros((3, 0, 2, 2)), bias=[1, 2, 3])
    assert np.array_equal(y, np.broadcast_to(np.reshape([1, 2, 3], (1, 3, 1, 1)), (2, 3, 2, 2)))
    assert op.conv2d(np.zeros((2, 1, 3, 3)), np.zeros((0, 1, 2, 2))).shape == (2, 0, 2, 2)


def test_supports_convolutions_with_zeros_around():
    conv = torch.nn.Conv2d
    assert op.supports(conv(2, 4, 3, stride=2, padding=1, groups=2)) and op.supports(conv(2, 2, 3), "fp32")
    assert not op.supports(conv(2, 2, 3, padding=1, padding_mode="reflect"))
    assert not op.supports(conv(2, 2, 3, padding="same")) and not op.supports(conv(2, 2, 3), "bfloat16")
    assert not op.supports(torch.nn.Linear(2, 2)) and not op.supports(torch.nn.Conv1d(2, 2, 3))
