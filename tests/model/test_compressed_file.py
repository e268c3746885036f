"""Files of compressed networks: what was stored comes back bit for bit, and nothing else is accepted."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import struct

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import datasets
from kernels.model.batch_norm import fold
from kernels.model.compressed_file import (
    DIGEST,
    Form,
    Plain,
    Scaled,
    Sparse,
    Steps,
    Table,
    _unwrapped,
    _wrapped,
    decode,
    encode,
    load,
    save,
    smallest,
)
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.quantization.ternary_weights import TernaryWeights
from kernels.model.transform import bake, constrain
from kernels.model.weight_sharing.huffman_coding import HuffmanCoding, entropy, pack_symbols, unpack_symbols
from kernels.model.weight_sharing.weight_clustering import WeightClustering

HUFFMAN = HuffmanCoding("nonzero")


def mlp(seed=0, widths=(12, 20, 3)):
    torch.manual_seed(seed)
    a, b, c = widths
    return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Linear(b, c))


def raw(x):
    return bytes(x.clone(memory_format=torch.contiguous_format).untyped_storage())


def same(one, other):
    """The same state, to the last bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[key].dtype == theirs[key].dtype and raw(mine[key]) == raw(theirs[key]) for key in mine
    )


def gru():
    torch.manual_seed(0)
    return nn.GRU(5, 6)


def narrow():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2).half(), nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).double())


KEPT = {
    "plain": mlp,
    "pruned": lambda: MagnitudePruning(0.2).apply(mlp()),
    "nearly empty": lambda: MagnitudePruning(0.02).apply(mlp()),
    "clustered": lambda: WeightClustering(5).apply(mlp()),
    "pruned, then clustered": lambda: WeightClustering(3).apply(MagnitudePruning(0.2).apply(mlp())),
    "ternary": lambda: TernaryWeights().constrain(mlp()),
    "binary": lambda: TernaryWeights(threshold=0.0, per="filter").constrain(mlp()),
    "two scales": lambda: TernaryWeights(threshold=0.2, scales="trained").constrain(mlp()),
    "recurrent": lambda: WeightClustering(4).apply(gru()),
    "other types": narrow,
    "empty": lambda: nn.Sequential(nn.ReLU()),
}


@pytest.mark.parametrize("codec", [None, HUFFMAN], ids=["packed", "huffman"])
@pytest.mark.parametrize("build", KEPT.values(), ids=KEPT)
def test_the_baked_network_comes_back_to_the_last_bit_and_the_input_is_untouched(build, codec, tmp_path):
    network = build()
    before, other = copy.deepcopy(network), bake(build())
    for parameter in other.parameters():
        nn.init.ones_(parameter)
    blank = copy.deepcopy(other)
    size = save(network, tmp_path / "network", codec)
    assert size == (tmp_path / "network").stat().st_size and [*tmp_path.iterdir()] == [tmp_path / "network"]
    assert same(load(tmp_path / "network", other), bake(network))
    assert same(network, before) and same(other, blank)
    assert encode(network, codec) == encode(build(), codec), "the same network gives the same bytes"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99), rows=st.integers(1, 9), columns=st.integers(1, 40), values=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]), huffman=st.booleans(), special=st.booleans(),
)  # fmt: skip
def test_any_few_values_come_back_and_take_no_more_than_floats(seed, rows, columns, values, density, huffman, special):
    random = np.random.default_rng(seed)
    x = random.choice(random.normal(size=values), (rows, columns)) * (random.random((rows, columns)) < density)
    if special:
        x[random.random(x.shape) < 0.1] = random.choice([np.nan, -np.nan, np.inf, -0.0, 1e-45])
    layer = nn.Linear(columns, rows, bias=False)
    layer.weight.data = torch.tensor(x, dtype=torch.float32)
    data = encode(layer, HUFFMAN if huffman else None)
    assert same(decode(data, nn.Linear(columns, rows, bias=False)), layer)
    assert len(data) <= 4 * x.size + 220


