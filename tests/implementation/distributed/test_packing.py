"""Digits in words: against big integers, whole round trips, and sizes that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.distributed.packing import digits_of, pack, packed_bytes, unpack, word_of

bases = st.one_of(st.integers(2, 20), st.sampled_from([2**8, 2**16, 10_007, 2**31, 2**32]))


@given(bases, st.lists(st.integers(0, 2**32), max_size=200))
def test_packed_as_big_integers_are_and_unpacked_as_before(base, numbers):
    digits = [n % base for n in numbers]
    per = digits_of(base)
    plain = b"".join(word_of(digits[i : i + per], base) for i in range(0, len(digits), per))
    packed = pack(np.array(digits, np.int64), base)
    assert packed == plain and len(packed) == packed_bytes(len(digits), base)
    assert unpack(packed, base, len(digits)).tolist() == digits


@pytest.mark.parametrize("base", [2, 3, 5, 15, 16, 255, 256, 2**32])
def test_a_word_is_full_and_the_size_near_the_entropy(base):
    per = digits_of(base)
    assert base**per <= 2**64 < base ** (per + 1)
    count = 64 * per
    assert 0.75 < count * math.log2(base) / 8 / packed_bytes(count, base) <= 1


def test_what_is_no_digit_or_not_all_is_refused():
    with pytest.raises(ValueError, match="digits: expected 0 to 2, got 0 to 3"):
        pack(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="data: expected 1 bytes for 2 digits, got 2"):
        unpack(b"\0\0", 3, 2)
    with pytest.raises(ValueError, match="base: expected at least 2"):
        digits_of(1)
