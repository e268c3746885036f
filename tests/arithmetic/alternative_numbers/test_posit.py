"""Posits against exact rationals written out bit by bit, against SoftPosit, and fast against plain."""

from __future__ import annotations

from fractions import Fraction
from math import frexp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import taxonomy
from kernels.arithmetic.alternative_numbers.posit import Posit, posit_round, posit_value

WIDTHS = [(bits, es) for bits in range(2, 11) for es in range(5)]
VARIANTS = [(v["bits"], v["es"]) for v in taxonomy.load()["posit"].variants]
finite = st.floats(allow_nan=False, allow_infinity=False)


def exact_value(code: int, bits: int, es: int) -> Fraction | None:
    """A posit read as a string of bits, in rationals."""
    word = f"{code:0{bits}b}"
    if set(word[1:]) == {"0"}:
        return None if word[0] == "1" else Fraction(0)
    if word[0] == "1":
        return -exact_value(2**bits - code, bits, es)
    body = word[1:]
    run = len(body) - len(body.lstrip(body[0]))
    k = run - 1 if body[0] == "1" else -run
    rest = body[run + 1 :]
    exponent, fraction = rest[:es].ljust(es, "0"), rest[es:]
    scale = k * 2**es + int(exponent or "0", 2)
    return Fraction(2) ** scale * (1 + Fraction(int(fraction or "0", 2), 2 ** len(fraction)))


def exact_code(x: float, bits: int, es: int) -> int:
    """The standard's rounding on the endless bit string of a number: cut after n bits, to nearest, ties to even."""
    if x == 0:
        return 0
    significand, exponent = frexp(abs(x))
    k, e = divmod(exponent - 1, 2**es)
    if k >= bits - 2:
        code = 2 ** (bits - 1) - 1
    elif k < 2 - bits:
        code = 1
    else:
        regime = "1" * (k + 1) + "0" if k >= 0 else "0" * -k + "1"
        string = regime + (f"{e:0{es}b}" if es else "") + f"{int(significand * 2**53) - 2**52:052b}" + "0" * bits
        kept, guard, rest = string[: bits - 1], string[bits - 1], string[bits:]
        code = int(kept, 2)
        code += guard == "1" and ("1" in rest or code % 2 == 1)
    return 2**bits - code if x < 0 else code


def deciding(bits: int, es: int) -> np.ndarray:
    """Every posit and every midpoint, with the floats beside them."""
    points = np.array([posit_value(code, bits + 1, es) for code in range(1, 2**bits)])
    return np.concatenate([points, np.nextafter(points, 0), np.nextafter(points, np.inf)])


@pytest.mark.parametrize(("bits", "es"), [*WIDTHS, (16, 0), (16, 1), (16, 2)])
def test_values_are_exact(bits, es):
    expected = [exact_value(code, bits, es) for code in range(2**bits)]
    form = Posit(bits, es)
    decoded = form.decode(type(form.encode(0.0))(np.arange(2**bits).astype(form.code_dtype), None, (2**bits,)))
    assert np.isnan(decoded[2 ** (bits - 1)])
    assert all(Fraction(float(x)) == r for x, r in zip(decoded, expected, strict=True) if r is not None)
    assert len(form.values()) == 2**bits - 1
    for code in range(0, 2**bits, 97):
        assert posit_value(code, bits, es) == decoded[code] or expected[code] is None


@pytest.mark.parametrize(("bits", "es"), [*WIDTHS, (16, 0), (16, 1), (16, 2)])
def test_rounding_is_exact_at_every_decision(bits, es):
    x = deciding(bits, es)
    form = Posit(bits, es)
    codes = np.array([exact_code(value, bits, es) for value in x.tolist()])
    np.testing.assert_array_equal(form.encode(x).codes, codes)
    np.testing.assert_array_equal(form.encode(-x).codes, 2**bits - codes)
    np.testing.assert_array_equal(form.round(x), form.decode(form.encode(x)))
    np.testing.assert_array_equal(form.round(x), posit_round(x, bits, es))
    near = x[(x > 1e-44) & (x < 3e38)].astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))])
    np.testing.assert_array_equal(form.round(near), posit_round(near, bits, es))


