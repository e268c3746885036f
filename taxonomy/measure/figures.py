"""What a network costs before anything is timed: sizes and counts, the same for every kind that yields a network."""

from __future__ import annotations

from math import inf, isfinite, log10
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datasets import Workload
from datasets.workloads.recipe import one_thread
from kernels import counting
from kernels.energy import DRAM_ENERGY, mac_energy
from kernels.model.compressed_file import encode
from kernels.model.sequence_models.attention import cache_numbers
from kernels.model.transform import bake
from taxonomy.measure.protocol import Missing
from taxonomy.measure.stack import fold

__all__ = [
    "answers", "bit_operations", "costs", "decibels", "decoding", "keeps_codes", "layer_errors", "layer_inputs",
    "middle_and_worst", "modelled_energy", "one_item", "operand_bits", "share", "stored_bits", "traffic",
]  # fmt: skip

BATCH = 256
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase, nn.RNNCellBase)


def costs(network: nn.Module, workload: Workload) -> dict[str, float]:
    """Parameters, stored bits, multiply-accumulates and bytes of one item, by the ids of metrics.yml.

    Parameters
    ----------
    network : nn.Module
        Under its constraints, or baked: what they give is what is counted. A constraint that keeps less than FP32
        numbers says so, see `stored_bits`.
    workload : datasets.Workload
        Gives the shape of an item; and figures of its own, where it offers `figures(network)`.
    """
    x = one_item(workload)
    bits, network = stored_bits(network), bake(network)
    activations = counting.peak_activation_bytes(network, x)
    return {
        "parameters": counting.parameters(network),
        "nonzero_parameters": counting.nonzero_parameters(network),
        "stored_bits": bits,
        "macs": counting.macs(network, x),
        "effective_macs": counting.effective_macs(network, x),
        "peak_activation_bytes": activations,
        "memory_footprint": -(-bits // 8) + activations,
        **(workload.figures(network) if hasattr(workload, "figures") else {}),
        **(decoding(network, bits, x.shape[1]) if hasattr(network, "every") else {}),
    }


def decoding(network: nn.Module, bits: int, steps: int) -> dict[str, float]:
    """Of a network that continues text: what it keeps of `steps` characters, and reads to add one more."""
    own: Any = getattr(network, "cache_bytes", None)
    cache = own(steps) if own else 4 * cache_numbers(network, steps)
    return {"cache_bytes": cache, "memory_access": -(-bits // 8) + cache}


def one_item(workload: Workload) -> torch.Tensor:
    """A batch of one item of zeros."""
    return torch.zeros(1, *workload.input_shape)


def stored_bits(network: nn.Module) -> int:
    """Bits of the parameters: as their constraint keeps them, else in FP32 in the smaller of two forms.

    A constraint (see `kernels.model.transform.constrain`) that gives each weight one of few values offers
    ``stored_bits(weight)``: the bits of its codes and of what decodes them. The two forms of FP32 are dense, and a
    bitmap with the non-zeros; the bitmap has one bit for each element, so it pays below a density of 31/32.

    Examples
    --------
    >>> layer = nn.Linear(10, 10, bias=False)
    >>> stored_bits(layer)
    3200
    >>> _ = nn.init.eye_(layer.weight)
    >>> stored_bits(layer)
    420
    """
    coded = _coded(network)
    plain = [p for name, p in bake(network).named_parameters() if name not in coded]
    return sum(coded.values()) + sum(min(32 * p.numel(), p.numel() + 32 * int(p.count_nonzero())) for p in plain)


def keeps_codes(network: nn.Module) -> bool:
    """Whether a constraint of the network says that it keeps less than FP32 numbers."""
    return bool(_coded(network))


def _coded(network: nn.Module) -> dict[str, int]:
    """Bits of the weights whose last constraint says what it keeps, by the weight's path."""
    constrained: list[tuple[str, Any]] = [
        (f"{path}." if path else "", layer)
        for path, layer in network.named_modules()
        if parametrize.is_parametrized(layer)
    ]
    return {
        path + name: int(constraints[-1].stored_bits(getattr(layer, name)))
        for path, layer in constrained
        for name, constraints in layer.parametrizations.items()
        if hasattr(constraints[-1], "stored_bits")
    }


def traffic(network: nn.Module, workload: Workload) -> dict[str, float]:
    """Bytes moved and energy of one item, by counting; and the size of the network's file.

    Moved are the stored parameters and the inputs of layers with products, once each, the latter in FP32 unless the
    layer rounds them. A product of two integers of at most eight bits counts as one of INT8, the narrowest that the
    table of energies holds; all others as products of FP32, and so do those of recurrent layers, whose states no
    quantizer reaches.

    Parameters
    ----------
    network : nn.Module
        Under its constraints.
    workload : datasets.Workload
        Gives the shape of an item.
    """
    plain, x, bits = bake(network), one_item(workload), operand_bits(network)
    inputs = sum(bits[name][1] * t.numel() for name, t in layer_inputs(plain, x).items())
    moved = -(-(stored_bits(network) + inputs) // 8)
    macs = counting.macs_by_layer(plain, x)
    recurrent = {name for name, layer in plain.named_modules() if isinstance(layer, nn.RNNBase | nn.RNNCellBase)}
    whole = {name for name, widths in bits.items() if max(widths) <= 8} - recurrent
    narrow = sum(macs.get(name, 0) for name in whole)
    energy = (sum(macs.values()) - narrow) * mac_energy("fp32") + moved * DRAM_ENERGY + narrow * mac_energy("int8")
    return {"memory_access": moved, "energy": energy, "bytes_on_disk": len(encode(network))}


def operand_bits(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Bits of the weights and of the inputs of each of those layers, by its path: 32 where nothing says fewer.

    A constraint that keeps codes says their `bits`, and so does an ``input_quantizer`` of a layer, or the layer's own
    attribute ``input_bits``.

    Examples
    --------
    >>> operand_bits(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    {'0': (32, 32)}
    """
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, LAYERS):
            constrained: Any = layer.parametrizations if parametrize.is_parametrized(layer) else {}
            widths = [getattr(constraints[-1], "bits", 32) for constraints in constrained.values()]
            inputs = getattr(layer, "input_bits", getattr(getattr(layer, "input_quantizer", None), "bits", 32))
            found[name] = (max(widths, default=32), inputs)
    return found


def bit_operations(network: nn.Module, workload: Workload) -> int:
    """Multiply-accumulates of one item, each times the bits of its weight and of its input.

    Parameters
    ----------
    network : nn.Module
        Under its constraints.
    workload : datasets.Workload
        Gives the shape of an item.
    """
    bits = operand_bits(network)
    macs = counting.macs_by_layer(bake(network), one_item(workload))
    return sum(count * bits.get(name, (32, 32))[0] * bits.get(name, (32, 32))[1] for name, count in macs.items())


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


def modelled_energy(name: str, macs: int, moved: int) -> float | Missing:
    """Joules of the products and of the bytes from off-chip memory, where the cited table knows the format."""
    try:
        return macs * mac_energy(name) + moved * DRAM_ENERGY
    except KeyError as error:
        return Missing(error.args[0])


def answers(network: nn.Module, items: Tensor) -> Tensor:
    """What a network gives for items, some at a time."""
    with one_thread(), torch.no_grad():
        return torch.cat([network(some) for some in items.split(BATCH)])


def share(right: Tensor) -> float:
    """The share of what is true."""
    return int(right.sum()) / right.numel()


def decibels(signal: float, noise: float) -> float | Missing:
    """Signal to noise in decibels, where it is a number."""
    if not isfinite(noise):
        return Missing("none: in the format some of these numbers are infinite or NaN")
    if not noise:
        return Missing("infinite: rounding changes none of these numbers")
    return 10 * log10(signal / noise) if signal else Missing("none: all of these numbers are zero")


def layer_errors(exact: nn.Module, changed: nn.Module, items: Tensor) -> dict[str, float | Missing]:
    """Signal to noise, in decibels, of what each layer with weights gives, by the layer's path.

    The layer of the changed network is given what the exact network's is, so that errors do not add up. Batch norm is
    folded in both. What stands at the path may be several layers by now, if it gives as many numbers. If its channels
    were divided by something, its attributes `input_divisor` and `output_divisor` say by what.

    Examples
    --------
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> other = nn.Linear(1, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0), other.weight.fill_(0.9)
    >>> {path: round(value) for path, value in layer_errors(layer, other, torch.ones(1, 1)).items()}
    {'': 20}
    """
    exact, changed = fold(exact), fold(bake(changed)).eval()
    found: dict[str, float | Missing] = {}

    def watch(name: str) -> Any:
        def compare(layer: nn.Module, args: tuple[Any, ...], given: Any) -> None:
            if name in found:
                return
            try:
                other = changed.get_submodule(name)
                if type(other) is nn.Module:  # of a chain torch.fx keeps the layers, but not that they are one
                    other = nn.Sequential(*other.children())
                x = args[0] / _along_channels(layer, getattr(other, "input_divisor", 1), args[0])
                got = other(x, *args[1:])
            except (AttributeError, RuntimeError):
                found[name] = Missing("no layer at this place takes these inputs any more")
                return
            y, z = (out[0] if isinstance(out, tuple) else out for out in (given, got))
            if y.shape != z.shape:
                found[name] = Missing("the layer at this place gives another number of outputs")
                return
            y, z = y.double(), (z * _along_channels(layer, getattr(other, "output_divisor", 1), z)).double()
            found[name] = decibels(float((y**2).sum()), float(((y - z) ** 2).sum()))

        return compare

    handles = [m.register_forward_hook(watch(name)) for name, m in exact.named_modules() if isinstance(m, LAYERS)]
    with one_thread(), torch.no_grad():
        exact(items)
    for handle in handles:
        handle.remove()
    return found


def _along_channels(layer: nn.Module, factors: Tensor | int, x: Tensor) -> Tensor | int:
    """Factors of channels, in the shape in which they are multiplied with what a layer is given or gives."""
    if isinstance(factors, int) or not isinstance(layer, nn.modules.conv._ConvNd):
        return factors
    return factors.reshape(-1, *[1] * (x.ndim - 2))


def middle_and_worst(errors: dict[str, float | Missing]) -> dict[str, float | Missing]:
    """The median over the layers and the lowest; a layer that does not change counts as infinitely good."""
    none = [
        error for error in errors.values() if isinstance(error, Missing) and not error.reason.startswith("infinite")
    ]
    if none or not errors:
        reason = none[0] if none else Missing("none: no layer has weights")
        return dict.fromkeys(("layer_sqnr", "worst_layer_sqnr"), reason)
    values = [inf if isinstance(error, Missing) else error for error in errors.values()]
    both = {"layer_sqnr": median(values), "worst_layer_sqnr": min(values)}
    return {k: v if isfinite(v) else Missing("infinite: the layers give what they gave") for k, v in both.items()}
