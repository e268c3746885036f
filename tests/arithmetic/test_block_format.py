"""What holds for every format with scales for blocks: where blocks lie, layouts, threads, memory, refusals."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from math import ceil

import ml_dtypes
import numpy as np
import pytest
import torch

from kernels.arithmetic.block_format import _pieces, in_blocks, same_order
from kernels.arithmetic.block_formats.block_floating_point import BlockFloatingPoint, block_floating_point_round
from kernels.arithmetic.block_formats.microscaling import ELEMENTS, Microscaling, microscaling_round
from kernels.arithmetic.block_formats.normal_float import NormalFloat, normal_float_round

FORMATS = [
    BlockFloatingPoint(),
    BlockFloatingPoint(12, 7),
    BlockFloatingPoint(16, "tensor"),
    *(Microscaling(element) for element in (*ELEMENTS, "int8")),
    NormalFloat(),
    NormalFloat(block=16, double_quantization=False),
]
every_format = pytest.mark.parametrize("form", FORMATS, ids=str)


def plain(form, x):
    if isinstance(form, BlockFloatingPoint):
        return block_floating_point_round(x, form.mantissa_bits, form.block)
    if isinstance(form, Microscaling):
        return microscaling_round(x, form.element)
    return normal_float_round(x, form.block, form.double_quantization)


def numbers(shape, dtype=np.float32, seed=0):
    """Normal numbers, of a size that changes from place to place."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * np.exp2(random.integers(-9, 9, shape))).astype(dtype)


def views():
    x = numbers((6, 8, 10))
    return [
        x, x.T, np.asfortranarray(x), x[::2, ::-1, 1::3], x[:0], x[:, :0], x[0, 0, 0], x[0, 0], x[:, 0, ::3],
        np.broadcast_to(x[0, 0], (4, 10)), x.astype(">f4"), x.astype(">f8"), numbers((3, 70)), numbers((5, 64)).T,
        np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32), numbers(20_000)[::2],
        numbers((3, 9001))[:, ::-1],
    ]  # fmt: skip


@every_format
def test_every_layout_and_the_plain_statement(form):
    for view in views():
        before = view.copy()
        expected = plain(form, view)
        rounded = form.round(view)
        assert isinstance(rounded, np.ndarray) and rounded.shape == view.shape and rounded.dtype == np.float32
        np.testing.assert_array_equal(rounded, expected)
        np.testing.assert_array_equal(view, before)
        encoded = form.encode(view)
        assert encoded.codes.shape == encoded.shape == view.shape and encoded.codes.dtype == form.code_dtype
        assert encoded.scales.dtype == np.float32 and encoded.scales.shape == form.scales_shape(view.shape)
        decoded = form.decode(encoded)
        np.testing.assert_array_equal(decoded, rounded)
        np.testing.assert_array_equal(np.signbit(decoded), np.signbit(rounded))
        out = np.full(view.shape[::-1], 7, np.float32).T
        assert form.round(view, out) is out
        np.testing.assert_array_equal(out, rounded)


@every_format
def test_read_only_and_other_types(form):
    x = numbers((5, 100))
    x.setflags(write=False)
    expected = form.round(x)
    np.testing.assert_array_equal(form.round(x.astype(np.float64)), expected)
    half = x.astype(np.float16)
    np.testing.assert_array_equal(form.round(half), form.round(half.astype(np.float64)))
    brain = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    tensor = torch.from_numpy(brain)
    rounded = form.round(tensor.bfloat16().requires_grad_())
    assert isinstance(rounded, torch.Tensor) and not rounded.requires_grad
    np.testing.assert_array_equal(rounded.numpy(), form.round(brain))
    assert form.round(torch.tensor(1.5)).shape == ()
    out = torch.empty(100, 5).t()
    assert form.round(torch.from_numpy(brain), out) is out
    np.testing.assert_array_equal(out.numpy(), form.round(brain))


@every_format
def test_in_place_and_overlapping(form):
    x = numbers((30, 40))
    expected = form.round(x)
    same = x.copy()
    assert form.round(same, same) is same
    np.testing.assert_array_equal(same, expected)
    turned = x.T.copy().T
    form.round(turned, turned)
    np.testing.assert_array_equal(turned, expected)
    shifted = np.append(x.ravel(), np.float32(0))
    flat = form.round(x.ravel())
    form.round(shifted[:-1], shifted[1:])
    np.testing.assert_array_equal(shifted[1:], flat)


@every_format
def test_a_scale_belongs_to_its_block(form):
    """Changing one number changes no other block, nor its row's neighbours."""
    if form.block == "tensor" or getattr(form, "double_quantization", False):
        pytest.skip("a scale depends on all numbers")
    x = numbers((3, 2 * form.block + 5))
    other = x.copy()
    other[1, form.block] *= 1000
    changed = np.zeros(x.shape, bool)
    changed[1, form.block : 2 * form.block] = True
    np.testing.assert_array_equal(form.round(x)[~changed], form.round(other)[~changed])
    tail = x[:, 2 * form.block :]  # a short last block is a block of its own
    np.testing.assert_array_equal(form.round(x)[:, 2 * form.block :], form.round(tail))


@every_format
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_nothing(form, threads):
    for shape in ((100_003,), (40, 2500), (3, 33_333), (7,), (0, 5)):
        x = numbers(shape)
        np.testing.assert_array_equal(form.round(x, threads=threads), form.round(x))
        many, one = form.encode(x, threads=threads), form.encode(x)
        np.testing.assert_array_equal(many.codes, one.codes)
        np.testing.assert_array_equal(many.scales, one.scales)
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError, match="threads: expected a positive integer"):
            form.round(x, threads=bad)


