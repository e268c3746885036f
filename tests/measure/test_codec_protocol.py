"""The protocol with codecs whose sizes are known beforehand, and with one that loses."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import numpy as np
import pytest

import datasets
from kernels.model.weight_sharing.huffman_coding import HuffmanCoding
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.codec import CONTENTS, activations, protocol, weights

NODE = SimpleNamespace(id="a-codec")
WORKLOAD = datasets.workload("digits-mlp")


class Verbatim:
    """An array's own bytes, which the test remembers how to read."""

    def __init__(self, noise: int = 0) -> None:
        self.noise = noise

    def encode(self, x):
        self.dtype = x.dtype
        return x.tobytes()

    def decode(self, data):
        return np.frombuffer(data, self.dtype) + self.dtype.type(self.noise)


def take(subject, content):
    return protocol.quality(Case(NODE, {}, subject, WORKLOAD, {"content": content}, 0))


def test_contents():
    network = WORKLOAD.trained()
    matrices = [p for p in network.parameters() if p.ndim > 1]
    floats, codes, pruned = (weights(network, content) for content in CONTENTS)
    assert floats.size == codes.size == pruned.size == sum(p.numel() for p in matrices)
    assert floats.dtype == np.float32 and codes.dtype == pruned.dtype == np.int8
    assert np.abs(codes[: matrices[0].numel()]).max() == 127
    kept = pruned[: matrices[0].numel()] != 0
    assert abs(kept.sum() - 0.1 * kept.size) <= 1 and np.array_equal(
        pruned[: kept.size][kept], codes[: kept.size][kept]
    )


@pytest.mark.parametrize("content", CONTENTS)
def test_sizes(content):
    x = weights(WORKLOAD.trained(), content)
    verbatim, huffman = take(Verbatim(), content), take(HuffmanCoding(), content)
    for name in ("stored_bits", "compression_ratio", "memory_footprint", "bits_per_weight"):
        assert verbatim["self"][name] == verbatim["baseline"][name]
    assert verbatim["self"]["compression_ratio"] == 1 and verbatim["self"]["bits_per_weight"] == 8 * x.itemsize
    assert isinstance(verbatim["self"]["entropy_bound"], Missing)
    assert huffman["zlib"]["stored_bits"] == 8 * len(zlib.compress(x.tobytes(), 9))
    assert huffman["self"].keys() | {"throughput"} == set(protocol.metrics)
    assert huffman["self"]["entropy_bound"] < huffman["self"]["bits_per_weight"] < 8 * x.itemsize
    assert "zstd" in huffman


def test_a_network_trained_elsewhere_has_weights_too():
    speech = datasets.workload("silero-vad")
    node = SimpleNamespace(id="a-codec", settings={})
    assert [trial.setting["content"] for trial in protocol.trials(node, {}, speech)] == list(CONTENTS)
    values = protocol.quality(Case(NODE, {}, HuffmanCoding(), speech, {"content": "int8"}, 0))
    matrices = [p for p in speech.trained().parameters() if p.ndim > 1]
    assert values["baseline"]["stored_bits"] == 8 * sum(p.numel() for p in matrices)
    assert values["self"]["entropy_bound"] <= values["self"]["bits_per_weight"] < 8
    assert activations(speech).size > 0


def test_a_codec_that_loses_is_refused():
    with pytest.raises(ValueError, match="did not restore"):
        take(Verbatim(noise=1), "int8")


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_contest(direction):
    workload = SimpleNamespace(settings=({"elements": 5000},))
    trials = protocol.trials(NODE, {}, workload)
    assert all(trial.timing for trial in trials) and len(trials) == 10
    setting = {"elements": 5000, "direction": direction}
    assert setting in [trial.setting for trial in trials]
    contest = protocol.contest(Case(NODE, {}, HuffmanCoding(), workload, setting, 0))
    assert contest.work == 5000 and contest.unit == "bytes"
    assert {"self", "baseline", "zlib", "zstd"} == contest.contestants.keys() | contest.missing.keys()
    results = {who: call() for who, call in contest.contestants.items()}
    x = results["baseline"]
    assert x.dtype == np.int8 and np.abs(x).max() == 127
    if direction == "decode":
        assert np.array_equal(results["self"], x) and results["zlib"] == x.tobytes()
    else:
        assert np.array_equal(HuffmanCoding().decode(results["self"]), x)