def test_sizes_are_those_counted_by_hand():
    x = np.zeros(1000, np.float32)
    x[::10] = np.arange(1, 101)
    form = smallest(x)  # a hundred values: five bits for nine zeros would do, bytes are whole
    assert isinstance(form, Sparse) and form.bits == 8 * (1 + 1 + 100 * 4 // 8) + 32 * 100
    few = smallest(np.tile(np.array([1, 2, 3, 4], np.float32), 100))
    assert isinstance(few, Table) and few.bits == 8 * (1 + 400 * 2 // 8) + 4 * 32
    rows = np.repeat(np.arange(1, 9, dtype=np.float32), 50).reshape(8, 50) * np.tile([1.0, -1.0], 25).astype("f4")
    by_row = smallest(rows)  # two values in a row, sixteen in all: one bit and 16 floats beat four bits and 16 floats
    assert type(by_row) is Table and by_row.levels == 2 and by_row.bits == 8 * (1 + 400 // 8) + 16 * 32
    assert isinstance(smallest(np.random.default_rng(0).normal(size=50).astype(np.float32)), Plain)


def test_huffman_comes_close_to_the_entropy_of_gaps_and_values():
    random = np.random.default_rng(0)
    codes = np.where(random.random(20000) < 0.06, random.choice([1, 2, 3, 4], 20000, p=[0.6, 0.2, 0.1, 0.1]), 0)
    layer = nn.Linear(200, 100, bias=False)
    layer.weight.data = torch.tensor(np.array([0, 0.5, -0.5, 1, -1], np.float32)[codes].reshape(100, 200))
    places = np.flatnonzero(codes)
    gaps = np.diff(places, prepend=-1) - 1
    bound = (entropy(np.bincount(gaps)) + entropy(np.bincount(codes[places]))) * len(places) / 8
    packed, coded = encode(layer), encode(layer, HUFFMAN)
    assert bound < len(coded) < 1.05 * bound + 300 and len(coded) < 0.95 * len(packed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=400), st.integers(8, 15))
def test_symbols_in_a_bare_stream_come_back(symbols, max_length):
    symbols = np.array(symbols, np.uint8)
    data = pack_symbols(symbols, max_length)
    assert np.array_equal(unpack_symbols(data, len(symbols), max_length), symbols)
    for wrong in (data[:-1], data + b"\0"):
        if wrong:
            with pytest.raises(ValueError, match="data: "):
                unpack_symbols(wrong, len(symbols), max_length)


# --- what joins -------------------------------------------------------------------------------------------------------


class _Ladder(nn.Module):
    """Four-bit weights with a scale a row, as of somebody else's quantizer: three lines to join."""

    def forward(self, w):
        scale = w.detach().abs().amax(1, keepdim=True) / 7
        return torch.round(w / scale).clamp(-8, 7) * scale

    def encoded(self, w):
        scale = w.abs().amax(1, keepdim=True) / 7
        return Steps.of(torch.round(w / scale).int() + 8, 16, scale, zero=8)


class _Liar(nn.Module):
    def forward(self, w):
        return w * 2

    def encoded(self, w):
        return Plain.of(w.numpy() / 3)


def test_a_constraint_joins_by_saying_what_it_keeps():
    network = nn.Sequential(nn.Linear(300, 30, bias=False))
    torch.manual_seed(0)
    network[0].weight.data = torch.randint(-7, 8, (30, 300)).float()
    network[0].weight.data[:, 0] = 7
    constrain(network[0], "weight", _Ladder())
    data = encode(network)
    assert len(data) < 9000 / 2 + 4 * 31 + 200
    assert same(decode(data, nn.Sequential(nn.Linear(300, 30, bias=False))), bake(network))


def test_what_does_not_give_the_weight_is_refused_with_its_path():
    network = mlp()
    constrain(network[3], "weight", _Liar())
    with pytest.raises(ValueError, match=r"3\.weight: what its constraint keeps, Plain, does not give the weight"):
        encode(network)


def test_a_form_of_ones_own_is_read_where_it_is_known():
    class Ramp(Form):
        number = 99

        def values(self, shape):
            return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    class Count(nn.Module):
        def forward(self, w):
            return torch.arange(w.numel(), dtype=torch.float32).reshape(w.shape)

        def encoded(self, w):
            return Ramp(np.zeros(0, np.uint8), 1, ())

    layer = nn.Linear(1000, 10, bias=False)
    constrain(layer, "weight", Count())
    data = encode(layer)
    assert len(data) < 250 and same(decode(data, nn.Linear(1000, 10, bias=False)), bake(layer))
    with pytest.raises(TypeError, match="Again: number 99 is taken by Ramp"):
        type("Again", (Form,), {"number": 99})
    del Form.known[99]
    with pytest.raises(ValueError, match="no form has number 99"):
        decode(data, nn.Linear(1000, 10, bias=False))


def test_tied_weights_are_stored_once():
    layer = nn.Linear(50, 50)
    once, twice = nn.Sequential(layer), nn.Sequential(layer, layer)
    assert len(encode(twice)) == len(encode(once))
    assert same(decode(encode(twice), copy.deepcopy(twice)), twice)


def test_batch_norm_folded_into_clusters_costs_a_scale_a_row():
    network = WeightClustering(8).apply(datasets.workload("mnist-cnn").trained())
    clustered = bake(network)
    folded = fold(clustered)
    naive, kept = encode(folded), encode(folded, before=clustered)
    rows = 16 + 32 + 32
    assert len(naive) - len(kept) > 4 * rows * (8 - 2)  # a scale in place of eight values, but for some small change
    assert same(decode(kept, fold(datasets.workload("mnist-cnn").trained())), folded)


def test_scales_that_do_not_give_the_rows_are_not_taken():
    layer = nn.Linear(40, 4, bias=False)
    other = copy.deepcopy(layer)
    other.weight.data[2, 3] += 1
    assert same(decode(encode(other, before=layer), layer), other)
    assert Scaled.of(Sparse.of(np.float32([0, 2])), [3]).values((1, 2)).tolist() == [[0, 6]]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_safetensors_reads_the_file_and_what_it_says_of_itself():
    data = encode(mlp())
    (content,) = safetensors.numpy.load(data).values()
    size = struct.unpack("<Q", data[:8])[0]
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    assert metadata == {"sha256": hashlib.sha256(content.tobytes()).hexdigest()}


@pytest.fixture(scope="module")
def small():
    network = WeightClustering(3).apply(MagnitudePruning(0.3).apply(mlp(widths=(6, 8, 2))))
    return encode(network, HUFFMAN), bake(network)


def test_every_truncation_and_every_changed_byte_is_refused(small):
    data, network = small
    for size in range(len(data)):
        with pytest.raises(ValueError, match="data: "):
            decode(data[:size], network)
    for i in range(len(data)):
        with pytest.raises(ValueError, match="data: "):
            decode(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :], network)
    assert same(decode(data, network), network)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10**6), flip=st.integers(1, 255), cut=st.integers(0, 10**6), extra=st.binary(max_size=4))
