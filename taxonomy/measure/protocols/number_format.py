"""Number formats on trained networks: what rounding does to the numbers and to the answers, and what it saves.

Batch norm is folded first, so that the weights rounded are those that run. Rounded are the weights of convolutions,
linear and recurrent layers, the inputs of those layers, or both; biases and accumulators stay FP32. Scales, where a
format has them, are fitted to each weight, and to each layer's inputs on training items (256, or all that a workload
without labels has for it); formats that share a scale among a few neighbours choose it anew in every call. Bytes are
those of one item, weights and inputs of layers moved once each. Answers are compared with those of the FP32 network,
and with labels where there are any.

On an array larger than any cache, rounding is timed beside a copy and beside other libraries; a technique's first
variant also with two threads, beside two copies of halves at once, and to codes alone, beside a copy of the floats. All
write to memory that is there already, but for libraries that take none (`taxonomy.measure.peers.number_format`). A
library that takes long does a part of the array: rates are compared then, not times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import floor, isfinite, log2, log10
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels import counting
from taxonomy.measure.figures import LAYERS, answers, decibels, layer_inputs, modelled_energy, share
from taxonomy.measure.peers.number_format import INSTALL, contestant
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values
from taxonomy.measure.stack import fold

__all__ = ["NumberFormatProtocol", "protocol", "round_network", "traffic", "weights_of"]

ON = ("weights", "activations", "both")
CALIBRATION = 256
ROW = 4096
"""Arrays to be timed are matrices with rows of so many elements, where that divides them: formats may have channels."""


class NumberFormatProtocol(Protocol):
    """The network with weights, activations or both rounded, beside the same in FP32; rounding beside a copy."""

    kind = "number-format"
    version = 2
    metrics = (
        "accuracy", "agreement", "sqnr", "output_sqnr", "max_error", "stored_bits", "bits_per_number", "dynamic_range",
        "density", "throughput",
    )  # fmt: skip

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        if hasattr(workload, "trained"):
            return [Trial({"on": on}) for on in ON]
        first = dict(variant) == dict(technique.variants[0])
        settings = [
            {**setting, **extra}
            for setting in workload.settings
            for extra in ({}, *(({"threads": 2}, {"operation": "encode"}) if first else ()))
        ]
        return [Trial(setting, seed, timing=True) for setting in settings for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        workload, on, number_format = case.workload, case.setting["on"], case.subject
        network = fold(workload.trained())
        calibration, items, asked, labels = _items(workload)
        rounded, input_formats = round_network(network, number_format, calibration, on)
        pairs: list[tuple[np.ndarray, Any]] = []  # the numbers as they were, and the format fitted to them
        if on != "activations":
            pairs += [(w.numpy(), number_format.fit(w)) for w in weights_of(network)]
        if on != "weights":
            pairs += [(x.numpy(), input_formats[name]) for name, x in layer_inputs(network, items).items()]
        macs = counting.macs(network, items[:1])
        stored, moved = traffic(network, items[:1], number_format, on)
        plain_stored, plain_moved = traffic(network, items[:1])
        decide = getattr(workload, "decide", lambda outputs: outputs.argmax(1))
        exact, got = answers(network, asked), answers(rounded, asked)
        values: Values = {
            "self": {
                "agreement": share(decide(got) == decide(exact)),
                **errors(pairs),
                "output_sqnr": decibels(float((exact.double() ** 2).sum()), float(((exact - got).double() ** 2).sum())),
                **grid(pairs),
                "stored_bits": stored,
                "bits_per_number": bits_per_number(network, items[:1], number_format, on),
                "memory_footprint": -(-stored // 8),
                "memory_access": moved,
                "core_utilization": Missing(
                    "emulated: no unit of this machine computes in the format"
                    if getattr(case.technique, "runs", "emulated") != "native"
                    else "rounding is not computing: products in the format are measured with operators"
                ),
                "energy": modelled_energy(case.technique.id, macs, moved)
                if on == "both"
                else Missing("a product has two operands: modelled where both are in the format"),
            },
            "baseline": {
                "stored_bits": plain_stored,
                "bits_per_number": 32,
                "memory_footprint": -(-plain_stored // 8),
                "memory_access": plain_moved,
                "energy": modelled_energy("fp32", macs, plain_moved),
            },
        }
        for who, outputs in (("self", got), ("baseline", exact)):
            if labels is not None:
                values[who]["accuracy"] = share(decide(outputs) == labels)
        return values

    def contest(self, case: Case) -> Contest:
        size, threads = case.setting["elements"], case.setting.get("threads", 1)
        operation = case.setting.get("operation", "round")
        x = np.random.default_rng(case.seed).standard_normal(size, np.float32)
        x = x.reshape(-1, ROW) if size % ROW == 0 else x
        number_format = case.subject.fit(x)
        out = np.empty_like(x, dtype=number_format.code_dtype if operation == "encode" else number_format.dtype)
        own = getattr(number_format, operation)
        contestants: dict[str, Callable[[], Any]] = {
            "self": lambda: own(x, out, threads=threads),
            "baseline": _copy(x, np.empty_like(x), threads),
        }
        missing = {}
        works = dict.fromkeys(contestants, float(size))
        for name in case.technique.peers if threads == 1 else ():
            try:
                contestants[name], works[name] = contestant(name, operation, case.subject, x)
            except ImportError:
                missing[name] = f"not installed: pip install {INSTALL.get(name, name)}"
            except ValueError as error:
                missing[name] = str(error)
        unequal = works if set(works.values()) != {float(size)} else {}
        return Contest(contestants, work=size, unit="elements", missing=missing, works=unequal)


def _items(workload: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Items to fit scales on, those whose numbers are compared, those whose answers are, and the labels of these."""
    if hasattr(workload, "calibration"):
        few = workload.items[: workload.few]
        return torch.tensor(workload.calibration), torch.tensor(few), torch.tensor(workload.items), None
    data = workload.data()
    calibration, items = (torch.tensor(x[:CALIBRATION]) for x in (data.train.x, data.validation.x))
    return calibration, items, torch.tensor(data.test.x), torch.tensor(data.test.y)


