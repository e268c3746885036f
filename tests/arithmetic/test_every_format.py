"""Every number format of the taxonomy at every variant: right on any array, or an error that says why."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import taxonomy

tx = taxonomy.load()
VARIANTS = [(node, dict(variant)) for node in tx.find(kind="number-format") for variant in node.variants]
each = pytest.mark.parametrize(
    ("node", "variant"), VARIANTS, ids=[f"{node.id}-{'-'.join(map(str, v.values()))}" for node, v in VARIANTS]
)


def numbers(shape=(6, 64), dtype=np.float32):
    """Of sizes from 2^-8 to 2^4, so that no format loses them all."""
    random = np.random.default_rng(0)
    return (random.uniform(0.5, 1, shape) * np.exp2(random.integers(-8, 5, shape))).astype(dtype)


def chosen(node, variant, x):
    """The format with scales fixed on `x`, and one seed: the same numbers give the same result."""
    return node.reference(**variant).fit(x)


@each
def test_codes_stand_for_what_rounding_gives(node, variant):
    x = numbers()
    form = chosen(node, variant, x)
    before = x.copy()
    rounded, encoded = form.round(x), form.encode(x)
    np.testing.assert_array_equal(form.decode(encoded), rounded)
    np.testing.assert_array_equal(x, before)
    assert rounded.shape == encoded.codes.shape == encoded.shape == x.shape and rounded.dtype == form.dtype
    assert encoded.codes.dtype == form.code_dtype and int(encoded.codes.max()) < 2**form.bits
    assert form.stored_bits(x.shape) >= form.bits * x.size
    noise, signal = np.sum((rounded - x.astype(np.float64)) ** 2), np.sum(x.astype(np.float64) ** 2)
    assert noise < signal / 2  # two bits are coarse, but no format makes up numbers


@each
def test_any_layout(node, variant):
    x = numbers()
    form = chosen(node, variant, x)
    if node.id == "stochastic-rounding" or variant.get("rounding") == "stochastic":
        pytest.skip("chance depends on a number's place in memory")
    expected = form.round(x)
    read_only = x.copy()
    read_only.setflags(write=False)
    wide = np.zeros((6, 128), np.float32)
    wide[:, ::2] = x
    others = [x.astype(dtype) for dtype in (np.float64, ">f4", ">f8")]
    for view in (read_only, np.asfortranarray(x), wide[:, ::2], *others):
        np.testing.assert_array_equal(form.round(view), expected)
        np.testing.assert_array_equal(form.decode(form.encode(view)), expected)
        assert form.fit(view) == form
    near = np.nextafter(x.astype(np.float64) * (1 + 2.0**-9), 0)  # what float32 would round
    np.testing.assert_array_equal(form.round(near.astype(">f8")), form.round(near))
    tensor = form.round(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    out = np.empty_like(expected)
    assert form.round(x, out) is out
    np.testing.assert_array_equal(out, expected)


@each
def test_threads_give_the_same_bits(node, variant):
    x = numbers((6, 5000))
    form = chosen(node, variant, x)
    np.testing.assert_array_equal(form.round(x, threads=2), form.round(x))
    np.testing.assert_array_equal(form.encode(x, threads=2).codes, form.encode(x).codes)


@each
@pytest.mark.parametrize("shift", [1, -1])
def test_out_may_overlap_x(node, variant, shift):
    x = numbers((6, 5000))
    form = chosen(node, variant, x)
    if form.dtype is not np.float32:
        pytest.skip("an array of another type overlaps nothing of use")
    both = np.zeros(x.size + 1, np.float32)
    source, target = (both[at:][: x.size].reshape(x.shape) for at in ((0, 1) if shift > 0 else (1, 0)))
    for threads in (1, 3):
        source[:] = x
        np.testing.assert_array_equal(form.round(source, target, threads=threads), form.round(x))


@each
def test_codes_go_where_they_are_wanted(node, variant):
    x = numbers()
    form = chosen(node, variant, x)
    expected = form.encode(x)
    codes = np.empty((64, 6), form.code_dtype).T
    encoded = form.encode(x, codes)
    assert encoded.codes is codes
    np.testing.assert_array_equal(form.decode(encoded), form.decode(expected))
    with pytest.raises(ValueError, match=r"out: expected the shape of x, \(6, 64\)"):
        form.encode(x, codes.T)
    with pytest.raises(TypeError, match="out: expected dtype"):
        form.encode(x, x)
    codes.setflags(write=False)
    with pytest.raises(ValueError, match="out: expected an array that can be written"):
        form.encode(x, codes)


@each
def test_nothing_and_a_single_number(node, variant):
    form = node.reference(**variant)
    for empty in (np.zeros((0,), np.float32), np.zeros((0, 3), np.float32)):
        assert form.round(empty).shape == empty.shape and form.encode(empty).codes.shape == empty.shape
    try:
        single = form.round(np.float32(0.5))
    except ValueError as error:
        assert str(error).startswith("x: expected")  # channels need an axis
    else:
        assert np.shape(single) == () and np.isfinite(single)


@each
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -3.4e38], ids=str)
def test_specials_have_a_result_or_a_reason(node, variant, special):
    x = numbers()
    form = chosen(node, variant, x)
    x[2, 3] = special
    try:
        rounded = form.round(x)
    except ValueError as error:
        assert np.isnan(special) and str(error).startswith("x: expected numbers, got NaN")
        return
    assert rounded.shape == x.shape
    if np.isfinite(special):
        assert np.isfinite(rounded[3:]).all()
    np.testing.assert_array_equal(form.decode(form.encode(x)), rounded)


@each
@pytest.mark.parametrize("bad", [[1, 2], np.arange(3), True, "x", 1j], ids=repr)
def test_what_is_no_float_is_refused(node, variant, bad):
    for verb in ("round", "encode", "fit"):
        with pytest.raises(TypeError, match="x: expected"):
            getattr(node.reference(**variant), verb)(bad)