@pytest.mark.parametrize(("bits", "es"), [*VARIANTS, (12, 3), (11, 4), (2, 0), (3, 4)])
def test_fast_equals_plain_over_all_floats(bits, es):
    random = np.random.default_rng(bits)
    for x in (
        random.integers(0, 2**32, 50_000, np.uint32).view(np.float32),
        random.integers(0, 2**64, 50_000, np.uint64).view(np.float64),
    ):
        with np.errstate(invalid="ignore"):  # signalling NaN, cast by numpy
            np.testing.assert_array_equal(Posit(bits, es).round(x), posit_round(x, bits, es))


@given(st.integers(17, 32), st.integers(0, 4), st.lists(finite, min_size=1, max_size=20))
def test_wide_posits_are_exact(bits, es, xs):
    scaled = [frexp(x)[0] for x in xs]  # near one, where the fraction is longest
    form, x = Posit(bits, es), np.array(xs + scaled)
    codes = form.encode(x)
    assert codes.codes.tolist() == [exact_code(value, bits, es) for value in x.tolist()]
    for value, code in zip(form.decode(codes), codes.codes.tolist(), strict=True):
        assert Fraction(float(value)) == exact_value(code, bits, es)
    np.testing.assert_array_equal(form.round(x), form.decode(codes))


@pytest.mark.parametrize(("bits", "es"), [(8, 0), (16, 1), (8, 2), (16, 2), (32, 2), (24, 2)])
def test_softposit_agrees(bits, es):
    pytest.importorskip("softposit")
    from taxonomy.measure.peers.number_format import softposit

    round_one = softposit(bits, es)
    random = np.random.default_rng(0)
    x = random.choice([-1, 1], 20_000) * np.exp2(random.uniform(-140, 140, 20_000))
    x = np.concatenate([x, random.standard_normal(20_000), *([deciding(bits, es)] if bits <= 16 else [])])
    assert Posit(bits, es).round(x).tolist() == [round_one(value) for value in x.tolist()]


@given(st.sampled_from(VARIANTS), st.lists(finite, min_size=2))
def test_idempotent_monotone_symmetric_never_zero(variant, xs):
    form, x = Posit(*variant), np.sort(xs)
    rounded = form.round(x)
    np.testing.assert_array_equal(form.round(rounded), rounded)
    assert np.all(np.diff(rounded) >= 0)
    np.testing.assert_array_equal(form.round(-x), -rounded)
    assert np.all((rounded == 0) == (x == 0))
    assert np.all(np.abs(rounded) <= form.values()[-1])


@given(st.sampled_from(VARIANTS), st.floats(1, 16, exclude_max=True), st.booleans())
def test_nearest_near_one(variant, x, below):
    """Where exponent bits are not cut, the nearest code is the nearest number."""
    bits, es = variant
    x = 1 / x if below else x
    x = x ** (2**es / 4)
    values = Posit(bits, es).values()
    assert abs(float(Posit(bits, es).round(x)) - x) == np.min(np.abs(values - x))


def test_codes_are_ordered_like_integers():
    form = Posit(8, 2)
    signed = np.sort(form.encode(form.values()).codes.view(np.int8))
    np.testing.assert_array_equal(signed, np.arange(-127, 128))
    np.testing.assert_array_equal(form.encode(form.values()).codes.view(np.int8), signed)


def test_special_numbers():
    form = Posit(8, 0)
    rounded = form.round(np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38]))
    np.testing.assert_array_equal(rounded, [np.nan] * 3 + [0, 0, 2.0**-6, -(2.0**-6), 2.0**6])
    assert not np.signbit(rounded[3:5]).any()
    assert form.encode(np.float32(np.nan)).codes == 0b1000_0000


def test_double_where_float_does_not_hold_the_grid():
    assert Posit(16, 2).dtype == Posit(24, 1).dtype == np.float32
    assert Posit(32, 2).dtype == Posit(16, 4).dtype == Posit(25, 0).dtype == np.float64
    assert Posit(32, 2).round(np.pi) == 3.1415926516056061  # 2^-27 apart here: closer than float32's 3.1415927


@pytest.mark.parametrize(
    ("parameters", "named"),
    [((1, 0), "bits"), ((33, 0), "bits"), ((8.5, 0), "bits"), ((8, -1), "es"), ((8, 5), "es"), ((8, "1"), "es")],
)
def test_bad_parameters(parameters, named):
    with pytest.raises(ValueError, match=f"{named}: expected an integer"):
        Posit(*parameters)