@every_format
def test_no_temporary_of_the_arrays_size(form):
    for x in (numbers(1 << 20), numbers(1 << 20, np.float64), numbers((2048, 1024))[:, ::2], numbers((1024, 1024)).T):
        out = np.empty_like(x, dtype=np.float32)
        form.round(x, out)
        tracemalloc.start()
        form.round(x, out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        scales = np.prod(form.scales_shape(x.shape), dtype=int)
        assert peak < x.nbytes / 8 + 60 * scales + (1 << 21), (peak, x.nbytes)


@every_format
def test_a_block_with_what_is_no_number(form):
    x = numbers((4, 200))
    for bad in (np.nan, np.inf, -np.inf, -np.nan):
        y = x.copy()
        y[2, 3] = bad
        rounded, encoded = form.round(y), form.encode(y)
        length = {"tensor": 800}.get(form.block, form.block)
        if form.block == "tensor" or getattr(form, "double_quantization", False):
            assert np.isnan(rounded).all()
        else:
            lost = np.zeros(x.shape, bool)
            lost[2, :length] = True
            np.testing.assert_array_equal(np.isnan(rounded), lost)
            np.testing.assert_array_equal(rounded[~lost], form.round(x)[~lost])
            assert np.isnan(encoded.scales).sum() == 1
        assert int(encoded.codes.max()) < 2**form.bits
        np.testing.assert_array_equal(form.decode(encoded), rounded)


@every_format
def test_zeros_subnormals_and_the_largest(form):
    zeros = np.float32([0.0, -0.0, 0.0])
    np.testing.assert_array_equal(form.round(zeros), 0)
    np.testing.assert_array_equal(form.decode(form.encode(zeros)), 0)
    for x in (
        np.float32([1e-45, -1e-45, 5e-39, 1e-40]),
        np.float32([1e-38, -1.2e-38, 3e-39]),
        np.float32([3.4e38, -3.4e38, 1e38, 1.0, 1e-30]),
        np.float64([1e300, -1e250, 1e-300]),
        np.float64([1e-300, 0.0]),
    ):
        rounded = form.round(x)
        assert np.isfinite(rounded).all()
        np.testing.assert_array_equal(form.decode(form.encode(x)), rounded)
        if x.dtype == np.float32:
            np.testing.assert_array_equal(rounded, plain(form, x))


@every_format
def test_decode_refuses_what_the_format_did_not_make(form):
    encoded = form.encode(numbers((3, 100)))
    with pytest.raises(TypeError, match=r"encoded: expected codes of dtype.*int64"):
        form.decode(replace(encoded, codes=encoded.codes.astype(np.int64)))
    with pytest.raises(ValueError, match=r"encoded: expected codes of shape \(3, 100\).*\(300,\)"):
        form.decode(replace(encoded, codes=encoded.codes.ravel()))
    with pytest.raises(ValueError, match="encoded: expected scales, got none"):
        form.decode(replace(encoded, scales=None))
    with pytest.raises(TypeError, match=r"encoded: expected scales of dtype float32.*float64"):
        form.decode(replace(encoded, scales=encoded.scales.astype(np.float64)))
    with pytest.raises(ValueError, match="encoded: expected scales of shape"):
        form.decode(replace(encoded, scales=encoded.scales[..., None]))
    if form.bits < 8 * form.code_dtype().itemsize:
        codes = encoded.codes.copy()
        codes[0, 0] = 2**form.bits
        with pytest.raises(ValueError, match=rf"expected codes below 2\^{form.bits}"):
            form.decode(replace(encoded, codes=codes))


@every_format
def test_stored_bits_counts_every_scale(form):
    for shape in ((), (5,), (64,), (65, 3, 3), (16, 8, 3, 3), (0, 4), (300, 64)):
        size = int(np.prod(shape, dtype=int))
        rows, row = (shape[0], size // max(shape[0], 1)) if len(shape) > 1 else (1, size)
        blocks = min(size, 1) if form.block == "tensor" else rows * ceil(row / form.block)
        shared = 32 * (ceil(blocks / 256) + 1) if getattr(form, "double_quantization", False) and size else 0
        assert form.stored_bits(shape) == size * form.bits + blocks * form.scale_bits + shared


@every_format
def test_grid(form):
    grid = form.element_values()
    assert grid.dtype == np.float64 and np.all(np.diff(grid) > 0)
    with pytest.raises(ValueError, match="the grid belongs to a block"):
        form.values()
    assert form.fit(numbers(3)) is form and form.for_activations() is form


def test_pieces_are_whole_blocks_and_cover_everything():
    for size, row, block, about in (
        (100, 100, 7, 20),
        (100, 25, 7, 60),
        (100, 25, 7, 10),
        (64, 64, 32, 1),
        (90, 9, 64, 20),
    ):
        pieces = list(_pieces(size, row, block, about, whole=False))
        assert [start for start, _, _ in pieces] == [0, *(stop for _, stop, _ in pieces[:-1])] and pieces[-1][1] == size
        for start, stop, own in pieces:
            assert start % row % block == 0 and (stop % row % block == 0 or stop % row == 0)
            lengths = [min(row, stop - start)] * max((stop - start) // row, 1)
            assert own.stop - own.start == sum(ceil(length / block) for length in lengths)


def test_blocks_there_and_back():
    for shape in ((), (5,), (3, 10), (2, 3, 4), (0,), (0, 3), (3, 0)):
        for block in (1, 4, 7, "tensor"):
            x = numbers(shape)
            np.testing.assert_array_equal(same_order(in_blocks(x, block), shape), x)
