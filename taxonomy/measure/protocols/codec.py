"""Codecs on a trained network's weights: bytes and bits a weight beside zlib, zstd and the entropy; rates.

The weights of all layers (tensors of two dimensions or more) are one array. Its `content` is the floats as they are,
their symmetric 8-bit codes with one scale a tensor, or those codes after nine of ten weights of each tensor, the
smallest, became zero. A technique's setting `contents` may name others, among them `activations`: what the layers
behind the first are given for some test items. Rates are taken on an operand workload, a long array of such codes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from taxonomy.measure.figures import layer_inputs
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values

CONTENTS = ("float32", "int8", "pruned int8")
DENSITY = 0.1
ITEMS = 16


class CodecProtocol(Protocol):
    kind = "codec"
    metrics = ("stored_bits", "bits_per_weight", "compression_ratio", "entropy_bound", "memory_footprint", "throughput")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        if hasattr(workload, "trained"):
            return [Trial({"content": content}) for content in technique.settings.get("contents", CONTENTS)]
        return [
            Trial({**setting, "direction": direction}, seed, timing=True)
            for setting in workload.settings
            for direction in ("encode", "decode")
            for seed in range(REPETITIONS)
        ]

    def quality(self, case: Case) -> Values:
        content = case.setting["content"]
        x = activations(case.workload) if content == "activations" else weights(case.workload.trained(), content)
        encoded = case.subject.encode(x)
        decoded = case.subject.decode(encoded)
        if decoded.dtype != x.dtype or decoded.shape != x.shape or decoded.tobytes() != x.tobytes():
            raise ValueError(f"{case.technique.id}: decoding did not restore the weights")
        values: Values = {"baseline": sizes(x, x.nbytes), "self": sizes(x, len(encoded))}
        bound = getattr(case.subject, "bits_per_item", None)
        values["self"]["entropy_bound"] = bound(x) if bound else Missing("the codec's symbols are not independent")
        for who, peer in peers(x).items():
            values[who] = sizes(x, len(peer[0]())) if peer else {"stored_bits": Missing(NOT_INSTALLED)}
        return values

    def contest(self, case: Case) -> Contest:
        x = _codes(np.random.default_rng(case.seed).normal(size=case.setting["elements"]))
        encoded = case.subject.encode(x)
        mine = (lambda: case.subject.encode(x)), (lambda: case.subject.decode(encoded))
        decodes = case.setting["direction"] == "decode"
        others = peers(x)
        own = {"self": mine[decodes], "baseline": x.copy}
        own |= {who: peer[decodes] for who, peer in others.items() if peer}
        return Contest(
            own, work=x.nbytes, unit="bytes", missing={who: NOT_INSTALLED for who, peer in others.items() if not peer}
        )


NOT_INSTALLED = "not installed: pip install zstandard"


def weights(network: nn.Module, content: str) -> np.ndarray:
    """All weight tensors of a network end to end, as floats or as 8-bit codes."""
    tensors = [p.detach().numpy().ravel() for p in network.parameters() if p.ndim > 1]
    if content == "float32":
        return np.concatenate(tensors)
    codes = []
    for w in tensors:
        kept = w
        if content == "pruned int8":
            kept = w.copy()
            kept[np.argsort(np.abs(w), kind="stable")[: w.size - round(DENSITY * w.size)]] = 0
        codes.append(_codes(kept))
    return np.concatenate(codes)


def activations(workload: Any) -> np.ndarray:
    """The inputs of all layers but the first, as floats, for a few test items."""
    items = torch.tensor((workload.items if hasattr(workload, "items") else workload.data().test.x)[:ITEMS])
    _, *inputs = layer_inputs(workload.trained().eval(), items).values()
    return np.concatenate([x.numpy().ravel() for x in inputs])


def _codes(w: np.ndarray) -> np.ndarray:
    """Symmetric 8-bit codes, the largest magnitude being 127."""
    return np.rint(w * (127 / np.abs(w).max())).astype(np.int8)


def sizes(x: np.ndarray, size: int) -> dict[str, float | Missing]:
    """The figures of `size` bytes that stand for `x`."""
    return {
        "stored_bits": 8 * size,
        "bits_per_weight": 8 * size / x.size,
        "compression_ratio": x.nbytes / size,
        "memory_footprint": size,
    }


def peers(x: np.ndarray) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]] | None]:
    """Encoder and decoder of each peer at its strong setting; None where it is not installed."""
    raw = x.tobytes()
    deflated = zlib.compress(raw, 9)
    found: dict[str, tuple[Callable[[], Any], Callable[[], Any]] | None] = {
        "zlib": (lambda: zlib.compress(raw, 9), lambda: zlib.decompress(deflated)),
        "zstd": None,
    }
    try:
        import zstandard
    except ImportError:
        return found
    packer, unpacker = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    packed = packer.compress(raw)
    found["zstd"] = lambda: packer.compress(raw), lambda: unpacker.decompress(packed)
    return found


protocol = CodecProtocol()