def _copy(x: np.ndarray, out: np.ndarray, threads: int) -> Callable[[], Any]:
    """A plain copy; by several threads, each takes a piece."""
    if threads == 1:
        return lambda: np.copyto(out, x)
    pool = ThreadPoolExecutor(threads)
    pieces = list(zip(np.array_split(out, threads), np.array_split(x, threads), strict=True))
    return lambda: list(pool.map(lambda piece: np.copyto(*piece), pieces))


def weights_of(network: nn.Module) -> list[Tensor]:
    """The weight tensors of convolution, linear and recurrent layers, detached; biases are none."""
    return [p.detach() for p in _weights(network)]


def _weights(network: nn.Module) -> list[nn.Parameter]:
    named = (item for m in network.modules() if isinstance(m, LAYERS) for item in m.named_parameters(recurse=False))
    return list({id(p): p for name, p in named if name.startswith("weight")}.values())


def round_network(network: nn.Module, number_format: Any, items: Tensor, on: str = "both") -> tuple[nn.Module, dict]:
    """A copy that computes on rounded numbers.

    Parameters
    ----------
    network : nn.Module
    number_format : NumberFormat
    items : Tensor
        What the scales of activations are fitted on; a layer's inputs are fitted to the network that is not rounded.
    on : {"weights", "activations", "both"}

    Returns
    -------
    network, formats
        The copy, and the format of each layer's inputs by the layer's path.
    """
    if on not in ON:
        raise ValueError(f"on: expected {', '.join(ON)}, got {on!r}")
    network = copy.deepcopy(network).eval()
    of_inputs = number_format.for_activations()
    formats = {name: of_inputs.fit(x) for name, x in layer_inputs(network, items).items()}
    if on != "weights":
        for name, own in formats.items():
            network.get_submodule(name).register_forward_pre_hook(
                lambda layer, args, own=own: (own.round(args[0]).to(args[0].dtype), *args[1:])
            )
    if on != "activations":
        with torch.no_grad():
            for weight in _weights(network):
                weight.copy_(number_format.fit(weight).round(weight))
    return network, formats


def errors(pairs: list[tuple[np.ndarray, Any]]) -> dict[str, float | Missing]:
    """Signal to noise over all numbers together, and the largest relative error of one."""
    signal = noise = largest = 0.0
    for x, number_format in pairs:
        exact = x.astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = np.abs(exact - number_format.round(x))
        signal, noise = signal + np.sum(exact**2), noise + np.sum(error**2)
        largest = np.maximum(largest, np.max(error[exact != 0] / np.abs(exact[exact != 0]), initial=0.0))
    lost = Missing("none: in the format some of these numbers are infinite or NaN")
    return {"sqnr": decibels(signal, noise), "max_error": float(largest) if isfinite(largest) else lost}


def grid(pairs: list[tuple[np.ndarray, Any]]) -> dict[str, float | Missing]:
    """Range of the format, and how many values it has where the numbers are."""
    counts = []
    known: dict[int, np.ndarray] = {}  # a format without scales is the same for all numbers
    for x, number_format in pairs:
        if id(number_format) not in known:
            try:
                values = number_format.values()
            except ValueError as error:
                return dict.fromkeys(("dynamic_range", "density"), Missing(str(error)))
            known[id(number_format)] = values[values > 0]
        positive = known[id(number_format)]
        square = np.mean(x.astype(np.float64) ** 2)
        octave = 2.0 ** floor(log2(np.sqrt(square))) if square else 0.0
        counts.append(np.sum((positive >= octave) & (positive < 2 * octave)))
    return {"dynamic_range": 20 * log10(positive[-1] / positive[0]), "density": float(np.mean(counts))}


def traffic(network: nn.Module, item: Tensor, number_format: Any = None, on: str = "both") -> tuple[int, int]:
    """Bits of the stored parameters, and bytes moved for one item: parameters and inputs of layers, once each."""
    weights, inputs = weights_of(network), list(layer_inputs(network, item).values())
    of_weights = number_format if on != "activations" else None
    of_inputs = number_format.for_activations() if number_format is not None and on != "weights" else None
    others = counting.parameters(network) - sum(w.numel() for w in weights)
    stored = _bits(weights, of_weights) + 32 * others
    return stored, -(-(stored + _bits(inputs, of_inputs)) // 8)


def bits_per_number(network: nn.Module, item: Tensor, number_format: Any, on: str) -> float:
    """Bits of the tensors in the format, scales included, over the numbers that they hold."""
    weights = weights_of(network) if on != "activations" else []
    inputs = list(layer_inputs(network, item).values()) if on != "weights" else []
    bits = _bits(weights, number_format) + _bits(inputs, number_format.for_activations())
    return bits / sum(t.numel() for t in (*weights, *inputs))


def _bits(tensors: list[Tensor], number_format: Any) -> int:
    return sum(32 * t.numel() if number_format is None else number_format.stored_bits(tuple(t.shape)) for t in tensors)


protocol = NumberFormatProtocol()