def test_no_other_bytes_are_accepted(small, at, flip, cut, extra):
    data, network = small
    at, cut = at % len(data), cut % len(data)
    flipped = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
    without = data[:cut] + data[cut + 1 :]
    for wrong in (flipped, without, *([data + extra, extra + data] if extra else [])):
        if wrong != data:
            with pytest.raises(ValueError, match="data: "):
                decode(wrong, network)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_forged_checksum_is_refused_or_gives_some_network_but_never_reads_astray(small, at, value):
    data, network = small
    digest, body = _unwrapped(data)
    at %= len(body)
    forged = _wrapped(digest, body[:at] + bytes([value]) + body[at + 1 :])
    assert len(digest) == DIGEST
    with contextlib.suppress(ValueError):
        assert decode(forged, network).state_dict().keys() == network.state_dict().keys()


def test_the_file_of_another_network_is_refused(small, tmp_path):
    data, _ = small
    (tmp_path / "mine").write_bytes(data)
    for other in (mlp(widths=(6, 9, 2)), mlp(widths=(6, 8, 2))[:3], mlp(widths=(6, 8, 2)).double()):
        with pytest.raises(ValueError, match="mine: network: the file is that of another architecture"):
            load(tmp_path / "mine", other)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none", mlp())
    with pytest.raises(ValueError, match="no compressed network"):
        decode(safetensors.numpy.save({"a": np.zeros(3)}), mlp())


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "network"
    save(mlp(), path)
    before = path.read_bytes()
    network = mlp()
    constrain(network[0], "weight", _Liar())
    with pytest.raises(ValueError, match=r"0\.weight"):
        save(network, path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_codes_beyond_the_levels_are_refused():
    with pytest.raises(ValueError, match="codes: expected 0 to 3, got 0 to 4"):
        Table.of([0, 4], np.zeros(4))
    with pytest.raises(ValueError, match="levels: expected at most 65536"):
        Table.of([0], np.zeros(65537))
