"""Arrays of every kind come back bit for bit; sizes are those of the formula; damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kernels.implementation.memory.traffic_compression import (
    METHODS,
    TrafficCompression,
    plain_run_lengths,
    plain_zero_values,
)

DTYPES = ["?", "i1", "u1", "<i2", ">i4", "<i8", "<f2", "<f4", ">f4", "<f8"]
anything = st.sampled_from(DTYPES).flatmap(
    lambda d: arrays(np.dtype(d), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9), fill=st.just(0))
)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=120, deadline=None)
@given(anything)
def test_every_array_comes_back_bit_for_bit(method, x):
    codec = TrafficCompression(method)
    back = codec.decode(codec.encode(x))
    little = x.astype(x.dtype.newbyteorder("<"))
    assert back.shape == x.shape and back.dtype == little.dtype and back.tobytes() == little.tobytes()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 99))
def test_sizes_and_pairs_are_those_of_the_plain_statements(n, density, seed):
    rng = np.random.default_rng(seed)
    x = (rng.integers(1, 100, n) * (rng.random(n) < density)).astype(np.int16)
    head = 7 + 8 + 3 + 4
    there, values = plain_zero_values(x)
    assert len(TrafficCompression().encode(x)) == head + -(-n // 8) + values.nbytes and there.sum() == values.size
    assert len(TrafficCompression("run-length").encode(x)) == head + 8 + 3 * len(plain_run_lengths(x))


def test_long_runs_and_negative_zero():
    x = np.zeros(5000, np.float32)
    x[[700, 701, 4999]] = -0.0, np.nan, 3.0
    for method in METHODS:
        back = TrafficCompression(method).decode(TrafficCompression(method).encode(torch.tensor(x)))
        assert back.tobytes() == x.tobytes() and np.signbit(back[700])


@pytest.mark.parametrize("method", METHODS)
def test_every_truncation_and_every_flipped_byte_is_noticed(method):
    codec = TrafficCompression(method)
    data = codec.encode(np.array([[0, 3, 0], [0, 0, 9]], np.int16))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="data: expected bytes"):
            codec.decode(data[:length])
    for at in range(len(data)):
        altered = bytearray(data)
        altered[at] ^= 0x10
        with pytest.raises(ValueError, match="data: expected"):
            codec.decode(bytes(altered))


def test_what_is_refused_is_named():
    with pytest.raises(ValueError, match="method: expected zero-value or run-length, got 'zip'"):
        TrafficCompression("zip")
    with pytest.raises(TypeError, match="x: expected booleans, integers or floats"):
        TrafficCompression().encode(np.array([1j]))
    with pytest.raises(ValueError, match="data: expected run-length, they were made by zero-value"):
        TrafficCompression("run-length").decode(TrafficCompression().encode(np.ones(3)))
