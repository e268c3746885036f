"""What a network costs before anything is timed: sizes and counts, the same for every kind that yields a network."""

from __future__ import annotations

import torch
from torch import nn

from datasets import Workload
from kernels import counting

__all__ = ["costs", "one_item", "stored_bits"]


def costs(network: nn.Module, workload: Workload) -> dict[str, float]:
    """Parameters, stored bits, multiply-accumulates and bytes of one item, by the ids of metrics.yml.

    Parameters
    ----------
    network : nn.Module
        Its constraints baked: what is counted are plain weights.
    workload : datasets.Workload
        Gives the shape of an item.
    """
    x = one_item(workload)
    bits, activations = stored_bits(network), counting.peak_activation_bytes(network, x)
    return {
        "parameters": counting.parameters(network),
        "nonzero_parameters": counting.nonzero_parameters(network),
        "stored_bits": bits,
        "macs": counting.macs(network, x),
        "effective_macs": counting.effective_macs(network, x),
        "peak_activation_bytes": activations,
        "memory_footprint": -(-bits // 8) + activations,
    }


def one_item(workload: Workload) -> torch.Tensor:
    """A batch of one item of zeros."""
    return torch.zeros(1, *workload.input_shape)


def stored_bits(network: nn.Module) -> int:
    """Bits of the parameters in FP32, each tensor in the smaller of two forms: dense, or a bitmap and its non-zeros.

    The bitmap has one bit for each element, so it pays below a density of 31/32.

    Examples
    --------
    >>> layer = nn.Linear(10, 10, bias=False)
    >>> stored_bits(layer)
    3200
    >>> _ = nn.init.eye_(layer.weight)
    >>> stored_bits(layer)
    420
    """
    return sum(min(32 * p.numel(), p.numel() + 32 * int(p.count_nonzero())) for p in network.parameters())
