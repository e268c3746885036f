"""Number formats on trained networks: what rounding does to the numbers and to the answers, and what it saves.

Batch norm is folded first, so that the weights rounded are those that run. Rounded are the weights of convolutions,
linear and recurrent layers, the inputs of those layers, or both; biases and accumulators stay FP32. Scales, where a
format has them, are fitted to each weight, and to each layer's inputs on 256 training items. Bytes are those of one
item, weights and inputs of layers moved once each. On an array larger than any cache, rounding is timed beside a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import floor, log2, log10
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets import accuracy
from kernels import counting
from kernels.energy import DRAM_ENERGY, mac_energy
from taxonomy.measure.peers.number_format import PEERS
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values
from taxonomy.measure.stack import fold
from taxonomy.measure.timing import interleave

__all__ = ["NumberFormatProtocol", "layer_inputs", "protocol", "round_network", "traffic", "weights_of"]

ON = ("weights", "activations", "both")
CALIBRATION = 256
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase, nn.RNNCellBase)


class NumberFormatProtocol(Protocol):
    """The network with weights, activations or both rounded, beside the same in FP32; rounding beside a copy."""

    kind = "number-format"
    metrics = ("accuracy", "sqnr", "max_error", "stored_bits", "dynamic_range", "density", "throughput")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        if hasattr(workload, "trained"):
            return [Trial({"on": on}) for on in ON]
        return [Trial(setting, seed, timing=True) for setting in workload.settings for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        workload, on, number_format = case.workload, case.setting["on"], case.subject
        data, network = workload.data(), fold(workload.trained())
        calibration, items = (torch.tensor(x[:CALIBRATION]) for x in (data.train.x, data.validation.x))
        rounded, input_formats = round_network(network, number_format, calibration, on)
        pairs: list[tuple[np.ndarray, Any]] = []  # the numbers as they were, and the format fitted to them
        if on != "activations":
            pairs += [(w.numpy(), number_format.fit(w)) for w in weights_of(network)]
        if on != "weights":
            pairs += [(x.numpy(), input_formats[name]) for name, x in layer_inputs(network, items).items()]
        macs = counting.macs(network, items[:1])
        stored, moved = traffic(network, items[:1], number_format, on)
        plain_stored, plain_moved = traffic(network, items[:1])
        return {
            "self": {
                "accuracy": accuracy(rounded, data.test),
                **errors(pairs),
                **grid(pairs),
                "stored_bits": stored,
                "memory_footprint": -(-stored // 8),
                "memory_access": moved,
                "core_utilization": Missing("emulated: no unit of this machine computes in the format"),
                "energy": energy(case.technique.id, macs, moved)
                if on == "both"
                else Missing("a product has two operands: modelled where both are in the format"),
            },
            "baseline": {
                "accuracy": accuracy(network, data.test),
                "stored_bits": plain_stored,
                "memory_footprint": -(-plain_stored // 8),
                "memory_access": plain_moved,
                "energy": energy("fp32", macs, plain_moved),
            },
        }

    def contest(self, case: Case) -> Contest:
        x = np.random.default_rng(case.seed).standard_normal(case.setting["elements"], np.float32)
        number_format = case.subject.fit(x)
        out, copied = np.empty_like(x, dtype=number_format.dtype), np.empty_like(x)
        contestants = {"self": lambda: number_format.round(x, out), "baseline": lambda: np.copyto(copied, x)}
        values: Values = {}
        missing = {}
        for name in case.technique.peers:
            try:
                call, count = PEERS[name](case.subject, x)
            except ImportError:
                missing[name] = f"not installed: pip install {name}"
            except ValueError as error:
                missing[name] = str(error)
            else:
                if count == x.size:
                    contestants[name] = call
                else:  # another amount of work: a rate beside the others, not a time
                    values[name] = {"throughput": count / median(interleave({name: call})[name])}
        return Contest(contestants, work=x.size, unit="elements", values=values, missing=missing)


def weights_of(network: nn.Module) -> list[Tensor]:
    """The weight tensors of convolution, linear and recurrent layers, detached; biases are none."""
    return [p.detach() for p in _weights(network)]


def _weights(network: nn.Module) -> list[nn.Parameter]:
    named = (item for m in network.modules() if isinstance(m, LAYERS) for item in m.named_parameters(recurse=False))
    return list({id(p): p for name, p in named if name.startswith("weight")}.values())


def layer_inputs(network: nn.Module, items: Tensor) -> dict[str, Tensor]:
    """What each of those layers is given, by the layer's path; of a layer called again, the first call's."""
    inputs: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def keep(layer: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.setdefault(name, args[0].detach())

        return keep

    handles = [m.register_forward_pre_hook(watch(name)) for name, m in network.named_modules() if isinstance(m, LAYERS)]
    with torch.no_grad():
        network(items)
    for handle in handles:
        handle.remove()
    return inputs


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
    formats = {name: number_format.fit(x) for name, x in layer_inputs(network, items).items()}
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
        error = np.abs(exact - number_format.round(x))
        signal, noise = signal + np.sum(exact**2), noise + np.sum(error**2)
        largest = max(largest, np.max(error[exact != 0] / np.abs(exact[exact != 0]), initial=0.0))
    sqnr = 10 * log10(signal / noise) if noise else Missing("infinite: rounding changes none of these numbers")
    return {"sqnr": sqnr, "max_error": float(largest)}


def grid(pairs: list[tuple[np.ndarray, Any]]) -> dict[str, float | Missing]:
    """Range of the format, and how many values it has where the numbers are."""
    counts = []
    for x, number_format in pairs:
        try:
            positive = number_format.values()
        except ValueError as error:
            return dict.fromkeys(("dynamic_range", "density"), Missing(str(error)))
        positive = positive[positive > 0]
        octave = 2.0 ** floor(log2(np.sqrt(np.mean(x.astype(np.float64) ** 2))))
        counts.append(np.sum((positive >= octave) & (positive < 2 * octave)))
    return {"dynamic_range": 20 * log10(positive[-1] / positive[0]), "density": float(np.mean(counts))}


def traffic(network: nn.Module, item: Tensor, number_format: Any = None, on: str = "both") -> tuple[int, int]:
    """Bits of the stored parameters, and bytes moved for one item: parameters and inputs of layers, once each."""

    def bits(tensors: Any, rounded: bool) -> int:
        return sum(number_format.stored_bits(tuple(t.shape)) if rounded else 32 * t.numel() for t in tensors)

    weights, named = weights_of(network), number_format is not None
    others = counting.parameters(network) - sum(w.numel() for w in weights)
    stored = bits(weights, named and on != "activations") + 32 * others
    return stored, -(-(stored + bits(layer_inputs(network, item).values(), named and on != "weights")) // 8)


def energy(name: str, macs: int, moved: int) -> float | Missing:
    """Joules of the products and of the bytes from off-chip memory, where the cited table knows the format."""
    try:
        return macs * mac_energy(name) + moved * DRAM_ENERGY
    except KeyError as error:
        return Missing(error.args[0])


protocol = NumberFormatProtocol()
