"""Essential bits against Python's integers, a search over all signed-digit strings, and an array run cycle by cycle."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest

from kernels.arithmetic.approximate_arithmetic.essential_bits import (
    BitParallel,
    EssentialBits,
    digits,
    fixed_point,
    plain_signed_digits,
)
from kernels.implementation.dataflow.layer import Layer, ValuedLayer

RNG = np.random.default_rng(0)


def test_set_bits_of_every_16_bit_number():
    codes = np.arange(-(2**15), 2**15)
    assert digits(codes, "binary").tolist() == [abs(n).bit_count() for n in codes.tolist()]
    signed = [plain_signed_digits(abs(n)) for n in codes.tolist()]
    assert digits(codes, "signed-digit").tolist() == [sum(map(abs, d)) for d in signed]


def test_signed_digits_are_canonical():
    for n in range(2**10):
        found = plain_signed_digits(n)
        assert sum(d << i for i, d in enumerate(found)) == n
        assert all(not (a and b) for a, b in itertools.pairwise(found))


def test_no_string_of_signed_digits_has_fewer():
    fewest = {}
    for string in itertools.product((-1, 0, 1), repeat=8):
        value = sum(d << i for i, d in enumerate(string))
        fewest[value] = min(fewest.get(value, 8), sum(map(abs, string)))
    assert all(digits(np.array([n]), "signed-digit")[0] == fewest[n] for n in range(128))


def test_a_third_of_the_signed_digits_are_set():
    # an even number has the digits of its half; an odd one a digit more than a neighbour: the recurrence's solution
    for bits in (4, 8, 12):
        mean = digits(np.arange(2**bits), "signed-digit").mean()
        assert mean == pytest.approx(bits / 3 + 4 / 9 - 0.5 ** (bits + 1) + (-0.5) ** bits / 18)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_fixed_point_is_exact_to_half_a_step(bits):
    x = RNG.standard_normal(1000)
    codes = fixed_point(x, bits)
    step = 2.0 ** (np.ceil(np.log2(np.abs(x).max())) - (bits - 1))
    inside = np.abs(codes) < 2 ** (bits - 1) - 1
    assert np.abs(codes).max() < 2 ** (bits - 1)
    assert (np.abs(codes * step - x)[inside] <= step / 2).all()
    assert not fixed_point(np.zeros(3), bits).any() and fixed_point(np.empty(0), bits).size == 0


def layer_of(m, n, k, items=1):
    shape = {f.name: getattr(Layer.gemm(m, n, k), f.name) for f in fields(Layer)}
    inputs = RNG.standard_normal((items, 1, m, k)) * (RNG.random((items, 1, m, k)) < 0.6)
    return ValuedLayer(**shape, weights=RNG.standard_normal((1, n, k)), inputs=inputs)


def run(array, layer):
    """The array, clock by clock: each lane has a queue of set digits; nobody goes on before all that it waits for."""
    serial = (layer.inputs[0] if array.operand == "inputs" else layer.weights)[0]
    other = layer.gemm_shape()[1 if array.operand == "inputs" else 0]
    codes = np.abs(fixed_point(serial, array.bits)).tolist()
    counted = [[sum(map(abs, recode(n, array.recoding))) for n in row] for row in codes]
    cycles = done = 0
    for _ in range(0, other, array.columns):
        finished = [0] * array.bits
        for first in range(0, len(counted), array.bits):
            windows = counted[first : first + array.bits]
            for brick in range(0, len(counted[0]), array.rows):
                queues = [row[brick : brick + array.rows] for row in windows]
                waits = [0] * array.bits
                for w, queue in enumerate(queues):
                    left = list(queue)
                    while any(left):
                        done += sum(n > 0 for n in left)
                        left = [max(n - 1, 0) for n in left]
                        waits[w] += 1
                waits = [max(wait, 1) for wait in waits]
                finished = [
                    f + (max(waits) if array.sync == "pallet" else w) for f, w in zip(finished, waits, strict=True)
                ]
        cycles += max(finished)
    return cycles, done * other / -(-other // array.columns)


def recode(n, recoding):
    return plain_signed_digits(n) if recoding == "signed-digit" else [n >> i & 1 for i in range(n.bit_length())]


@pytest.mark.parametrize("sync", ["pallet", "column"])
@pytest.mark.parametrize("operand", ["inputs", "weights"])
@pytest.mark.parametrize("recoding", ["binary", "signed-digit"])
@pytest.mark.parametrize("shape", [(7, 5, 11), (16, 8, 16), (1, 3, 20)])
def test_cycles_and_bits_are_those_of_the_array_run_clock_by_clock(shape, recoding, operand, sync):
    layer = layer_of(*shape)
    array = EssentialBits(4, 3, 6, recoding, operand, sync)
    counts = array.cost(layer)
    cycles, bits = run(array, layer)
    assert counts.cycles == cycles and counts.used == pytest.approx(bits)
    assert counts.slots == cycles * 4 * 3 * 6 and counts.utilization == pytest.approx(bits / counts.slots)
    assert counts.essential_bits == pytest.approx(bits / layer.macs)


@pytest.mark.parametrize("operand", ["inputs", "weights"])
def test_the_parallel_array_by_walking_its_loops(operand):
    layer = layer_of(9, 7, 21)
    array = EssentialBits(4, 3, 8, operand=operand)
    serial, other = (9, 7) if operand == "inputs" else (7, 9)
    cycles = sum(1 for _ in range(0, other, 3) for _ in range(serial) for _ in range(0, 21, 4))
    assert array.ideal().cost(layer).cycles == cycles == array.ideal().cost_gemm(9, 7, 21).cycles
    assert isinstance(array.ideal(), BitParallel) and array.ideal().cost(layer).used == array.cost(layer).used


def test_all_bits_set_take_as_long_as_the_parallel_array_and_none_the_least():
    shape = {f.name: getattr(Layer.gemm(16, 8, 32), f.name) for f in fields(Layer)}
    full = ValuedLayer(**shape, weights=np.ones((1, 8, 32)), inputs=np.full((1, 1, 16, 32), 127 / 128))
    array = EssentialBits(8, 8, 8)
    assert array.cost(full).cycles == array.ideal().cost(full).cycles * 7 / 8  # the sign is no digit
    none = replace(full, inputs=np.zeros((1, 1, 16, 32)))
    assert array.cost(none).cycles == array.ideal().cost(none).cycles / 8 and array.cost(none).essential_bits == 0


def test_without_numbers_it_is_the_expected_value_of_random_codes():
    m, n, k = 50, 16, 40
    for recoding, sync in itertools.product(("binary", "signed-digit"), ("pallet", "column")):
        array = EssentialBits(8, 8, 8, recoding, sync=sync)
        drawn = []
        for _ in range(60):
            layer = layer_of(m, n, k)
            codes = RNG.integers(0, 128, (1, 1, m, k))
            codes[0, 0, 0, 0] = 127  # so that the step is one
            drawn.append(array.cost(replace(layer, inputs=codes.astype(float))))
        expected = array.cost_gemm(m, n, k)
        mean = np.mean([counts.cycles for counts in drawn])
        # the slowest of eight windows is later than the mean of one, which the formula takes
        assert mean == pytest.approx(expected.cycles, rel=0.01 if sync == "pallet" else 0.08)
        assert np.mean([counts.used for counts in drawn]) == pytest.approx(expected.used, rel=0.01)


def test_layers_add_up_items_are_averaged_and_bytes_counted():
    array, one, two = EssentialBits(4, 4, 8), layer_of(9, 6, 10), layer_of(8, 4, 12, items=3)
    both = array.cost([one, two])
    assert both.cycles == array.cost(one).cycles + array.cost(two).cycles and both.macs == one.macs + two.macs
    items = [array.cost(replace(two, inputs=two.inputs[i : i + 1])) for i in range(3)]
    scaled = np.mean([c.cycles for c in items])
    assert array.cost(two).cycles == pytest.approx(scaled, rel=0.15)  # one step for all items, its own for each
    counts = array.cost(one)
    assert (counts.dram.ifmap, counts.dram.filter, counts.dram.ofmap) == (90, 60, 54)
    assert (counts.sram.ifmap, counts.sram.filter) == (90 * 2, 60 * 2)
    assert array.ideal().cost(one).sram.filter == 60 * 9
    assert counts.energy is None and "no cited energy" in array.missing["energy"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: EssentialBits(rows=0), ValueError, "rows: expected an integer of at least 1"),
        (lambda: EssentialBits(bits=1), ValueError, "bits: expected an integer of at least 2"),
        (lambda: EssentialBits(bits=17), ValueError, "bits: expected an integer from 2 to 16, got 17"),
        (lambda: EssentialBits(recoding="booth"), ValueError, "recoding: expected binary or signed-digit"),
        (lambda: EssentialBits(operand="outputs"), ValueError, "operand: expected inputs or weights"),
        (lambda: EssentialBits(sync="none"), ValueError, "sync: expected pallet or column"),
        (lambda: EssentialBits().cost(["layer"]), TypeError, "layers: expected Layer objects, got str"),
        (
            lambda: EssentialBits().cost(replace(layer_of(3, 2, 4), inputs=np.ones((1, 1, 3, 5)))),
            ValueError,
            r"layers: expected inputs of shape \(items, 1, 3, 4\).*got \(1, 1, 3, 5\)",
        ),
        (lambda: fixed_point([np.inf], 8), ValueError, "values: expected finite numbers"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
