"""Operator fusion: convolution, batch norm, rectifier and pooling in one pass, nothing stored between."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from kernels import counting
from kernels.chain import links
from kernels.implementation.compilation.graph_compilation import Compiled, GraphCompilation

__all__ = ["Fused", "OperatorFusion"]

FOLLOWERS = (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
"""What may stand behind a convolution in a chain that runs as one, in this order, each at most once."""


@dataclass(frozen=True)
class OperatorFusion:
    r"""Run each convolution of a chain together with what follows it element by element or window by window.

    .. math:: y = \mathrm{pool}\big(\max(0,\, w' * x + b')\big), \qquad
              w' = \frac{\gamma}{\sigma} w, \quad b' = \frac{\gamma}{\sigma}(b - \mu) + \beta

    Apart, each operation reads the result of the one before and writes its own: with n numbers after the convolution
    that is n written there, 2n for batch norm, 2n for the rectifier, and 1.25 n for pooling of 2 x 2. Fused, a
    quarter of n is written, once; the rest stays in the first-level cache. Batch norm, in inference, is in the
    weights.

    Everything else of the network stays as it is, in PyTorch. A compiler that takes the whole network
    (`GraphCompilation`) also chooses its layout and plans its memory; fusion alone is measured here.

    Parameters
    ----------
    pool : bool
        Whether pooling is fused too.

    Source: Alwani et al., "Fused-Layer CNN Accelerators", MICRO 2016, for intermediate results that stay on chip;
    Chen et al., "TVM", OSDI 2018, section 3, for which operations fuse.

    Examples
    --------
    >>> chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    >>> fused = OperatorFusion().fuse(chain.eval(), (1, 8, 8))
    >>> fused.describe()
    ['conv (4, 3, 3), relu, pool 2', 'Flatten']
    >>> x = torch.randn(2, 1, 8, 8)
    >>> torch.allclose(fused(x), chain(x), atol=1e-5)
    True
    """

    pool: bool = True

    def apply(self, network: nn.Module, data: Any) -> Fused:
        """The network with fused operations, for the items of a data set.

        Parameters
        ----------
        network : nn.Sequential
            Left as it is.
        data : datasets.Data
            Gives the shape of an item.
        """
        return self.fuse(network, data.train.x.shape[1:])

    def fuse(self, network: nn.Module, shape: tuple[int, ...]) -> Fused:
        """The network with fused operations, for items of a shape.

        Parameters
        ----------
        network : nn.Sequential
            Left as it is.
        shape : tuple of int

        Raises
        ------
        TypeError
            If the network is not a chain.
        """
        modules = [copy.deepcopy(module).eval() for module in links(network)]
        parts: list[nn.Module] = []
        apart = 0
        x = torch.zeros(1, *shape)
        with torch.no_grad():
            while modules:
                run = [modules.pop(0)]
                inside = tuple(x.shape[1:])
                if isinstance(run[0], nn.Conv2d):
                    for kind in FOLLOWERS if self.pool else FOLLOWERS[:2]:
                        if modules and isinstance(modules[0], kind):
                            run.append(modules.pop(0))
                for module in run:
                    before, x = x, module(x)
                    apart += 4 * (before.numel() + x.numel() + sum(p.numel() for p in module.parameters()))
                if len(run) > 1:
                    parts.append(GraphCompilation().compile(nn.Sequential(*run), inside))
                else:
                    parts.append(run[0])
        return Fused(parts, shape, apart)


class Fused(nn.Module):
    """A chain of which some parts run several operations as one, for inference.

    Attributes
    ----------
    apart : int
        Bytes that the same operations read and write for an item when each runs by itself, weights included.
    """

    def __init__(self, parts: list[nn.Module], shape: tuple[int, ...], apart: int) -> None:
        super().__init__()
        self.parts, self.shape, self.apart = nn.ModuleList(parts), tuple(shape), apart

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def describe(self) -> list[str]:
        """What each part does."""
        return [p.describe()[1] if isinstance(p, Compiled) else type(p).__name__ for p in self.parts]

    def figures(self) -> dict[str, int]:
        """What one item costs, counted part by part, since torch's counters do not see into fused ones.

        Returns
        -------
        dict
            macs, effective_macs, parameters, nonzero_parameters, stored_bits, peak_activation_bytes (the largest
            input and output of a part together), memory_access (bytes that parts read and write, weights included).
        """
        total = dict.fromkeys(("macs", "effective_macs", "parameters", "nonzero_parameters", "memory_access"), 0)
        x, peak = torch.zeros(1, *self.shape), 0
        with torch.no_grad():
            for part in self.parts:
                y = part(x)
                if isinstance(part, Compiled):
                    own = part.figures()
                    counts = {
                        name: own[name] for name in ("macs", "effective_macs", "parameters", "nonzero_parameters")
                    }
                else:
                    counts = {
                        "macs": counting.macs(part, x),
                        "effective_macs": counting.effective_macs(part, x),
                        "parameters": counting.parameters(part),
                        "nonzero_parameters": counting.nonzero_parameters(part),
                    }
                moved = 4 * (prod(x.shape) + prod(y.shape) + counts["parameters"])
                total = {name: total[name] + {**counts, "memory_access": moved}[name] for name in total}
                peak, x = max(peak, 4 * (x.numel() + y.numel())), y
        bits = 32 * total["parameters"]
        return {**total, "stored_bits": bits, "peak_activation_bytes": peak, "memory_footprint": bits // 8 + peak}
